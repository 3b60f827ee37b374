import asyncio
from importlib.util import find_spec

import pytest

from converters.bases.read import read_base
from coordinator.demo.files import MODEL, Paths
from coordinator.demo.household import FLEET
from coordinator.demo.models import FULL, make_models
from coordinator.demo.plan import DemoPlan, Member

needs_llama = pytest.mark.skipif(
    not (find_spec("llama_cpp") and find_spec("gguf")), reason="needs the llama extra"
)


def plan_of(*quants):
    members = (Member(home, "torch", 1.0, quant) for home, quant in zip(FLEET, quants, strict=True))
    return DemoPlan(tuple(members), ())


@pytest.mark.llama
@needs_llama
def test_each_type_that_a_device_has_is_made_of_the_shipped_model(tmp_path):
    paths = Paths(tmp_path)
    asyncio.run(make_models(paths, plan_of(None, "q8_0", "q4_0", "q8_0")))
    assert sorted(path.name for path in paths.base(FULL).parent.iterdir()) == [
        "f32.gguf",
        "q4_0.gguf",
        "q8_0.gguf",
    ]
    assert read_base(paths.base(FULL)).fingerprint == read_base(MODEL).fingerprint
    for quant in ("q8_0", "q4_0"):
        made = read_base(paths.base(quant))
        assert made.is_quantized
        assert made.modules == read_base(MODEL).modules


def test_without_a_llama_cpp_device_nothing_is_made(tmp_path):
    asyncio.run(make_models(Paths(tmp_path), plan_of(None, None, None, None)))
    assert not list(tmp_path.iterdir())
