"""`auto` takes the precision that a model trains faster in, and says what it saw."""

import numpy as np
import pytest

from converters.adapter import LoraAdapter
from edge.backends import load_model
from edge.backends.precision import load_faster, measure_speeds, trial_batch
from edge.backends.toy import ToyModel
from edge.backends.toy import load as load_toy
from edge.errors import BackendError, OutOfMemory

ROOM = 1e12


class Clock:
    """Seconds that pass only when a model takes a step."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Timed(ToyModel):
    """A toy that says it computes in a precision, and takes its time."""

    def take(self, clock, seconds, precision="float32"):
        self.clock, self.seconds = clock, seconds
        self.card = self.card._replace(precision=precision)
        return self

    def step(self, batches, lr):
        self.clock.now += self.seconds
        if self.seconds < 0:
            raise OutOfMemory("too little")
        return super().step(batches, lr)


@pytest.fixture
def make_timed(toy_base):
    def make(*arguments):
        plain = load_toy(toy_base)
        return Timed(plain.weights, plain.card.max_tokens, 0).take(*arguments)

    return make


@pytest.fixture
def load_timed(make_timed):
    """`load_timed(half, full, free=ROOM)`: what is loaded where a step takes so many seconds, and why."""

    def load(half, full, free=ROOM, size=None):
        clock, loaded = Clock(), []

        def one(precision):
            loaded.append(precision)
            model = make_timed(clock, {"bfloat16": half, "float32": full}[precision], precision)
            model.card = model.card._replace(num_parameters=size or model.card.num_parameters)
            return model

        model, why = load_faster(one, lambda: free, clock)
        return model, why, loaded

    return load


def test_bfloat16_is_taken_where_it_is_faster(load_timed):
    model, why, _ = load_timed(1.0, 2.0)
    assert model.card.precision == "bfloat16"
    assert why == "tried: 1,024 tokens/s in bfloat16, 512 in float32"


@pytest.mark.parametrize("half", [0.95, 1.0, 2.0])
def test_float32_is_taken_where_bfloat16_is_not_clearly_faster(load_timed, half):
    model, why, _ = load_timed(half, 1.0)
    assert model.card.precision == "float32"
    assert "1,024 in float32" in why


def test_a_model_that_does_not_fit_twice_is_not_tried(load_timed):
    model, why, loaded = load_timed(1.0, 0.5, free=1e4)
    assert (model.card.precision, loaded) == ("bfloat16", ["bfloat16"])
    assert why.startswith("not tried: float32 needs 0.0 GB")


def test_a_model_of_billions_is_not_tried(load_timed):
    model, why, loaded = load_timed(1.0, 0.5, size=7_000_000_000)
    assert (model.card.precision, loaded) == ("bfloat16", ["bfloat16"])
    assert why.startswith("not tried: 7,000 M parameters")


def test_a_float32_that_runs_out_of_memory_is_not_taken(load_timed):
    model, why, _ = load_timed(1.0, -1.0)
    assert model.card.precision == "bfloat16"
    assert "does not fit" in why


def test_a_trial_leaves_no_adapter_and_ends_in_time(make_timed):
    clock = Clock()
    models = [make_timed(clock, 5.0), make_timed(clock, 10.0)]
    assert measure_speeds(models, clock) == [1024 / 5, 1024 / 10]
    assert clock.now == 2 * (5.0 + 10.0)  # a step to warm up and one that counts
    assert all(model.adapter() == LoraAdapter({}) for model in models)


@pytest.mark.parametrize(
    ("size", "least", "most"), [(10**5, 900, 1024), (10**8, 128, 128), (10**12, 128, 128)]
)
def test_a_larger_model_is_tried_on_fewer_tokens(toy_base, size, least, most):
    model = load_toy(toy_base)
    model.card = model.card._replace(num_parameters=size)
    batch = trial_batch(model)
    assert least <= batch.num_tokens <= most
    assert 0 < np.count_nonzero(batch.weights) < batch.num_tokens


@pytest.mark.torch
def test_torch_says_what_it_tried_or_why_it_did_not(llama_base):
    pytest.importorskip("peft", reason="needs the torch extra")
    card = load_model("torch", llama_base, precision="auto").card
    assert card.precision in ("float32", "bfloat16")
    assert card.why.startswith(("tried: ", "not tried: this machine does not multiply in bfloat16"))


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_backend_that_lacks_a_precision_says_so(toy_base, precision):
    with pytest.raises(BackendError, match="backend toy computes in float32 only"):
        load_model("toy", toy_base, precision=precision)
