"""The errors of the coordinator that a user can mend.

    TunefleetError (converters.errors)
    └── CoordinatorError
        ├── UnknownVersion     a version that was never made, or is no longer kept
        └── MergeError         a buffer that a strategy cannot merge; the version stays as it was
            └── UnreadableUpdate   one update of it: its payload, or the version it began from, is gone

What the coordinator shares with devices has its errors in `edge.errors`: ConfigError, StateError,
DiskRefused, MissingObject, TransportError and, for everything a device sends, ProtocolError and Rejected.
"""

from converters.errors import TunefleetError


class CoordinatorError(TunefleetError):
    """Anything at the centre that a user can mend."""


class UnknownVersion(CoordinatorError):  # noqa: N818
    """A version that was never made, or is no longer kept."""


class MergeError(CoordinatorError):
    """A buffer that a strategy cannot merge; the version stays as it was."""


class UnreadableUpdate(MergeError):  # noqa: N818
    """One update of a buffer cannot be read any more.

    Attributes:
        update: Its id.
    """

    def __init__(self, update: str, detail: str) -> None:
        super().__init__(detail)
        self.update = update
