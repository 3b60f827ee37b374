"""What the demo does: who takes part, on which backend, how slowed, until when.

The numbers were chosen on two cores so that the whole run ends within three minutes there. On a busy machine
it takes longer: the fleet stops for what it has learnt, and the clock only ends one that learns no more.
"""

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from coordinator.demo.household import BOAT, FARM, FLAT, WORKSHOP, Household
from edge.errors import MissingExtra

MODEL = Path(__file__).parent / "model"
RANK, SCALE = 8, 2.0
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_NEEDED = dict.fromkeys(("torch", "transformers", "peft"), "torch") | {
    "amqtt": "broker",
    "matplotlib": "demo",
}
_OPTIONAL = {  # backend to its name in words, its extra and the libraries that this brings
    "mlx": ("MLX", "mlx", ("mlx_lm",)),
    "llama_cpp": ("llama.cpp", "llama", ("llama_cpp", "gguf")),
}


class Member(NamedTuple):
    """One device of the demo's fleet."""

    home: Household
    backend: str
    slowdown: float  # every step takes this many times as long
    quant: str | None = None  # type of its GGUF file; None: it trains on the shipped model as it is

    @property
    def trains_with(self) -> str:
        """The backend, with the type of its GGUF file where it has one."""
        return f"{self.backend} {self.quant}" if self.quant else self.backend


class DemoPlan(NamedTuple):
    """The whole demo."""

    members: tuple[Member, ...]
    notes: tuple[str, ...]  # what is other than planned on this machine
    # The fleet stops when every device has its share, at least so many updates,
    min_updates: int = 3
    num_versions: int = 120  # and so many versions are made
    num_steady: int = 8  # or so many, one after the other, know; 5 ended at 98.8 % once on busy cores,
    enough: float = 0.99  # this share of the sentences that versions are watched by; 0.97 ended at 96 % once;
    fleet_seconds: float = 900.0  # at the latest after so long,
    stall_seconds: float = 240.0  # or so long without a new version
    strategy: str = "fedbuff"
    buffer_size: int = 3  # updates that make a version: it never waits for the slowest
    # 99 to 100 % right at the end, seeds 0 to 2; `product`, without llama.cpp yet, 68 to 100 %.
    space: str = "factors"
    steps: int = 5  # optimizer steps of one task
    lr: float = 2e-3
    seq_tokens: int = 128
    batch_tokens: int = 512
    num_own: int = 400  # sentences of each device
    num_held_out: int = 240
    num_calibration: int = 48  # sentences that every version is scored on, apart from those of the end
    seed: int = 0
    model: Path = MODEL
    targets: tuple[str, ...] = TARGETS

    @property
    def device_ids(self) -> list[str]:
        """Who takes part."""
        return [member.home.device_id for member in self.members]

    @property
    def quants(self) -> list[str]:
        """Types of the GGUF files that devices train on."""
        return sorted({member.quant for member in self.members if member.quant})

    @property
    def forms(self) -> list[str]:
        """The formats that the fleet's adapter is written in."""
        return ["peft", "mlx", "gguf"] if self.quants else ["peft", "mlx"]

    @property
    def threads(self) -> int:
        """Threads of each process: as many as the cores have room for."""
        return max(1, (os.cpu_count() or 1) // len(self.members))


def make_plan(find: Callable[[str], object] = find_spec) -> DemoPlan:
    """Returns the plan for this machine: torch takes the place of a backend that is not installed.

    Args:
        find: Finds a library by its name; None where it is not installed.

    Raises:
        MissingExtra: Naming every library that the demo needs and does not find, and the command that
            installs them.
    """
    missing = {library: extra for library, extra in _NEEDED.items() if not find(library)}
    if missing:
        raise MissingExtra(f"for the demo: {', '.join(missing)}", ",".join(dict.fromkeys(missing.values())))
    members = (
        Member(FLAT, "torch", 1.0),
        Member(FARM, "mlx", 1.0),
        Member(WORKSHOP, "llama_cpp", 2.0, "q8_0"),
        Member(BOAT, "llama_cpp", 1.5, "q4_0"),
    )
    absent = [backend for backend, (*_, libraries) in _OPTIONAL.items() if not all(map(find, libraries))]
    present = tuple(
        member._replace(backend="torch", quant=None) if member.backend in absent else member
        for member in members
    )
    return DemoPlan(present, tuple(map(_note, absent)))


def _note(backend: str) -> str:
    name, extra, _ = _OPTIONAL[backend]
    return f"{name} is not installed (pip install 'tunefleet[{extra}]'): torch trains in its place."
