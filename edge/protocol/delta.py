"""What training changed, and how it is sent without losing what the encoding rounds away.

A delta is a `LoraAdapter` whose a and b are increments: trained minus dispatched factors, at the dispatched
scale.
Error feedback (Seide et al. 2014; Karimireddy et al., arXiv 1901.09847): what an encoding leaves over, the
residual, is kept by the device and added to its next delta, so that over time nothing is dropped.
"""

import hashlib
from collections.abc import Callable

from converters.adapter import Factors, LoraAdapter
from converters.arithmetic import add, select, subtract
from converters.errors import AdapterError
from converters.faults import Fault
from converters.masking import apply_mask
from edge.protocol.codec import decode_adapter, encode_adapter
from edge.protocol.messages import EncodingName


def make_delta(trained: LoraAdapter, base: LoraAdapter) -> LoraAdapter:
    """Subtracts `base` from `trained`, for the modules of `trained`.

    Raises:
        AdapterError: Naming every module that `base` lacks or has in another shape or scale.
    """
    expected = {name: _shape(factors) for name, factors in base}
    faults = [
        Fault(
            f"{name} has {_shape(factors)}, expected {expected.get(name, 'no such module')}",
            "modules of other shapes or scales",
        )
        for name, factors in trained
        if _shape(factors) != expected.get(name)
    ]
    if faults:
        raise AdapterError.of("adapter does not fit the one it was trained from", faults)
    return subtract(trained, base)


def encode_delta(
    trained: LoraAdapter,
    base: LoraAdapter,
    residual: LoraAdapter | None,
    encoding: EncodingName,
    *,
    mask: LoraAdapter | None = None,
    hide: Callable[[LoraAdapter], LoraAdapter] = lambda delta: delta,
) -> tuple[bytes, LoraAdapter]:
    """Encodes the delta with the earlier `residual` added, and returns what is left over now beside it.

    The delta is hidden before the residual is added: what an update with noise left over needs no more of it,
    and would use the bound up.

    Modules of `residual` that no longer fit (another rank, another coverage) are forgotten.

    Args:
        trained: After training.
        base: As it was dispatched.
        residual: What the last encoding left over.
        encoding: Of the bytes.
        mask: 1 where entries are sent, in the shapes of `trained`; the others count as unchanged, and what
            was left over of them is forgotten. None sends all.
        hide: Clips the delta, and adds noise to it.

    Raises:
        AdapterError: If `trained` does not fit `base`.
    """
    delta = hide(apply_mask(make_delta(trained, base), mask))
    if residual is not None:
        shapes = {name: _shape(factors) for name, factors in delta}
        fitting = [name for name, factors in residual if _shape(factors) == shapes.get(name)]
        delta = add(delta, select(residual, fitting))
    delta = apply_mask(delta, mask)
    payload = encode_adapter(delta, encoding)
    return payload, subtract(delta, decode_adapter(payload, like=delta))


def update_id(
    device_id: str, base_version: int, attempt: int, sha256: str, base_sha256: str | None = None
) -> str:
    """Names an update by 32 hex digits: the same update has the same id however often it is sent.

    Args:
        device_id: Who trained.
        base_version: On what.
        attempt: How many tasks the device had done on it before.
        sha256: Of the payload.
        base_sha256: Of the base version's blob, where it is told: a number may name two versions, one from
            before the coordinator's state was restored, and one from after.
    """
    text = f"{device_id}\n{base_version}\n{attempt}\n{sha256}"
    if base_sha256 is not None:
        text += f"\n{base_sha256}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _shape(factors: Factors) -> tuple[tuple[int, ...], tuple[int, ...], float]:
    return factors.a.shape, factors.b.shape, factors.scale
