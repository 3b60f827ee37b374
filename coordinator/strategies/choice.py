"""From a name to its strategy: one of ours, or one that an installed package brings along."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from coordinator.errors import CoordinatorError
from coordinator.limits import Limits
from coordinator.strategies.contract import Calibrator, Strategy
from coordinator.strategies.function import FunctionStrategy
from coordinator.strategies.method import Method
from coordinator.strategies.outside import load_outside, outside_names
from coordinator.strategies.papers import (
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
from coordinator.strategies.pipeline import Pipeline
from coordinator.strategies.privacy import is_central
from coordinator.strategies.stages.contract import Stage
from edge.privacy.terms import Terms

METHODS: Mapping[str, Method] = {
    "fedavg": fedavg.METHOD,
    "fedasync": fedasync.METHOD,
    "fedbuff": fedbuff.METHOD,
    "alignfed": alignfed.METHOD,
    "alignfed-literal": alignfed_literal.METHOD,
    "ffa-lora": ffa_lora.METHOD,
    "fedsa-lora": fedsa_lora.METHOD,
    "flora": flora.METHOD,
    "flexlora": flexlora.METHOD,
    "hetlora": hetlora.METHOD,
    "fedex-lora": fedex_lora.METHOD,
    "lora-fair": lora_fair.METHOD,
    "tunefleet": tunefleet.METHOD,
}


class StrategySettings(Protocol):
    """What of a coordinator's settings a strategy is made with."""

    @property
    def strategy_in_force(self) -> str:
        """Returns the strategy's name."""
        ...

    @property
    def method_in_force(self) -> Method:
        """Returns its method, as changed."""
        ...

    @property
    def buffer_size(self) -> int | None:
        """See `Pipeline`."""
        ...

    @property
    def time_budget_s(self) -> float | None:
        """See `Pipeline`."""
        ...

    @property
    def cohort(self) -> Sequence[str]:
        """See `Pipeline`."""
        ...

    @property
    def server_lr(self) -> float:
        """See `Pipeline`."""
        ...

    @property
    def remainder_rank(self) -> int:
        """See `Pipeline`."""
        ...

    @property
    def privacy(self) -> Terms:
        """See `Pipeline`."""
        ...

    @property
    def limits(self) -> Limits:
        """Of one device's weight."""
        ...


def own_method(name: str) -> Method:
    """Returns the method of the strategy of a name; of one that is no row of stages, that of an empty row.

    Raises:
        CoordinatorError: No strategy has this name, or it cannot be imported.
    """
    found = METHODS.get(name) or _outside(name)
    return found if isinstance(found, Method) else Method()


def choose_strategy(settings: StrategySettings, calibrator: Calibrator | None = None) -> Strategy:
    """Makes the strategy that settings name, with the stages that they change.

    Args:
        settings: The coordinator's.
        calibrator: Needed where some stage asks for the calibration set.

    Raises:
        CoordinatorError: See `own_method`.
    """
    name = settings.strategy_in_force
    found = METHODS.get(name) or _outside(name)
    if not isinstance(found, Method):
        return as_strategy(found, settings, name)
    return Pipeline(
        name=name,
        method=settings.method_in_force,
        buffer_size=settings.buffer_size,
        time_budget_s=settings.time_budget_s,
        cohort=frozenset(settings.cohort),
        server_lr=settings.server_lr,
        remainder_rank=settings.remainder_rank,
        calibrator=calibrator,
        terms=settings.privacy,
        max_weight_ratio=settings.limits.max_weight_ratio,
    )


def as_strategy(asked: object, settings: StrategySettings, name: str = "") -> Strategy:
    """Takes an object for a strategy: one that follows the contract, or a function.

    Args:
        asked: The object.
        settings: The coordinator's.
        name: What a function is called, if not by its own name.

    Raises:
        CoordinatorError: It is neither, or cannot keep what the settings promise.
    """
    if is_central(settings.privacy):
        raise CoordinatorError(
            'privacy.at = "coordinator" adds noise to a sum of increments, and this strategy is no row of '
            "stages: take fedbuff, fedavg or fedasync in space factors"
        )
    if callable(getattr(asked, "merge", None)) and callable(getattr(asked, "pace", None)):
        return asked  # type: ignore[return-value]
    if callable(asked):
        return FunctionStrategy(asked, settings.buffer_size, settings.time_budget_s, name)
    raise CoordinatorError(
        f"strategy is {type(asked).__name__}, expected a name, a Method, an object with pace and merge, or "
        "a function from an adapter and its updates to the next adapter"
    )


def _outside(name: str) -> object:
    found = load_outside(name)
    if found is None or (isinstance(found, type) and issubclass(found, Stage)):
        known = ", ".join(METHODS)
        others = [one for one in outside_names() if one != name]
        more = f", or, of those installed beside it, {', '.join(others)}" if others else ""
        raise CoordinatorError(f"strategy is {name!r}, expected one of {known}{more}")
    return found
