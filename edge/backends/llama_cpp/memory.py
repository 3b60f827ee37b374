"""How much memory a pass takes, compared with what there is before it is taken.

Where memory runs out, Linux kills a process, and often another one than that which took it. The estimate was
0.98 to 1.04 times the peak of training, 0.93 to 1.04 times that of scoring, on Llamas of 5, 40 and 125
million parameters with 32 to 1024 tokens at once (`test_llama_cpp_memory.py` measures again); what runs short
all the same ends a worker and not the client.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from converters.bases.gguf import GgufBase
from edge.errors import OutOfMemory

PROGRAM_BYTES = 64 << 20  # Python, numpy, llama.cpp and their buffers
FLOAT_BYTES = 4
CONTEXT_STEP = 256  # llama.cpp rounds contexts up to this
HEAD_ROWS = 4096  # of the vocabulary, whose logits are held at a time
# Copies that are there at the same time, as measured on Llamas of 5, 40 and 125 million parameters.
ADAPTER_COPIES = 5  # factors, gradient, two moments, one on the way
SCORE_COPIES = 2  # of the attention's scores, in llama.cpp; numpy takes over where a backward pass follows
WIDE_COPIES = 2  # of the widest layer's input, in llama.cpp
HIDDEN_GRADIENTS = WIDE_GRADIENTS = 7  # results computed again, and gradients on their way
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file"))
_V2 = ("memory.max", "memory.current", ("inactive_file", "active_file"))


class Need(NamedTuple):
    """Bytes of memory, by what takes them."""

    weights: int  # mapped from the file
    context: int  # llama.cpp's cache and buffers
    adapter: int
    tape: int  # what the backward pass keeps

    @property
    def total(self) -> int:
        """Of the whole process."""
        return PROGRAM_BYTES + sum(self)

    def __str__(self) -> str:
        parts = (f"{name} {shown(size)}" for name, size in self._asdict().items() if size)
        return f"{shown(self.total)} ({', '.join(parts)})"


class Memory(NamedTuple):
    """What the system tells of this process's memory."""

    proc: Path = Path("/proc")
    cgroups: Path = Path("/sys/fs/cgroup")

    @property
    def available_bytes(self) -> int:
        """What may still be taken, swap included; all there is where the system tells no more."""
        found = [self._free(), *(_left(folder) for folder in self._groups())]
        known = [size for size in found if size is not None]
        return min(known) if known else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

    @property
    def held_bytes(self) -> int:
        """What was taken, mapped files left out; 0 where the system does not tell."""
        return _table(self.proc / "self" / "status").get("RssAnon", 0) * 1024

    def _free(self) -> int | None:
        info = _table(self.proc / "meminfo")
        return (info["MemAvailable"] + info.get("SwapFree", 0)) * 1024 if "MemAvailable" in info else None

    def _groups(self) -> Iterator[Path]:
        # The folders of this process's control groups and of those around them: each may have a limit.
        try:
            lines = (self.proc / "self" / "cgroup").read_text().splitlines()
        except OSError:
            return
        for line in lines:
            _, kinds, path = line.split(":", 2)
            if kinds in ("", "memory"):
                own = Path(kinds) / path.lstrip("/")
                yield from (self.cgroups / folder for folder in (own, *own.parents))


class Room:
    """Checks each pass that takes more memory than those before it.

    Args:
        base: The model that is, or is to be, loaded.
        memory: What there is.
    """

    def __init__(self, base: GgufBase, memory: Memory | None = None) -> None:
        self.base, self.memory = base, memory or Memory()
        self._weights = base.path.stat().st_size
        layers = {name: shape for name, shape in base.modules.items() if name != "lm_head"}
        self._hidden = base.number("embedding_length")
        self._heads = base.number("attention.head_count")
        self._widest = max((num_in for num_in, _ in layers.values()), default=0)
        self._results = sum(num_out for _, num_out in layers.values())
        self._cached = sum(shape[1] for name, shape in layers.items() if name.endswith(("k_proj", "v_proj")))
        self._cached += sum(shape[1] for name, shape in layers.items() if name.endswith("qkv_proj"))
        self._granted = 0

    def need(self, num_tokens: int, longest: int, num_factors: int = 0, *, keeps: bool) -> Need:
        """Estimates what a pass takes.

        Args:
            num_tokens: Computed at once; 0 for loading alone, with the least context.
            longest: Tokens of the longest example among them.
            num_factors: Values of the adapter.
            keeps: Whether a backward pass follows.
        """
        room = context_tokens(num_tokens)
        buffers = WIDE_COPIES * self._widest + (0 if keeps else SCORE_COPIES * self._heads * room)
        passing = HIDDEN_GRADIENTS * self._hidden + WIDE_GRADIENTS * self._widest
        passing += 2 * min(self.base.vocab_size, HEAD_ROWS)
        tape = num_tokens * (self._results + passing) + self._heads * longest * longest
        # llama.cpp fills its logits with zeros once, before it computes; then the pages are given back.
        transient = max(tape if keeps else 0, num_tokens * self.base.vocab_size - room * buffers)
        return Need(
            weights=self._weights,
            context=FLOAT_BYTES * room * (self._cached + buffers),
            adapter=FLOAT_BYTES * ADAPTER_COPIES * num_factors,
            tape=FLOAT_BYTES * transient,
        )

    def take(self, num_tokens: int, longest: int, num_factors: int = 0, *, keeps: bool) -> None:
        """Compares what a pass takes with what there is; for the arguments see `need`.

        Raises:
            OutOfMemory: There is less, and how much.
        """
        need = self.need(num_tokens, longest, num_factors, keeps=keeps)
        if need.total <= self._granted:
            return
        there = self.memory.available_bytes + self.memory.held_bytes
        if need.total > there:
            raise OutOfMemory(
                f"{self.base.path}: {_what(num_tokens)} {need} of memory, and {shown(there)} are there; "
                "end other programs, or take a base in fewer bits"
            )
        self._granted = need.total


def context_tokens(num_tokens: int) -> int:
    """Returns how many tokens the context has room for that is opened for so many."""
    return -(-max(num_tokens, 1) // CONTEXT_STEP) * CONTEXT_STEP


def shown(size: int) -> str:
    """Writes bytes as people read them."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def _what(num_tokens: int) -> str:
    return f"{num_tokens} tokens at once need" if num_tokens else "loading it needs"


def _left(folder: Path) -> int | None:
    for limit, used, files in (_V2, _V1):
        try:
            sizes = [int((folder / name).read_text()) for name in (limit, used)]
        except (OSError, ValueError):  # no such file, or no limit: "max"
            continue
        stat = _table(folder / "memory.stat")
        return sizes[0] - sizes[1] + sum(stat.get(name, 0) for name in files)
    return None


def _table(path: Path) -> dict[str, int]:
    """Reads lines such as `MemAvailable:  23714028 kB`; none where there is no such file."""
    try:
        lines = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {line[0].rstrip(":"): int(line[1]) for line in lines if len(line) > 1 and line[1].isdigit()}
