"""One suite over every backend: what `edge.backends.contract` promises."""

import json

import numpy as np
import pytest

from converters.adapter import Factors, LoraAdapter, initial_adapter
from converters.bases.read import read_base
from converters.bases.targets import match_targets
from converters.errors import UnsupportedAdapter
from edge.backends.contract import Sampling
from edge.errors import DataError
from edge.training.data.dataset import encode_prompt, load_dataset
from edge.training.data.source import DataSource
from edge.training.packing import build_batch, split_batch

WORDS = ("on", "off", "left", "right", "up", "down", "in", "out")


def begin(model, adapter, *, clip_norm=1.0):
    model.set_adapter(adapter)
    model.begin(weight_decay=0.01, clip_norm=clip_norm)


def mean_loss(model, batch):
    score = model.score(batch)
    return score.loss_sum / score.weight_sum


def test_an_adapter_comes_back_bit_for_bit(model, random_adapter):
    adapter = random_adapter()
    model.set_adapter(adapter)
    assert model.adapter() == adapter


def test_modules_of_unlike_ranks_and_scales_come_back_bit_for_bit(model, random_adapter):
    (first, one), (second, two), *_ = random_adapter()
    adapter = LoraAdapter(
        {first: Factors(one.a[:1], one.b[:, :1], 0.3), second: Factors(two.a[:3], two.b[:, :3], 7.0)}
    )
    model.set_adapter(adapter)
    assert model.adapter() == adapter


def test_every_module_that_does_not_fit_is_named_at_once(model, random_adapter):
    adapter = random_adapter()
    (name, factors), *_ = adapter
    wide = Factors(np.zeros((4, 7), np.float32), factors.b, 1.0)
    wrong = LoraAdapter({**adapter.modules, name: wide, "model.layers.99.self_attn.q_proj": factors})
    with pytest.raises(UnsupportedAdapter) as caught:
        model.set_adapter(wrong)
    assert name in str(caught.value)
    assert "model.layers.99.self_attn.q_proj" in str(caught.value)


def test_a_refused_adapter_leaves_the_old_one(model, random_adapter):
    adapter = random_adapter()
    model.set_adapter(adapter)
    with pytest.raises(UnsupportedAdapter):
        model.set_adapter(
            LoraAdapter({"nowhere": Factors(np.ones((1, 2), "f4"), np.ones((2, 1), "f4"), 1.0)})
        )
    assert model.adapter() == adapter


def test_an_adapter_whose_b_is_zero_scores_like_the_base(model, batch, random_adapter):
    model.set_adapter(LoraAdapter({}))
    base = mean_loss(model, batch)
    model.set_adapter(random_adapter(b_size=0.0))
    assert mean_loss(model, batch) == pytest.approx(base, abs=1e-6)
    model.set_adapter(random_adapter())
    assert mean_loss(model, batch) != pytest.approx(base, abs=1e-3)


def test_a_step_returns_the_loss_before_it(model, batch, random_adapter):
    begin(model, random_adapter())
    before = mean_loss(model, batch)
    assert model.step([batch], 0.01) == pytest.approx(before, abs=1e-5)


def test_steps_lower_the_loss(model, batch, random_adapter):
    begin(model, random_adapter(b_size=0.0))
    losses = [model.step([batch], 0.01) for _ in range(20)]
    assert losses[-1] < 0.8 * losses[0]


def test_a_step_at_rate_0_changes_nothing(model, batch, random_adapter):
    adapter = random_adapter()
    begin(model, adapter)
    model.step([batch], 0.0)
    assert model.adapter() == adapter


def test_the_first_step_moves_every_entry_by_the_rate(model, batch, random_adapter):
    # AdamW's first step is lr * sign(gradient), besides lr * weight_decay * weight.
    adapter = random_adapter()
    model.set_adapter(adapter)
    model.begin(weight_decay=0.0, clip_norm=0.0)
    model.step([batch], 0.01)
    for name, factors in model.adapter():
        moved = np.abs(factors.b - adapter.modules[name].b)
        assert np.median(moved) == pytest.approx(0.01, rel=1e-3)


def test_every_module_on_the_card_is_trained(model, batch, random_adapter):
    adapter = random_adapter(targets=list(model.card.modules))
    assert set(adapter.modules) == set(model.card.modules)
    begin(model, adapter)
    model.step([batch], 0.01)
    for name, factors in model.adapter():
        for matrix, old in zip(factors[:2], adapter.modules[name][:2], strict=True):
            assert np.abs(matrix - old).max() > 0.005, name


