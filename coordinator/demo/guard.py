"""Ends the demo's children where the demo itself was killed, and could not end them in order.

A SIGKILL leaves no time for anything, but it closes the demo's end of a pipe, on every system. The guard is
the process at the other end. It is told each child that starts (`+ 123`) or has ended (`- 123`), and when the
pipe ends it asks those that are left to end, and then kills what is left of them and of what they started.

Run as: python -m coordinator.demo.guard GRACE_S < PIPE
"""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterable

POLL_S = 0.05


def read_children(lines: Iterable[str]) -> set[int]:
    """Returns the process groups that are left when the lines end."""
    left: set[int] = set()
    for line in lines:
        mark, number = line.split()
        if mark == "+":
            left.add(int(number))
        else:
            left.discard(int(number))
    return left


def end(groups: set[int], grace_s: float) -> None:
    """Asks process groups to end, and kills them after `grace_s` seconds."""
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(group, signal.SIGTERM)  # the child alone, which ends its own in order
    deadline = time.monotonic() + grace_s
    while time.monotonic() < deadline and any(_is_there(group) for group in groups):
        time.sleep(POLL_S)
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)


def _is_there(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


if __name__ == "__main__":
    end(read_children(sys.stdin), float(sys.argv[1]))
