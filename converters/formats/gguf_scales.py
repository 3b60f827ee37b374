"""One alpha for an adapter with several scales and ranks, as llama.cpp's adapter file has it.

llama.cpp multiplies each module by alpha / its rank; alpha is a float32, and 0 counts as "multiply by 1".
Factors are never rounded: a scale that differs by a power of two goes into `b`, and where that is not enough,
smaller ranks are filled up with zeros first. The scale itself is what float32 makes of it in llama.cpp, off
by 2e-7 of it at most; what it was is kept beside it.

Source: llama.cpp, llama_adapter_lora_weight::get_scale in src/llama-adapter.h.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from converters.adapter import Factors, LoraAdapter
from converters.errors import UnsupportedAdapter
from converters.faults import Fault
from converters.formats.folding import Originals, fill, find_alpha, fold, most_frequent, unfill

_ROUNDING = 2.0**-23  # of float32, and the most that a scale may be off before alpha is rounded
_SMALLEST = float(np.finfo(np.float32).smallest_normal)


class Stored(NamedTuple):
    """An adapter as the file has it."""

    modules: Mapping[str, Factors]  # `scale` is alpha / rank
    alpha: float  # a float32
    own: Originals


def spread(adapter: LoraAdapter) -> Stored:
    """Gives the same update one alpha.

    Raises:
        UnsupportedAdapter: Naming the modules whose scale cannot be carried exactly.
    """
    stored, misfits = _with_one_alpha(adapter, dict(adapter))
    if misfits:
        stored, misfits = _with_one_alpha(adapter, {name: fill(f, adapter.max_rank) for name, f in adapter})
    if not _SMALLEST <= abs(stored.alpha) < math.inf:
        raise UnsupportedAdapter(
            f"GGUF would hold alpha {stored.alpha}; llama.cpp multiplies by a finite float32 of at least "
            f"{_SMALLEST:.1e}, and takes 0 for 1"
        )
    if misfits:
        raise UnsupportedAdapter.of(
            f"GGUF has one alpha for all modules, here {stored.alpha}; only a scale that differs by a power "
            "of two is carried exactly",
            misfits,
        )
    return stored


def undo(stored: Factors, name: str, own: Originals) -> Factors:
    """Takes zeros and folded scales out again, unless later training has made them matter."""
    a, b, scale = unfill(stored, own.ranks.get(name, stored.rank))
    meant = own.scales.get(name, scale)
    if not b.any():
        return Factors(a, b, meant)
    power = _power(scale, meant, 2 * _ROUNDING)
    unfolded = fold(b, power, 1.0) if power else None
    return Factors(a, b, scale) if unfolded is None else Factors(a, unfolded, meant)


def _with_one_alpha(adapter: LoraAdapter, filled: Mapping[str, Factors]) -> tuple[Stored, list[Fault]]:
    """Returns what is stored of `filled`, and the modules that cannot be."""
    exact = most_frequent(find_alpha(f.scale, f.rank) for f in filled.values())
    with np.errstate(over="ignore"):
        alpha = float(np.float32(exact))
    modules, misfits = {}, []
    for name, (a, b, scale) in filled.items():
        folded = fold(b, _power(scale, exact / len(a), _ROUNDING), 1.0)
        if folded is None:
            misfits.append(Fault(f"{name} has scale {scale} at rank {len(a)}", "modules have other scales"))
        else:
            modules[name] = Factors(a, folded, alpha / len(a))
    own = Originals(
        ranks={name: f.rank for name, f in adapter if f.rank != filled[name].rank},
        scales={name: f.scale for name, f in adapter if name in modules and f.scale != modules[name].scale},
    )
    return Stored(modules, alpha, own), misfits


def _power(scale: float, other: float, tolerance: float) -> float:
    """Finds the power of two, or minus one, that `scale` is of `other` up to a tolerance; 0 for none."""
    ratio = scale / other if other else 0.0
    if not 2.0**-200 < abs(ratio) < 2.0**200:  # beyond what float32 could be folded by
        return 0.0
    power = math.copysign(2.0 ** round(math.log2(abs(ratio))), ratio)
    return power if abs(ratio / power - 1) <= tolerance else 0.0
