"""Small adapters, updates, strategies by name, and a calibration set for pencil and paper."""

import numpy as np
import pytest

from converters.adapter import Factors, LoraAdapter
from coordinator.strategies.choice import METHODS
from coordinator.strategies.contract import Contribution, State
from coordinator.strategies.pipeline import Pipeline
from coordinator.strategies.pipeline_state import PipelineState, begin
from coordinator.strategies.written import read_method

IN, OUT, SCALE = 6, 5, 1.5


@pytest.fixture(scope="session")
def adapter():
    """`adapter(a, b, scale=1.0)`: of one module, `m`, from numbers."""

    def make(a, b, scale=1.0):
        return LoraAdapter({"m": Factors(np.array(a, np.float32), np.array(b, np.float32), scale)})

    return make


@pytest.fixture(scope="session")
def random_adapter():
    """`random_adapter(rank, seed, names=("m", "n"), size=1.0)`: of the modules `m` and `n`."""

    def make(rank, seed, names=("m", "n"), size=1.0):
        rng = np.random.default_rng(seed)
        draw = lambda *shape: (size * rng.standard_normal(shape)).astype(np.float32)  # noqa: E731
        return LoraAdapter({name: Factors(draw(rank, IN), draw(OUT, rank), SCALE) for name in names})

    return make


@pytest.fixture(scope="session")
def dense():
    """`dense(adapter, name="m")`: its product as a matrix."""

    def product(adapter, name="m"):
        factors = adapter.modules[name]
        return factors.scale * factors.b.astype(np.float64) @ factors.a.astype(np.float64)

    return product


@pytest.fixture(scope="session")
def update():
    """`update(trained, base, ...)`: what a device sends that has trained `base` into `trained`."""

    def make(trained, base, *, name="u", device=None, staleness=0, num_examples=1):
        delta = LoraAdapter(
            {
                key: Factors(f.a - base.modules[key].a, f.b - base.modules[key].b, f.scale)
                for key, f in trained
            }
        )
        return Contribution(
            name, device or f"of-{name}", 9 - staleness, staleness, num_examples, lambda: delta, lambda: base
        )

    return make


@pytest.fixture(scope="session")
def strategy():
    """`strategy(name, stages, **settings)`: the strategy of a name with its stages changed."""

    def make(name, stages=None, **settings):
        read = read_method(METHODS[name], stages or {})
        assert not read.faults
        return Pipeline(name, read.method, settings.pop("buffer_size", 2), **settings)

    return make


class Bowl:
    """A calibrator whose loss is half the squared distance of an adapter's entries to a target's."""

    def __init__(self, target):
        self.target = target
        self.num_gradients = 0

    def loss(self, adapter):
        return 0.5 * float(np.square(self.features(adapter) - self.features(self.target)).sum())

    def gradient(self, adapter):
        self.num_gradients += 1
        return self.pull_back(adapter, self.features(adapter) - self.features(self.target))

    def features(self, adapter):
        return np.concatenate([x.ravel() for _, f in adapter for x in (f.a, f.b)])[None]

    def pull_back(self, adapter, cotangent):
        found, begin = {}, 0
        for name, f in adapter:
            middle, end = begin + f.a.size, begin + f.a.size + f.b.size
            a, b = cotangent[0, begin:middle], cotangent[0, middle:end]
            found[name] = Factors(a.reshape(f.a.shape), b.reshape(f.b.shape), f.scale)
            begin = end
        return LoraAdapter(found)


@pytest.fixture(scope="session")
def bowl():
    """`bowl(target)`: a calibrator."""
    return Bowl


@pytest.fixture(scope="session")
def vector():
    """`vector(x, y, ...)`: of rank 1 with these entries in `a` of the module `m`, and zeros in `b`."""

    def make(*entries):
        return LoraAdapter({"m": Factors(np.array([entries], np.float32), np.zeros((2, 1), np.float32), 1.0)})

    return make


@pytest.fixture(scope="session")
def contribution():
    """`contribution(delta, base, ...)`: what a device sends whose increments are `delta`."""

    def make(delta, base, name="u", *, device=None, staleness=0, base_version=0, num_examples=1):
        return Contribution(
            name, device or f"of-{name}", base_version, staleness, num_examples, lambda: delta, lambda: base
        )

    return make


@pytest.fixture(scope="session")
def pipeline_of():
    """`pipeline_of(state, buffer, space=..., calibrator=...)`: a buffer before its first stage."""

    def make(state, buffer, **settings):
        state = state if isinstance(state, State) else State(0, state)
        return PipelineState(state, begin(buffer), **settings)

    return make


@pytest.fixture(scope="session")
def dense_change():
    """`dense_change(base, delta)`: the true change of every module in one vector."""

    def make(base, delta):
        parts = []
        for name, d in delta:
            f = base.modules[name]
            a, b, da, db = (x.astype(np.float64) for x in (f.a, f.b, d.a, d.b))
            parts.append(f.scale * ((b + db) @ (a + da) - b @ a).ravel())
        return np.concatenate(parts)

    return make
