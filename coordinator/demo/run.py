"""The demo from end to end: the fleet, each device alone, the scores, and what came of it.

Everything that trains, merges or scores is a child process running the `tunefleet` command that a user types;
only the broker runs in here.
"""

import asyncio
import os
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from coordinator.demo.files import HELD_OUT, Paths, write_data
from coordinator.demo.fleet.record import FleetRecord, is_done
from coordinator.demo.fleet.run import run_fleet
from coordinator.demo.household import load_examples
from coordinator.demo.models import make_models
from coordinator.demo.plan import DemoPlan, Member
from coordinator.demo.processes import Children, as_arguments
from coordinator.demo.result import DemoResult, DeviceResult, Sample, Score
from coordinator.demo.scores import Scoring
from coordinator.demo.shown.screen import Screen

NUM_SAMPLES = 8  # of the held-out sentences, shown with their answers


async def run_demo(folder: Path, plan: DemoPlan, screen: Screen) -> DemoResult:
    """Runs the whole demo in `folder`, which is there and empty.

    Raises:
        ChildFailed: One of the processes ended with an error.
        CoordinatorError: The fleet made no version in its time.
    """
    start = time.monotonic()
    paths = Paths(folder, plan.model)
    write_data(paths, plan)
    if plan.quants:
        screen.stage(f"The model as GGUF, in {' and '.join(plan.quants)}")
        await make_models(paths, plan)
    record = await run_fleet(paths, plan, screen)
    async with Children(paths.logs, plan.threads) as children:
        screen.stage("Each device alone; then the scores", total=_num_scores(plan))
        for form in plan.forms:
            options = {"to": form, "state": paths.state, "base": paths.model, "out": paths.adapter(form)}
            await children.run(f"export-{form}", ["export", *as_arguments(options)])
        scoring = Scoring(children, paths, plan, screen, os.cpu_count() or 1)
        asked = load_examples(paths.data(HELD_OUT))[:NUM_SAMPLES]
        prompts = [example.prompt for example in asked]
        # All in one, so that what ends one of them ends them all.
        alone, base, fleet, answers_base, answers_fleet = await asyncio.gather(
            scoring.all_alone({name: record.num_steps(name) for name in plan.device_ids}),
            scoring.on_all("base", None),
            scoring.on_all("fleet", paths.adapter("peft")),
            scoring.answers("base", prompts, None),
            scoring.answers("fleet", prompts, paths.adapter("peft")),
        )
    devices = [
        _device_result(member, record, base[member.quant], score, fleet[member.quant])
        for member, score in zip(plan.members, alone, strict=True)
    ]
    return DemoResult(
        devices=devices,
        versions=record.version_points(),
        updates=record.update_points(),
        samples=[
            Sample(prompt=example.prompt, expected=example.completion, base=before, fleet=after)
            for example, before, after in zip(asked, answers_base, answers_fleet, strict=True)
        ],
        forms=plan.forms,
        num_held_out=plan.num_held_out,
        base=base[None],
        fleet=fleet[None],
        seconds=time.monotonic() - start,
        notes=[*plan.notes, *_late(devices), *_stopped(record, plan)],
    )


def _stopped(record: FleetRecord, plan: DemoPlan) -> list[str]:
    if is_done(record, plan):
        return []
    return [f"The fleet ran out of time at version {record.versions[-1].version}: this machine was too busy."]


def _late(devices: Sequence[DeviceResult]) -> list[str]:
    return [
        f"{device.device_id} delivered no update in time: this machine was too busy."
        for device in devices
        if not device.updates
    ]


def _device_result(
    member: Member, record: FleetRecord, before: Score, alone: Score, fleet: Score
) -> DeviceResult:
    own = record.own(member.home.device_id)
    total = sum(update.weight or 0.0 for update in record.merged)
    return DeviceResult(
        device_id=member.home.device_id,
        kind=member.home.kind,
        backend=member.trains_with,
        slowdown=member.slowdown,
        updates=len(own),
        mean_staleness=fmean(update.staleness or 0 for update in own) if own else 0.0,
        weight_share=sum(update.weight or 0.0 for update in own) / total,
        steps=record.num_steps(member.home.device_id),
        before=before,
        alone=alone,
        fleet=fleet,
    )


def _num_scores(plan: DemoPlan) -> int:
    """Counts the scores: each device alone; base and fleet on each kind of weights, and what they answer."""
    return len(plan.members) + 2 * (1 + len(plan.quants)) + 2
