"""The records that a configuration can name, by kind; for those of other packages see `outside.py`."""

from collections.abc import Mapping
from typing import Any

from coordinator.strategies.guard import Backtrack, Guard
from coordinator.strategies.merges.contract import Merge
from coordinator.strategies.merges.factors import Sum
from coordinator.strategies.merges.fair import Fair
from coordinator.strategies.merges.median import Median, TrimmedMean
from coordinator.strategies.merges.product import Product
from coordinator.strategies.merges.residual import Residual
from coordinator.strategies.optimizers import FedAdam, FedAvgM, Optimizer, Plain
from coordinator.strategies.record import Record, kind_of
from coordinator.strategies.stages.absolute import Absolute
from coordinator.strategies.stages.align import Align
from coordinator.strategies.stages.centre import Centre, CentreLiteral
from coordinator.strategies.stages.clip import Clip
from coordinator.strategies.stages.contract import Stage
from coordinator.strategies.stages.cosine import Cosine
from coordinator.strategies.stages.credit import Credit
from coordinator.strategies.stages.krum import Krum
from coordinator.strategies.stages.norms import InverseNorm, InverseNormLiteral, ProductNorm
from coordinator.strategies.stages.weights import (
    Examples,
    ExponentialFreshness,
    Fairness,
    Freshness,
    HingeFreshness,
    Mix,
    Normalise,
)

STAGES: Mapping[str, type[Stage]] = {
    kind_of(stage): stage
    for stage in (
        Absolute,
        Mix,
        Centre,
        CentreLiteral,
        Align,
        Clip,
        Cosine,
        Krum,
        Examples,
        Freshness,
        HingeFreshness,
        ExponentialFreshness,
        Fairness,
        Credit,
        InverseNorm,
        InverseNormLiteral,
        ProductNorm,
        Normalise,
    )
}
MERGES: Mapping[str, type[Merge]] = {
    kind_of(merge): merge for merge in (Sum, Product, Median, TrimmedMean, Residual, Fair)
}
OPTIMIZERS: Mapping[str, type[Optimizer]] = {kind_of(one): one for one in (Plain, FedAvgM, FedAdam)}
GUARDS: Mapping[str, type[Guard]] = {kind_of(Backtrack): Backtrack}

# In release 0.1 every number stood in one flat table, under a name of its own: where it stands now.
FRESHNESS: Mapping[str, type[Stage]] = {
    "polynomial": Freshness,
    "hinge": HingeFreshness,
    "exponential": ExponentialFreshness,
}
FLAT: Mapping[str, tuple[str, tuple[type[Record], ...]]] = {
    "staleness_rate": ("rate", (Freshness, HingeFreshness, ExponentialFreshness)),
    "staleness_grace": ("grace", (HingeFreshness,)),
    "mixing": ("share", (Mix,)),
    "credit_cap": ("cap", (Credit,)),
    "norm_floor": ("floor", (InverseNorm,)),
    "align_steps": ("steps", (Align,)),
    "clip_ratio": ("ratio", (Clip,)),
    "trim": ("trim", (TrimmedMean,)),
    "krum_hostile": ("hostile", (Krum,)),
    "cosine_floor": ("floor", (Cosine,)),
    "carries": ("carries", (Product,)),
    "remainder_decay": ("decay", (Product,)),
    "momentum": ("momentum", (FedAvgM, FedAdam)),
    "second_momentum": ("second_momentum", (FedAdam,)),
    "adaptivity": ("adaptivity", (FedAdam,)),
    "guard_longest": ("longest", (Backtrack,)),
    "guard_tries": ("tries", (Backtrack,)),
    "guard_tolerance": ("tolerance", (Backtrack,)),
    "fair_ridge": ("ridge", (Fair,)),
}


def flat_numbers(changes: Mapping[str, Any]) -> Mapping[type[Record], Mapping[str, Any]]:
    """Sorts the flat numbers among `changes` by the records that they belong to."""
    found: dict[type[Record], dict[str, Any]] = {}
    for name, (field, records) in FLAT.items():
        for record in records if name in changes else ():
            found.setdefault(record, {})[field] = changes[name]
    return found
