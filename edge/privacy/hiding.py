"""What is done to a whole delta before anybody else sees it: privacy of unit `device`."""

from converters.adapter import LoraAdapter
from edge.privacy.clipping import clip, noised
from edge.privacy.noise import Draw
from edge.privacy.terms import Terms


def hide_device(delta: LoraAdapter, terms: Terms, draw: Draw, mask: LoraAdapter | None = None) -> LoraAdapter:
    """Clips a delta, and adds noise where it is to be added here; other units leave it as it is.

    Args:
        delta: Trained minus dispatched, zero where `mask` is.
        terms: The fleet's.
        draw: Gives random bytes.
        mask: 0 where an entry is not sent; None sends all.
    """
    if terms.unit != "device":
        return delta
    clipped = clip(delta, terms.clip_norm)
    return noised(clipped, terms.deviation, draw, mask) if terms.deviation else clipped
