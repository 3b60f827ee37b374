"""What a double says, in the wire of the checkout that it runs with.

The doubles run with the packages of the checkout whose coordinator is measured (`benchmarks.speed.load`), so
that headers, signatures and the patience of the sender are that checkout's own. They check no signature of
the coordinator's: nobody forges any here, and a double's time is taken from whom it measures.
"""

from importlib.util import find_spec
from typing import Any

if find_spec("edge.protocol.merkle"):
    from benchmarks.speed.doubles.wire_2 import Voice as Voice
    from benchmarks.speed.doubles.wire_2 import read_manifest as read_manifest
else:
    from benchmarks.speed.doubles.wire_1 import Voice as Voice
    from benchmarks.speed.doubles.wire_1 import read_manifest as read_manifest

PATIENCE_S = 10.0  # of a device as it is configured by default


def new_patience() -> Any:
    """Returns what a device keeps over all its updates: before version 2 a number of seconds."""
    if find_spec("edge.protocol.patience") is None:
        return PATIENCE_S
    from edge.protocol.patience import Patience

    return Patience(PATIENCE_S)
