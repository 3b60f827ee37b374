"""What a device says about itself: its presence, and what it can do."""

import os

from edge.protocol.messages import EncodingName, Hello
from edge.protocol.signing import Signer
from edge.protocol.topics import Topics
from edge.transport.presence import SessionPresence

ENCODINGS: tuple[EncodingName, ...] = ("int4", "int8", "f16", "f32")


def device_presence(fleet: str, device_id: str, signer: Signer) -> SessionPresence:
    """Returns what makes birth and will of each connection."""
    return SessionPresence(Topics(fleet).device(device_id, "state"), signer)


def capability_card(
    device_id: str, backend: str, max_rank: int, tokens_per_s: float | None, base: str
) -> Hello:
    """Returns the card of a device that can train every rank up to `max_rank`.

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
    """Returns the physical memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
