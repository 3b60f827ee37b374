"""Devices that point against the calibration loss's descent are left out."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, ClassVar

import numpy as np
from msgspec import Meta, structs

from converters.adapter import Factors, LoraAdapter
from converters.arithmetic import dot, square
from converters.lowrank import change, inner
from coordinator.strategies.accounts import open_accounts
from coordinator.strategies.contract import Account
from coordinator.strategies.pipeline_state import Item, PipelineState
from coordinator.strategies.stages.contract import Stage

MEAN_OF = 8  # of a device's cosines, about


class Cosine(Stage, frozen=True, tag="cosine"):
    """Leaves out what comes from devices that point against the calibration loss's descent.

    Ours, after FLTrust (Cao et al., arXiv 2012.13995), whose server trains on a clean set of its own: an
    update is left out while the cosine of its device's updates with the descent, a running mean over its last
    8 or so, is below `floor`. One cosine does not tell a device with data of one kind, or a stale one, from a
    hostile one: theirs scatter around zero.

    In space `factors` angles are those of the increments' entries. In `product` the descent is the true
    change -s (B gA + gB A) that an infinitesimal step against the gradient makes at the present version:
    coordinates differ between tiers, and drift between versions. A delta or a gradient of length zero opposes
    nothing and stays; a norm that is not finite is left out.
    """

    floor: Annotated[float, Meta(ge=-1.0, lt=1.0)] = 0.0
    needs_calibration: ClassVar[bool] = True

    def __call__(self, pipeline: PipelineState) -> PipelineState:
        """See `Stage`."""
        calibrator = pipeline.need_calibrator("cosine")
        pipeline = pipeline.drop_endless()
        if not pipeline.chosen:
            return pipeline
        look = _looking(pipeline, calibrator.gradient(pipeline.state.adapter))
        reasons = {}
        accounts = open_accounts(pipeline.state, pipeline.items)
        for place, (item, norm) in enumerate(zip(pipeline.items, pipeline.norms, strict=True)):
            along, steepness = look(item) if item.weight > 0 else (0.0, 0.0)
            if norm * steepness > 0:
                account = _judged(accounts[item.source.device], along / (norm * steepness**0.5))
                accounts[item.source.device] = account
                if account.cosine < self.floor:
                    mean = f"on average over {account.num_cosines} " if account.num_cosines > 1 else ""
                    reasons[place] = f"cosine {account.cosine:.2f} {mean}with the calibration loss's descent"
        return pipeline._replace(state=pipeline.state._replace(accounts=accounts)).drop(reasons)


def _judged(account: Account, cosine: float) -> Account:
    count = account.num_cosines + 1
    mean = account.cosine + (cosine - account.cosine) / min(count, MEAN_OF)
    return structs.replace(account, cosine=mean, num_cosines=count)


def _looking(pipeline: PipelineState, gradient: LoraAdapter) -> Callable[[Item], tuple[float, float]]:
    """Returns what finds an item's inner product with the descent, and the square of the descent there."""
    if pipeline.space == "factors":
        return partial(_along_entries, gradient=gradient)
    tangents = {name: _tangent(f, gradient.modules[name]) for name, f in pipeline.state.adapter}
    return partial(_along_changes, descent={name: (f, inner(f, f)) for name, f in tangents.items()})


def _along_entries(item: Item, gradient: LoraAdapter) -> tuple[float, float]:
    delta = item.load_delta()
    slopes = [(gradient.modules[name], f.rank) for name, f in delta]
    total = sum(square(slope.a[:rank]) + square(slope.b[:, :rank]) for slope, rank in slopes)
    return -dot(gradient, delta), total


def _along_changes(item: Item, descent: Mapping[str, tuple[Factors, float]]) -> tuple[float, float]:
    base, delta = item.load_base(), item.load_delta()
    along = sum(inner(descent[name][0], change(base.modules[name], f)) for name, f in delta)
    return along, sum(descent[name][1] for name, _ in delta)


def _tangent(present: Factors, slope: Factors) -> Factors:
    a = np.concatenate([slope.a, present.a])
    return Factors(a, np.concatenate([-present.b, -slope.b], axis=1), present.scale)
