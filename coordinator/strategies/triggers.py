"""When a buffer becomes a version.

A fleet must move whatever its size. A device trains once on a version and then waits for the next one, so a
buffer that asks for more updates than there are devices never fills. Where the configuration gives no size,
it follows the devices; where it gives one, a time budget ends the wait.
"""

import math
from collections.abc import Sequence

from coordinator.strategies.contract import Pace, Waiting

WHOLE_FLEET = 4  # up to so many devices a version holds an update of each,
SHARE = 5  # of more it holds a fifth: of 50 devices with a buffer of 4, many would be too stale,
MOST = 32  # and no more than this: time and memory of a merge in space `product` grow with it
LEAST_BUDGET_S, MOST_BUDGET_S = 60.0, 600.0


def automatic_size(num_devices: int) -> int:
    """Returns how many updates a version asks of a fleet: one at least, and never more than devices.

    Args:
        num_devices: Devices that have an update in the buffer, or could send one.
    """
    return min(max(1, min(num_devices, WHOLE_FLEET), math.ceil(num_devices / SHARE)), MOST)


def automatic_budget_s(waiting: Sequence[Waiting]) -> float:
    """Returns how long the oldest update waits: as long as it was trained, between one and ten minutes.

    So two devices of which one is less than twice as fast meet in one version, be a task of seconds or of
    minutes. A device that lies about its seconds delays a version by ten minutes at most.
    """
    trained_s = waiting[0].trained_s if waiting else 0.0
    return min(max(trained_s, LEAST_BUDGET_S), MOST_BUDGET_S)


def pace_buffer(waiting: Sequence[Waiting], buffer_size: int, time_budget_s: float) -> Pace:
    """Takes the oldest `buffer_size`, or all once the oldest has waited long enough (FedBuff)."""
    left_s = _left_s(waiting, time_budget_s)
    if len(waiting) >= buffer_size:
        return Pace(buffer_size, len(waiting), buffer_size, left_s)
    return Pace(len(waiting) if left_s == 0 else 0, len(waiting), buffer_size, left_s)


def pace_round(
    waiting: Sequence[Waiting], cohort_size: int, cohort: frozenset[str], time_budget_s: float
) -> Pace:
    """Takes all, when the cohort is complete or its first answer has waited long enough (FedAvg).

    Without a cohort, any `cohort_size` devices complete the round. Updates of an earlier version complete
    none.
    """
    fresh = [update for update in waiting if update.staleness == 0]
    answered = {update.device for update in fresh}
    have, needed = (len(cohort & answered), len(cohort)) if cohort else (len(answered), cohort_size)
    left_s = _left_s(fresh, time_budget_s)
    return Pace(len(waiting) if have >= needed or left_s == 0 else 0, have, needed, left_s)


def _left_s(waiting: Sequence[Waiting], time_budget_s: float) -> float | None:
    """Returns what is left of the oldest one's budget; a budget of 0 never ends."""
    if not waiting or time_budget_s == 0:
        return None
    return max(0.0, time_budget_s - max(update.waited_s for update in waiting))
