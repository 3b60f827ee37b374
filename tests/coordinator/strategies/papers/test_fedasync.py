import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.strategies.contract import State, Waiting
from coordinator.strategies.stages.weights import Freshness, Mix


@pytest.mark.parametrize(
    ("shape", "staleness", "share"),
    [
        ("constant", 3, 0.6),
        ("polynomial", 0, 0.6),
        ("polynomial", 3, 0.3),  # 0.6 / sqrt(1 + 3)
        ("hinge", 4, 0.6),
        ("hinge", 5, 0.6 / 11),  # 1 / (10 (5 - 4) + 1)
    ],
)
def test_the_present_adapter_and_the_devices_are_mixed_by_age(
    adapter, update, strategy, shape, staleness, share
):
    present, base = adapter([[1, 0]], [[0], [0]]), adapter([[5, 0]], [[2], [0]])
    trained = adapter([[4, 10]], [[2], [20]])
    state, report = strategy("fedasync", {"staleness": shape}).merge(
        State(9, present), [update(trained, base, staleness=staleness)]
    )
    merged = state.adapter.modules["m"]
    assert merged.a[0] == pytest.approx([(1 - share) * 1 + share * 4, share * 10])
    assert merged.b[:, 0] == pytest.approx([share * 2, share * 20])
    assert report.shares[0].weight == pytest.approx(share)


def test_polynomial_is_what_it_does_unasked(strategy):
    assert strategy("fedasync").method.order[1:] == (Freshness(0.5), Mix(0.6))


def test_every_update_is_merged_as_it_comes(strategy):
    waiting = [Waiting("d", 0, 0.0)] * 3
    fedasync = strategy("fedasync", buffer_size=4)
    assert [fedasync.pace(waiting[:count], 9).take for count in range(4)] == [0, 1, 1, 1]


def test_rows_that_a_device_has_not_are_zero_in_its_adapter(adapter, update, strategy):
    present = adapter([[1, 0], [0, 1]], [[0, 0], [0, 8]])
    low = adapter([[1, 0]], [[0], [0]])
    state, _ = strategy("fedasync", {"mixing": 0.25}).merge(State(0, present), [update(low, low)])
    assert state.adapter.modules["m"].a.tolist() == [[1, 0], [0, 0.75]]
    assert state.adapter.modules["m"].b.tolist() == [[0, 0], [0, 6]]


@given(seed=st.integers(0, 1000), mixing=st.floats(0.1, 1.0), server_lr=st.floats(0.1, 1.0))
def test_the_servers_learning_rate_multiplies_the_share(
    random_adapter, update, strategy, seed, mixing, server_lr
):
    present, base, trained = (random_adapter(2, seed + k) for k in range(3))
    fedasync = strategy("fedasync", {"mixing": mixing}, server_lr=server_lr)
    state, _ = fedasync.merge(State(0, present), [update(trained, base)])
    share = mixing * server_lr
    for name, merged in state.adapter:
        old, new = present.modules[name], trained.modules[name]
        assert merged.a == pytest.approx((1 - share) * old.a + share * new.a, abs=1e-5)
        assert merged.b == pytest.approx((1 - share) * old.b + share * new.b, abs=1e-5)
