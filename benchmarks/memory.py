"""Resident memory of this process. Imports next to nothing, so as to be measured with what is measured."""

import resource
from pathlib import Path


def memory_bytes(*, peak: bool) -> int:
    """Returns what lies in RAM now, or lay there at the peak; on macOS always the peak.

    `ru_maxrss` is not asked on Linux: a process inherits there the peak of the one that started it.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wanted = "VmHWM:" if peak else "VmRSS:"
    line = next(line for line in status.read_text().splitlines() if line.startswith(wanted))
    return 1024 * int(line.split()[1])
