import numpy as np
import pytest

from converters.adapter import Factors, LoraAdapter
from converters.bases.read import read_base
from converters.errors import BaseModelError
from edge.backends import choose_backend
from edge.backends.toy import PROJECTIONS, load, make_toy_base
from edge.errors import BackendError, OutOfMemory
from edge.training.packing import Example, build_batch


@pytest.fixture
def batch():
    random = np.random.default_rng(0)
    examples = [
        Example(random.integers(0, 256, n).astype(np.int32), np.arange(n) > n // 2) for n in (9, 5, 12)
    ]
    return build_batch(examples)


def test_gradients_are_those_of_finite_differences(toy_base, batch):
    model, random = load(toy_base), np.random.default_rng(1)
    model.set_adapter(
        LoraAdapter(
            {
                name: Factors(
                    random.normal(0, 0.2, (3, 32)).astype("f4"),
                    random.normal(0, 0.2, (32, 3)).astype("f4"),
                    2.0,
                )
                for name in PROJECTIONS
            }
        )
    )
    before = model.adapter()
    # With plain AdamW moments after one step, the first moment is a tenth of the gradient.
    model.step([batch], 0.0)
    moments = {name: 10 * array for name, array in model.snapshot().items() if name.startswith("first.")}
    total = float(batch.weights.sum())
    for name, factors in before:
        for kind, at in (("a", (1, 3)), ("b", (3, 1))):
            losses = []
            for shift in (0.01, -0.01):
                moved = {"a": factors.a.copy(), "b": factors.b.copy()}
                moved[kind][at] += shift
                model.set_adapter(LoraAdapter({**before.modules, name: Factors(moved["a"], moved["b"], 2.0)}))
                losses.append(model.score(batch).loss_sum / total)
            slope = (losses[0] - losses[1]) / 0.02
            assert moments[f"first.{name}.{kind}"][at] == pytest.approx(slope, rel=2e-3, abs=1e-5)


def test_the_same_seed_makes_the_same_base(tmp_path):
    one, same, other = (
        make_toy_base(tmp_path / name, seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert read_base(one).fingerprint == read_base(same).fingerprint != read_base(other).fingerprint


def test_every_module_that_can_be_trained_is_read_from_the_files(toy_base):
    modules = read_base(toy_base).modules
    assert all(modules[name] == shape for name, shape in load(toy_base).card.modules.items())


def test_a_toy_base_chooses_its_backend(toy_base):
    assert choose_backend(toy_base).name == "toy"


def test_a_folder_that_is_no_toy_base_is_refused(tmp_path):
    with pytest.raises(BaseModelError, match="is no toy base"):
        load(tmp_path)


def test_numpy_has_no_bfloat16(toy_base):
    with pytest.raises(BackendError, match="float32 only"):
        load(toy_base, precision="bfloat16")


def test_a_small_device_runs_out_of_memory(tmp_path, batch):
    model = load(make_toy_base(tmp_path, memory_tokens=16))
    with pytest.raises(OutOfMemory, match="more than 16 tokens"):
        model.step([batch], 0.1)
