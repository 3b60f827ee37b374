"""What is wrong with a file's rows: each reason once, with its count and the first rows that have it."""

from collections.abc import Mapping
from typing import Any

from edge.errors import DataError

MAX_SHOWN = 4  # reasons in an error, most frequent first
MAX_NUMBERS = 3  # rows named for each of them
MAX_HINTS = 2
MAX_KEPT = 100  # rows remembered for each reason
MAX_REASONS = 200  # kept apart; a hostile file has a new one in every row
OTHER = "have other faults"
_SINGULAR = {"are": "is", "have": "has", "hold": "holds", "lack": "lacks", "name": "names"}


class Unusable(Exception):  # noqa: N818 - it says what the row is
    """A row that cannot be trained on.

    Attributes:
        reason: Why, as the end of "5 rows …": `lack "completion"`.
        hint: What to do about it, where that is not plain.
    """

    def __init__(self, reason: str, hint: str = "") -> None:
        super().__init__(reason)
        self.reason, self.hint = reason, hint


class Faults:
    """The rows that cannot be used, by reason.

    Args:
        path: What messages call the file.
        unit: What its rows are counted in: `line` or `row`.
    """

    def __init__(self, path: str, unit: str) -> None:
        self.path, self.unit = path, unit
        self.num_rows = 0
        self._counts: dict[str, int] = {}
        self._numbers: dict[str, list[int]] = {}
        self._hints: set[str] = set()

    @property
    def num_unusable(self) -> int:
        """Counts the rows that cannot be used."""
        return sum(self._counts.values())

    @property
    def hints(self) -> list[str]:
        """Tells what to do about them."""
        return sorted(self._hints)

    def add(self, number: int, fault: Unusable) -> None:
        """Notes what is wrong with a row."""
        reason = fault.reason
        if fault.hint and len(self._hints) < MAX_HINTS:
            self._hints.add(fault.hint)
        if reason not in self._counts and len(self._counts) >= MAX_REASONS:
            reason = OTHER
        self._counts[reason] = self._counts.get(reason, 0) + 1
        numbers = self._numbers.setdefault(reason, [])
        if len(numbers) < MAX_KEPT:
            numbers.append(number)

    def report(self) -> list[dict[str, Any]]:
        """Lists all reasons, most frequent first, each with its count and first rows."""
        ranked = sorted(self._counts.items(), key=lambda entry: -entry[1])
        return [
            {"reason": reason, "count": count, "first": list(self._numbers[reason])}
            for reason, count in ranked
        ]

    def check(self) -> None:
        """Refuses the file if one of its rows cannot be used, or if it has none.

        Raises:
            DataError: Naming each reason once.
        """
        if not self.num_rows:
            raise DataError(f"{self.path}: holds no examples; expected at least one row")
        if self._counts:
            raise DataError(f"{self.path}: {self.summary()}")

    def summary(self) -> str:
        """Tells all faults in one sentence."""
        reasons = [tell(fault, self.unit, MAX_NUMBERS) for fault in self.report()]
        rest = len(reasons) - MAX_SHOWN
        more = [f"and {rest} more reasons (tunefleet data check names all)"] if rest > 0 else []
        shown = "; ".join([*reasons[:MAX_SHOWN], *more, *self.hints])
        return f"{self.num_unusable:,} of {self.num_rows:,} rows cannot be used: {shown}"


def tell(fault: Mapping[str, Any], unit: str, max_numbers: int) -> str:
    """Puts one of `Faults.report` into words: `3 lack "completion" (lines 4, 9, 17)`."""
    count, numbers = fault["count"], fault["first"][:max_numbers]
    units = unit if count == 1 else f"{unit}s"
    more = ", …" if count > len(numbers) else ""
    named = f"({units} {', '.join(map(str, numbers))}{more})"
    return f"{count:,} {_agree(count, fault['reason'])} {named}"


def shorten(text: str, length: int = 40) -> str:
    """Cuts a text to one line of at most `length` characters, for a message."""
    line = "".join(letter if letter.isprintable() else " " for letter in text)
    return line if len(line) <= length else f"{line[: length - 1]}…"


def kind_of(value: Any) -> str:
    """Tells what a value is, in JSON's words."""
    kinds = {str: "a string", bool: "true or false", type(None): "null", dict: "an object", list: "a list"}
    return kinds.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)


def _agree(count: int, reason: str) -> str:
    verb, space, rest = reason.partition(" ")
    return f"{_SINGULAR.get(verb, verb)}{space}{rest}" if count == 1 else reason
