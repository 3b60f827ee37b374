"""After the fleet has stopped: each device trains alone, and all adapters answer the held-out sentences.

Each is a `tunefleet` command as a user types it, and its report what `--json` prints.
"""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from coordinator.demo.files import HELD_OUT, Paths
from coordinator.demo.plan import RANK, SCALE, DemoPlan, Member
from coordinator.demo.processes import Children, as_arguments
from coordinator.demo.result import Score
from coordinator.demo.shown.screen import Screen

MAX_ANSWER_TOKENS = 24


class Scoring:
    """The commands that train and score, as many at a time as there are cores.

    Args:
        children: Where the commands run.
        paths: The demo's folder.
        plan: What the devices did in the fleet, for them to do the same alone.
        screen: What is done is shown there.
        num_cores: Commands at a time.
    """

    def __init__(
        self, children: Children, paths: Paths, plan: DemoPlan, screen: Screen, num_cores: int
    ) -> None:
        self._children, self._paths, self._plan, self._screen = children, paths, plan, screen
        self._slots = asyncio.Semaphore(num_cores)

    async def score(self, name: str, adapter: Path | None, quant: str | None = None) -> Score:
        """Scores the held-out sentences with an adapter, or with the base alone, on weights of a type."""
        name = f"{name} on {quant}" if quant else name
        options = {"base": self._paths.base(quant), "data": self._paths.data(HELD_OUT), "adapter": adapter}
        arguments = ["eval", *as_arguments(options), "--json"]
        (report,) = await self._run(f"score-{name.replace(' ', '-')}", arguments)
        return self._show(name, report)

    async def on_all(self, name: str, adapter: Path | None) -> dict[str | None, Score]:
        """Scores the same on the model as it is (None) and on every GGUF file that is made from it."""
        quants = [None, *self._plan.quants]
        scores = await asyncio.gather(*(self.score(name, adapter, quant) for quant in quants))
        return dict(zip(quants, scores, strict=True))

    async def all_alone(self, steps: Mapping[str, int]) -> list[Score]:
        """Trains and scores every device by itself, with as many steps as it took in the fleet."""
        members = self._plan.members
        return await asyncio.gather(*(self.alone(one, steps[one.home.device_id]) for one in members))

    async def alone(self, member: Member, steps: int) -> Score:
        """Trains a device by itself for `steps` optimizer steps, then scores the held-out sentences.

        One that took no step in the fleet takes none alone: it is scored as it began.
        """
        name, plan = member.home.device_id, self._plan
        if not steps:
            return await self.score(f"{name} alone", None, member.quant)
        files = {"base": self._paths.base(member.quant), "data": self._paths.data(name)}
        files |= {"valid": self._paths.data(HELD_OUT), "out": self._paths.alone(name)}
        shape = {"rank": RANK, "scale": SCALE, "targets": ",".join(plan.targets)}
        steps_of = {"steps": steps, "seq-tokens": plan.seq_tokens, "batch-tokens": plan.batch_tokens}
        options = {**files, **shape, **steps_of, "backend": member.backend, "lr": plan.lr, "seed": plan.seed}
        (report,) = await self._run(f"alone-{name}", ["train", *as_arguments(options), "--json"])
        return self._show(f"{name} alone", report["valid_after"])

    def _show(self, name: str, report: dict[str, Any]) -> Score:
        score = Score(exact=report["exact_match"], loss=report["loss"])
        self._screen.step(f"{name}: {score.exact:.1%} of unseen sentences right")
        return score

    async def answers(self, name: str, prompts: Sequence[str], adapter: Path | None) -> list[str]:
        """Returns what is answered to `prompts` as they stand: the adapters were trained on them so."""
        options = {"base": self._paths.model, "max-tokens": MAX_ANSWER_TOKENS, "adapter": adapter}
        arguments = ["generate", *as_arguments(options), "--raw", "--json", *prompts]
        reports = await self._run(f"answers-{name}", arguments)
        self._screen.step(f"{name}: answered {len(prompts)} sentences")
        return [report["completion"] for report in reports]

    async def _run(self, name: str, arguments: Sequence[str]) -> list[dict[str, Any]]:
        """Runs a command and returns the reports that it prints, one JSON object a line."""
        async with self._slots:
            printed = await self._children.run(name, arguments)
        return msgspec.json.Decoder(dict[str, Any]).decode_lines(printed)
