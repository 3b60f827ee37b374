"""Whether a model is a base model in another precision, by a sample of the original.

Checked are the architecture's numbers, the names and shapes of all weights, and for every sampled value of
the original whether it can have become what the copy holds in its place:

- in full precision, up to that type's rounding: so norms and biases, which no tool quantises, must agree;
- quantised, whether the copy has the code that comes nearest to it (`converters.proof.quant_grid`).

Of a copy that was made from full precision none is wrong, whatever the type; with an importance matrix
llama.cpp chooses a few codes of q4_0, q4_1, q5_0 and q5_1 otherwise: 0.8 % at most, with one that spans three
orders of magnitude. Of another model most are wrong. What lies between, a model that was trained on from this
one, is told from it by how far its weights moved: see docs/architecture.md for from where on.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from converters.bases.contract import Base
from converters.bases.numbers import Number
from converters.errors import BaseModelError
from converters.faults import Fault
from converters.proof.quant_grid import find_wrong
from converters.proof.sample import Sample
from converters.proof.weights import Weights, weights_of

MAX_WRONG = 0.01  # share of all sampled values
MAX_WRONG_IN_ONE = 0.03  # of one weight's: some hundreds, and some weights may have moved more than others
_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


class Verdict(NamedTuple):
    """What was found of a model that passed."""

    num_values: int
    num_wrong: int


def check_base(base: Base, sample: Sample) -> Verdict:
    """Compares `base` with the sample of an original.

    Raises:
        BaseModelError: It is another model, or cannot be told from one, with what differs.
    """
    weights = weights_of(base)
    faults = [*_number_faults(weights, sample), *_shape_faults(weights, sample)]
    verdict = Verdict(0, 0)
    if not faults:
        found = {name: _count(weights, sample, name) for name in sample.file.tensors}
        verdict = Verdict(*(sum(counts) for counts in zip(*found.values(), strict=True)))
        faults = [*_value_faults(found, weights, sample)]
        if verdict.num_wrong > MAX_WRONG * verdict.num_values:
            share = verdict.num_wrong / verdict.num_values
            text = f"{share:.1%} of {verdict.num_values:,} sampled values are not of its weights"
            faults.insert(0, Fault(text))
    if faults:
        raise BaseModelError.of(
            f"{weights.where}: is not a copy of the fleet's base model", faults, "give --base a copy of it"
        )
    return verdict


def _number_faults(weights: Weights, sample: Sample) -> Iterator[Fault]:
    came, expected = weights.numbers, sample.facts.numbers
    if came is None or expected is None:
        hashes = weights.architecture, sample.facts.architecture
        if None in hashes:
            yield Fault(
                "its architecture cannot be told from the fleet's; give --fingerprint if you know it is one"
            )
        elif hashes[0] != hashes[1]:
            yield Fault("its config.json has other numbers for the architecture")
        return
    for key in sorted(came.keys() | expected.keys()):
        if not _is_same(came.get(key), expected.get(key)):
            text = f"{key} is {_shown(came.get(key))}, expected {_shown(expected.get(key))}"
            yield Fault(text, "numbers of the architecture differ")


def _shown(value: Number | None) -> str:
    return str(_single(value)) if isinstance(value, float) else str(value)


def _is_same(one: Number | None, other: Number | None) -> bool:
    numbers = [number for number in (one, other) if isinstance(number, int | float)]
    if len(numbers) == 2:  # a GGUF file has them in float32
        return bool(_single(numbers[0]) == _single(numbers[1]))
    return one == other


def _single(value: float) -> np.float32:
    with np.errstate(over="ignore"):  # one that is too large is infinite
        return np.float32(value)


def _shape_faults(weights: Weights, sample: Sample) -> Iterator[Fault]:
    came, expected = dict(weights.shapes), dict(sample.facts.shapes)
    if _HEAD not in expected:  # tied in the original, and in the copy perhaps written out
        came.pop(_HEAD, None)
    for name in sorted(expected.keys() - came.keys()):
        yield Fault(f"lacks {name}", "weights are missing", name)
    for name in [*sorted(came.keys() - expected.keys()), *weights.unnamed]:
        yield Fault(f"has {name} besides", "weights are there besides", name)
    for name in sorted(came.keys() & expected.keys()):
        if tuple(came[name]) != tuple(expected[name]):
            text = f"{name} has shape {tuple(came[name])}, expected {tuple(expected[name])}"
            yield Fault(text, "weights have other shapes")


def _count(weights: Weights, sample: Sample, name: str) -> tuple[int, int]:
    """Counts the values of a weight that were looked at, and those of them that are wrong."""
    names = [name]
    if name == _EMBEDDING and _HEAD not in sample.facts.shapes and _HEAD in weights.shapes:
        names.append(_HEAD)
    num_values = num_wrong = 0
    for (row, first), original in sample.runs(name):
        for there in names:
            is_wrong = find_wrong(original, weights.grid(there, row, first, len(original)))
            num_values, num_wrong = num_values + is_wrong.size, num_wrong + int(is_wrong.sum())
    return num_values, num_wrong


def _value_faults(found: Mapping[str, tuple[int, int]], weights: Weights, sample: Sample) -> Iterator[Fault]:
    for name, (num_values, num_wrong) in found.items():
        row, first = sample.facts.places[name][0]
        held = weights.grid(name, row, first, 1)
        if num_wrong > (MAX_WRONG_IN_ONE * num_values if held.levels > 1 else 0):
            text = f"{name} ({held.kind}) has {num_wrong} of {num_values} sampled values that are not its own"
            yield Fault(text, "weights have sampled values that are not their own")