def test_all_linear_layers_of_the_last_block_are_trained(model, batch, request):
    base = {"toy": "toy_base", "llama_cpp": "llama_gguf"}.get(model.card.backend, "llama_base")
    modules = read_base(request.getfixturevalue(base)).modules
    assert match_targets(modules, ["all-linear"]).keys() == model.card.modules.keys()
    last = match_targets(modules, ["all-linear"], 1)
    blocks = sorted({name.split(".")[2] for name in model.card.modules})
    assert {name.split(".")[2] for name in last} == {blocks[-1]}
    adapter = initial_adapter(last, rank=2, scale=2.0, seed=0)
    begin(model, adapter)
    model.step([batch], 0.01)
    assert model.adapter() != adapter


def test_micro_batches_make_the_same_step(model, batch, random_adapter):
    results = []
    for parts in ([batch], split_batch(batch, 64)):
        begin(model, random_adapter())
        losses = [model.step(parts, 0.001) for _ in range(3)]
        results.append((losses, model.adapter()))
    assert len(split_batch(batch, 64)) > 1
    (whole, together), (split, apart) = results
    assert split == pytest.approx(whole, abs=1e-5)
    for name, factors in together:
        np.testing.assert_allclose(apart.modules[name].b, factors.b, atol=2e-4)


def test_examples_of_a_batch_do_not_see_each_other(model, dataset, random_adapter):
    model.set_adapter(random_adapter())
    together = model.score(build_batch(dataset.examples))
    alone = [model.score(build_batch([example])) for example in dataset.examples]
    assert together.loss_sum == pytest.approx(sum(score.loss_sum for score in alone), rel=1e-5)
    assert together.num_labels == sum(score.num_labels for score in alone)
    assert together.num_examples == len(dataset.examples)


def test_examples_of_a_batch_train_as_if_alone(model, dataset, random_adapter):
    losses = []
    for batches in ([build_batch(dataset.examples)], [build_batch([one]) for one in dataset.examples]):
        begin(model, random_adapter())
        losses.append([model.step(batches, 0.001) for _ in range(3)])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_a_restored_snapshot_goes_on_bit_for_bit(model, batch, random_adapter):
    first = random_adapter()
    begin(model, first)
    for _ in range(3):
        model.step([batch], 0.01)
    snapshot = model.snapshot()
    losses = [model.step([batch], 0.01) for _ in range(3)]
    after = model.adapter()
    begin(model, first)
    model.step([batch], 0.05)
    begin(model, first)
    model.restore(snapshot)
    assert [model.step([batch], 0.01) for _ in range(3)] == losses
    assert model.adapter() == after


def test_scores_between_steps_change_no_step(model, dataset, batch, random_adapter):
    other = build_batch(dataset.examples[:3])
    runs = []
    for scores in (False, True):
        begin(model, random_adapter())
        losses = []
        for _ in range(4):
            losses.append(model.step([batch], 0.01))
            if scores:
                model.score(other)
                model.score(batch)
        runs.append((losses, model.adapter()))
    assert runs[0] == runs[1]


def test_a_snapshot_is_a_copy(model, batch, random_adapter):
    begin(model, random_adapter())
    model.step([batch], 0.01)
    snapshot = model.snapshot()
    kept = {name: array.copy() for name, array in snapshot.items()}
    model.step([batch], 0.01)
    assert all(np.array_equal(snapshot[name], kept[name]) for name in kept)


def test_setting_an_adapter_forgets_the_optimizer(model, batch, random_adapter):
    losses = []
    for _ in range(2):
        begin(model, random_adapter())
        losses.append([model.step([batch], 0.01) for _ in range(3)])
    assert losses[0] == losses[1]


def test_exact_examples_are_those_that_greedy_decoding_produces(model, dataset, batch, random_adapter):
    begin(model, random_adapter(b_size=0.0))
    for _ in range(60):
        model.step([batch], 0.02)
    completions = [example.tokens[example.labels].tolist()[:-1] for example in dataset.examples]
    prompts = [encode_prompt(model.tokenizer, f"turn {word} ") for word in WORDS]
    generated = model.generate(prompts, Sampling(max_tokens=8))
    hits = [found == wanted for found, wanted in zip(generated, completions, strict=True)]
    assert sum(hits) == model.score(batch).num_exact
    assert any(hits)  # and so generation ends at the end-of-sequence token, which is left out
    assert all(model.tokenizer.eos_id not in tokens for tokens in generated)


def test_generation_stops_at_max_tokens(model):
    model.set_adapter(LoraAdapter({}))
    (tokens,) = model.generate([encode_prompt(model.tokenizer, "turn ")], Sampling(max_tokens=3))
    assert len(tokens) <= 3


