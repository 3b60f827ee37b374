"""PEFT, mlx-lm and GGUF: all six ways, every adapter comes back to the last bit."""

import itertools
import math
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

gguf = pytest.importorskip("gguf", reason="needs the llama extra")

from converters.adapter import Factors, LoraAdapter  # noqa: E402
from converters.bases.contract import Base  # noqa: E402
from converters.bases.read import read_base  # noqa: E402
from converters.formats.detect import detect_format  # noqa: E402
from converters.formats.load import load_any  # noqa: E402
from converters.formats.save import save_as  # noqa: E402

pytestmark = pytest.mark.llama

FORMS = ("peft", "mlx", "gguf")
SHAPES = {"attn_q": (8, 8), "attn_k": (4, 8), "ffn_down": (8, 6)}  # (out, in)
LARGE = st.floats(2.0**-60, 2.0**60, width=32)  # folding neither overflows nor underflows
ELEMENTS = st.one_of(st.sampled_from([0.0, -0.0]), LARGE, LARGE.map(lambda value: -value))


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def base(request, tmp_path_factory) -> Base:
    """Two blocks and a head; in a llama two heads' rows of q, and one head's of k, lie in turns."""
    path, arch = tmp_path_factory.mktemp("base") / "base.gguf", request.param
    writer = gguf.GGUFWriter(path, arch)
    for key, value in {"block_count": 2, "attention.head_count": 2, "attention.head_count_kv": 1}.items():
        writer.add_uint32(f"{arch}.{key}", value)
    shapes = {f"blk.{i}.{name}": shape for i in (0, 1) for name, shape in SHAPES.items()}
    for name, shape in {**shapes, "token_embd": (16, 8), "output": (16, 8)}.items():
        writer.add_tensor(f"{name}.weight", np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return read_base(path)


@st.composite
def adapters(draw: st.DrawFn, base: Base) -> LoraAdapter:
    names = draw(st.lists(st.sampled_from(sorted(base.modules)), min_size=1, max_size=4, unique=True))
    scale = draw(st.sampled_from([0.1, 1.0, 2.5, 20.0, 1 / 3]))
    modules = {}
    for name in names:
        (num_in, num_out), rank = base.modules[name], draw(st.integers(1, 5))
        a = draw(arrays(np.float32, (rank, num_in), elements=ELEMENTS))
        b = draw(arrays(np.float32, (num_out, rank), elements=ELEMENTS))
        modules[name] = Factors(a, b, scale * draw(st.sampled_from([0.25, 1.0, 2.0, -1.0])))
    return LoraAdapter(modules)


def through(form: str, adapter: LoraAdapter, base: Base, folder: Path) -> LoraAdapter:
    path = folder / f"{len(list(folder.iterdir()))}.{form}"
    save_as(form, adapter, path, base)
    assert detect_format(path) == form
    return load_any(path, base)


@pytest.mark.parametrize(("first", "second"), list(itertools.permutations(FORMS, 2)))
@given(data=st.data())
@settings(max_examples=10)
def test_an_adapter_survives_the_way(base: Base, first: str, second: str, data: st.DataObject) -> None:
    adapter = data.draw(adapters(base))
    with tempfile.TemporaryDirectory() as folder:
        there = through(second, through(first, adapter, base, Path(folder)), base, Path(folder))
        again = through(first, there, base, Path(folder))
    for name, expected in adapter:
        found = again.modules[name]
        assert (found.a.tobytes(), found.b.tobytes()) == (expected.a.tobytes(), expected.b.tobytes())
        # Exact, but for PEFT, whose lora_alpha / r is off by one rounding in float64 for some scales.
        tolerance = 2**-52 if "peft" in (first, second) else 0.0
        assert math.isclose(found.scale, expected.scale, rel_tol=tolerance, abs_tol=0.0)


@given(data=st.data())
@settings(max_examples=30)
def test_gguf_gives_back_what_it_took(base: Base, data: st.DataObject) -> None:
    adapter = data.draw(adapters(base))
    with tempfile.TemporaryDirectory() as folder:
        assert through("gguf", adapter, base, Path(folder)) == adapter
