"""An adapter or a delta as bytes: safetensors in one of four encodings.

    f32   `<module>.a`, `<module>.b`: F32 in the factors' shapes
    f16   the same in F16, saturating at ±65504
    int8  `<module>.a`: I8 in the factor's shape; `<module>.a.step`: F32, one per block of 64 values
    int4  `<module>.a`: U8, two values a byte, the first in the low four bits, each plus 8; and the steps

Blocks run over the factor in C order, the last may be short. A value is its integer times its block's step,
the block's largest magnitude over 127 (int8) or 7 (int4): block-wise absmax quantisation (Dettmers et al.,
arXiv 2110.02861). Steps are F32, not F16, because deltas of 1e-8 are common late in training; this costs
3 % of int8 and 6 % of int4. Dtypes tell the encodings apart; scales are the receiver's own, never the
sender's. A factor of which nothing changed is not sent, and a module without factors was not trained: what
trains or sends one factor alone (FFA-LoRA, FedSA-LoRA) takes half the bytes.

Everything decoded is hostile: sizes are bounded before the header is parsed, and the header before memory is
taken.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import safetensors
from numpy.typing import NDArray
from safetensors.numpy import save

from converters.adapter import Array, Factors, LoraAdapter
from converters.faults import Fault, sum_up
from edge.errors import Rejected
from edge.protocol.messages import EncodingName

BLOCK = 64
_DTYPES: dict[str, type[np.generic]] = {
    "F32": np.float32,
    "F16": np.float16,
    "I8": np.int8,
    "U8": np.uint8,
}


class Spec(NamedTuple):
    """What a tensor of a payload must be."""

    dtype: str  # as safetensors writes it
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype} {self.shape}"

    @property
    def num_bytes(self) -> int:
        """Size of the tensor's data."""
        return math.prod(self.shape) * np.dtype(_DTYPES[self.dtype]).itemsize


def encode_adapter(adapter: LoraAdapter, encoding: EncodingName) -> bytes:
    """Encodes as safetensors, without scales and factors of zeros; the same adapter gives the same bytes."""
    tensors: dict[str, NDArray[Any]] = {}
    changed = [(key, factor) for key, factor in _factors(adapter) if factor.any()]
    for key, factor in changed or _factors(adapter):  # a payload without tensors would be malformed
        tensors.update(_ENCODERS[encoding](key, factor))
    payload: bytes = save(tensors)
    return payload


def max_payload_bytes(like: LoraAdapter, encoding: EncodingName) -> int:
    """Returns the most bytes that an encoded delta to `like` can have; more is `too-large`."""
    specs = payload_specs(like, encoding)
    return _max_header_bytes(specs) + 8 + sum(spec.num_bytes for spec in specs.values())


