"""The canonical adapter checks itself, and begins as training expects it."""

import numpy as np
import pytest

from converters.adapter import Factors, LoraAdapter, check_rank, initial_adapter
from converters.errors import AdapterError


def test_every_malformed_module_is_named_at_once() -> None:
    one = np.ones((1, 2), np.float32)
    modules = {
        "vector": Factors(one[0], one, 1.0),
        "ranks": Factors(one, one, 1.0),
        "nan": Factors(one * np.nan, one.T, 1.0),
        "scale": Factors(one, one.T[:, :1], np.inf),
        "large": Factors(one * np.float64(1e300), one.T[:, :1], 1.0),
    }
    with pytest.raises(AdapterError) as raised:
        LoraAdapter(modules)
    assert all(f"{name}: " in str(raised.value) for name in modules)


def test_modules_come_in_sorted_order_as_contiguous_float32() -> None:
    a = np.arange(6, dtype=np.float64).reshape(3, 2).T  # (2, 3), not contiguous
    adapter = LoraAdapter({name: Factors(a, np.ones((4, 2)), 1) for name in "cab"})
    assert [name for name, _ in adapter] == ["a", "b", "c"]
    stored = adapter.modules["a"]
    assert stored.a.dtype == np.float32
    assert stored.a.flags.c_contiguous
    assert isinstance(stored.scale, float)
    assert (adapter.num_parameters, adapter.max_rank) == (3 * (6 + 8), 2)


def test_the_initial_adapter_changes_nothing_and_is_drawn_as_peft_draws_it() -> None:
    adapter = initial_adapter({"m": (100, 3)}, rank=50, scale=2.0, seed=7)
    a, b, scale = adapter.modules["m"]
    assert (a.shape, b.shape, scale) == ((50, 100), (3, 50), 2.0)
    assert not b.any()
    assert abs(a).max() <= 0.1  # 1 / sqrt(100)
    assert abs(a).mean() == pytest.approx(0.05, rel=0.05)


def test_a_seed_gives_the_same_initial_adapter_and_another_seed_another() -> None:
    modules = {"x": (4, 4), "y": (4, 2)}
    first, again, other = (initial_adapter(modules, rank=2, scale=1.0, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_rank_zero_is_refused() -> None:
    with pytest.raises(AdapterError, match="rank is 0"):
        initial_adapter({"m": (4, 4)}, rank=0, scale=1.0, seed=0)


def test_a_rank_is_bounded_by_the_smallest_module() -> None:
    modules = {"wide": (100, 200), "narrow": (100, 12)}
    check_rank(modules, 12)
    for rank in (0, 13):
        with pytest.raises(AdapterError, match=f"rank is {rank}, expected 1 to 12: .*narrow, has 100 inputs"):
            check_rank(modules, rank)
