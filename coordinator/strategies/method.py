"""What a strategy does with a buffer, as a record: FedAvg is `Method(order=(Examples(), Normalise()), …)`.

    order (stages)  ->  merge  ->  server optimiser  ->  guard

A stage, a merge, an optimiser or a guard is a record of its own numbers, so that none of them is there
without the others. `written.py` reads what a configuration says; faults are told at start-up, all at once,
and each says what to do.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

from msgspec import Struct

from converters.choices import Trains
from coordinator.strategies.guard import Guard
from coordinator.strategies.merges.contract import Merge
from coordinator.strategies.merges.factors import Sum
from coordinator.strategies.merges.fair import Fair
from coordinator.strategies.merges.residual import Residual
from coordinator.strategies.optimizers import FedAdam, Optimizer, Plain
from coordinator.strategies.pipeline_state import Trigger
from coordinator.strategies.record import NotNegative
from coordinator.strategies.stages.contract import Stage
from edge.choices import Space

Shared = Literal["both", "a", "b"]


class Method(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a strategy does with a buffer.

    Attributes:
        order: What is done to the updates before they are merged, in this order; every update begins with
            the weight 1/K.
        trigger: `buffer` merges the oldest `buffer_size`; `round` waits for a cohort (FedAvg); `arrival`
            merges every update by itself (FedAsync). What buffer and cohort ask for follows the devices
            online where it is not configured, and the time budget ends either wait.
        merge: How the updates that are left become one step.
        optimizer: What the server makes of the merged step.
        guard: What chooses the step's length; without one it is 1.
        shared: Factors that are merged. Of `b` the A is frozen (FFA-LoRA); of `a` both are trained, and every
            device keeps its B to itself (FedSA-LoRA).
        pull: λ of AlignFed's feature term on the devices, where the recipe has none.
    """

    order: tuple[Stage, ...] = ()
    trigger: Trigger = "buffer"
    merge: Merge = Sum()
    optimizer: Optimizer = Plain()
    guard: Guard | None = None
    shared: Shared = "both"
    pull: NotNegative = 0.0

    @property
    def space(self) -> Space:
        """Returns what is added up."""
        return self.merge.space

    @property
    def trains(self) -> Trains:
        """Returns the factors that devices train."""
        return "b" if self.shared == "b" else "both"

    @property
    def keeps(self) -> Literal["none", "b"]:
        """Returns the factors that every device keeps to itself."""
        return "b" if self.shared == "a" else "none"

    @property
    def carries_residual(self) -> bool:
        """Returns whether devices compute with a residual behind the adapter's own rows (FedEx-LoRA)."""
        return isinstance(self.merge, Residual)

    @property
    def needs(self) -> list[str]:
        """Returns what asks for the calibration set."""
        asking = [stage.kind for stage in self.order if stage.needs_calibration]
        return asking + ([f"guard {self.guard.kind}"] if self.guard else [])

    @property
    def needs_calibration(self) -> bool:
        """Returns whether something asks for the calibration set."""
        return bool(self.needs)

    def kinds(self) -> list[str]:
        """Returns the kinds of its stages, in order."""
        return [stage.kind for stage in self.order]


def method_faults(method: Method) -> Iterator[str]:
    """Tells what parts of a method do not go together."""
    kinds = method.kinds()
    twice = sorted({kind for kind in kinds if kinds.count(kind) > 1})
    if twice:
        yield f"stages.order has {', '.join(twice)} more than once: leave the others out"
    if "centre" in kinds and "centre-literal" in kinds:
        yield "stages.order has centre and centre-literal, two readings of one equation: leave one out"
    if "mix" in kinds and "normalise" in kinds[kinds.index("mix") :]:
        yield "stages.order has normalise after mix, which undoes it: leave one out"
    if method.carries_residual and method.needs_calibration:
        yield (
            "stages.merge residual (fedex-lora) cannot be used with a guard, align or cosine, which would "
            "read the adapter without its residual: set stages.guard to none and leave these stages out"
        )
    if method.carries_residual and method.optimizer != Plain():
        yield (
            f"stages.merge residual (fedex-lora) is exact for the mean only, and stages.optimizer is "
            f"{method.optimizer.kind}: set it to none"
        )
    if isinstance(method.optimizer, FedAdam) and method.space == "product":
        yield (
            "stages.optimizer is fedadam, which squares coordinates, and in the space product none last: "
            "set space to factors, or stages.optimizer to fedavgm"
        )
    yield from _sharing_faults(method)


def fleet_faults(method: Method, ranks: Sequence[int], remainder_rank: int) -> Iterator[str]:
    """Tells why a fleet of these rank tiers cannot be served.

    Args:
        method: The strategy's, without faults of its own.
        ranks: The configuration's.
        remainder_rank: The configuration's.
    """
    if isinstance(method.merge, Residual | Fair) and len(ranks) > 1:
        yield (
            f"ranks is {list(ranks)}, and stages.merge {method.merge.kind} (fedex-lora, lora-fair) merges "
            "adapters of one rank only: give one rank, or take flora, flexlora or hetlora"
        )
    if method.carries_residual and remainder_rank < 1:
        yield (
            f"remainder_rank is {remainder_rank}, and stages.merge residual (fedex-lora) carries its "
            "residual in that many rows: give at least 1"
        )


def base_faults(method: Method, *, is_quantized: bool) -> Iterator[str]:
    """Tells why a base model cannot be trained by the strategy."""
    if method.carries_residual and is_quantized:
        yield (
            "stages.merge residual (fedex-lora) adds a residual to the base model, which a quantised one "
            "cannot hold: give the base in full precision, or take flora, which carries what is left over"
        )


def _sharing_faults(method: Method) -> Iterator[str]:
    if method.shared != "both" and method.space == "product":
        yield (
            f"stages.shared is {method.shared} (ffa-lora, fedsa-lora), and the space product mixes A with B: "
            "set space to factors"
        )
    if method.shared == "a":
        blind = sorted({one.kind for one in method.order if one.needs_calibration or one.needs_product})
        blind += ["a guard"] if method.guard else []
        if blind:
            yield (
                f"stages.shared is a (fedsa-lora), so the global adapter's product is zero, and there is "
                f"nothing to judge for {', '.join(blind)}: leave them out, or set stages.shared to both"
            )
