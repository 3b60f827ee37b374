"""What an update must be before it counts: nothing a device sends is believed.

`check_id` and `check_header` judge the header, before a single chunk is kept; `check_payload` the
tensors. Each failure is a `Rejected` with one of the wire's reasons. Sizes are bounded before memory is
taken: a header may promise no more bytes than its encoding needs for the tier it names.
"""

import hashlib
import math
from typing import NamedTuple

import numpy as np
from msgspec import structs

from converters.adapter import LoraAdapter
from converters.arithmetic import norm
from coordinator.ledger.head import Standing
from edge.errors import Rejected
from edge.protocol.codec import decode_adapter, max_payload_bytes
from edge.protocol.delta import update_id
from edge.protocol.messages import UpdateHeader
from edge.protocol.receiving import bounded_chunks
from edge.protocol.sealing import SEALED_BYTES, Context, open_update

NOISE_SLACK = 2.0  # noise is about as long as the root of its entries; what encodings leave over comes to it


class Rules(NamedTuple):
    """What updates are measured against."""

    fleet: str
    base: str  # fingerprint
    max_staleness: int
    max_update_bytes: int
    max_norm: float  # Frobenius, increments of A and B together; what noise adds is not counted
    fleet_norm: float = math.inf  # the same, by what is usual in this fleet
    deviation: float = 0.0  # of the noise that the fleet asks for in every entry of an update
    identity: bytes = bytes(32)  # private key of the coordinator, which sealed updates are opened by


class Sound(NamedTuple):
    """A payload that may count."""

    delta: LoraAdapter
    norm: float
    header: UpdateHeader  # with the facts that were sealed


class Unsealed(NamedTuple):
    """An update that was opened, or was never sealed."""

    header: UpdateHeader  # with the facts
    delta: bytes  # encoded


def check_id(header: UpdateHeader, update: str) -> None:
    """Checks that a header is of the update whose topic it came on, and of no other.

    Raises:
        Rejected: `malformed`.
    """
    if header.update != update:
        raise Rejected("malformed", f"header of update {header.update} came on the topic of {update}")
    expected = update_id(
        header.device_id, header.base_version, header.attempt, header.sha256, header.base_sha256
    )
    if header.update != expected:
        raise Rejected(
            "malformed", f"update id {header.update} does not belong to its content, expected {expected}"
        )


def check_header(header: UpdateHeader, rules: Rules, standing: Standing) -> None:
    """Checks everything that can be known before the first chunk.

    Raises:
        Rejected: `malformed`, `foreign-base`, `unknown-version`, `rolled-back`, `too-stale`, `wrong-shape` or
            `too-large`.
    """
    if header.fleet != rules.fleet:
        raise Rejected("malformed", f"update of fleet {header.fleet}, expected {rules.fleet}")
    if header.base != rules.base:
        raise Rejected("foreign-base", f"base model {header.base[:16]}…, expected {rules.base[:16]}…")
    _check_version(header, rules, standing)
    like = standing.tiers.get(header.tier)
    if like is None:
        raise Rejected("wrong-shape", f"tier {header.tier}, expected one of {', '.join(standing.tiers)}")
    bound = min(rules.max_update_bytes, max_payload_bytes(like, header.encoding))
    bound += SEALED_BYTES if header.is_sealed else 0
    bounded_chunks(header.size_bytes, header.chunk_bytes)
    if header.size_bytes > bound:
        raise Rejected("too-large", f"{header.size_bytes} bytes, expected at most {bound}")


def unseal_payload(header: UpdateHeader, payload: memoryview, rules: Rules) -> Unsealed:
    """Opens what came in, where it is sealed.

    Args:
        header: Of the update, checked.
        payload: As it came; a view of the file, which is not copied where it is sealed.
        rules: Hold the key.

    Raises:
        Rejected: `hash-mismatch`, `unsealable`, or `malformed`.
    """
    found = hashlib.sha256(payload).hexdigest()
    if found != header.sha256:
        raise Rejected("hash-mismatch", f"payload has sha256 {found}, expected {header.sha256}")
    if not header.is_sealed:
        return Unsealed(header, bytes(payload))
    context = Context(
        header.fleet, header.device_id, header.base_version, header.attempt, header.base_sha256 or ""
    )
    opened = open_update(payload, rules.identity, context)
    return Unsealed(structs.replace(header, **structs.asdict(opened.facts)), opened.delta)


def check_payload(header: UpdateHeader, payload: bytes, rules: Rules, standing: Standing) -> Sound:
    """Returns the delta in `payload`, which is opened, and its norm.

    Raises:
        Rejected: By its tensors `malformed`, `too-large`, `wrong-shape`, `not-finite` or `norm-too-large`.
    """
    delta = decode_adapter(payload, like=standing.tiers[header.tier])
    found_norm = delta_norm(delta)
    most = rules.max_norm + NOISE_SLACK * rules.deviation * math.sqrt(
        num_entries(standing.tiers[header.tier])
    )
    if not np.isfinite(found_norm) or found_norm > most:
        raise Rejected("norm-too-large", f"norm {found_norm:.6g}, expected at most {most:.6g}")
    if found_norm > rules.fleet_norm:
        told = (
            f"norm {found_norm:.6g}, expected at most {rules.fleet_norm:.6g} by what is usual in this fleet"
        )
        raise Rejected("norm-too-large", told)
    return Sound(delta, found_norm, header)


def num_entries(adapter: LoraAdapter) -> int:
    """Counts the entries of A and B."""
    return sum(factors.a.size + factors.b.size for _, factors in adapter)


def delta_norm(delta: LoraAdapter) -> float:
    """Returns the Frobenius norm of all increments of A and B together."""
    with np.errstate(over="ignore"):  # infinite is too large, and is told as such
        return norm(delta)


def _check_version(header: UpdateHeader, rules: Rules, standing: Standing) -> None:
    base_version = header.base_version
    if base_version > standing.version:
        raise Rejected(
            "unknown-version",
            f"version {base_version} was never published from this state, {standing.version} is current",
        )
    if base_version not in standing.lineage:
        raise Rejected(
            "rolled-back", f"version {base_version} is no ancestor of the current one, {standing.version}"
        )
    staleness = standing.staleness(base_version)
    if staleness > rules.max_staleness:
        raise Rejected(
            "too-stale",
            f"version {base_version} is {staleness} versions old, expected at most {rules.max_staleness}",
        )
    if base_version not in standing.kept:
        raise Rejected("unknown-version", f"version {base_version} is no longer kept")
    if header.base_sha256 not in (None, standing.kept[base_version].get(header.tier)):
        raise Rejected(
            "unknown-version",
            f"version {base_version} is another one here than the update began from: "
            "the coordinator's state was restored in between",
        )
