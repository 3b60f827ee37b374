import hashlib

import numpy as np
import pytest

from converters.adapter import Factors, LoraAdapter
from converters.arithmetic import norm, subtract
from coordinator.errors import CoordinatorError
from coordinator.strategies.choice import METHODS, as_strategy
from coordinator.strategies.contract import State
from coordinator.strategies.merges.factors import Sum
from coordinator.strategies.privacy import privacy_faults
from coordinator.strategies.stages.clip import Clip
from coordinator.strategies.stages.weights import Freshness
from edge.privacy.terms import Terms

CENTRAL = Terms(unit="device", at="coordinator", clip_norm=0.5, noise=2.0)
QUIET = Terms(unit="device", at="coordinator", clip_norm=0.5, noise=0.0)
SUM = {"merge": {"kind": "sum"}, "order": [{"kind": "freshness"}]}


def seeded(size):
    return hashlib.shake_256(b"seed").digest(size)


def flat(adapter):
    return np.concatenate([x.ravel() for _, f in adapter for x in (f.a, f.b)])


def step(strategy, terms, buffer, base, stages=SUM):
    made, report = strategy("fedbuff", stages, terms=terms, draw=seeded).merge(State(0, base), buffer)
    return subtract(made.adapter, base), report


def test_a_device_moves_a_version_by_its_weight_times_the_bound(strategy, vector, contribution):
    base = vector(0.0, 0.0, 0.0)
    huge, small = (
        contribution(vector(3e4, 4e4, 0.0), base, "huge"),
        contribution(vector(0, 0, 0.2), base, "s"),
    )
    moved, report = step(strategy, QUIET, [huge, small], base)
    # Each weighs a half; (3, 4) is cut to the length 0.5, which is (0.3, 0.4).
    np.testing.assert_allclose(moved.modules["m"].a[0], [0.15, 0.2, 0.1], rtol=1e-6)
    assert [round(share.norm, 6) for share in report.shares] == [0.5, 0.2]


def wide(count):
    a = np.zeros((1, count), np.float32)
    return LoraAdapter({"m": Factors(a, np.zeros((2, 1), np.float32), 1.0)})


@pytest.mark.parametrize(
    ("devices", "largest"), [(("x", "y"), 0.5), (("x", "x"), 1.0), (("x",) * 3 + ("y",), 0.75)]
)
def test_the_noise_follows_the_most_that_one_device_weighs(strategy, contribution, devices, largest):
    base = wide(20_000)
    buffer = [contribution(base, base, f"u{n}", device=device) for n, device in enumerate(devices)]
    moved, _ = step(strategy, CENTRAL, buffer, base)
    deviation = float(flat(moved).std())
    assert deviation == pytest.approx(CENTRAL.noise * CENTRAL.clip_norm * largest, rel=0.02)


def test_every_version_has_noise_of_its_own(strategy, contribution):
    base = wide(100)
    buffer = [contribution(base, base)]
    strategy = strategy("fedbuff", SUM, terms=CENTRAL)
    made = [strategy.merge(State(0, base), buffer)[0].adapter for _ in range(2)]
    assert made[0] != made[1]


def test_a_factor_that_is_not_shared_gets_no_noise(strategy, contribution):
    base = wide(100)
    stages = SUM | {"shared": "b"}
    moved, _ = step(strategy, CENTRAL, [contribution(base, base)], base, stages)
    assert not moved.modules["m"].a.any()
    assert moved.modules["m"].b.all()


def test_terms_that_ask_devices_for_noise_add_none_here(strategy, vector, contribution):
    base = vector(0.0, 0.0)
    terms = Terms(unit="device", clip_norm=0.5, noise=2.0)
    moved, _ = step(strategy, terms, [contribution(vector(3.0, 4.0), base)], base)
    assert norm(moved) == pytest.approx(5.0)


def test_a_method_whose_weights_updates_decide_cannot_keep_the_promise():
    assert list(privacy_faults(CENTRAL, METHODS["fedavg"].__class__(order=(Freshness(),)), pull=0.0)) == []
    for name in ("tunefleet", "fedbuff", "flora", "alignfed"):
        faults = list(privacy_faults(CENTRAL, METHODS[name], pull=0.0))
        assert faults, name
        assert all("\n" not in fault for fault in faults)
    (fault,) = privacy_faults(CENTRAL, METHODS["fedavg"].__class__(order=(Clip(),), merge=Sum()), pull=0.0)
    assert "stages.order has clip" in fault


def test_examples_that_are_pulled_together_cannot_be_hidden_one_by_one():
    (fault,) = privacy_faults(Terms(unit="example"), METHODS["fedbuff"], pull=0.1)
    assert "pulls features of all together (0.1)" in fault


def test_a_strategy_of_the_callers_own_cannot_promise_noise():
    class Settings:
        buffer_size, time_budget_s, privacy = 1, None, CENTRAL

    with pytest.raises(CoordinatorError, match="no row of stages"):
        as_strategy(lambda adapter, updates: adapter, Settings())
