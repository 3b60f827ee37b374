"""How long updates are in this fleet, to tell one that would outweigh all others.

A device's usual norm is the median of its last few, and the fleet's is the median of its devices': so a
device that sends much moves it no further than one that sends little, and fewer than half of the devices
cannot move it out of what the others send. Adam moves every entry by about as much, so norms are compared
after division by the root of the rank. Until three devices are known there is no measure, and only
`max_norm` holds; the same after the recipe or the terms of privacy have changed, of which norms follow.
"""

from collections import deque
from collections.abc import Iterable
from math import sqrt
from statistics import median

from coordinator.ledger.contract import Journal
from edge.privacy.terms import NO_TERMS, Terms
from edge.protocol.messages import Recipe, encode_message

WARM_DEVICES = 3
PER_DEVICE = 8
MAX_DEVICES = 256  # that are remembered; the one heard longest ago is forgotten first
SECONDS_LEAD = 10.0  # where a task is so many seconds, a fast device takes more steps and goes further
RECIPE, SINCE = "recipe", "norms since"  # in the journal


class Norms:
    """The norms of updates that were accepted, of the last devices that sent some.

    Args:
        ratio: How many times the usual norm an update may have.
        known: Device, rank and norm of earlier ones, oldest first.
    """

    def __init__(self, ratio: float, known: Iterable[tuple[str, int, float]] = ()) -> None:
        self._ratio = ratio
        self._norms: dict[str, deque[float]] = {}
        self._usual: dict[str, float] = {}  # median of each device's
        for device, rank, norm in known:
            self.add(device, rank, norm)

    def add(self, device: str, rank: int, norm: float) -> None:
        """Notes an update that was accepted."""
        norms = self._norms.pop(device, deque(maxlen=PER_DEVICE))
        if len(self._norms) >= MAX_DEVICES:
            forgotten = next(iter(self._norms))
            del self._norms[forgotten], self._usual[forgotten]
        norms.append(norm / sqrt(rank))
        self._norms[device], self._usual[device] = norms, median(norms)

    def bound(self, rank: int) -> float | None:
        """Returns the longest norm that an update of a rank may have; None where there is no measure yet."""
        if len(self._norms) < WARM_DEVICES:
            return None
        usual = median(self._usual.values())
        return self._ratio * usual * sqrt(rank) if usual > 0 else None


def open_norms(journal: Journal, recipe: Recipe, ratio: float, terms: Terms = NO_TERMS) -> Norms:
    """Returns the norms that the journal remembers of the recipe in force.

    Args:
        journal: Notes the recipe, to see when it changes.
        recipe: Of the fleet.
        ratio: As `Norms`.
        terms: Of the fleet's privacy: clipping and noise make updates of another length.

    Raises:
        DiskFull: The recipe was not noted.
    """
    text = encode_message(recipe).decode()
    if terms.is_on:
        text += encode_message(terms).decode()
    if journal.meta(RECIPE) != text:
        journal.note(SINCE, str(journal.last_seq() if journal.meta(RECIPE) else 0))
        journal.note(RECIPE, text)
    known = journal.norms(int(journal.meta(SINCE) or 0), MAX_DEVICES * PER_DEVICE)
    return Norms(ratio if recipe.steps else SECONDS_LEAD * ratio, known)
