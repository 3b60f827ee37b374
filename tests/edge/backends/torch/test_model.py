"""The torch backend against plain transformers and PEFT, and over architectures unlike LLaMA."""

import json
import shutil

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the torch extra")
peft = pytest.importorskip("peft", reason="needs the torch extra")
transformers = pytest.importorskip("transformers", reason="needs the torch extra")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from converters.adapter import Factors, LoraAdapter  # noqa: E402
from converters.bases.targets import match_targets  # noqa: E402
from converters.errors import BaseModelError  # noqa: E402
from edge.backends.batch_layout import one_row, pack_rows, row_each  # noqa: E402
from edge.backends.contract import Sampling  # noqa: E402
from edge.backends.parameters import to_vector  # noqa: E402
from edge.backends.torch import layers as torch_layers  # noqa: E402
from edge.backends.torch import model as backend  # noqa: E402
from edge.errors import OutOfMemory  # noqa: E402
from edge.training.packing import Example, build_batch  # noqa: E402

pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings(
        "ignore:.is_gradient_checkpointing:FutureWarning"
    ),  # peft asks transformers so
]
LENGTHS = (9, 5, 14, 3, 7)
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
UNLIKE = {  # each in one way that packing or label-only logits could get wrong
    "granite": {"logits_scaling": 3.0},
    "cohere": {"logit_scale": 0.25},
    "mistral": {"sliding_window": 4},
    "gemma2": {"final_logit_softcapping": 5.0, "sliding_window": 4, "query_pre_attn_scalar": 8},
    "qwen3": {},
}


@pytest.fixture(scope="module")
def model(llama_base):
    return backend.load_model(llama_base, precision="float32")


