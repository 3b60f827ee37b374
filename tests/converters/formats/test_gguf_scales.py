"""One alpha for several scales and ranks: exact, or refused."""

import numpy as np
import pytest

from converters.adapter import Factors, LoraAdapter
from converters.errors import UnsupportedAdapter
from converters.formats.folding import Originals
from converters.formats.gguf_scales import Stored, spread, undo


def one(rank: int, scale: float, value: float = 3.0) -> Factors:
    return Factors(np.full((rank, 5), 2.0, np.float32), np.full((4, rank), value, np.float32), scale)


def undone(stored: Stored) -> LoraAdapter:
    return LoraAdapter({name: undo(factors, name, stored.own) for name, factors in stored.modules.items()})


def update(factors: Factors, alpha: float) -> np.ndarray:
    """What llama.cpp adds."""
    return np.float32(alpha) / np.float32(factors.rank) * (factors.b @ factors.a)


def test_one_scale_and_one_rank_need_no_note() -> None:
    stored = spread(LoraAdapter({"x": one(4, 1.5), "y": one(4, 1.5)}))
    assert (stored.alpha, stored.own) == (6.0, Originals())


def test_one_alpha_over_several_ranks_is_kept_as_it_is() -> None:
    stored = spread(LoraAdapter({"x": one(4, 1.5), "y": one(3, 2.0)}))
    assert (stored.alpha, stored.own) == (6.0, Originals())
    assert {name: factors.rank for name, factors in stored.modules.items()} == {"x": 4, "y": 3}


def test_a_power_of_two_goes_into_b() -> None:
    adapter = LoraAdapter({"x": one(4, 1.5), "y": one(4, 1.5), "z": one(4, -6.0)})
    stored = spread(adapter)
    assert stored.alpha == 6.0
    assert np.all(stored.modules["z"].b == -12.0)
    assert undone(stored) == adapter


def test_a_smaller_rank_is_filled_up_where_its_scale_would_not_fit() -> None:
    adapter = LoraAdapter({"x": one(4, 2.0), "y": one(4, 2.0), "z": one(3, 2.0)})
    stored = spread(adapter)
    assert {factors.rank for factors in stored.modules.values()} == {4}
    assert stored.alpha == 8.0
    assert undone(stored) == adapter


@pytest.mark.parametrize("scale", [0.1, 1 / 3, 20 / 7, 1e-20])
def test_a_scale_that_float32_rounds_is_noted(scale: float) -> None:
    adapter = LoraAdapter({"x": one(3, scale), "y": one(3, scale / 4)})
    stored = spread(adapter)
    assert undone(stored) == adapter
    for name, factors in adapter:
        expected = scale * (factors.b.astype(np.float64) @ factors.a) * (1 if name == "x" else 0.25)
        np.testing.assert_allclose(update(stored.modules[name], stored.alpha), expected, rtol=3e-7)


def test_scales_that_do_not_fit_are_all_named() -> None:
    adapter = LoraAdapter({"v": one(4, 2.0), "w": one(4, 2.0), "x": one(4, 3.0), "y": one(4, 0.0)})
    with pytest.raises(UnsupportedAdapter, match=r"x has scale 3\.0 at rank 4; y has scale 0\.0 at rank 4"):
        spread(adapter)


@pytest.mark.parametrize("scale", [0.0, 1e-40, 1e39])
def test_an_alpha_that_llama_cpp_would_take_for_another_is_refused(scale: float) -> None:
    with pytest.raises(UnsupportedAdapter, match="GGUF would hold alpha"):
        spread(LoraAdapter({"x": one(1, scale)}))


def test_any_scale_fits_where_b_is_zero() -> None:
    adapter = LoraAdapter({"v": one(4, 2.0), "w": one(4, 2.0), "x": one(4, 3.0, value=0.0)})
    assert undone(spread(adapter)) == adapter


def test_folding_never_overflows_or_rounds() -> None:
    fits = LoraAdapter({"v": one(4, 1.0), "w": one(4, 1.0), "x": one(4, 2.0**20)})
    assert undone(spread(fits)) == fits
    for value in (1e38, 1e-44):
        scale = 2.0**20 if value > 1 else 2.0**-20
        with pytest.raises(UnsupportedAdapter, match="x has scale"):
            spread(LoraAdapter({"v": one(4, 1.0), "w": one(4, 1.0), "x": one(4, scale, value)}))


def test_a_note_that_no_longer_fits_is_passed_over() -> None:
    assert undo(one(4, 1.5), "x", Originals(scales={"x": 2.0})).scale == 1.5
    assert undo(one(4, 1.5), "x", Originals(scales={"x": 0.0})).scale == 1.5
    assert undo(one(4, 1.5), "x", Originals(ranks={"x": 3})).rank == 4
    assert undo(one(4, 1.5), "x", Originals(ranks={"x": -1})).rank == 4
