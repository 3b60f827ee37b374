"""Rows of the journal as records. SQLite keeps any value in any column: what a record says is checked here.

A journal may be damaged, edited by hand, or restored from half of a backup. Words, a status or a reason, are
not compared with a list: an older release had others.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Struct

from converters.files.text import decode_record
from converters.plain import plain
from coordinator.ledger.records import Carried, Device, Origin, Version
from coordinator.strategies.contract import Report
from edge.errors import StateError
from edge.protocol.messages import Hello, Telemetry
from edge.protocol.signing import Stamp

R = TypeVar("R")
T = TypeVar("T")


def packed(record: Iterable[object]) -> list[object]:
    """Returns a record as a row: what is no number or text as JSON."""
    return [
        msgspec.json.encode(value).decode() if isinstance(value, Mapping | Struct | tuple) else value
        for value in record
    ]


def read_record(kind: type[R], row: Sequence[object]) -> R:
    """Makes a record of a row.

    Raises:
        StateError: A value is of another type than its field.
    """
    fields: Mapping[str, tuple[type, ...]] = _types(cast(Hashable, kind))
    for (name, types), value in zip(fields.items(), row, strict=False):
        if types and not isinstance(value, types):
            what = f"{type(value).__name__} {plain(repr(value), 40)}"
            raise StateError(f"is damaged: {kind.__name__.lower()} has {what} as its {name}")
    return kind(*row)


def read_device(row: Sequence[object]) -> Device:
    """Makes a device of a row.

    Raises:
        StateError: As `read_record`, or a text in it is none of ours.
    """
    device = Device(*row)  # type: ignore[arg-type]
    held = tuple(_inner(device.held, list[int]) or ())
    hello, telemetry = _bounded(device.hello, Hello), _bounded(device.telemetry, Telemetry)
    stamps = _inner(device.stamps, dict[str, Stamp]) or {}
    told = device._replace(
        online=bool(device.online), hello=hello, telemetry=telemetry, held=held, stamps=stamps
    )
    return read_record(Device, told)


def read_version(row: Sequence[object]) -> Version:
    """Makes a version of a row.

    Raises:
        StateError: As `read_record`, or a text in it is none of ours.
    """
    version = Version(*row)  # type: ignore[arg-type]
    told = version._replace(
        report=_inner(version.report, Report),
        tiers=_inner(version.tiers, dict[str, str]) or {},
        carried=_inner(version.carried, Carried) or Carried(),
        kept=bool(version.kept),
        origin=_inner(version.origin, Origin),
    )
    return read_record(Version, told)


def _bounded(text: object, kind: type[T]) -> T | None:
    """Reads what a device said of itself; an older journal may hold more than is taken now."""
    try:
        return _inner(text, kind)
    except StateError:
        return None


def _inner(text: object, kind: type[T]) -> T | None:
    """Returns the record that a column holds as JSON."""
    if text is None:
        return None
    if not isinstance(text, str):
        raise StateError(f"is damaged: {plain(repr(text), 40)} is no {kind.__name__}")
    return decode_record(text, kind, lambda why: StateError(f"is damaged: {kind.__name__}: {why}"))


@cache
def _types(kind: Any) -> Mapping[str, tuple[type, ...]]:
    """Lists the types that values of each field may have; nothing for those that may be anything."""
    return {name: _plain_types(hint) for name, hint in get_type_hints(kind).items()}


def _plain_types(hint: Any) -> tuple[type, ...]:
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return tuple(one for inner in get_args(hint) for one in _plain_types(inner))
    if origin is Literal:
        return (str,)
    if hint is float:
        return (float, int)
    if hint in (int, str, bool, NoneType) or (isinstance(hint, type) and issubclass(hint, Struct)):
        return (hint,)
    return (Mapping,) if origin is Mapping else (tuple,) if origin is tuple else ()
