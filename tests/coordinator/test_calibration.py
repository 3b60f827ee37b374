import json
import threading

import numpy as np
import pytest

from converters.adapter import Factors, LoraAdapter, initial_adapter
from converters.bases.read import read_base
from converters.bases.targets import match_targets
from coordinator.calibration import Calibration
from edge.backends import load_model
from edge.backends.toy import make_toy_base
from edge.errors import DataError

ROWS = [
    {"prompt": text[:3], "completion": text[3:]} for text in ("one two", "three", "fourteen", "nine lives")
]


@pytest.fixture
def base(tmp_path):
    return make_toy_base(tmp_path / "base", dim=8)


def calibration_of(base, tmp_path, rows=ROWS, **changes):
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"seq_tokens": 64, "batch_tokens": 16} | changes
    return Calibration(base, tmp_path / "d.jsonl", **settings)


def adapter_of(base, seed, size=0.3):
    modules = match_targets(read_base(base).modules, ["q_proj", "o_proj"])
    random = np.random.default_rng(seed)
    return LoraAdapter(
        {
            name: Factors(
                (size * random.standard_normal((2, num_in))).astype(np.float32),
                (size * random.standard_normal((num_out, 2))).astype(np.float32),
                1.0,
            )
            for name, (num_in, num_out) in modules.items()
        }
    )


def moved(adapter, direction, size):
    return LoraAdapter(
        {
            name: Factors(
                f.a + size * direction.modules[name].a, f.b + size * direction.modules[name].b, f.scale
            )
            for name, f in adapter
        }
    )


def inner(x, y):
    return sum(np.vdot(f.a, y.modules[name].a) + np.vdot(f.b, y.modules[name].b) for name, f in x)


def test_a_better_adapter_has_a_lower_loss_and_no_adapter_is_the_base(tmp_path, base):
    calibration = calibration_of(base, tmp_path, [{"prompt": "on", "completion": "x"}])
    modules = match_targets(read_base(base).modules, ["o_proj"])
    plain = calibration.score(initial_adapter(modules, rank=2, scale=1.0, seed=0))
    assert plain == calibration.score(initial_adapter(modules, rank=2, scale=1.0, seed=1))
    assert 0 < plain.loss < 50
    assert 0 <= plain.exact <= 1
    assert calibration.loss(adapter_of(base, 0)) != plain.loss


def test_the_gradient_is_that_of_the_loss_over_all_batches(tmp_path, base):
    calibration = calibration_of(base, tmp_path, probe_tokens=1)
    adapter, direction = adapter_of(base, 0), adapter_of(base, 1)
    slope = (
        calibration.loss(moved(adapter, direction, 1e-2)) - calibration.loss(moved(adapter, direction, -1e-2))
    ) / 2e-2
    assert inner(calibration.gradient(adapter), direction) == pytest.approx(slope, rel=1e-2)


def test_pulling_back_is_the_gradient_of_the_features_over_all_batches(tmp_path, base):
    calibration = calibration_of(base, tmp_path)
    adapter, direction = adapter_of(base, 0), adapter_of(base, 1)
    cotangent = np.random.default_rng(2).standard_normal((4, 8)).astype(np.float32)
    ends = [calibration.features(moved(adapter, direction, size)) for size in (1e-2, -1e-2)]
    slope = np.vdot(cotangent, ends[0] - ends[1]) / 2e-2
    assert inner(calibration.pull_back(adapter, cotangent), direction) == pytest.approx(slope, rel=1e-2)


def test_features_are_taken_of_examples_from_all_over_the_file_and_the_loss_of_all(tmp_path, base):
    whole, probed = (calibration_of(base, tmp_path, probe_tokens=n) for n in (512, 20))
    adapter = adapter_of(base, 0)
    assert whole.features(adapter).shape == (4, 8)
    assert probed.features(adapter).shape == (2, 8)  # 30 tokens of text and 4 ends in four examples
    assert probed.loss(adapter) == whole.loss(adapter)


class Counted:
    """A model whose passes are counted."""

    def __init__(self, model):
        self._model = model
        self.num_passes = 0

    def __getattr__(self, name):
        return getattr(self._model, name)

    def score(self, batch):
        self.num_passes += 1
        return self._model.score(batch)


def test_the_last_two_scores_are_remembered_and_every_other_adapter_is_computed(tmp_path, base):
    calibration = calibration_of(  # all examples in one pass
        base,
        tmp_path,
        batch_tokens=256,
        load=lambda *names, **settings: Counted(load_model(*names, **settings)),
    )
    model = calibration.load()[0]

    def num_passes(seed):
        before = model.num_passes
        known = calibration.score(adapter_of(base, seed))  # an equal adapter, never the same object
        assert known == calibration_of(base, tmp_path, batch_tokens=256).score(adapter_of(base, seed))
        return model.num_passes - before

    assert [num_passes(seed) for seed in (0, 0, 1, 0, 1, 2, 1, 0)] == [1, 0, 1, 0, 0, 1, 0, 1]


