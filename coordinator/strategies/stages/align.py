"""Cross-version alignment: updates on an old version are carried over to the present one.

    T_k = argmin |f(W_t; D_c) - f(W_k + T(u_k); D_c)|^2       for groups older than t
    T_k(dA) = R_A dA,    T_k(dB) = dB R_B                      in every module

The paper's (AlignFed, arXiv 2606.08197, Eq. 6): a linear map for each group, over the A part and the B part,
that brings the penultimate features f on a calibration set D_c near those of the present version; fresh
groups are left alone. Ours: the maps are r x r and of each module and factor; f is a row of each example,
not one mean over all; u_k is the group's mean update, so that there is one fit for a group and its cost does
not grow with the buffer; f(W_t) is computed once for a merge. After `centre-literal` the mean is zero, and
the identity is kept. (Summed over the group's updates instead, the terms of first order cancel just so, and
what is left of Eq. 6 shrinks T to zero.) The deviations that Eq. 7 takes norms of are not carried over.

The fit is Gauss-Newton in a few directions: conjugate gradients on |residual|^2 over all entries of all R
(Polak & Ribiere, 1969), the length of each step in closed form from one difference of features. It begins at
the identity and keeps the best iterate, so that features never end farther away than they began. A fit takes
1 forward pass, and a step 4 times as long: 2 forward and 1 there and back.

Measured on the groups of simulated fleets (`benchmarks.studies.alignment_fits`; `docs/speed.md`): more
steps bring features nearer and make the test loss worse, so one is the default. Adam, tried and dropped,
needs 13 passes where two steps come nearer in 9. Dropped as well, as neither helped on both tasks: maps from
the old factors to the present ones by ridge regression (at equal norms, test loss -0.0006 on dolly and
+0.0028 on household), and an aim of ours, that an update shall do at W_t what it did at W_k (+0.0014 and
-0.007).

What Eq. 6 rewards is an update after which the features are as they were. So the maps take away a part of
what an update does, the good with the bad.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, ClassVar, NamedTuple

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from converters.adapter import Factors, LoraAdapter
from converters.arithmetic import add, combine, select, square
from coordinator.strategies.contract import Calibrator
from coordinator.strategies.pipeline_state import Item, PipelineState
from coordinator.strategies.stages.contract import Stage

Matrix = NDArray[np.float64]
Vector = NDArray[np.float64]
PROBE = 0.3  # root mean square, over all maps, of the change that slopes are taken from
LONGEST = 4.0  # probes: farther away the slope tells nothing


class Maps(NamedTuple):
    """One module's share of T."""

    a: Matrix  # (rank, rank), R_A
    b: Matrix  # (rank, rank), R_B


class Align(Stage, frozen=True, tag="align"):
    """Carries the updates of every group but the fresh one over to the present version.

    Each group's fit takes `steps` steps, each of four passes over the calibration set's probe; the best
    iterate is kept, the identity included.
    """

    steps: Annotated[int, Meta(ge=1)] = 1
    needs_calibration: ClassVar[bool] = True

    def __call__(self, pipeline: PipelineState) -> PipelineState:
        """See `Stage`."""
        calibrator, items = pipeline.need_calibrator("align"), list(pipeline.items)
        groups = pipeline.groups().values()
        old_groups = [places for places in groups if items[places[0]].source.staleness > 0]
        if not old_groups:
            return pipeline
        target = calibrator.features(pipeline.state.adapter)
        for places in old_groups:
            group = [items[place] for place in places]
            misfit = group_misfit(group, target, calibrator)
            maps = misfit.maps(fit_maps(misfit, self.steps))
            for place, item in zip(places, group, strict=True):
                items[place] = item.changed(partial(_load_carried, item, maps))
        return pipeline._replace(items=tuple(items))


