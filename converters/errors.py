"""The errors that a user can mend.

    TunefleetError             everything below prints as one line and exits 1
    └── ConverterError
        ├── AdapterError       an adapter that is malformed: missing, misshapen or not finite
        ├── UnsupportedAdapter a sound adapter that the wanted form cannot carry (DoRA, unknown modules)
        └── BaseModelError     a base model that is unreadable, or not the one that was expected

A message says where, what came, what was expected and what to do; all faults of one input at once, summed up
where there are many (`converters.faults`).
"""

from collections.abc import Iterable
from typing import Self

from converters.faults import Fault, sum_up, tell


class TunefleetError(Exception):
    """Root of every error that a user can mend.

    Attributes:
        whole: The message with every fault, however many there are.
    """

    def __init__(self, message: str = "", *, whole: str = "") -> None:
        super().__init__(message)
        self.whole = whole or message

    @classmethod
    def of(cls, where: str, faults: Iterable[Fault | str], advice: str = "") -> Self:
        """Builds one error for all `faults` of an input; its message is short, `whole` has all of them.

        Args:
            where: The input.
            faults: At least one, in the order in which they are told.
            advice: What to do.
        """
        listed = list(faults)
        return cls(sum_up(where, listed, advice), whole=tell(where, listed, advice))


class ConverterError(TunefleetError):
    """An adapter or a base model could not be read, written or carried over."""


class AdapterError(ConverterError):
    """An adapter is malformed: a factor is missing, misshapen or not finite."""


class UnsupportedAdapter(ConverterError):  # noqa: N818 - it is a verdict, as in the tree above
    """An adapter is sound, but the wanted form cannot carry all of it."""


class BaseModelError(ConverterError):
    """A base model is unreadable, or not the one that was expected."""
