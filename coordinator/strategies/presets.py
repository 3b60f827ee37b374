"""The strategies by name, how a configuration changes their stages, and what is wrong with such a change.

Faults are told at start-up, all at once, and each says what to do.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import msgspec
from msgspec import structs

from converters.faults import Fault
from coordinator.strategies import (
    alignfed,
    alignfed_literal,
    fedasync,
    fedavg,
    fedbuff,
    fedex_lora,
    fedsa_lora,
    ffa_lora,
    flexlora,
    flora,
    hetlora,
    lora_fair,
    tunefleet,
)
from coordinator.strategies.stages import NEEDS_CALIBRATION, StageName, Stages
from coordinator.strategies.weighting import SHAPES
from edge.protocol.messages import Space
from edge.settings import type_faults

StrategyName = Literal[
    "fedavg",
    "fedasync",
    "fedbuff",
    "alignfed",
    "alignfed-literal",
    "ffa-lora",
    "fedsa-lora",
    "flora",
    "flexlora",
    "hetlora",
    "fedex-lora",
    "lora-fair",
    "tunefleet",
]
PRESETS: Mapping[StrategyName, Stages] = {
    "fedavg": fedavg.STAGES,
    "fedasync": fedasync.STAGES,
    "fedbuff": fedbuff.STAGES,
    "alignfed": alignfed.STAGES,
    "alignfed-literal": alignfed_literal.STAGES,
    "ffa-lora": ffa_lora.STAGES,
    "fedsa-lora": fedsa_lora.STAGES,
    "flora": flora.STAGES,
    "flexlora": flexlora.STAGES,
    "hetlora": hetlora.STAGES,
    "fedex-lora": fedex_lora.STAGES,
    "lora-fair": lora_fair.STAGES,
    "tunefleet": tunefleet.STAGES,
}
BEFORE: Sequence[tuple[StageName, StageName]] = (  # what an earlier stage must have prepared
    ("group", "centre"),
    ("group", "centre-literal"),
    ("group", "align"),
)


def stages_of(name: StrategyName, changes: Mapping[str, Any], space: Space | None) -> Stages:
    """The preset's stages with `changes` made, which `stage_faults` found no fault in.

    Args:
        name: Of the preset.
        changes: Fields of `Stages`; a `staleness` without a rate brings the rate that its paper has with it.
        space: None leaves the preset's.
    """
    shape = SHAPES[changes["staleness"]] if "staleness" in changes else {}
    table = structs.asdict(PRESETS[name]) | dict(shape) | dict(changes) | ({"space": space} if space else {})
    return msgspec.convert(msgspec.to_builtins(table), Stages)


def stage_faults(
    name: StrategyName, changes: Mapping[str, Any], space: Space | None
) -> Iterator[Fault | str]:
    """What is wrong with a configuration's `stages`, a misspelt stage before all."""
    names = get_args(StageName)
    order = changes.get("order", ())
    unknown = [stage for stage in order if stage not in names] if isinstance(order, list | tuple) else []
    if unknown:
        yield f"stages.order has {', '.join(map(repr, unknown))}, expected some of {', '.join(names)}"
        return
    faults: list[Fault | str] = [
        fault._replace(text=f"stages.{fault.text}", brief=fault.brief and f"stages.{fault.brief}")
        for fault in type_faults({"order": [], **changes}, Stages)
    ]
    faults += [
        f"stages.{field} is {value}, expected a finite number"
        for field, value in changes.items()
        if isinstance(value, float) and math.isinf(value)
    ]
    yield from faults
    if not faults:
        stages = stages_of(name, changes, space)
        yield from _order_faults(stages)
        yield from _merge_faults(stages)
        yield from _optimizer_faults(stages)
        yield from _sharing_faults(stages)