class Misfit(NamedTuple):
    """How far a group's features are from the present version's, as a function of its maps.

    Maps are one vector here: for each module, in order of names, R_A - I and then R_B - I.
    """

    base: LoraAdapter  # W_k
    mean: LoraAdapter  # u_k
    target: NDArray[np.float32]  # f(W_t): (examples, hidden size)
    calibrator: Calibrator

    @property
    def identity(self) -> Vector:
        """Returns the vector of maps that change nothing."""
        return np.zeros(sum(2 * factors.rank**2 for _, factors in self.mean))

    def maps(self, vector: Vector) -> dict[str, Maps]:
        """Returns the maps of a vector, by module."""
        found, begin = {}, 0
        for name, factors in self.mean:
            end = begin + 2 * factors.rank**2
            pair = vector[begin:end].reshape(2, factors.rank, factors.rank)
            found[name] = Maps(*(pair + np.eye(factors.rank)))
            begin = end
        return found

    def residual(self, vector: Vector) -> Matrix:
        """Computes f(W_t) - f(W_k + T(u_k)): (examples, hidden size)."""
        return self.target.astype(np.float64) - self.calibrator.features(self._adapter(vector))

    def descent(self, vector: Vector, residual: Matrix) -> Vector:
        """Computes half of |residual|^2's gradient, downhill."""
        pulled = self.calibrator.pull_back(self._adapter(vector), residual.astype(np.float32))
        parts = []
        for name, update in self.mean:
            gradient = pulled.modules[name]
            parts.append(gradient.a.astype(np.float64) @ update.a.T)
            parts.append(update.b.T.astype(np.float64) @ gradient.b)
        return np.concatenate([part.ravel() for part in parts])

    def _adapter(self, vector: Vector) -> LoraAdapter:
        return add(self.base, carry_over(self.mean, self.maps(vector)))


def group_misfit(group: Sequence[Item], target: NDArray[np.float32], calibrator: Calibrator) -> Misfit:
    """Returns how far a group's mean update on its version leads from the features `target`."""
    base = group[0].load_base()
    trained = {name for item in group for name, _ in item.load_delta()}
    mean = combine([(1 / len(group), item.load_delta()) for item in group], select(base, trained))
    return Misfit(base, mean, target, calibrator)


def fit_maps(misfit: Misfit, num_steps: int) -> Vector:
    """Finds the best maps; the identity where none is better."""
    vector = misfit.identity
    residual = misfit.residual(vector)
    descent = direction = np.zeros_like(vector)
    for _ in range(num_steps):
        before, descent = descent, misfit.descent(vector, residual)
        if not descent.any():
            break
        turn = np.vdot(descent, descent - before) / np.vdot(before, before) if before.any() else 0.0
        direction = descent + max(0.0, float(turn)) * direction
        step, found = _search(misfit, vector, residual, direction)
        if not square(found) < square(residual):  # also where it is no number
            break
        vector, residual = vector + step, found
    return vector


def carry_over(update: LoraAdapter, maps: Mapping[str, Maps]) -> LoraAdapter:
    """Computes T(update): (R_A a, b R_B) of every module."""
    carried = {
        name: Factors(
            maps[name].a.astype(np.float32) @ factors.a,
            factors.b @ maps[name].b.astype(np.float32),
            factors.scale,
        )
        for name, factors in update
    }
    return LoraAdapter(carried)


def _search(misfit: Misfit, vector: Vector, residual: Matrix, direction: Vector) -> tuple[Vector, Matrix]:
    """Finds the best step along `direction` if features were linear in it, and where it leads."""
    num_maps = 2 * len(misfit.mean)
    probe = direction * (PROBE * np.sqrt(num_maps / square(direction)))
    probed = misfit.residual(vector + probe)
    change = residual - probed
    length = float(np.vdot(change, residual)) / max(square(change), np.finfo(np.float64).tiny)
    if not length > 0:  # it leads away, or to where features are no numbers
        return probe, probed
    step = probe * min(length, LONGEST)
    found = misfit.residual(vector + step)
    return (step, found) if square(found) < square(probed) else (probe, probed)


def _load_carried(item: Item, maps: Mapping[str, Maps]) -> LoraAdapter:
    return carry_over(item.load_delta(), maps)
