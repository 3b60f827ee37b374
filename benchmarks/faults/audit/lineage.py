"""Versions, one after the other: whole, made of the updates that the journal names, each once.

A laboratory's fleet adds factors up (space `factors`, FedBuff), so a version is its parent plus the sum of
its updates, each times its weight. That sum is done again here, from the payloads that the witness kept.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator

import numpy as np

from benchmarks.faults.audit.evidence import Evidence, Finding
from converters.adapter import LoraAdapter
from coordinator.ledger.records import Version
from coordinator.strategies.contract import Share
from edge.protocol.codec import decode_adapter

TOLERANCE = 1e-5  # of the largest entry; sums of float32 in another order differ by less


def check_lineage(evidence: Evidence) -> Iterator[Finding]:
    """Finds versions that are missing, damaged, or made of other updates than they say."""
    for expected, version in enumerate(evidence.versions):
        if version.version != expected or version.parent != (expected - 1 if expected else None):
            told = f"has number {version.version} and parent {version.parent}, expected {expected}"
            yield Finding("lineage", f"version {version.version}", told)
        yield from _files(evidence, version)
    yield from _counted(evidence)


def _files(evidence: Evidence, version: Version) -> Iterator[Finding]:
    for name in version.files if version.kept else ():
        path = evidence.store.objects.folder / name  # type: ignore[attr-defined]
        if not path.is_file():
            yield Finding("lineage", f"version {version.version}", f"its object {name} is gone")
        elif (found := hashlib.sha256(path.read_bytes()).hexdigest()) != name:
            yield Finding("damaged", f"version {version.version}", f"its object {name} has sha256 {found}")


def _counted(evidence: Evidence) -> Iterator[Finding]:
    """Holds what versions say they are made of against the journal's rows and the devices' accounts."""
    shares = [(version, share) for version in evidence.versions for share in _shares(version)]
    for update, times in Counter(share.update for _, share in shares).items():
        if times > 1:
            yield Finding("twice", update, f"is in {times} versions")
    for version, share in shares:
        row = evidence.updates.get(share.update)
        if row is None or row.merged_into != version.version:
            told = f"counts {share.update}, which the journal puts into {row and row.merged_into}"
            yield Finding("twice" if row is None else "lineage", f"version {version.version}", told)
    counted = {share.update for _, share in shares}
    for row in evidence.updates.values():
        if row.merged_into is not None and row.id not in counted:
            told = f"update {row.id} is in version {row.merged_into} by the journal, and not by that version"
            yield Finding("lost", row.device, told)
    contributions = Counter(share.device for _, share in shares)
    for device in sorted(contributions | Counter(evidence.uploads)):
        contributed, accounted = contributions[device], evidence.uploads.get(device, 0)
        if contributed != accounted:
            told = f"{contributed} updates are in versions, its account says {accounted}"
            yield Finding("uncounted", device, told)


def check_sums(evidence: Evidence) -> Iterator[Finding]:
    """Adds versions up again; those with a payload that was not kept are left out (`count_sums`)."""
    for before, version in _summable(evidence):
        parent, made = evidence.store.load(before.master), evidence.store.load(version.master)
        expected = _sum(evidence, parent, _shares(version))
        off = max(float(np.abs(a - b).max()) for a, b in zip(_entries(made), expected, strict=True))
        largest = max(float(np.abs(a).max()) for a in expected)
        if off > TOLERANCE * max(largest, 1e-30):
            told = f"is off its parent and updates by {off:.3g}, largest entry {largest:.3g}"
            yield Finding("twice", f"version {version.version}", told)


def count_sums(evidence: Evidence) -> int:
    """Returns how many versions `check_sums` can add up."""
    return sum(1 for _ in _summable(evidence))


def _summable(evidence: Evidence) -> Iterator[tuple[Version, Version]]:
    for before, version in zip(evidence.versions, evidence.versions[1:], strict=False):
        are_here = all(
            share.update in evidence.updates and evidence.kept(share.update).is_file()
            for share in _shares(version)
        )
        if before.kept and version.kept and version.report and version.report.step_scale == 1 and are_here:
            yield before, version


def _shares(version: Version) -> tuple[Share, ...]:
    return version.report.shares if version.report else ()


def _sum(evidence: Evidence, parent: LoraAdapter, shares: tuple[Share, ...]) -> list[np.ndarray]:
    total = [entry.astype(np.float64) for entry in _entries(parent)]
    for share in shares:
        delta = decode_adapter(evidence.delta(share.update), like=parent)
        assert list(dict(delta)) == list(dict(parent))
        for entry, change in zip(total, _entries(delta), strict=True):
            entry += share.weight * change
    return total


def _entries(adapter: LoraAdapter) -> list[np.ndarray]:
    return [matrix for _, factors in adapter for matrix in (factors.a, factors.b)]
