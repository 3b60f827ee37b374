"""Whether a strategy can keep what a fleet's terms of privacy promise."""

from collections.abc import Iterator

from coordinator.strategies.merges.contract import Merge
from coordinator.strategies.merges.factors import Sum
from coordinator.strategies.merges.noised import NoisedSum
from coordinator.strategies.method import Method
from coordinator.strategies.stages.contract import Weight
from coordinator.strategies.stages.weights import Normalise
from edge.privacy.noise import Draw
from edge.privacy.terms import Terms


def is_central(terms: Terms) -> bool:
    """Tells whether the coordinator has to add noise."""
    return terms.is_on and terms.at == "coordinator"


def merge_of(method: Method, terms: Terms, draw: Draw) -> Merge:
    """Returns how updates are merged under the terms; `privacy_faults` has found none."""
    if not is_central(terms):
        return method.merge
    return NoisedSum(clip_norm=terms.clip_norm, noise=terms.noise, shared=method.shared, draw=draw)


def privacy_faults(terms: Terms, method: Method, *, pull: float) -> Iterator[str]:
    """Tells what in a method keeps the terms from being kept.

    Args:
        terms: The fleet's.
        method: Its strategy's.
        pull: Of the recipe in force.
    """
    if terms.unit == "example" and pull:
        yield (
            f"privacy.unit example clips each example's own gradient, and the recipe pulls features of all "
            f"together ({pull:g}): set recipe.pull and stages.pull to 0, or take unit device"
        )
    if not is_central(terms):
        return
    if type(method.merge) is not Sum:
        yield (
            f'privacy.at = "coordinator" adds noise to a sum of increments, and stages.merge is '
            f'{method.merge.kind}: set space = "factors", and a strategy that adds up (fedbuff, fedavg)'
        )
    reading = [stage.kind for stage in method.order if not isinstance(stage, Weight | Normalise)]
    if reading:
        yield (
            f'privacy.at = "coordinator" needs weights that no update decides, and stages.order has '
            f"{', '.join(reading)}, which read updates: leave them out"
        )