def fleet_faults(stages: Stages, ranks: Sequence[int], remainder_rank: int) -> Iterator[str]:
    """Why a fleet of these rank tiers cannot be served.

    Args:
        stages: The strategy's, without faults of their own.
        ranks: The configuration's.
        remainder_rank: The configuration's.
    """
    if stages.merge in ("residual", "fair") and len(ranks) > 1:
        yield (
            f"ranks is {list(ranks)}, and stages.merge {stages.merge} (fedex-lora, lora-fair) merges "
            "adapters of one rank only: give one rank, or take flora, flexlora or hetlora"
        )
    if stages.merge == "residual" and remainder_rank < 1:
        yield (
            f"remainder_rank is {remainder_rank}, and stages.merge residual (fedex-lora) carries its "
            "residual in that many rows: give at least 1"
        )


def base_faults(stages: Stages, *, is_quantized: bool) -> Iterator[str]:
    """Why a base model cannot be trained by the strategy."""
    if stages.merge == "residual" and is_quantized:
        yield (
            "stages.merge residual (fedex-lora) adds a residual to the base model, which a quantised one "
            "cannot hold: give the base in full precision, or take flora, which carries what is left over"
        )


def _order_faults(stages: Stages) -> Iterator[str]:
    order = stages.order
    twice = sorted({stage for stage in order if order.count(stage) > 1})
    if twice:
        yield f"stages.order has {', '.join(twice)} more than once: leave the others out"
    for earlier, later in BEFORE:
        if later in order and earlier not in order[: order.index(later)]:
            yield f"stages.order has {later} without {earlier} before it: put {earlier} first"
    if "centre" in order and "centre-literal" in order:
        yield "stages.order has centre and centre-literal, two readings of one equation: leave one out"
    if "mix" in order and "normalise" in order[order.index("mix") :]:
        yield "stages.order has normalise after mix, which undoes it: leave one out"


def _merge_faults(stages: Stages) -> Iterator[str]:
    if stages.merge != "sum" and stages.space == "product":
        yield (
            f"stages.merge {stages.merge} merges factors, and the space is product: "
            "set space to factors, or stages.merge to sum"
        )
    if stages.merge == "residual" and stages.needs_calibration:
        yield (
            "stages.merge residual (fedex-lora) cannot be used with a guard, align or cosine, which would "
            "read the adapter without its residual: set stages.guard to none and leave these stages out"
        )
    if stages.merge == "residual" and stages.optimizer != "none":
        yield (
            f"stages.merge residual (fedex-lora) is exact for the mean only, and stages.optimizer is "
            f"{stages.optimizer}: set it to none"
        )


def _optimizer_faults(stages: Stages) -> Iterator[str]:
    if stages.optimizer == "fedadam" and stages.space == "product":
        yield (
            "stages.optimizer is fedadam, which squares coordinates, and in the space product none last: "
            "set space to factors, or stages.optimizer to fedavgm"
        )


def _sharing_faults(stages: Stages) -> Iterator[str]:
    if (stages.trains != "both" or stages.keeps != "none") and stages.space == "product":
        yield (
            f"stages.trains is {stages.trains} and stages.keeps {stages.keeps} (ffa-lora, fedsa-lora), and "
            "the space product mixes A with B: set space to factors"
        )
    if stages.trains == "a":
        yield (
            "stages.trains is a, and B is zero at the start, so that no A would ever change anything: "
            "set it to both or b"
        )
    if stages.trains == "b" and stages.keeps == "b":
        yield "stages.trains is b and stages.keeps b, so that nothing is left to merge: set one of them only"
    if stages.keeps == "b":
        blind: list[str] = sorted({*NEEDS_CALIBRATION, "product-norm"} & set(stages.order))
        blind += ["a guard"] if stages.guard != "none" else []
        if blind:
            yield (
                f"stages.keeps is b (fedsa-lora), so the global adapter's product is zero, and there is "
                f"nothing to judge for {', '.join(blind)}: leave them out, or set stages.keeps to none"
            )