def test_threads_take_turns_with_the_one_model(tmp_path, base):
    calibration = calibration_of(base, tmp_path)
    adapters = [adapter_of(base, seed) for seed in range(4)]
    alone = [calibration.features(adapter) for adapter in adapters]
    found = {}

    def ask(number):
        found[number] = [calibration.features(adapters[number]) for _ in range(20)]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(alone[number], one) for number in range(4) for one in found[number])


def test_data_that_cannot_be_used_is_told_with_its_line(tmp_path, base):
    (tmp_path / "d.jsonl").write_text('{"text": "a"}\nnothing\n')
    calibration = Calibration(base, tmp_path / "d.jsonl", seq_tokens=64, batch_tokens=64)
    with pytest.raises(DataError, match="2"):
        calibration.load()


def test_a_file_that_is_not_there_is_told_by_its_name(tmp_path, base):
    with pytest.raises(DataError, match=r"gone\.jsonl: cannot be read"):
        Calibration(base, tmp_path / "gone.jsonl", seq_tokens=64, batch_tokens=64).load()


def test_a_file_without_labels_is_told(tmp_path, base):
    with pytest.raises(DataError, match=r"1 has an empty completion \(line 1\)"):
        calibration_of(base, tmp_path, [{"prompt": "on", "completion": ""}]).load()


def test_token_ids_are_no_calibration_set_as_they_are_of_one_tokenizer(tmp_path, base):
    with pytest.raises(DataError, match=r"columns of no known form \(input_ids\) \(line 1\); expected text"):
        calibration_of(base, tmp_path, [{"input_ids": [1, 2, 3]}]).load()


@pytest.mark.torch
def test_a_tokenizer_of_another_model_is_told_by_the_token_that_the_base_lacks(tmp_path):
    pytest.importorskip("torch")
    from benchmarks.models import Shape, write_llama

    write_llama(tmp_path / "base", Shape(16, 1, 2, 2, 16, vocabulary=90))
    with pytest.raises(DataError, match=r"reads token \d+ in it, and the base model has 90 tokens"):
        calibration_of(tmp_path / "base", tmp_path, [{"text": "zebra"}]).load()


@pytest.mark.torch
def test_text_that_is_nearly_all_unknown_to_the_tokenizer_is_told(tmp_path):
    pytest.importorskip("torch")
    from benchmarks.models import Shape, write_llama

    write_llama(tmp_path / "base", Shape(16, 1, 2, 2, 16, vocabulary=300))
    tokenizer = json.loads((tmp_path / "base/tokenizer.json").read_text())
    known = {"<unk>": 0, "on": 1, "the": 2, "lamp": 3}
    special = {"content": "<unk>", "special": True, "single_word": False, "lstrip": False, "rstrip": False}
    tokenizer |= {
        "added_tokens": [{"id": 0, "normalized": False, **special}],
        "pre_tokenizer": {"type": "Whitespace"},
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": known, "unk_token": "<unk>"},
    }
    (tmp_path / "base/tokenizer.json").write_text(json.dumps(tokenizer))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>"}
    (tmp_path / "base/tokenizer_config.json").write_text(json.dumps(settings))
    calibration_of(tmp_path / "base", tmp_path, [{"text": "the lamp on"}]).load()
    with pytest.raises(DataError, match="does not know 3 of its 4 tokens"):
        calibration_of(tmp_path / "base", tmp_path, [{"text": "die Lampe brennt on"}]).load()


def test_what_versions_are_scored_in_is_told(tmp_path, base):
    event = calibration_of(base, tmp_path).loaded()
    assert event.text == f"{tmp_path / 'd.jsonl'} is read with toy in float32"
    assert event.facts["precision"] == "float32"


@pytest.mark.torch
def test_versions_are_scored_in_float32_unless_asked(tmp_path, make_model):
    pytest.importorskip("peft", reason="needs the torch extra")
    asked = {"auto": ("float32", "bfloat16"), "bfloat16": ("bfloat16",), "float32": ("float32",)}
    for precision, expected in asked.items():
        calibration = calibration_of(make_model("llama"), tmp_path, precision=precision)
        assert calibration.loaded().facts["precision"] in expected
    assert calibration_of(make_model("llama"), tmp_path).loaded().facts["precision"] == "float32"
