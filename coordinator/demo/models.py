"""The bases of the demo's llama.cpp devices: GGUF files made from its model when the demo begins."""

import sys

from converters.gguf_export.model import write_gguf
from coordinator.demo.files import Paths
from coordinator.demo.plan import DemoPlan
from coordinator.demo.processes import Children

QUANTIZE = (sys.executable, "-P", "-m", "edge.backends.llama_cpp.quantize")
FULL = "f32"


async def make_models(paths: Paths, plan: DemoPlan) -> None:
    """Writes a GGUF file of each type that a device has, by llama.cpp in a process of its own.

    Raises:
        ChildFailed: llama.cpp could not.
    """
    if not plan.quants:
        return
    full = paths.base(FULL)
    full.parent.mkdir()
    write_gguf(paths.model, full)
    async with Children(paths.logs, plan.threads, QUANTIZE) as children:
        for kind in plan.quants:
            await children.run(f"quantize-{kind}", [str(full), str(paths.base(kind)), kind])
