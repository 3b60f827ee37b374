"""Whether all went on after the last fault, how soon after each, and whether anybody ended by itself."""

import statistics
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from benchmarks.faults.audit.evidence import Evidence, Finding
from benchmarks.faults.record import LABORATORY, Entry
from benchmarks.faults.schedule import BROKER, COORDINATOR, DISKS

MISTAKE = "this is a mistake in tunefleet"  # what nobody foresaw is told so (`edge.complaints`)


class GoneOn(NamedTuple):
    """One fault, and how long after it was over its target went on."""

    number: int
    kind: str
    target: str
    lifted_s: float
    took_s: float | None  # None: it never did


def is_receipted(entry: Entry) -> bool:
    """Tells whether a device had a receipt for an update that counts."""
    return entry.event == "accepted" and entry.who not in (COORDINATOR, BROKER, LABORATORY)


def times_to_go_on(evidence: Evidence) -> list[GoneOn]:
    """Returns for each fault that struck when the next update was receipted, counted from the fault's end.

    It is that device's own, or any device's after a fault of the coordinator's or the broker's. Faults
    overlap, and what others cost meanwhile is counted in.
    """
    receipts: dict[str, list[float]] = defaultdict(list)
    for entry in evidence.entries:
        if is_receipted(entry):
            receipts[entry.who].append(entry.at_s)
    everybody = sorted(at_s for times in receipts.values() for at_s in times)
    found = []
    for entry in evidence.said("lifted", by=LABORATORY):
        if not entry.facts["struck"]:
            continue
        target = entry.facts["target"]
        times = everybody if target in (COORDINATOR, BROKER) else receipts[target]
        after = next((at_s for at_s in times if at_s > entry.at_s), None)
        took_s = None if after is None else after - entry.at_s
        found.append(GoneOn(entry.facts["number"], entry.facts["kind"], target, entry.at_s, took_s))
    return found


def summed_up(times: list[GoneOn]) -> dict[str, tuple[int, float, float, float]]:
    """Returns for kills, for other faults, and for each kind: how many, median, 95th percentile and worst."""
    groups: dict[str, list[float]] = defaultdict(list)
    for one in times:
        if one.took_s is not None:
            is_kill = one.kind.startswith(("kill", "forget"))
            who = one.target if one.target in (COORDINATOR, BROKER) else "device"
            for name in ("all kills" if is_kill else "all other faults", f"{one.kind} {who}"):
                groups[name].append(one.took_s)
    return {
        name: (len(values), statistics.median(values), _percentile(values, 0.95), max(values))
        for name, values in sorted(groups.items())
    }


def check_liveness(evidence: Evidence) -> Iterator[Finding]:
    """Finds devices that did not go on after the last fault, and programs that ended by themselves."""
    over, stopping = evidence.moment("over"), evidence.moment("stopping")
    if over is None or stopping is None:
        yield Finding("stuck", LABORATORY, "the run was cut off before its end")
        return
    bound_s = evidence.settings.bound_s
    for device in evidence.settings.wish.devices:
        times = [one.at_s for one in evidence.entries if is_receipted(one) and one.who == device]
        if not any(over < at_s <= over + bound_s for at_s in times):
            last_s = max(times, default=0.0)
            told = f"had no receipt in {bound_s:.0f} s after the last fault; its last came at {last_s:.1f} s"
            yield Finding("stuck", device, told)
    for entry in evidence.entries:
        if entry.event == "warning" and MISTAKE in str(entry.facts.get("text")):
            yield Finding("mistake", entry.who, entry.facts["text"])
    for entry in evidence.said("hung"):
        yield Finding("stuck", entry.who, entry.facts["text"])
    for entry in evidence.said("exit"):
        if _is_refused_start(evidence, entry):
            continue
        told = f"ended by itself at {entry.at_s:.1f} s with {entry.facts['status']}: {entry.facts['text']}"
        yield Finding("ended", entry.who, told)


def _is_refused_start(evidence: Evidence, ending: Entry) -> bool:
    """Tells whether a program did not start since its disk failed, and said so: its user is told at once."""
    since: list[str] = []  # what it said since it was started
    num_broken, was_broken = 0, False  # since then
    for one in evidence.entries[: evidence.entries.index(ending)]:
        if one.who == ending.who:
            since = [] if one.event == "started" else [*since, one.event]
            was_broken = num_broken > 0 or (was_broken and one.event != "started")
        elif one.facts.get("target") == ending.who and one.facts.get("kind") in DISKS:
            num_broken += 1 if one.event == "fault" else -1
            was_broken |= num_broken > 0
    is_told = ending.facts["text"].startswith("tunefleet: ")
    return is_told and was_broken and not {"joined", "serving"} & set(since)


def receipts_per_s(evidence: Evidence, window_s: float = 10.0) -> tuple[float, float]:
    """Returns receipts a second while faults went on: over all, and in the worst window."""
    began, over = evidence.moment("under-way"), evidence.moment("over")
    if began is None or over is None or over <= began:
        return 0.0, 0.0
    times = [one.at_s for one in evidence.entries if is_receipted(one) and began < one.at_s <= over]
    starts = [began + n for n in range(max(1, int(over - began - window_s) + 1))]
    worst = min(sum(start < at_s <= start + window_s for at_s in times) for start in starts)
    return len(times) / (over - began), worst / min(window_s, over - began)


def _percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
