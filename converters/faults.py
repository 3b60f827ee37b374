"""What is wrong with one input: every fault at once, and in a message no more than a person reads.

A message of more than 300 bytes is summed up: faults of one kind are counted and one of them is shown, kinds
for which there is no room are counted together. What was left out is in the error's `whole`, which
`tunefleet -v` prints.

    use_dora is set (DoRA); 14 modules: lora_magnitude_vector (DoRA), e.g. model.layers.0.self_attn.q_proj
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

MAX_BYTES = 300
HINT = "; `tunefleet -v …` lists all"


class Fault(NamedTuple):
    """One thing that is wrong."""

    text: str  # the whole of it
    kind: str = ""  # plural, what it shares with others, so that they can be counted: `modules have rank 0`
    brief: str = (
        ""  # stands for `text` where room is short: after its kind and count, or, without a kind, alone
    )


def tell(where: str, faults: Iterable[Fault | str], advice: str = "") -> str:
    """Joins all `faults` of `where`, in order, and what to do about them."""
    return _joined(where, "; ".join(fault.text for fault in _plain(faults)), advice)


def sum_up(
    where: str,
    faults: Iterable[Fault | str],
    advice: str = "",
    *,
    max_bytes: int = MAX_BYTES,
    hint: str = HINT,
) -> str:
    """Returns what `tell` does, if that is short; otherwise kinds with their counts, at least the first.

    Args:
        where: The input; empty for none.
        faults: In the order in which they are told.
        advice: What to do; empty for nothing.
        max_bytes: In UTF-8. A single fault that is longer is not cut.
        hint: Where all of them are to be found.
    """
    plain = _plain(faults)
    whole = tell(where, plain, advice)
    if _size(whole) <= max_bytes:
        return whole
    groups = _grouped(plain)
    lines = [_line(group) for group in groups]
    shown = len(lines)
    while shown > 1 and _size(_shown(where, lines, groups, shown, advice) + hint) > max_bytes:
        shown -= 1
    short = _shown(where, lines, groups, shown, advice)
    return short if short == whole else short + hint


def _shown(
    where: str, lines: Sequence[str], groups: Sequence[Sequence[Fault]], shown: int, advice: str
) -> str:
    left = sum(len(group) for group in groups[shown:])
    more = [f"and {left} more"] if left else []
    return _joined(where, "; ".join([*lines[:shown], *more]), advice)


def _joined(where: str, told: str, advice: str) -> str:
    return (f"{where}: " if where else "") + told + (f"; {advice}" if advice else "")


def _plain(faults: Iterable[Fault | str]) -> list[Fault]:
    return [Fault(fault) if isinstance(fault, str) else fault for fault in faults]


def _grouped(faults: Iterable[Fault]) -> list[list[Fault]]:
    """Groups faults of one kind, in order of each kind's first; one without a kind stands alone."""
    groups: dict[str | int, list[Fault]] = {}
    for number, fault in enumerate(faults):
        groups.setdefault(fault.kind or number, []).append(fault)
    return list(groups.values())


def _line(group: Sequence[Fault]) -> str:
    first = group[0]
    if len(group) > 1:
        return f"{len(group)} {first.kind}, e.g. {first.brief or first.text}"
    return first.text if first.kind else first.brief or first.text


def _size(text: str) -> int:
    return len(text.encode("utf-8", "replace"))
