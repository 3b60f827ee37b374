import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.strategies.contract import State
from coordinator.strategies.pipeline import Pipeline
from coordinator.strategies.written import Stages, read_stages


def pipeline(optimizer, *, server_lr=1.0, calibrator=None, **stages):
    return Pipeline(
        optimizer,
        read_stages(Stages(optimizer=optimizer, **stages)).method,
        buffer_size=1,
        server_lr=server_lr,
        calibrator=calibrator,
    )


def run(strategy, state, buffers):
    """The state after each buffer in turn."""
    states = [state]
    for buffer in buffers:
        states.append(strategy.merge(states[-1], buffer)[0])
    return states[1:]


def entries(state):
    return state.adapter.modules["m"].a[0].tolist()


def test_momentum_goes_on_with_a_share_of_the_last_step(vector, contribution):
    buffers = [[contribution(vector(step), vector(0))] for step in (1, 0, 2)]
    found = run(pipeline("fedavgm", momentum=0.5, server_lr=2.0), State(0, vector(10)), buffers)
    # steps 2, 0.5 * 2 = 1, and 4 + 0.5 * 1 = 4.5
    assert [entries(state) for state in found] == [[12], [13], [17.5]]


@given(seed=st.integers(0, 1000), decay=st.sampled_from([0.0, 0.8, 1.0]))
def test_in_product_momentum_is_that_of_dense_matrices(
    seed, decay, random_adapter, contribution, dense_change
):
    first = random_adapter(3, seed)
    strategy = pipeline("fedavgm", momentum=0.5, space="product", remainder_decay=decay)
    nothing = random_adapter(3, 0, size=0.0)
    state, reached, gone = State(0, first), dense_change(nothing, first), 0.0
    kept, rest = reached, 0.0
    for turn in (1, 2):
        base, delta = random_adapter(2, seed + turn), random_adapter(2, seed + 9 + turn)
        state, _ = strategy.merge(state, [contribution(delta, base)])
        reached = kept + decay * rest + dense_change(base, delta) + 0.5 * gone
        rest = dense_change(random_adapter(state.remainder.max_rank, 0, size=0.0), state.remainder)
        before, kept = kept, dense_change(nothing, state.adapter)
        assert kept + rest == pytest.approx(reached, abs=2e-3 * np.abs(reached).max())
        gone = kept - before


def test_in_product_momentum_has_no_higher_rank_from_version_to_version(random_adapter, contribution):
    master = random_adapter(2, 1)
    buffers = [[contribution(random_adapter(2, n, size=0.1), master)] for n in range(2, 7)]
    states = run(pipeline("fedavgm", space="product"), State(0, master), buffers)
    assert {one.max_rank for state in states for one in state.moments.values()} == {4}


def test_a_step_that_the_guard_shortens_takes_its_momentum_along(vector, contribution, bowl):
    strategy = pipeline("fedavgm", momentum=0.5, guard="backtrack", calibrator=bowl(vector(1)))
    state, report = strategy.merge(
        State(0, vector(0), moments={"momentum": vector(6)}), [contribution(vector(1), vector(0))]
    )
    # 1 + 0.5 * 6 = 4 is farther from 1 than 0 is, half of it is not
    assert (entries(state), report.step_scale, report.step_norm) == ([2], 0.5, 2)
    assert state.moments == {"momentum": vector(2)}


def test_a_momentum_that_leads_uphill_is_given_up(vector, contribution, bowl):
    strategy = pipeline("fedavgm", momentum=0.9, guard="backtrack", calibrator=bowl(vector(1)))
    uphill = State(0, vector(0), moments={"momentum": vector(-100)})
    buffers = [[contribution(vector(0.5), vector(0))]] * 2
    first, second = run(strategy, uphill, buffers)
    assert (entries(first), first.version, first.moments) == ([0], 1, {})
    assert entries(second) == [0.5]


@given(seed=st.integers(0, 1000))
def test_fedadam_is_algorithm_2(seed, random_adapter, contribution):
    master = random_adapter(2, seed)
    deltas = [random_adapter(2, seed + n, size=0.1) for n in (1, 2, 3)]
    strategy = pipeline(
        "fedadam", server_lr=0.01, momentum=0.9, second_momentum=0.99, adaptivity=1e-3, merge="sum"
    )
    states = run(strategy, State(0, master), [[contribution(delta, master)] for delta in deltas])
    for name, old in master:
        for factor in ("a", "b"):
            x, m, v = getattr(old, factor).astype(float), 0.0, 1e-6
            for delta, state in zip(deltas, states, strict=True):
                step = getattr(delta.modules[name], factor)
                m, v = 0.9 * m + 0.1 * step, 0.99 * v + 0.01 * step**2
                x = x + 0.01 * m / (np.sqrt(v) + 1e-3)
                assert getattr(state.adapter.modules[name], factor) == pytest.approx(x, abs=1e-5)


def test_fedadams_first_step_by_hand(vector, contribution):
    strategy = pipeline("fedadam", server_lr=0.5, momentum=0.0, second_momentum=0.0, adaptivity=1.0)
    (state,) = run(strategy, State(0, vector(0, 0, 0)), [[contribution(vector(1, -3, 0), vector(0, 0, 0))]])
    assert entries(state) == [0.25, -0.375, 0]  # 0.5 * D / (|D| + 1)


def test_the_guard_shortens_fedadams_step_and_not_its_moments(vector, contribution, bowl):
    strategy = pipeline(
        "fedadam",
        server_lr=8.0,
        momentum=0.0,
        second_momentum=0.0,
        adaptivity=1.0,
        guard="backtrack",
        calibrator=bowl(vector(1)),
    )
    state, report = strategy.merge(State(0, vector(0)), [contribution(vector(1), vector(0))])
    assert (entries(state), report.step_scale, report.step_norm) == ([2], 0.5, 2)  # 4 is as far as 2 times 2
    assert state.moments["adam-mean"].modules["m"].a.tolist() == [[1]]


def test_a_refused_step_leaves_fedadam_its_squares(vector, contribution, bowl):
    strategy = pipeline("fedadam", guard="backtrack", calibrator=bowl(vector(-1)))
    moments = {"adam-mean": vector(1), "adam-square": vector(4)}
    state, report = strategy.merge(State(0, vector(0), moments=moments), [contribution(vector(1), vector(0))])
    assert (report.step_scale, entries(state), set(state.moments)) == (0, [0], {"adam-square"})
    assert state.moments["adam-square"] == vector(4)


def test_without_an_optimiser_nothing_is_remembered(vector, contribution):
    state = State(0, vector(0), moments={"momentum": vector(5)})
    assert pipeline("none").merge(state, [contribution(vector(1), vector(0))])[0].moments == {}


@pytest.mark.parametrize("optimizer", ["fedavgm", "fedadam"])
def test_a_factor_that_nobody_trains_stays(optimizer, random_adapter, contribution):
    master = random_adapter(2, 1)
    only_b = [
        contribution(type(master)({n: f._replace(a=0 * f.a) for n, f in random_adapter(2, seed)}), master)
        for seed in (2, 3)
    ]
    final = run(pipeline(optimizer, server_lr=0.01), State(0, master), [[one] for one in only_b])[-1]
    for name, old in master:
        assert final.adapter.modules[name].a.tolist() == old.a.tolist()
        assert (final.adapter.modules[name].b != old.b).all()
