"""One decoder under fire: what it is given, and what came of it."""

import resource
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from types import FrameType
from typing import NamedTuple

from benchmarks.faults.fuzz.mutation import Form
from converters.errors import TunefleetError

MAX_SECONDS = 5.0  # for one input, on a busy machine; a tenth of it is worth a look
MAX_GROWTH_BYTES = 128 << 20  # of resident memory by one input, beside what its own size takes
PER_BYTE = 64  # resident bytes that a byte of input may take


class Target(NamedTuple):
    """A decoder."""

    name: str  # `wire/hello`
    form: Form
    seeds: Sequence[bytes]  # valid inputs
    decode: Callable[[bytes], object]
    weight: int = 1  # how many of a campaign's inputs go here; the fast ones take more


class Finding(NamedTuple):
    """An input that a decoder did not stand."""

    target: str
    kind: str  # `foreign`, `slow`, `memory`; of a process that died `crash` or `hang`
    what: str  # the exception and where it came from
    content: bytes


class Stuck(BaseException):
    """One input took too long."""


def attempt(target: Target, content: bytes) -> tuple[Finding | None, float]:
    """Decodes one input; returns what was found, and the seconds it took."""
    before, began = _peak_bytes(), perf_counter()
    finding = None
    try:
        with _time_limit():
            target.decode(content)
    except TunefleetError:
        pass
    except Stuck as error:
        finding = Finding(target.name, "slow", _place(error), content)
    except Exception as error:
        finding = Finding(target.name, "foreign", _place(error), content)
    seconds = perf_counter() - began
    growth = _peak_bytes() - before
    if finding is None and growth > MAX_GROWTH_BYTES + PER_BYTE * len(content):
        finding = Finding(target.name, "memory", f"{growth >> 20} MiB more", content)
    return finding, seconds


@contextmanager
def _time_limit() -> Iterator[None]:
    signal.setitimer(signal.ITIMER_REAL, MAX_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def arm() -> None:
    """Makes a time limit raise `Stuck` in this process."""

    def stuck(number: int, frame: FrameType | None) -> None:
        raise Stuck

    signal.signal(signal.SIGALRM, stuck)


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10


def _place(error: BaseException) -> str:
    """Tells an error's type and the innermost line of the project, so that a finding is counted once."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if any(f"/{room}/" in frame.filename for room in ROOMS)]
    where = own[-1] if own else frames[-1]
    path = where.filename.split("/site-packages/")[-1]
    for room in ROOMS:
        path = path[path.rfind(f"/{room}/") + 1 :] if f"/{room}/" in path else path
    return f"{type(error).__name__} at {path}:{where.lineno} in {where.name}: {str(error)[:120]}"


ROOMS = ("converters", "edge", "coordinator")
