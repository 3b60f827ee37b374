import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from converters.adapter import Factors, LoraAdapter
from coordinator.strategies.contract import Contribution, State
from coordinator.strategies.merges.product import add_products, truncate_product

IN, OUT, SCALE = 9, 7, 1.5


def random_adapter(rank, seed, names=("m", "n")):
    rng = np.random.default_rng(seed)
    return LoraAdapter(
        {
            name: Factors(
                rng.standard_normal((rank, IN)).astype(np.float32),
                rng.standard_normal((OUT, rank)).astype(np.float32),
                SCALE,
            )
            for name in names
        }
    )


def dense(adapter, name):
    f = adapter.modules[name]
    return f.scale * f.b.astype(np.float64) @ f.a.astype(np.float64)


def trained(base, delta, name):
    f, d = base.modules[name], delta.modules[name]
    return f.scale * (f.b + d.b).astype(np.float64) @ (f.a + d.a).astype(np.float64)


def contribution(delta, base):
    return Contribution("u", "d", 0, 0, 1, lambda: delta, lambda: base)


@given(seed=st.integers(0, 1000), num=st.integers(1, 4), rank=st.integers(1, 3))
def test_what_is_kept_and_what_is_carried_are_the_dense_sum(seed, num, rank):
    master = random_adapter(3, seed)
    bases = [random_adapter(rank, seed + 10 + k) for k in range(num)]
    deltas = [random_adapter(rank, seed + 20 + k) for k in range(num)]
    carried = random_adapter(2, seed + 30)
    weights = [0.3 + k for k in range(num)]
    buffer = [contribution(delta, base) for delta, base in zip(deltas, bases, strict=True)]
    total = add_products(State(1, master, carried), buffer, [0.5 * w for w in weights], 32).at(1.0)
    for name in ("m", "n"):
        changes = [
            w * (trained(b, d, name) - dense(b, name)) for w, b, d in zip(weights, bases, deltas, strict=True)
        ]
        expected = dense(master, name) + dense(carried, name) + 0.5 * sum(changes)
        u, sigma, vt = np.linalg.svd(expected)
        best = (u[:, :3] * sigma[:3]) @ vt[:3]
        size = np.abs(expected).max()
        assert dense(total.adapter, name) == pytest.approx(best, abs=1e-4 * size)
        rest = dense(total.remainder, name) if total.remainder and name in total.remainder.modules else 0
        assert dense(total.adapter, name) + rest == pytest.approx(expected, abs=1e-4 * size)


def test_one_device_that_trained_on_the_present_version_is_taken_over_exactly():
    master, delta = random_adapter(3, 1), random_adapter(3, 2)
    total = add_products(State(0, master), [contribution(delta, master)], [1.0], 8).at(1.0)
    for name in ("m", "n"):
        assert dense(total.adapter, name) == pytest.approx(trained(master, delta, name), abs=1e-4)
    assert total.remainder is None or total.step_norm > 1e4 * sum(
        np.abs(dense(total.remainder, n)).max() for n in total.remainder.modules
    )


def test_the_cap_on_the_remainder_is_what_is_lost():
    master = random_adapter(2, 1, names=("m",))
    delta = random_adapter(2, 2, names=("m",))
    base = random_adapter(2, 3, names=("m",))
    total = add_products(State(0, master), [contribution(delta, base)], [1.0], 1).at(1.0)
    expected = dense(master, "m") + trained(base, delta, "m") - dense(base, "m")
    sigma = np.linalg.svd(expected, compute_uv=False)
    assert total.remainder_norm == pytest.approx(sigma[2], rel=1e-4)
    assert total.dropped_norm == pytest.approx(np.sqrt((sigma[3:] ** 2).sum()), rel=1e-3)


def test_norms_are_those_of_the_dense_changes():
    master, delta = random_adapter(3, 1, names=("m",)), random_adapter(3, 2, names=("m",))
    total = add_products(State(0, master), [contribution(delta, master)], [0.5], 8).at(1.0)
    norm = np.linalg.norm(trained(master, delta, "m") - dense(master, "m"))
    assert total.norms == (pytest.approx(norm, rel=1e-5),)
    assert total.step_norm == pytest.approx(0.5 * norm, rel=1e-5)


def test_a_module_that_nobody_trained_stays_to_the_last_bit():
    master = random_adapter(3, 1)
    part = LoraAdapter({"m": random_adapter(3, 2).modules["m"]})
    total = add_products(State(0, master), [contribution(part, master)], [1.0], 8).at(1.0)
    assert np.array_equal(total.adapter.modules["n"].a, master.modules["n"].a)
    assert np.array_equal(total.adapter.modules["n"].b, master.modules["n"].b)


