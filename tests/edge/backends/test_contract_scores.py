"""Every backend counts the same: examples, labels, exact matches and accuracies, whatever the lengths."""

import json

import numpy as np
import pytest

from converters.adapter import initial_adapter
from converters.bases.targets import match_targets
from edge.backends import load_model
from edge.backends.batch_layout import pack_rows
from edge.training.data.dataset import load_dataset
from edge.training.data.source import DataSource
from edge.training.packing import build_batch, iterate_batches
from edge.training.scoring import score_dataset

WORDS = ("on", "off", "left", "right", "up", "down", "in", "out")
SEQ_TOKENS = 300
TOLERANCE = 1e-4  # of the mean loss, in float32; test_parity.py has what whole runs differ by
SIZES = (SEQ_TOKENS, 700, 4096)  # tokens of a batch: from one long example to nearly all of the data


def torch_packed(base):
    """As on a GPU: several examples a row, transformers' own attention."""
    model = load_model("torch", base)
    model.model.set_attn_implementation("sdpa")
    model.forward.layout = pack_rows
    return model


def mlx_packed(base):
    """As on a GPU: several examples a row, and shapes filled up."""
    model = load_model("mlx", base)
    model.forward.is_packing = model.forward.is_compiling = True
    return model


CONTESTANTS = {  # name to library, fixture of the base, and how it is loaded
    "toy": ("numpy", "toy_base", lambda base: load_model("toy", base)),
    "torch": ("peft", "long_base", lambda base: load_model("torch", base)),
    "torch packed": ("peft", "long_base", torch_packed),
    "mlx": ("mlx_lm", "long_base", lambda base: load_model("mlx", base)),
    "mlx packed": ("mlx_lm", "long_base", mlx_packed),
    "llama_cpp": ("llama_cpp", "long_gguf", lambda base: load_model("llama_cpp", base)),
}
EXTRAS = {"toy": [], "torch": ["torch"], "mlx": ["mlx", "torch"], "llama_cpp": ["llama", "torch"]}


@pytest.fixture(scope="session")
def long_gguf(long_base):
    pytest.importorskip("gguf", reason="needs the llama extra")
    from converters.gguf_export.model import write_gguf

    write_gguf(long_base, long_base / "model.gguf")
    return long_base / "model.gguf"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Many short rows that can be learnt, some of them often, and others of all lengths, some too long."""
    random = np.random.default_rng(0)

    def letters(count):
        return "".join(random.choice(list("abcdefgh "), count))

    rows = [{"prompt": f"turn {word} ", "completion": word.upper()} for word in WORDS * 8]
    rows += [{"prompt": letters(n % 4 + 1), "completion": letters(n % 7 + 1)} for n in range(300)]
    rows += [{"prompt": letters(n), "completion": letters(1)} for n in (1, 2, 90, 290, 299, 310)]
    rows += [{"prompt": "a", "completion": letters(n)} for n in (1, 1, 40, 250, 297, 298, 299, 300, 500)]
    rows += [
        {"text": letters(n)} for n in (1, 7, 200, 299, 300, 900, 901)
    ]  # the last two leave a rest of 2, 3
    rows += [{"prompt": letters(400), "completion": letters(40)}] * 3
    path = tmp_path_factory.mktemp("unlike") / "data.jsonl"
    path.write_text("\n".join(json.dumps(rows[index]) for index in random.permutation(len(rows))))
    return DataSource(path=str(path))


def learn(model, data):
    """An adapter that answers some of the short rows exactly."""
    examples = load_dataset(data, model.tokenizer, seq_tokens=SEQ_TOKENS).examples
    short = [example for example in examples if len(example.tokens) < 20]
    modules = match_targets(model.card.modules, ["q_proj", "v_proj", "o_proj"])
    model.set_adapter(initial_adapter(modules, rank=4, scale=2.0, seed=0))
    model.begin(weight_decay=0.0, clip_norm=1.0)
    batches = iterate_batches(short, seq_tokens=64, batch_tokens=512, seed=0)
    for _ in range(120):
        model.step([next(batches)], 0.02)
    return model.adapter()


@pytest.fixture(scope="module")
def reference(request, data):
    """`reference(name)`: an adapter, and the sums over all examples, each scored alone by toy or torch."""
    found = {}

    def refer(name):
        if name not in found:
            library, base, load = CONTESTANTS[name]
            pytest.importorskip(library, reason=f"needs the {name} extra")
            model = load(request.getfixturevalue(base))
            adapter = learn(model, data)
            examples = load_dataset(data, model.tokenizer, seq_tokens=SEQ_TOKENS).examples
            alone = (build_batch([example]) for example in examples)
            found[name] = adapter, np.sum([model.score(batch) for batch in alone], axis=0)
        return found[name]

    return refer


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=[getattr(pytest.mark, extra) for extra in EXTRAS[name.split()[0]]])
        for name in CONTESTANTS
    ],
)
def contestant(request, reference):
    library, base, load = CONTESTANTS[request.param]
    pytest.importorskip(library, reason=f"needs the extra of {request.param}")
    adapter, sums = reference("toy" if request.param == "toy" else "torch")
    model = load(request.getfixturevalue(base))
    model.set_adapter(adapter)
    return model, sums


def test_the_data_is_as_unlike_as_it_claims(contestant, data):
    model, sums = contestant
    dataset = load_dataset(data, model.tokenizer, seq_tokens=SEQ_TOKENS)
    labels = [int(example.labels.sum()) for example in dataset.examples]
    assert (min(labels), max(labels)) == (1, SEQ_TOKENS)
    assert dataset.num_truncated >= 8
    assert 4 <= sums[4] < len(labels)  # some are exact, and not all


@pytest.mark.parametrize("batch_tokens", SIZES)
def test_every_example_and_every_label_counts_once(contestant, data, batch_tokens):
    model, _ = contestant
    dataset = load_dataset(data, model.tokenizer, seq_tokens=SEQ_TOKENS)
    found = score_dataset(model, dataset, seq_tokens=SEQ_TOKENS, batch_tokens=batch_tokens)
    assert found.num_examples == len(dataset.examples)
    assert found.num_labels == sum(int(example.labels.sum()) for example in dataset.examples)
    assert found.num_truncated == dataset.num_truncated


@pytest.mark.parametrize("batch_tokens", SIZES)
def test_loss_accuracy_and_exact_matches_are_those_of_examples_scored_alone(contestant, data, batch_tokens):
    model, (loss, weight, correct, labels, exact, examples) = contestant
    dataset = load_dataset(data, model.tokenizer, seq_tokens=SEQ_TOKENS)
    found = score_dataset(model, dataset, seq_tokens=SEQ_TOKENS, batch_tokens=batch_tokens)
    assert found.exact_match * found.num_examples == pytest.approx(exact)
    assert found.accuracy * found.num_labels == pytest.approx(correct)
    assert (found.num_examples, found.num_labels) == (examples, labels)
    assert found.loss == pytest.approx(loss / weight, abs=TOLERANCE)