@pytest.fixture(scope="module")
def examples():
    random = np.random.default_rng(0)
    made = []
    for length in LENGTHS:
        tokens = random.integers(2, 250, length).astype(np.int32)
        made.append(Example(tokens, np.arange(length) >= length // 2))
    return made


@pytest.fixture
def packed(examples):
    return build_batch(examples)


def adapter_for(model, rank=4):
    random = np.random.default_rng(1)
    modules = match_targets(model.card.modules, ["q_proj", "v_proj"])
    return LoraAdapter(
        {
            name: Factors(
                random.normal(0, num_in**-0.5, (rank, num_in)).astype(np.float32),
                random.normal(0, 0.1, (num_out, rank)).astype(np.float32),
                1.5,
            )
            for name, (num_in, num_out) in modules.items()
        }
    )


def peft_model(base, adapter):
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj", "v_proj"], lora_dropout=0.0)
    model = peft.get_peft_model(
        transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config
    )
    for name, factors in adapter:
        layer = model.base_model.model.get_submodule(name)
        layer.lora_A.default.weight.data = torch.from_numpy(factors.a.copy())
        layer.lora_B.default.weight.data = torch.from_numpy(factors.b.copy())
    return model


def padded(examples):
    width = max(LENGTHS)
    tokens, wanted = (
        torch.zeros(len(LENGTHS), width, dtype=torch.long),
        torch.full((len(LENGTHS), width), -100),
    )
    for row, example in enumerate(examples):
        count = len(example.tokens)
        tokens[row, :count] = torch.from_numpy(example.tokens)
        wanted[row, :count] = torch.where(
            torch.from_numpy(example.labels), torch.from_numpy(example.tokens).long(), -100
        )
    mask = torch.arange(width) < torch.tensor(LENGTHS)[:, None]
    return {"input_ids": tokens, "labels": wanted, "attention_mask": mask.long()}


def test_loss_and_gradients_are_those_of_peft_on_padded_rows(llama_base, model, examples, packed):
    adapter = adapter_for(model)
    plain = peft_model(llama_base, adapter)
    loss = plain(**padded(examples)).loss
    loss.backward()
    model.set_adapter(adapter)
    model.begin(weight_decay=0.0, clip_norm=0.0)
    assert model.step([packed], 0.0) == pytest.approx(loss.item(), abs=1e-5)
    for name, _ in adapter:
        theirs = plain.base_model.model.get_submodule(name)
        for mine, other in zip(model.lora.factors(name), (theirs.lora_A, theirs.lora_B), strict=True):
            torch.testing.assert_close(mine.grad, other.default.weight.grad, rtol=1e-4, atol=1e-6)


def test_steps_are_those_of_peft_with_torchs_adamw_and_clipping(llama_base, model, examples, packed):
    adapter = adapter_for(model)
    plain = peft_model(llama_base, adapter)
    trained = [weight for weight in plain.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.01, weight_decay=0.1)
    model.set_adapter(adapter)
    model.begin(weight_decay=0.1, clip_norm=0.05)
    for _ in range(5):
        loss = plain(**padded(examples)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 0.05)
        optimizer.step()
        assert model.step([packed], 0.01) == pytest.approx(loss.item(), abs=1e-4)


def test_an_adapter_that_looks_like_the_present_one_needs_no_new_layers(model, packed):
    first = adapter_for(model)
    model.set_adapter(first)
    layers = [model.model.get_submodule(name) for name in model.lora.form]
    moved = LoraAdapter({name: Factors(f.a + 1, f.b - 1, f.scale) for name, f in first})
    model.set_adapter(moved)
    assert model.adapter() == moved
    assert [model.model.get_submodule(name) for name in model.lora.form] == layers
    model.set_adapter(LoraAdapter({name: Factors(f.a, f.b, 2 * f.scale) for name, f in moved}))
    assert model.model.get_submodule(next(iter(model.lora.form))) is not layers[0]


def test_the_base_gets_no_gradients(model, packed):
    model.set_adapter(adapter_for(model))
    model.begin(weight_decay=0.0, clip_norm=0.0)
    model.step([packed], 0.01)
    trained = {id(weight) for name in model.lora.form for weight in model.lora.factors(name)}
    assert all(weight.grad is None for weight in model.model.parameters() if id(weight) not in trained)


@pytest.mark.parametrize("layout", [one_row, pack_rows, row_each])
def test_every_layout_gives_the_same_losses(model, packed, layout, monkeypatch):
    adapter = adapter_for(model)
    model.set_adapter(adapter)
    expected = model.score(packed).loss_sum
    monkeypatch.setattr(model.forward, "layout", layout)
    assert model.score(packed).loss_sum == pytest.approx(expected, rel=1e-5)
    features = model.features(packed)
    monkeypatch.undo()
    np.testing.assert_allclose(features, model.features(packed), atol=1e-5)


@pytest.mark.parametrize("kind", UNLIKE)
def test_other_architectures_train_on_their_own_loss(kind, llama_base, examples, packed, tmp_path):
    config = transformers.AutoConfig.for_model(kind, vocab_size=258, **SMALL, **UNLIKE[kind])
    torch.manual_seed(0)
    plain = transformers.AutoModelForCausalLM.from_config(config)
    plain.eval().save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(llama_base / name, tmp_path)
    model = backend.load_model(tmp_path, precision="float32")
    with torch.inference_mode():
        expected = plain(**padded(examples)).loss.item()
    model.set_adapter(LoraAdapter({}))
    score = model.score(packed)
    assert score.loss_sum / score.weight_sum == pytest.approx(expected, abs=1e-4)
    model.set_adapter(adapter_for(model))
    model.begin(weight_decay=0.0, clip_norm=1.0)
    losses = [model.step([packed], 0.02) for _ in range(5)]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("kind", ["granite", "gemma2"])
def test_the_pull_works_where_logits_are_scaled_or_capped(kind, model, packed):
    config = transformers.AutoConfig.for_model(kind, vocab_size=258, **SMALL, **UNLIKE[kind])
    torch.manual_seed(0)
    scaled = backend.TorchModel(transformers.AutoModelForCausalLM.from_config(config), model.tokenizer, kind)
    assert not scaled.forward.has_plain_head
    trained = adapter_for(scaled)
    dispatched = LoraAdapter({name: f._replace(b=0 * f.b) for name, f in trained})
    scaled.set_adapter(trained)
    snapshot, (loss, task), moved = scaled.snapshot(), scaled.gradient([packed]), scaled.features(packed)
    scaled.set_adapter(dispatched)
    away = moved - scaled.features(packed)
    scaled.begin(weight_decay=0.0, clip_norm=0.0, pull=0.5)
    scaled.restore(snapshot)
    pulled = scaled.pull_back(packed, 2 * 0.5 / len(away) * away)
    assert scaled.step([packed], 0.0) == pytest.approx(loss, abs=1e-6)
    expected = to_vector(task) + to_vector(pulled)
    np.testing.assert_allclose(scaled.lora.gradient, expected, atol=1e-5 * np.abs(expected).max())


def test_a_head_that_scales_its_logits_is_recognised(model):
    assert model.forward.has_plain_head
    config = transformers.AutoConfig.for_model("granite", vocab_size=258, **SMALL, logits_scaling=3.0)
    scaled = backend.TorchModel(
        transformers.AutoModelForCausalLM.from_config(config), model.tokenizer, "granite"
    )
    assert not scaled.forward.has_plain_head


def test_bfloat16_follows_float32(llama_base, model, packed):
    losses = []
    for loaded in (model, backend.load_model(llama_base, precision="bfloat16")):
        loaded.set_adapter(adapter_for(loaded))
        loaded.begin(weight_decay=0.0, clip_norm=1.0)
        losses.append([loaded.step([packed], 0.01) for _ in range(10)])
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert loaded.adapter().modules[next(iter(loaded.lora.form))].a.dtype == np.float32


class Products(TorchDispatchMode):
    """The shapes that matrices are multiplied in."""

    def __init__(self):
        super().__init__()
        self.shapes = set()

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if op.overloadpacket.__name__ in ("mm", "addmm", "addmm_", "bmm", "baddbmm"):
            self.shapes.add((str(op), *(tuple(a.shape) for a in args if isinstance(a, torch.Tensor))))
        return op(*args, **(kwargs or {}))


def test_bfloat16_on_a_processor_multiplies_in_few_shapes_whatever_the_lengths(long_base):
    # oneDNN compiles and keeps a kernel for each: memory grew for as long as new lengths came.
    model = backend.load_model(long_base, precision="bfloat16")
    model.set_adapter(adapter_for(model))
    model.begin(weight_decay=0.0, clip_norm=1.0)
    random = np.random.default_rng(0)
    found = []
    for _ in range(2):
        with Products() as products:
            for _ in range(25):
                lengths = random.integers(2, 60, 4)
                tokens = [random.integers(2, 250, length).astype(np.int32) for length in lengths]
                examples = [Example(row, np.arange(len(row)) >= len(row) // 2) for row in tokens]
                model.step([build_batch(examples)], 0.001)
        found.append(products.shapes)
    assert len(found[0]) < 250
    assert len(found[1] - found[0]) < 50


def test_what_fills_up_a_row_changes_no_loss(long_base, examples):
    model = backend.load_model(long_base, precision="float32")
    model.set_adapter(adapter_for(model))
    batch = build_batch(examples)
    plain = model.score(batch), model.features(batch)
    model.begin(weight_decay=0.0, clip_norm=0.0)
    loss, gradient = model.gradient([batch])
    model.forward.fills_up = True
    score, features = model.score(batch), model.features(batch)
    filled_loss, filled = model.gradient([batch])
    assert score[2:] == plain[0][2:]
    assert score.loss_sum == pytest.approx(plain[0].loss_sum, rel=1e-6)
    np.testing.assert_allclose(features, plain[1], atol=1e-5)
    assert filled_loss == pytest.approx(loss, rel=1e-6)
    np.testing.assert_allclose(to_vector(filled), to_vector(gradient), atol=1e-6)


def test_a_target_of_no_probability_has_a_finite_loss(model):
    head = torch.nn.Linear(2, 2, bias=False)
    head.weight.data = torch.tensor([[200.0, 0.0], [0.0, 0.0]])
    hidden = torch.tensor([[1.0, 0.0]], requires_grad=True)
    loss = torch_layers.HeadLoss.apply(hidden, head, torch.tensor([1]), torch.tensor([0.5]))
    assert loss.item() == pytest.approx(100.0)  # half of log(e^200 + 1)
    loss.backward()
    assert hidden.grad.tolist() == [[100.0, 0.0]]


def test_prompts_of_unlike_lengths_are_continued_as_if_alone(model):
    model.set_adapter(adapter_for(model))
    prompts = [[0, 5, 6, 7], [0, 9], [0, *range(20, 60)], [0] * 120]
    together = model.generate(prompts, Sampling(max_tokens=10))
    assert together == [model.generate([prompt], Sampling(max_tokens=10))[0] for prompt in prompts]
    assert len(together[3]) <= 128 - 120


def test_memory_that_cannot_be_had_is_its_own_error():
    with pytest.raises(OutOfMemory, match="backend torch"), backend.mapped_errors():
        torch.empty(1 << 60)


def test_a_folder_that_is_no_model_is_refused_in_one_line(tmp_path):
    with pytest.raises(BaseModelError, match="transformers cannot load it") as caught:
        backend.load_model(tmp_path)
    assert "\n" not in str(caught.value)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "unheard-of"}))
    with pytest.raises(BaseModelError, match="transformers cannot load it"):
        backend.load_model(tmp_path)
