"""Every format gives back every adapter it takes, to the last bit."""

import math
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from converters.adapter import Factors, LoraAdapter
from converters.formats.canonical import dump_adapter, parse_adapter
from converters.formats.mlx import load_mlx, save_mlx
from converters.formats.peft import load_peft, save_peft

NAMES = [f"model.layers.{i}.{layer}" for i in range(3) for layer in ("self_attn.q_proj", "mlp.up_proj")] + [
    "lm_head"
]
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
ALPHAS = st.one_of(st.integers(1, 64), st.floats(1e-3, 1e3))


@st.composite
def factors(draw: st.DrawFn, scales: st.SearchStrategy[float]) -> Factors:
    rank, num_in, num_out = draw(st.tuples(*[st.integers(1, 5)] * 3))
    a = draw(arrays(np.float32, (rank, num_in), elements=FLOATS))
    return Factors(a, draw(arrays(np.float32, (num_out, rank), elements=FLOATS)), draw(scales))


def adapters(scales: st.SearchStrategy[float], min_size: int = 1) -> st.SearchStrategy[LoraAdapter]:
    modules = st.dictionaries(st.sampled_from(NAMES), factors(scales), min_size=min_size, max_size=4)
    return modules.map(LoraAdapter)


def shapes(adapter: LoraAdapter) -> dict[str, tuple[int, int]]:
    return {name: (one.a.shape[1], one.b.shape[0]) for name, one in adapter}


def bits(adapter: LoraAdapter) -> dict[str, tuple[bytes, bytes]]:
    """Stricter than ==, which takes 0.0 for -0.0."""
    return {name: (one.a.tobytes(), one.b.tobytes()) for name, one in adapter}


@given(adapters(st.floats(allow_nan=False, allow_infinity=False), min_size=0))
def test_canonical(adapter: LoraAdapter) -> None:
    again = parse_adapter(dump_adapter(adapter))
    assert again == adapter
    assert bits(again) == bits(adapter)
    assert dump_adapter(again) == dump_adapter(adapter)


@given(adapters(ALPHAS), st.booleans())
def test_peft_with_any_ranks_and_scales(adapter: LoraAdapter, with_base: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        save_peft(adapter, Path(folder), shapes(adapter) if with_base else None)
        again = load_peft(Path(folder), shapes(adapter))
    assert bits(again) == bits(adapter)
    for name, one in adapter:  # the scale is exact, or off by one rounding in float64
        assert math.isclose(again.modules[name].scale, one.scale, rel_tol=2**-52)


@given(st.data(), st.integers(1, 64), st.booleans())
def test_peft_keeps_scales_that_come_from_a_lora_alpha(data: st.DataObject, alpha: int, rs: bool) -> None:
    drawn = data.draw(adapters(st.just(1.0)))
    adapter = LoraAdapter(
        {name: f._replace(scale=alpha / (math.sqrt(f.rank) if rs else f.rank)) for name, f in drawn}
    )
    with tempfile.TemporaryDirectory() as folder:
        save_peft(adapter, Path(folder))
        assert load_peft(Path(folder)) == adapter


@given(adapters(st.just(20.0)), st.booleans())
def test_mlx_with_any_ranks(adapter: LoraAdapter, with_base: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        save_mlx(adapter, Path(folder), shapes(adapter) if with_base else None)
        again = load_mlx(Path(folder), shapes(adapter))
    assert again == adapter
    assert bits(again) == bits(adapter)


@given(st.data(), st.sampled_from([0.1, 1.0, 20.0]))
def test_mlx_with_scales_that_differ_by_powers_of_two(data: st.DataObject, scale: float) -> None:
    scales = st.sampled_from([scale / 4, scale, scale * 2, -scale])
    large = st.floats(2.0**-100, 2.0**100, width=32)  # folding neither overflows nor underflows
    elements = st.one_of(st.just(0.0), large, large.map(lambda value: -value))
    drawn = data.draw(adapters(scales))
    adapter = LoraAdapter(
        {
            name: one._replace(b=data.draw(arrays(np.float32, one.b.shape, elements=elements)))
            for name, one in drawn
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        save_mlx(adapter, Path(folder))
        assert load_mlx(Path(folder)) == adapter
