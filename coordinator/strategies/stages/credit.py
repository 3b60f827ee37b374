"""Fair weights that wait for nobody: a device is paid with what it is owed."""

from collections import Counter
from typing import ClassVar

from coordinator.strategies.accounts import given_to_each, open_accounts
from coordinator.strategies.pipeline_state import PipelineState
from coordinator.strategies.record import Positive
from coordinator.strategies.stages.contract import Stage


class Credit(Stage, frozen=True, tag="credit"):
    """Weighs an update by what its device is owed; its updates in this buffer share it.

    **Ours**, after deficit round robin (Shreedhar & Varghese 1996): every version owes each device 1/n, and
    an update is paid with what has gathered, at most `cap` at once. A device that is in every version weighs
    1/n each time; one that is in every tenth weighs 10/n. So shares of weight even out however seldom a
    device comes, and fast devices never wait for slow ones. What counts is what was really added: a step that
    the guard cut to a half owes and pays half, and one that it refused nothing. As a weight is multiplied by
    the length of its step, what is owed is divided by the mean length so far.
    """

    cap: Positive = 1.0  # largest weight of a device's updates; 1 is never to lengthen what it sent
    reads: ClassVar[bool] = False
    shares_out: ClassVar[bool] = True

    def __call__(self, pipeline: PipelineState) -> PipelineState:
        """See `Stage`."""
        items, state = pipeline.items, pipeline.state
        accounts = open_accounts(state, items)
        share = 1 / len(accounts)
        mean_length = given_to_each(state) / share / max(state.version, 1)
        times = Counter(item.source.device for item in items)
        due = []
        for item in items:
            owed = max(accounts[item.source.device].credit, 0.0)
            weight = share + (owed / mean_length if mean_length else 0.0)
            due.append(min(weight, self.cap) / times[item.source.device] * len(items))
        return pipeline.weigh(due)
