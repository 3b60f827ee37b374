"""The stages that a strategy is made of, and the numbers they take, as a configuration names them.

A strategy is a preset of this record; a `[stages]` table changes any field of it. What is done to the updates
before they are merged stands in `order`, and is done in that order:

    group          updates of one base version and rank form a group; without it the buffer is one group
    absolute       the update becomes the device's whole adapter minus the present one (FedAsync, FLoRA)
    mix            weight by `mixing` (FedAsync)
    centre         what differs from the group's mean is told apart from the mean (AlignFed, restored)
    centre-literal the group's mean is subtracted, and lost (AlignFed, Eq. 5 as printed)
    align          updates on older versions are carried over to the present one (AlignFed, Eq. 6)
    clip           an update's norm is cut to `clip_ratio` times the buffer's median
    cosine         devices that point against the calibration gradient are left out
    krum           the updates farthest from their neighbours are left out (multi-Krum)
    examples       weight by the number of examples
    freshness      weight by staleness
    fairness       weight by how often a device was heard already (AlignFed)
    credit         weight by what a device is owed (ours)
    inverse-norm   weight by one over the norm (AlignFed, Eq. 7)
    product-norm   weight by the norm of the true change (HetLoRA)
    normalise      weights are made to add up to one

Every update begins with the weight 1/K.
"""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from edge.protocol.messages import Space

StageName = Literal[
    "group",
    "absolute",
    "mix",
    "centre",
    "centre-literal",
    "align",
    "clip",
    "cosine",
    "krum",
    "examples",
    "freshness",
    "fairness",
    "credit",
    "inverse-norm",
    "product-norm",
    "normalise",
]
MergeName = Literal["sum", "median", "trimmed-mean", "residual", "fair"]
NEEDS_CALIBRATION: frozenset[StageName] = frozenset({"align", "cosine"})
Share = Annotated[float, Meta(ge=0.0, lt=1.0)]
Positive = Annotated[float, Meta(gt=0.0)]
NotNegative = Annotated[float, Meta(ge=0.0)]


class Stages(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a strategy does with a buffer.

    Attributes:
        order: What is done to the updates before they are merged.
        trigger: `buffer` merges the oldest `buffer_size`; `round` waits for a cohort (FedAvg); `arrival`
            merges every update by itself (FedAsync). What buffer and cohort ask for follows the devices
            online where it is not configured, and the time budget ends either wait.
        space: What is added up, where the configuration does not say: true products, or factors.
        merge: `sum` adds the weighted updates up; `median` and `trimmed-mean` are taken coordinate by
            coordinate; `residual` is FedEx-LoRA's, `fair` LoRA-FAIR's.
        carries: Whether space `product` carries what the re-projection leaves over to the next version.
        remainder_decay: What is carried is multiplied by this before it is added; at 1 nothing of it is lost,
            and it may wind up (see `product.py`).
        optimizer: What the server makes of the merged step. Under `fedadam` every coordinate moves by up to
            about `server_lr`, which is then 0.001 to 0.01.
        guard: `backtrack` shortens a step that raises the calibration loss, and refuses it at last.
        staleness: s(τ) of `freshness`: 1; (1 + τ)^-rate; 1 up to `staleness_grace` and then
            1 / (rate (τ - grace) + 1); or exp(-rate τ).
        staleness_rate: See `staleness`; another `staleness` brings its own (see `weighting.SHAPES`).
        staleness_grace: Versions; likewise.
        mixing: Share of the device's adapter in the next one, under `mix` (FedAsync's alpha).
        credit_cap: Largest weight of a device's updates in one version under `credit`; 1 is never to lengthen
            what it sent.
        norm_floor: Norms are taken for no less than this share of the buffer's median.
        align_steps: Steps of each group's fit, each of four passes over the calibration set's probe; the best
            iterate is kept, the identity included.
        clip_ratio: See `clip`.
        trim: Share cut off at either end by `trimmed-mean`.
        krum_hostile: Share of the buffer that `krum` leaves out.
        cosine_floor: Mean cosines with the descent direction below it are left out.
        momentum: Of the server's optimiser.
        second_momentum: Of FedAdam.
        adaptivity: FedAdam's τ, added to the root of the second moment.
        guard_longest: The first step that is tried, in merged steps.
        guard_tries: Steps that are tried, each half as long as the one before.
        guard_tolerance: Relative rise of the calibration loss that is let through.
        fair_ridge: μ of LoRA-FAIR's correction, relative to the mean square of the rows of A.
        pull: λ of AlignFed's feature term on the devices, where the recipe has none.
        trains: Factors that devices train.
        keeps: Factors that every device keeps to itself.
    """

    order: tuple[StageName, ...]
    trigger: Literal["buffer", "round", "arrival"] = "buffer"
    space: Space = "factors"
    merge: MergeName = "sum"
    carries: bool = True
    remainder_decay: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.8
    optimizer: Literal["none", "fedavgm", "fedadam"] = "none"
    guard: Literal["none", "backtrack"] = "none"
    staleness: Literal["constant", "polynomial", "hinge", "exponential"] = "polynomial"
    staleness_rate: NotNegative = 0.5
    staleness_grace: Annotated[int, Meta(ge=0)] = 0
    mixing: Annotated[float, Meta(gt=0.0, le=1.0)] = 1.0
    credit_cap: Positive = 1.0
    norm_floor: Share = 0.1
    align_steps: Annotated[int, Meta(ge=1)] = 1
    clip_ratio: Positive = 2.0
    trim: Annotated[float, Meta(ge=0.0, lt=0.5)] = 0.2
    krum_hostile: Annotated[float, Meta(ge=0.0, lt=0.5)] = 0.2
    cosine_floor: Annotated[float, Meta(ge=-1.0, lt=1.0)] = 0.0
    momentum: Share = 0.9
    second_momentum: Share = 0.99
    adaptivity: Positive = 1e-3
    guard_longest: Positive = 1.0
    guard_tries: Annotated[int, Meta(ge=1)] = 4
    guard_tolerance: NotNegative = 0.0
    fair_ridge: Positive = 1e-2
    pull: NotNegative = 0.0
    trains: Literal["both", "a", "b"] = "both"
    keeps: Literal["none", "b"] = "none"

    @property
    def needs_calibration(self) -> bool:
        """Whether some stage asks for the calibration set."""
        return self.guard != "none" or bool(NEEDS_CALIBRATION & set(self.order))
