"""The errors of a device and of what it shares with the coordinator.

TunefleetError (converters.errors)
└── EdgeError
    ├── ConfigError        a setting that cannot be used
    ├── DataError          training data that cannot be used: file, line, reason
    ├── BackendError       the training backend failed, or its worker process ended
    │   ├── MissingExtra   a library is not installed; the message holds the install command
    │   ├── OutOfMemory    the worker ran out of memory; a smaller step may succeed
    │   └── UnsupportedRecipe  the fleet asks for training that this backend or base model cannot do
    ├── StateError         a state folder of another fleet, of a newer version, or damaged
    ├── DiskRefused        the disk says no, or another process holds the journal; nothing was lost
    │   └── DiskFull       no room to spool or to journal
    ├── MissingObject      a file of a version, or an update's payload, that is gone
    ├── TransportError     the broker cannot be reached
    │   ├── BrokerRefused  the broker answered no: password, rights, protocol
    │   ├── TlsFailure     the encrypted connection could not be made
    │   └── PlaceTaken     another process has this one's place in the fleet
    └── ProtocolError      a message that breaks the wire's contract
        ├── Unproven       one that does not prove whose it is: it changes nothing and is answered by nothing
        ├── Outdated       one whose signer has signed a later one: it was late, or somebody sent it again
        │   └── Repeated   the very one that came last: brokers do that
        └── Rejected       an update that was refused, with the reason of its receipt
"""

from converters.errors import TunefleetError


class EdgeError(TunefleetError):
    """Anything on a device that a user can mend."""


class ConfigError(EdgeError):
    """A setting that cannot be used."""


class DataError(EdgeError):
    """Training data that cannot be used: file, line and reason."""


class BackendError(EdgeError):
    """The training backend failed, or its worker process ended."""


class MissingExtra(BackendError):  # noqa: N818
    """A library is not installed.

    Attributes:
        extra: The name of the extra that brings it.
    """

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} is not installed; run: pip install 'tunefleet[{extra}]'")
        self.extra = extra


class OutOfMemory(BackendError):  # noqa: N818
    """The worker ran out of memory; a smaller step may succeed."""


class UnsupportedRecipe(BackendError):  # noqa: N818
    """The fleet asks for training that this backend or base model cannot do."""


class StateError(EdgeError):
    """A state folder of another fleet, of a newer version, or damaged."""


class DiskRefused(EdgeError):  # noqa: N818
    """The disk says no: it is full, fails, may not be written to, or is held by another process.

    Nothing was lost, and what was to be written is tried again: it ends no process that runs.
    """


class DiskFull(DiskRefused):
    """There is no room to spool or to journal; nothing was lost."""


class MissingObject(EdgeError):  # noqa: N818
    """A file of a version, or an update's payload, that is gone."""


class TransportError(EdgeError):
    """The broker cannot be reached."""


class BrokerRefused(TransportError):  # noqa: N818
    """The broker answered no: wrong password, missing rights, unknown protocol."""


class TlsFailure(TransportError):  # noqa: N818
    """The encrypted connection could not be made."""


class PlaceTaken(TransportError):  # noqa: N818
    """Another process has this one's place in the fleet, which is one process's at a time."""


class ProtocolError(EdgeError):
    """A message that breaks the wire's contract."""


class Unproven(ProtocolError):  # noqa: N818
    """A message does not prove whose it is: it changes nothing and is answered by nothing."""


class Outdated(ProtocolError):  # noqa: N818
    """A message's signer has signed a later one: it was late, or somebody sent it again."""


class Repeated(Outdated):
    """The very message that came last from its signer, once more: brokers do that."""


class Rejected(ProtocolError):  # noqa: N818
    """An update was refused.

    Attributes:
        reason: One word of `edge.protocol.messages.Reason`, as the receipt and the journal carry it.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
