"""What a device says about itself: presence, capability card, memory."""

import hashlib
import os
from pathlib import Path

from converters.bases.read import read_base
from converters.errors import BaseModelError
from edge.device.config import DeviceConfig
from edge.device.state import Memory
from edge.protocol.messages import EncodingName, Hello, encode_message
from edge.protocol.messages import Presence as PresenceRecord
from edge.protocol.topics import Topics
from edge.transport.base import Presence

ENCODINGS: tuple[EncodingName, ...] = ("int4", "int8", "f16", "f32")


def device_presence(fleet: str, device_id: str, epoch: int) -> Presence:
    """Birth and will of one session.

    Args:
        fleet: The fleet's name.
        device_id: The device's name.
        epoch: Unix time in ms at the session's start; tells a late will of an earlier session.
    """
    return Presence(
        Topics(fleet).device(device_id, "state"),
        birth=encode_message(PresenceRecord(online=True, epoch=epoch)),
        will=encode_message(PresenceRecord(online=False, epoch=epoch)),
    )


def capability_card(
    device_id: str, backend: str, max_rank: int, tokens_per_s: float | None, base: str
) -> Hello:
    """The card of a device that can train every rank up to `max_rank`.

    Its ranks are `max_rank` and the powers of two below, largest first.
    """
    below = (1 << power for power in reversed(range(max_rank.bit_length())))
    return Hello(
        device_id=device_id,
        backend=backend,
        ranks=(max_rank, *(rank for rank in below if rank < max_rank)),
        encodings=ENCODINGS,
        memory_bytes=memory_bytes(),
        tokens_per_s=tokens_per_s,
        base=base,
    )


def memory_bytes() -> int:
    """Physical memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def fresh_memory(config: DeviceConfig) -> Memory:
    """What a new state folder of this device remembers.

    Raises:
        BaseModelError: As `base_fingerprint`.
    """
    base = Path(config.base)
    fingerprint = base_fingerprint(base, config.fingerprint)
    return Memory(
        fleet=config.fleet,
        device_id=config.device_id,
        base=fingerprint,
        base_files="" if fingerprint else base_files(base),
        coordinator_key=config.coordinator_key,
    )


def base_files(base: Path) -> str:
    """What changes when a file of the model at `base` changes, in hexadecimal: sizes and times of writing."""
    files = sorted(path for path in base.iterdir() if path.is_file()) if base.is_dir() else [base]
    told = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(repr(told).encode()).hexdigest()


def base_fingerprint(base: Path, configured: str | None) -> str | None:
    """Of the base model at `base`, or None: a quantised or GGUF model is proved to be the fleet's later.

    Args:
        base: A folder, or a GGUF file.
        configured: Is believed of a model that would have to be proved.

    Raises:
        BaseModelError: It cannot be read, or has another fingerprint than is configured.
    """
    model = read_base(base)
    if model.is_quantized or not base.is_dir():
        return configured
    own = model.fingerprint
    if configured and own != configured:
        raise BaseModelError(f"{base}: has fingerprint {own}, the configuration says {configured}")
    return own