def payload_specs(like: LoraAdapter, encoding: EncodingName) -> dict[str, Spec]:
    """Lists every tensor that a payload for `like` may have."""
    specs: dict[str, Spec] = {}
    for key, factor in _factors(like):
        size, shape = factor.size, factor.shape
        if encoding in ("f32", "f16"):
            specs[key] = Spec(encoding.upper(), shape)
            continue
        specs[key] = Spec("I8", shape) if encoding == "int8" else Spec("U8", (-(-size // 2),))
        specs[f"{key}.step"] = Spec("F32", (-(-size // BLOCK),))
    return specs


def decode_adapter(payload: bytes, *, like: LoraAdapter) -> LoraAdapter:
    """Decodes an adapter: modules of `like`, or some of them, in its shapes and with its scales.

    A factor that was not sent is zero.

    Raises:
        Rejected: `malformed`, `too-large`, `wrong-shape` (all faults at once) or `not-finite`.
    """
    encoding, tensors = _checked_tensors(payload, like)
    decode = _DECODERS[encoding]
    modules: dict[str, Factors] = {}
    for name, factors in like:
        if f"{name}.a" in tensors or f"{name}.b" in tensors:
            a, b = (
                decode(tensors, key, shape) if key in tensors else np.zeros(shape, np.float32)
                for key, shape in ((f"{name}.a", factors.a.shape), (f"{name}.b", factors.b.shape))
            )
            modules[name] = Factors(a, b, factors.scale)
    faults = [name for name, f in modules.items() if not (np.isfinite(f.a).all() and np.isfinite(f.b).all())]
    if faults:
        raise Rejected("not-finite", f"entries that are not finite in {_some(faults, 'modules')}")
    return LoraAdapter(modules)


def _factors(adapter: LoraAdapter) -> Iterator[tuple[str, Array]]:
    for name, factors in adapter:
        yield f"{name}.a", factors.a
        yield f"{name}.b", factors.b


def _max_header_bytes(specs: Mapping[str, Spec]) -> int:
    return 1024 + sum(6 * len(key) + 160 for key in specs)  # 6: a character as \uXXXX


def _checked_tensors(payload: bytes, like: LoraAdapter) -> tuple[EncodingName, dict[str, NDArray[Any]]]:
    """Finds the encoding and the flat tensors of `payload`, each of the dtype and shape for `like`."""
    max_header = _max_header_bytes(payload_specs(like, "int8"))  # the encoding with the most tensors
    raw = _parse(payload, max_header, max_bytes=max_payload_bytes(like, "f32"))
    dtypes = frozenset(str(tensor["dtype"]) for _, tensor in raw)
    if dtypes not in _ENCODING_OF:
        raise Rejected("malformed", f"dtypes {_some(dtypes, 'dtypes')} belong to none of the encodings")
    specs = payload_specs(like, _ENCODING_OF[dtypes])
    tensors = {name: _view(tensor) for name, tensor in raw if _spec(tensor) == specs.get(name)}
    faults = [
        f"{name} {_spec(tensor)}, expected {specs.get(name)}" for name, tensor in raw if name not in tensors
    ]
    missing = [f"{key} is missing" for key in _partners(tensors, specs) if key not in tensors]
    told = [_some(faults, "tensors are other than expected")] if faults else []
    told += [_some(missing, "tensors are missing")] if missing else []
    if told:
        raise Rejected("wrong-shape", "; ".join(told))
    return _ENCODING_OF[dtypes], tensors


def _parse(payload: bytes, max_header: int, max_bytes: int) -> list[tuple[str, dict[str, Any]]]:
    length = int.from_bytes(payload[:8], "little")
    if len(payload) < 8 or length > len(payload) - 8:
        raise Rejected("malformed", f"{len(payload)} bytes are no safetensors, or they are truncated")
    if length > max_header or len(payload) - length > max_bytes:
        limit = f"expected a header of at most {max_header} bytes and {max_bytes} in all"
        raise Rejected("too-large", f"header of {length} bytes, {len(payload)} in all; {limit}")
    try:
        tensors: list[tuple[str, dict[str, Any]]] = safetensors.deserialize(payload)
    except safetensors.SafetensorError as error:
        raise Rejected("malformed", str(error)) from error
    if not tensors:
        raise Rejected("malformed", "no tensors")
    return tensors


def _partners(tensors: Iterable[str], specs: Iterable[str]) -> Iterator[str]:
    """Yields every key of each factor that has one key in `tensors`."""
    touched = {key.removesuffix(".step") for key in tensors}
    return (key for key in specs if key.removesuffix(".step") in touched)


def _spec(tensor: Mapping[str, Any]) -> Spec:
    return Spec(tensor["dtype"], tuple(tensor["shape"]))


def _view(tensor: Mapping[str, Any]) -> NDArray[Any]:
    return np.frombuffer(tensor["data"], dtype=_DTYPES[tensor["dtype"]]).reshape(tensor["shape"])


def _some(faults: Iterable[str], kind: str) -> str:
    """Sums up `faults`: a receipt stays small whatever was sent."""
    return sum_up("", [Fault(str(fault)[:200], kind) for fault in sorted(faults)], hint="")


def _blocks(factor: Array) -> Array:
    """Cuts a factor into (blocks, 64), padded with zeros."""
    flat = factor.reshape(-1)
    if flat.size % BLOCK:
        flat = np.pad(flat, (0, -flat.size % BLOCK))
    return flat.reshape(-1, BLOCK)


def _quantised(factor: Array, levels: int) -> tuple[NDArray[np.int8], Array]:
    """Rounds to integers in -levels … levels, flat without the padding, and returns the steps, too."""
    blocks = _blocks(factor)
    steps = np.maximum(blocks.max(axis=1), -blocks.min(axis=1)) / np.float32(levels)
    # A step below 2^-126 would make the quotient overflow: such a block is zero, and error feedback keeps it.
    steps[steps < np.finfo(np.float32).tiny] = 0
    divisors = np.where(steps == 0, np.float32(np.inf), steps)
    scaled = blocks / divisors[:, None]
    np.rint(scaled, out=scaled)
    return scaled.astype(np.int8).reshape(-1)[: factor.size], steps


def _encode_f32(key: str, factor: Array) -> dict[str, NDArray[Any]]:
    return {key: factor}


def _encode_f16(key: str, factor: Array) -> dict[str, NDArray[Any]]:
    return {key: np.clip(factor, -65504, 65504).astype(np.float16)}


def _encode_int8(key: str, factor: Array) -> dict[str, NDArray[Any]]:
    values, steps = _quantised(factor, 127)
    return {key: values.reshape(factor.shape), f"{key}.step": steps}


def _encode_int4(key: str, factor: Array) -> dict[str, NDArray[Any]]:
    values, steps = _quantised(factor, 7)
    nibbles = np.pad((values + 8).astype(np.uint8), (0, values.size % 2), constant_values=8)
    return {key: nibbles[0::2] | (nibbles[1::2] << 4), f"{key}.step": steps}


def _decode_float(tensors: Mapping[str, NDArray[Any]], key: str, shape: tuple[int, ...]) -> Array:
    return tensors[key].astype(np.float32)


def _decode_int8(tensors: Mapping[str, NDArray[Any]], key: str, shape: tuple[int, ...]) -> Array:
    return _dequantised(tensors[key].astype(np.float32), tensors[f"{key}.step"], shape)


def _decode_int4(tensors: Mapping[str, NDArray[Any]], key: str, shape: tuple[int, ...]) -> Array:
    packed = tensors[key]
    values = np.empty((packed.size, 2), dtype=np.float32)
    values[:, 0] = packed & 15
    values[:, 1] = packed >> 4
    values -= 8
    return _dequantised(values.reshape(-1)[: int(np.prod(shape))], tensors[f"{key}.step"], shape)


def _dequantised(values: Array, steps: Array, shape: tuple[int, ...]) -> Array:
    blocks = _blocks(values)
    with np.errstate(over="ignore", invalid="ignore"):  # the caller rejects what is not finite
        scaled = blocks * steps[:, None]
    return scaled.reshape(-1)[: values.size].reshape(shape)


_ENCODERS: Mapping[EncodingName, Callable[[str, Array], dict[str, NDArray[Any]]]] = {
    "f32": _encode_f32,
    "f16": _encode_f16,
    "int8": _encode_int8,
    "int4": _encode_int4,
}
_DECODERS: Mapping[EncodingName, Callable[[Mapping[str, NDArray[Any]], str, tuple[int, ...]], Array]] = {
    "f32": _decode_float,
    "f16": _decode_float,
    "int8": _decode_int8,
    "int4": _decode_int4,
}
_ENCODING_OF: Mapping[frozenset[str], EncodingName] = {
    frozenset({"F32"}): "f32",
    frozenset({"F16"}): "f16",
    frozenset({"I8", "F32"}): "int8",
    frozenset({"U8", "F32"}): "int4",
}
