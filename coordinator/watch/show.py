"""How sightings look: a line cut to the terminal, or one JSON object; nothing in them moves a cursor."""

import json
import math
import time
from collections.abc import Callable
from typing import Any

from converters.plain import plain
from coordinator.watch.sighting import COORDINATOR, NOBODY, Sighting
from coordinator.watch.traffic import Sum

MARKS = {
    "invalid": "[bad signature] ",
    "missing": "[unsigned] ",
    "other-key": "[another key] ",
    "valid": "",
    None: "",
}
WHO_WIDTH = len(COORDINATOR)
Show = Callable[[Sighting | Sum], str]


def lines(width: int | None, *, names_fleet: bool) -> Show:
    """Makes lines for people.

    Args:
        width: Columns that a line is cut to; None never cuts.
        names_fleet: Several fleets are watched.
    """

    def show(seen: Sighting | Sum) -> str:
        if isinstance(seen, Sum):
            fleet, who, text, mark = *seen.transfer[:2], seen.text, " "
        else:
            fleet, who = seen.fleet, seen.who or "?"
            text, mark = MARKS[seen.signature] + seen.text, "~" if seen.is_retained else " "
        name = f"{fleet}/{who}" if names_fleet else who
        line = f"{time.strftime('%H:%M:%S')}{mark}{name:<{WHO_WIDTH}} {text}"
        return fit(plain(line), width)

    return show


def as_json(seen: Sighting | Sum) -> str:
    """Returns one object, in ASCII."""
    if isinstance(seen, Sum):
        facts = {"kind": "chunks", **_sender(*seen.transfer[:2]), "text": seen.text, **seen.facts}
    else:
        facts = {
            "kind": seen.kind,
            **_sender(seen.fleet, seen.who),
            "text": seen.text,
            "topic": seen.topic,
            "retained": seen.is_retained,
            "signature": seen.signature,
            "message": _finite(seen.message),
        }
    return json.dumps({"time": round(time.time(), 3), **facts}, allow_nan=False)


def fit(line: str, width: int | None) -> str:
    """Cuts `line` to `width` columns where it is wider; many characters take two, or none."""
    from rich.cells import cell_len, set_cell_size

    if width is None or cell_len(line) <= width:
        return line
    return set_cell_size(line, width - 1).rstrip() + "…"


def _sender(fleet: str, who: str) -> dict[str, Any]:
    if who == COORDINATOR:
        return {"fleet": fleet, "from": "coordinator", "device": None}
    if who in ("", NOBODY):
        return {"fleet": fleet, "from": None, "device": None}
    return {"fleet": fleet, "from": "device", "device": who}


def _finite(value: Any) -> Any:
    """Replaces infinities, which JSON lacks."""
    if isinstance(value, dict):
        return {name: _finite(entry) for name, entry in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
