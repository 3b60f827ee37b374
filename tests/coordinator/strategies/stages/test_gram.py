import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from converters.adapter import Factors, LoraAdapter
from coordinator.strategies.stages.gram import gram_matrix


@given(seed=st.integers(0, 1000), ranks=st.lists(st.integers(1, 3), min_size=2, max_size=4))
def test_inner_products_are_those_of_dense_updates(
    seed, ranks, random_adapter, contribution, pipeline_of, dense_change
):
    master = random_adapter(3, seed)
    names = [("m", "n"), ("m",), ("m", "n"), ("n",)]
    updates = [
        (random_adapter(rank, seed + 1 + n, names[n]), random_adapter(rank, seed + 9 + n))
        for n, rank in enumerate(ranks)
    ]
    buffer = [contribution(delta, base) for delta, base in updates]
    rows = {"factors": [], "product": []}
    for delta, base in updates:
        padded = []
        for name, f in master:
            a, b = np.zeros_like(f.a), np.zeros_like(f.b)
            if name in delta.modules:
                d = delta.modules[name]
                a[: d.rank], b[:, : d.rank] = d.a, d.b
            padded += [a.ravel(), b.ravel()]
        rows["factors"].append(np.concatenate(padded))
        full = {n: delta.modules.get(n) or Factors(0 * f.a, 0 * f.b, f.scale) for n, f in base}
        rows["product"].append(dense_change(base, LoraAdapter(full)))
    for space, dense in rows.items():
        items = list(pipeline_of(master, buffer, space=space).items)
        found = gram_matrix(items, master, space)
        stacked = np.array(dense, np.float64)
        assert found == pytest.approx(stacked @ stacked.T, rel=1e-4, abs=1e-2)


def test_updates_from_one_base_are_as_from_copies_of_it(random_adapter, contribution):
    base = random_adapter(2, 1)
    copies = [LoraAdapter({n: Factors(f.a.copy(), f.b.copy(), f.scale) for n, f in base}) for _ in range(3)]
    deltas = [random_adapter(2, seed) for seed in (2, 3, 4)]
    shared = gram_matrix([contribution(delta, base) for delta in deltas], base, "product")
    apart = gram_matrix(list(map(contribution, deltas, copies)), base, "product")
    assert shared == pytest.approx(apart, rel=1e-9)
