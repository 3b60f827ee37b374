"""The kit's own adapter file: safetensors with `<module>.a` and `<module>.b` in float32.

The scales stand in the header's metadata under `scales`, as JSON from module to number. The same adapter
always gives the same bytes, so that a file is known by its sha256. What is parsed may come from a stranger:
every length is checked before memory is taken, and names are plain ASCII.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
from safetensors.numpy import save

from converters.adapter import Factors, LoraAdapter
from converters.errors import AdapterError
from converters.faults import Fault
from converters.files.atomic import write_atomic
from converters.files.safetensors import TensorFile, open_tensors, parse_tensors
from converters.files.text import decode_record

SCALES = "scales"
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,200}")


def dump_adapter(adapter: LoraAdapter) -> bytes:
    """Encodes `adapter` as a canonical file: the same adapter gives the same bytes."""
    tensors = {}
    for name, factors in adapter:
        tensors[f"{name}.a"] = factors.a
        tensors[f"{name}.b"] = factors.b
    scales = {name: factors.scale for name, factors in adapter}
    # One metadata field only: the safetensors package writes several in random order.
    payload: bytes = save(tensors, metadata={SCALES: msgspec.json.encode(scales).decode()})
    return payload


def parse_adapter(payload: bytes, where: str = "adapter") -> LoraAdapter:
    """Returns the adapter whose canonical file `payload` is.

    Args:
        payload: The file's content.
        where: What an error calls it.

    Raises:
        AdapterError: Naming the faults.
    """
    return _adapter(parse_tensors(payload, where, AdapterError))


def save_adapter(adapter: LoraAdapter, path: Path) -> None:
    """Writes a canonical file: after a crash there is the old file or the whole new one.

    Raises:
        OSError: The disk is full or not writable; nothing was replaced.
    """
    write_atomic(path, dump_adapter(adapter))


def load_adapter(path: Path) -> LoraAdapter:
    """Reads a canonical file.

    Raises:
        AdapterError: It is missing or malformed.
    """
    return _adapter(open_tensors(path, AdapterError))


def _adapter(file: TensorFile) -> LoraAdapter:
    scales = _scales(file)
    faults = list(_faults(file, scales))
    if faults:
        raise AdapterError.of(file.where, faults)
    return LoraAdapter(
        {
            name: Factors(file.array(f"{name}.a"), file.array(f"{name}.b"), scale)
            for name, scale in scales.items()
        }
    )


def _scales(file: TensorFile) -> dict[str, float]:
    def told(_: str) -> AdapterError:
        return AdapterError(
            f"{file.where}: is not a canonical adapter: its metadata has no {SCALES!r}, a number per module"
        )

    return decode_record(file.metadata.get(SCALES, ""), dict[str, float], told)


def _faults(file: TensorFile, scales: dict[str, float]) -> Iterator[Fault]:
    expected = {f"{name}.{factor}" for name in scales for factor in "ab"}
    for name in scales:
        if not _NAME.fullmatch(name):
            yield Fault(f"module name {name[:100]!r} is not plain", "module names are not plain")
    for name in sorted(expected - file.tensors.keys()):
        yield Fault(f"tensor {name[:200]!r} is missing", "tensors are missing", repr(name[:200]))
    for name in sorted(file.tensors.keys() - expected):
        yield Fault(f"tensor {name[:200]!r} has no scale", "tensors have no scale", repr(name[:200]))
    for name, tensor in file.tensors.items():
        if tensor.dtype != "F32" or len(tensor.shape) != 2:
            text = f"{name[:200]} is {tensor.dtype} {tensor.shape}, expected a matrix in F32"
            yield Fault(text, "tensors are no matrices in F32")
