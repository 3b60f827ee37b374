"""Records as rows of the journal, and back."""

from collections.abc import Iterable, Mapping
from typing import TypeVar

import msgspec
from msgspec import Struct

from coordinator.ledger.records import Carried, Device, Origin, Version
from coordinator.strategies.contract import Report
from edge.protocol.messages import Hello, Telemetry
from edge.protocol.signing import Stamp

T = TypeVar("T")


def packed(record: Iterable[object]) -> list[object]:
    """Returns a record as a row: what is no number or text as JSON."""
    return [
        msgspec.json.encode(value).decode() if isinstance(value, Mapping | Struct | tuple) else value
        for value in record
    ]


def device_of(row: Device) -> Device:
    """Returns the device in a row."""
    held = tuple(_read(row.held, list[int]) or ())
    hello, telemetry = _read_bounded(row.hello, Hello), _read_bounded(row.telemetry, Telemetry)
    stamps = _read(row.stamps, dict[str, Stamp]) or {}
    return row._replace(online=bool(row.online), hello=hello, telemetry=telemetry, held=held, stamps=stamps)


def version_of(row: Version) -> Version:
    """Returns the version in a row."""
    return row._replace(
        report=_read(row.report, Report),
        tiers=_read(row.tiers, dict[str, str]) or {},
        carried=_read(row.carried, Carried) or Carried(),
        kept=bool(row.kept),
        origin=_read(row.origin, Origin),
    )


def _read_bounded(text: object, kind: type[T]) -> T | None:
    """Reads what a device said of itself; an older journal may hold more than is taken now."""
    try:
        return _read(text, kind)
    except msgspec.ValidationError:
        return None


def _read(text: object, kind: type[T]) -> T | None:
    return msgspec.json.decode(str(text), type=kind) if text is not None else None
