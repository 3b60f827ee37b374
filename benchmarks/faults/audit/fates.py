"""Each update that ever was has exactly one fate, and nobody was told another."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from benchmarks.faults.audit.evidence import Evidence, Finding
from benchmarks.faults.record import LABORATORY
from benchmarks.faults.schedule import COORDINATOR
from coordinator.ledger.records import Update
from edge.device.epochs import FORGOTTEN
from edge.errors import MissingObject


class Known(NamedTuple):
    """One update, as somebody has seen it."""

    device: str
    base_version: int | None = None
    attempt: int | None = None


def all_updates(evidence: Evidence) -> dict[str, Known]:
    """Returns every update that entered a spool, was told of, or stands in the journal, by its id."""
    found: dict[str, Known] = {}
    for entry in evidence.said("entered", by=LABORATORY):
        if update := entry.facts.get("update"):
            found[update] = Known(entry.facts["device"], entry.facts["base_version"], entry.facts["attempt"])
    for update, spooled in evidence.spooled.items():
        header = spooled.header
        found[update] = Known(header.device_id, header.base_version, header.attempt)
    for update, row in evidence.updates.items():
        found[update] = Known(row.device, row.base_version, row.attempt)
    for entry in evidence.entries:
        if entry.event in ("spooled", "accepted", "rejected") and "update" in entry.facts:
            device = entry.facts.get("device") or entry.who
            if device in evidence.settings.wish.devices:  # an attacker's may be told and left out
                found.setdefault(entry.facts["update"], Known(device, entry.facts.get("base_version")))
    return found


def fate(evidence: Evidence, update: str, dropped: frozenset[str]) -> str | None:
    """Returns what became of an update; None where nothing did.

    Args:
        evidence: Of the run.
        update: Its id.
        dropped: Updates that their device dropped on a verdict, and told so.
    """
    row = evidence.updates.get(update)
    if row is not None:
        return _of_row(row)
    if update in evidence.spooled:
        return "in the spool"
    return "dropped, and told" if update in dropped else None


def _of_row(row: Update) -> str | None:
    if row.status == "accepted":
        return "waiting" if row.merged_into is None else "merged"
    return row.status if row.reason else None


def count_fates(evidence: Evidence) -> Counter[str]:
    """Counts the fates of all updates; `lost` is none."""
    dropped = _dropped(evidence)
    return Counter(fate(evidence, update, dropped) or "lost" for update in all_updates(evidence))


def check_fates(evidence: Evidence) -> Iterator[Finding]:
    """Finds updates that are lost, counted twice, or told to be what they are not."""
    dropped = _dropped(evidence)
    for update, known in all_updates(evidence).items():
        if fate(evidence, update, dropped) is None:
            told = f"update {update} on version {known.base_version} has gone without a verdict"
            yield Finding("lost", known.device, told)
    yield from _twice(evidence)
    yield from _contradictions(evidence)
    yield from _mistaken(evidence)
    yield from _damaged(evidence)


def _dropped(evidence: Evidence) -> frozenset[str]:
    return frozenset(
        entry.facts["update"]
        for entry in evidence.said("rejected")
        if entry.who != COORDINATOR and entry.facts.get("reason")
    )


def _twice(evidence: Evidence) -> Iterator[Finding]:
    """Finds tasks that counted more than once: one device, one version, one attempt."""
    tasks: dict[tuple[str, int, int], list[str]] = defaultdict(list)
    for row in evidence.updates.values():
        if row.status == "accepted":
            tasks[row.device, row.base_version, row.attempt].append(row.id)
    for (device, version, attempt), updates in tasks.items():
        if len(updates) > 1:
            told = f"attempt {attempt} on version {version} counts {len(updates)} times: {', '.join(updates)}"
            yield Finding("twice", device, told)


def _contradictions(evidence: Evidence) -> Iterator[Finding]:
    for entry in evidence.entries:
        update = entry.facts.get("update")
        if entry.event not in ("accepted", "rejected") or update is None:
            continue
        row = evidence.updates.get(update)
        status = "nothing of it" if row is None else row.status
        is_backed = status == entry.event or (entry.event, status) == ("accepted", "discarded")
        if not is_backed and (entry.event == "accepted" or row is not None):
            yield Finding(
                "contradiction", entry.who, f"{update} was told {entry.event}, the journal says {status}"
            )
        if entry.who != COORDINATOR and update in evidence.spooled:
            yield Finding("contradiction", entry.who, f"{update} was told {entry.event} and is still spooled")


def _mistaken(evidence: Evidence) -> Iterator[Finding]:
    """Finds devices that believe in a restore: no laboratory's coordinator is ever restored."""
    for entry in evidence.said("warning"):
        if entry.facts.get("text") == FORGOTTEN:
            yield Finding("contradiction", entry.who, f"believes at {entry.at_s:.1f} s in a restored state")


def _damaged(evidence: Evidence) -> Iterator[Finding]:
    """Finds payloads that are not what their headers promise, in the spools and in the buffer."""
    for update, spooled in evidence.spooled.items():
        found = hashlib.sha256(spooled.payload.read_bytes()).hexdigest()
        if found != spooled.header.sha256:
            yield Finding("damaged", spooled.header.device_id, f"{update}: its payload has sha256 {found}")
    for row in evidence.updates.values():
        if row.status != "accepted" or row.merged_into is not None:
            continue
        try:
            payload = evidence.payloads.get(row.id)
        except MissingObject:
            yield Finding("lost", row.device, f"update {row.id} waits in the buffer, and has no payload")
            continue
        if hashlib.sha256(payload).hexdigest() != row.sha256:
            yield Finding("damaged", row.device, f"{row.id}: its payload in the buffer is another")
