"""A fleet in lockstep: every version holds one update of each device, whatever its backend takes for it.

An update goes the product's way: a worker process trains as long as the recipe says, the delta with what the
last encoding left over is encoded, decoded and merged by the coordinator's strategy. Left out is what changes
no number: MQTT, signatures, admission, the journal. So two fleets with the same data and the same names train
on the same sentences in the same order, and differ in what trains and in nothing else.
"""

import shutil
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.played import make_offer, plan_of, received
from converters.adapter import LoraAdapter
from converters.formats.canonical import save_adapter
from coordinator.strategies.choice import METHODS
from coordinator.strategies.contract import State
from coordinator.strategies.pipeline import Pipeline
from coordinator.strategies.written import read_method
from edge.device.task import Learnt, Task, make_update
from edge.protocol.messages import Recipe, Space
from edge.training.data.source import DataSource
from edge.training.requests import Training
from edge.training.worker.supervisor import Worker

SPACE: Space = "factors"  # the demo's


class Device(NamedTuple):
    """One device of the fleet."""

    name: str  # of which, and of the version, the order of its sentences follows
    worker: Worker
    data: Path


class Lockstep:
    """A fleet and its versions.

    Args:
        devices: Each trains once on every version.
        recipe: How they train.
        adapter: Version 0.
        fingerprint: Of the base model.
        folder: Empty; for adapters and tasks.
    """

    def __init__(
        self, devices: Sequence[Device], recipe: Recipe, adapter: LoraAdapter, fingerprint: str, folder: Path
    ) -> None:
        self._devices, self._recipe = devices, recipe
        self._base, self._folder = fingerprint, folder
        method = read_method(METHODS["fedbuff"], {}, SPACE).method
        self._strategy = Pipeline("fedbuff", method, len(devices))
        self._residuals: dict[str, LoraAdapter] = {}
        self._state = State(0, adapter)
        save_adapter(adapter, self.path)

    @property
    def path(self) -> Path:
        """The newest version's adapter, a canonical file."""
        return self._folder / f"version-{self._state.version}.safetensors"

    async def run(self, num_versions: int) -> AsyncIterator[int]:
        """Makes versions 1 to `num_versions`, and yields the number of each as soon as it is made.

        Raises:
            TunefleetError: As the workers', the encoding's or the strategy's.
        """
        while self._state.version < num_versions:
            version, adapter = self._state.version, self._state.adapter  # of the fleet's rank, as all devices
            task = make_offer(
                version, self.path, rank=adapter.max_rank, base=self._base, space=SPACE, recipe=self._recipe
            )
            updates = [await self._train(device, task) for device in self._devices]
            buffer = [received(update, adapter, self._recipe.train_rank, staleness=0) for update in updates]
            self._state, _ = self._strategy.merge(self._state, buffer)
            save_adapter(self._state.adapter, self.path)
            yield self._state.version

    async def _train(self, device: Device, task: Task) -> Learnt:
        folder = self._folder / device.name
        folder.mkdir()
        order = Training(
            adapter=str(self.path),
            data=DataSource(path=str(device.data)),
            plan=plan_of(device.name, task),
            folder=str(folder),
        )
        result = await device.worker.train(order)
        update = make_update(device.name, task, self.path, result, self._residuals.get(device.name))
        self._residuals[device.name] = update.residual
        shutil.rmtree(folder)
        return update