def test_sampling_is_repeated_by_its_seed(model):
    model.set_adapter(LoraAdapter({}))
    prompts = [encode_prompt(model.tokenizer, "turn ")]
    one, again, other = (
        model.generate(prompts, Sampling(max_tokens=12, temperature=1.0, seed=seed)) for seed in (0, 0, 1)
    )
    assert one == again
    assert one != other


def test_tokens_are_told_as_they_come(model):
    model.set_adapter(LoraAdapter({}))
    prompts = [encode_prompt(model.tokenizer, text) for text in ("turn ", "on", "switch it off ")]
    told = [[] for _ in prompts]
    found = model.generate(
        prompts,
        Sampling(max_tokens=9, temperature=1.0, seed=2),
        on_token=lambda index, token: told[index].append(token),
    )
    assert told == found
    assert any(found)


def test_any_of_several_tokens_ends_a_completion_and_is_left_out(model):
    model.set_adapter(LoraAdapter({}))
    prompts = [encode_prompt(model.tokenizer, "turn ")]
    (whole,) = model.generate(prompts, Sampling(max_tokens=12, temperature=1.0, seed=3), ends=())
    assert len(whole) == 12
    ends = {whole[5], whole[9]}
    (cut,) = model.generate(prompts, Sampling(max_tokens=12, temperature=1.0, seed=3), ends=ends)
    assert cut == whole[: next(place for place, token in enumerate(whole) if token in ends)]


def test_a_small_top_p_leaves_the_most_likely_token_alone(model):
    model.set_adapter(LoraAdapter({}))
    prompts = [encode_prompt(model.tokenizer, "turn ")]
    greedy = model.generate(prompts, Sampling(max_tokens=8))
    assert model.generate(prompts, Sampling(max_tokens=8, temperature=2.0, top_p=1e-4, seed=1)) == greedy
    assert model.generate(prompts, Sampling(max_tokens=8, temperature=2.0, seed=1)) != greedy


def test_a_text_never_grows_beyond_the_context(model):
    model.set_adapter(LoraAdapter({}))
    length = model.card.max_tokens - 3
    prompt = (encode_prompt(model.tokenizer, "turn ") * length)[:length]
    (tokens,) = model.generate([prompt], Sampling(max_tokens=50), ends=())
    assert len(tokens) == 3


def test_features_are_one_vector_an_example(model, dataset, batch, random_adapter):
    model.set_adapter(random_adapter())
    features = model.features(batch)
    assert features.shape == (len(WORDS), 32)
    assert features.dtype == np.float32
    for index, row in enumerate(features):
        alone = model.features(batch.select([index]))
        np.testing.assert_allclose(row, alone[0], atol=1e-5)


def test_the_base_is_left_as_it_was(model, batch, random_adapter):
    model.set_adapter(LoraAdapter({}))
    before = model.score(batch)
    begin(model, random_adapter())
    for _ in range(5):
        model.step([batch], 0.05)
    model.set_adapter(LoraAdapter({}))
    assert model.score(batch) == before


def test_text_comes_back_from_its_tokens(model):
    for text in ("turn on ", "Grüße, 你好!\n", ""):
        assert model.tokenizer.decode(model.tokenizer.encode(text)) == text


def test_encoding_adds_no_special_tokens(model):
    tokens = model.tokenizer.encode("turn on")
    assert model.tokenizer.bos_id not in tokens
    assert model.tokenizer.eos_id not in tokens


def test_the_tokens_that_end_a_text_are_known(model):
    assert model.tokenizer.eos_id in model.tokenizer.end_ids
    assert all(model.tokenizer.decode([token]) == "" for token in model.tokenizer.end_ids)


def test_messages_are_rendered_by_the_chat_template(model):
    assert model.tokenizer.has_chat_template
    messages = [{"role": "user", "content": "hi"}]
    assert model.tokenizer.render(messages, add_generation_prompt=True) == "<user>hi\n<assistant>"
    with_answer = [*messages, {"role": "assistant", "content": "ho"}]
    assert model.tokenizer.render(with_answer, add_generation_prompt=False) == "<user>hi\n<assistant>ho\n"


def test_messages_train_on_the_assistant_only(model, tmp_path):
    path = tmp_path / "chat.jsonl"
    turns = [("user", "hi"), ("assistant", "ho"), ("user", "so"), ("assistant", "la")]
    path.write_text(json.dumps({"messages": [{"role": role, "content": text} for role, text in turns]}))
    try:
        (example,) = load_dataset(DataSource(path=str(path)), model.tokenizer, seq_tokens=64).examples
    except DataError as error:
        pytest.fail(str(error))
    labelled = model.tokenizer.decode(example.tokens[example.labels].tolist())
    assert labelled == "ho\nla\n"
    assert example.tokens[-1] == model.tokenizer.eos_id
