"""What happens to a fleet and when, drawn from a seed: the same seed is the same list of faults.

What a fault then meets (which message is under way, which line of code runs) is not repeated: processes
and networks have their own time. The list is written into the report, so that a run can be tried again.
"""

import random
from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

Kind = Literal[
    "kill",  # SIGKILL of a program and all that it started; started again after `lasts_s`
    "kill-alone",  # of the client alone: its worker has to end by itself
    "kill-worker",  # of the process that trains
    "forget",  # SIGKILL of the broker, and what it kept is gone
    "pause",  # SIGSTOP, and SIGCONT after `lasts_s`
    "cut",  # connections break
    "freeze",  # connections stay half open
    "refuse",  # nobody can connect
    "block-up",  # a partition: nothing goes from the program to the broker
    "block-down",  # nothing comes back
    "delay",  # by `amount` seconds a block
    "throttle",  # to `amount` bytes a second
    "disk-full",
    "disk-failing",
    "disk-read-only",
    "disk-denied",
    "disk-too-many-files",
    "clock",  # jumps by `amount` seconds, and back after `lasts_s`
]
COORDINATOR, BROKER = "coordinator", "broker"
KILLS: tuple[Kind, ...] = ("kill", "kill-alone", "kill-worker", "forget")
LINKS: tuple[Kind, ...] = ("cut", "freeze", "refuse", "block-up", "block-down", "delay", "throttle")
DISKS: tuple[Kind, ...] = (
    "disk-full", "disk-failing", "disk-read-only", "disk-denied", "disk-too-many-files",
)  # fmt: skip
DAY_S = 86400.0


class Fault(Struct, frozen=True, forbid_unknown_fields=True):
    """One thing that goes wrong."""

    at_s: float  # since the fleet was under way
    kind: Kind
    target: str  # `coordinator`, `broker`, or a device's name
    lasts_s: float  # until it is over: the program is started again, the link mended
    amount: float = 0.0

    @property
    def is_kill(self) -> bool:
        """Tells whether a process dies of it."""
        return self.kind in KILLS


class Wish(Struct, frozen=True, forbid_unknown_fields=True):
    """What is asked of a schedule."""

    seed: int
    kills: int
    others: int  # faults of other kinds
    span_s: float  # over which all of them are spread
    devices: tuple[str, ...]
    loses_persistence: bool = True  # the broker's memory may be lost with it


def draw(wish: Wish) -> tuple[Fault, ...]:
    """Draws a schedule, in order of time."""
    generator = random.Random(wish.seed)
    times = sorted(generator.uniform(0, wish.span_s) for _ in range(wish.kills + wish.others))
    are_kills = [True] * wish.kills + [False] * wish.others
    generator.shuffle(are_kills)
    return tuple(
        _kill(generator, at_s, wish) if is_kill else _other(generator, at_s, wish.devices)
        for at_s, is_kill in zip(times, are_kills, strict=True)
    )


def _kill(generator: random.Random, at_s: float, wish: Wish) -> Fault:
    """Draws a death: half of them devices', a fifth the coordinator's, the rest workers' and the broker's."""
    forget: Kind = "forget" if wish.loses_persistence else "kill"
    device = generator.choice(wish.devices)
    kind, target = generator.choices(
        [
            ("kill", device), ("kill-alone", device), ("kill-worker", device),
            ("kill", COORDINATOR), ("kill", BROKER), (forget, BROKER),
        ],
        weights=[40, 10, 15, 20, 10, 5],
    )[0]  # fmt: skip
    return Fault(round(at_s, 3), kind, target, round(generator.uniform(0, 1.5), 3))


def _other(generator: random.Random, at_s: float, devices: Sequence[str]) -> Fault:
    target = generator.choice([*devices, COORDINATOR])
    kinds: list[Kind] = ["pause", *LINKS, *DISKS, "clock"]
    kind = generator.choice(kinds)
    if kind == "pause" and generator.random() < 0.2:
        target = BROKER
    lasts_s = round(generator.uniform(0.2, 6.0), 3)
    amount = {
        "delay": lambda: round(generator.uniform(0.02, 0.5), 3),
        "throttle": lambda: float(generator.randrange(5_000, 100_000)),
        "clock": lambda: generator.choice((-DAY_S, DAY_S)),
    }.get(kind, lambda: 0.0)()
    return Fault(round(at_s, 3), kind, target, lasts_s, amount)