def test_directions_that_nobody_has_used_yet_can_still_be_trained():
    master = LoraAdapter({"m": random_adapter(3, 1).modules["m"]._replace(b=np.zeros((OUT, 3), np.float32))})
    delta = random_adapter(3, 2).modules["m"]
    one_direction = LoraAdapter({"m": Factors(0 * delta.a, delta.b * np.array([1, 0, 0], np.float32), SCALE)})
    total = add_products(State(0, master), [contribution(one_direction, master)], [1.0], 8).at(1.0)
    merged = total.adapter.modules["m"]
    assert np.linalg.matrix_rank(merged.a) == 3
    assert np.linalg.matrix_rank(merged.b, tol=1e-4) == 1


def test_a_lower_tier_gets_the_leading_directions():
    master = random_adapter(3, 1, names=("m",))
    low = truncate_product(master, 2, random_adapter(2, 5, names=("m",)))
    u, sigma, vt = np.linalg.svd(dense(master, "m"))
    assert dense(low, "m") == pytest.approx((u[:, :2] * sigma[:2]) @ vt[:2], abs=1e-4)
    assert low.max_rank == 2


def test_updates_from_one_base_are_summed_as_those_from_many():
    master, base = random_adapter(3, 1, names=("m",)), random_adapter(2, 2, names=("m",))
    deltas = [random_adapter(2, 3 + k, names=("m",)) for k in range(3)]
    weights = [0.5, 0.25, 2.0]
    updates = [contribution(delta, base) for delta in deltas]
    total = add_products(State(0, master), updates, weights, 32).at(1.0)
    changes = [trained(base, delta, "m") - dense(base, "m") for delta in deltas]
    expected = dense(master, "m") + sum(w * one for w, one in zip(weights, changes, strict=True))
    assert dense(total.adapter, "m") + dense(total.remainder, "m") == pytest.approx(expected, abs=1e-3)
    assert total.norms == pytest.approx([np.linalg.norm(one) for one in changes], rel=1e-5)


@pytest.mark.parametrize("decay", [0.0, 0.25])
def test_a_decaying_remainder_is_added_in_part(decay):
    master, carried = random_adapter(3, 1, names=("m",)), random_adapter(2, 2, names=("m",))
    update = contribution(master, master)
    total = add_products(State(0, master, carried), [update], [1.0], 8, decay).at(1.0)
    expected = 4 * dense(master, "m") + decay * dense(carried, "m")
    found = sum(dense(one, "m") for one in (total.adapter, total.remainder) if one)
    assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("decay", "norms"), [(1.0, [0.1, 0.2, 0.3, 0.4]), (0.5, [0.1, 0.15, 0.175, 0.1875])])
def test_what_truncation_never_keeps_winds_up_unless_it_decays(decay, norms):
    first, second = np.eye(2, dtype=np.float32)
    master = LoraAdapter({"m": Factors(first[None], 4 * first[:, None], 1.0)})
    nothing = LoraAdapter({"m": Factors(0 * first[None], 0 * first[:, None], 1.0)})
    push = LoraAdapter({"m": Factors(second[None], np.float32(0.1) * second[:, None], 1.0)})
    state = State(0, master)
    for version, norm in enumerate(norms, 1):
        total = add_products(state, [contribution(push, nothing)], [1.0], 8, decay).at(1.0)
        assert total.remainder_norm == pytest.approx(norm, rel=1e-5)
        assert dense(total.adapter, "m") == pytest.approx(dense(master, "m"), abs=1e-6)
        state = State(version, total.adapter, total.remainder)


def test_updates_whose_bases_share_frozen_factors_are_told_apart():
    master = random_adapter(2, 1, names=("m",))
    frozen, one = master.modules["m"], random_adapter(2, 2, names=("m",)).modules["m"]
    bases = [LoraAdapter({"m": frozen}), LoraAdapter({"m": frozen._replace(b=one.b)})]
    delta = random_adapter(2, 3, names=("m",))
    updates = [contribution(delta, base) for base in bases]
    total = add_products(State(0, master), updates, [1.0, 1.0], 8).at(1.0)
    changes = [trained(base, delta, "m") - dense(base, "m") for base in bases]
    found = sum(dense(part, "m") for part in (total.adapter, total.remainder) if part)
    assert found == pytest.approx(dense(master, "m") + sum(changes), abs=1e-3)
    assert total.norms == pytest.approx([np.linalg.norm(change) for change in changes], rel=1e-5)


def test_large_adapters_are_merged_by_threads_to_the_same_bits(monkeypatch):
    master, delta = random_adapter(3, 1, names=("m", "n", "o")), random_adapter(3, 2, names=("m", "o"))
    update = contribution(delta, master)
    alone = add_products(State(0, master), [update], [0.5], 8).at(1.0)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert add_products(State(0, master), [update], [0.5], 8, num_small=0).at(1.0) == alone
