"""A fleet in virtual time: real training, encoding and strategies; only the clock and the network are played.

Semantics are the product's. A free device downloads the current version unless it did its task on it
already, trains, encodes what changed together with what its last encoding lost, and is free again while the
upload is under way. An update that is older than `max_staleness` when it arrives is rejected; the strategy
decides after every arrival, and when its time budget has passed, whether to merge. Adapters of old versions
are kept while a device holds them or an update on them waits. Where devices keep a factor of their own
(FedSA-LoRA), a score is the mean over devices, each with its own adapter.

Times: a download and an upload take their bytes over the device's bandwidth, training its useful tokens
times the device's seconds a token. A device that drops out comes back after a while; its work goes on, or is
lost, and then it begins anew on the version that is current by then (`population.Accident`).

A run ends when `num_updates` tasks have been trained and delivered, so that all strategies train on as many
batches; how long that takes by the virtual clock is the strategy's.
"""

import heapq
import itertools
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from msgspec import structs

from benchmarks.played import make_offer, plan_of, received
from benchmarks.strategies.outcome import Outcome, Point, Settings
from benchmarks.strategies.population import Accident, Population
from benchmarks.strategies.workbench import Quality, Workbench, poison
from converters.adapter import LoraAdapter
from converters.formats.canonical import save_adapter
from coordinator.config import CoordinatorConfig
from coordinator.strategies.choice import choose_strategy
from coordinator.strategies.contract import Contribution, Pace, Report, State, Strategy, Waiting
from coordinator.strategies.tiers import dispatch
from edge.device.task import Learnt, Task, make_update, start_adapter
from edge.errors import ConfigError
from edge.protocol.codec import max_payload_bytes
from edge.training.plan import Plan

LATE = 0.6  # of the run: from here on the slowest quarter is scored,
NUM_LAST = 3  # and so many of its last scores count


class Held(NamedTuple):
    """A version as devices download it."""

    number: int
    adapters: dict[int, LoraAdapter]  # by rank
    paths: dict[int, Path]


class DeviceTask(NamedTuple):
    """A device's task under way."""

    device: int
    number: int  # of the device's tasks, counted from 0
    held: Held
    compute_s: float


class Arrival(NamedTuple):
    """An update that waits to be merged."""

    update: Learnt
    device: int
    held: Held
    received_s: float


class Fleet:
    """One run of a fleet.

    Args:
        bench: The lesson on its base model.
        population: As many devices as the lesson has.
        config: The coordinator's settings; broker, base and recipe are the simulation's own.
        settings: The run's.
    """

    def __init__(
        self, bench: Workbench, population: Population, config: CoordinatorConfig, settings: Settings
    ) -> None:
        self.bench, self.population, self.settings = bench, population, settings
        names = tuple(machine.name for machine in population.machines)
        is_round = config.method_in_force.trigger == "round"
        self.config = structs.replace(
            config, cohort=names if is_round and not config.cohort else config.cohort
        )
        self.strategy: Strategy = choose_strategy(self.config, bench.calibration)
        self.now_s = 0.0
        self.state = State(0, bench.first_adapter(settings.seed))
        self.versions: dict[int, Held] = {}
        self.current = self._hold(None)
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.order = itertools.count()
        self.waiting: list[Arrival] = []
        self.on_the_way: list[Arrival] = []
        self.under_way: dict[int, DeviceTask] = {}
        self.is_away: set[int] = set()
        self.done_version = [-1] * len(names)
        self.num_tasks = [0] * len(names)
        self.residuals: dict[int, LoraAdapter] = {}
        self.personal: dict[int, LoraAdapter] = {}  # of devices that keep a factor
        self.points: list[Point] = []
        self.reports: list[Report] = []
        self.merge_seconds: list[float] = []
        self.rejected: Counter[str] = Counter()
        self.num_updates = self.bytes_up = self.bytes_down = self.num_lost = 0
        self.compute_s = 0.0
        self.next_score = 0
        self.slow: list[Quality] = []  # of the slowest quarter on their own rows, at the last scored versions

    def run(self) -> Outcome:
        """Runs the fleet from version 0 to its end.

        Raises:
            ConfigError: The fleet stands still, since the strategy waits for more than there can be.
            TunefleetError: As the strategy's, the trainer's or the encoding's.
        """
        began = time.process_time()
        self._record(is_scored=True)
        self._offer()
        while self.events and self.num_updates < self.settings.num_updates:
            self.now_s, _, happen = heapq.heappop(self.events)
            happen()
        if self.num_updates < self.settings.num_updates:
            raise ConfigError(
                f"the fleet stands still after {self.num_updates} of {self.settings.num_updates} updates: no "
                f"device has a task left on version {self.state.version}, and {len(self.waiting)} updates "
                f"are too few to merge; lower buffer_size, {self.config.buffer_size}, or give time_budget_s"
            )
        if self.points[-1].loss is None:  # the end is always scored
            self.points.pop()
            self._record(is_scored=True)
        return self._outcome(time.process_time() - began)

    def plan(self, device: int, held: Held) -> Plan:
        """Returns how a device trains on a version."""
        name = f"{self.population.machines[device].name}-{self.settings.seed}"
        return plan_of(name, self._offer_of(device, held))

    def _offer(self) -> None:
        for device, done in enumerate(self.done_version):
            is_free = device not in self.under_way and device not in self.is_away
            if is_free and done < self.state.version:
                self._start(device)

    def _start(self, device: int) -> None:
        held, number = self.current, self.num_tasks[device]
        self.num_tasks[device] += 1
        num_tokens = self.bench.num_tokens(device, self.plan(device, held))
        compute_s = self.population.duration_s(device, number, num_tokens)
        down = held.paths[self._rank(device)].stat().st_size
        self.bytes_down += down
        download_s = down / self.population.machines[device].bytes_per_s
        job = DeviceTask(device, number, held, compute_s)
        self.under_way[device] = job
        accident = self.population.accident(device, number)
        if accident:
            self._after(download_s + accident.at * compute_s, lambda: self._drop_out(job, accident))
        else:
            self._after(download_s + compute_s, lambda: self._finish(job))

    def _drop_out(self, job: DeviceTask, accident: Accident) -> None:
        away_s = accident.away * job.compute_s
        if not accident.is_lost:
            self._after(away_s + (1 - accident.at) * job.compute_s, lambda: self._finish(job))
            return
        self.num_lost += 1
        self.compute_s += accident.at * job.compute_s
        del self.under_way[job.device]
        self.is_away.add(job.device)
        self._after(away_s, lambda: self._come_back(job.device))

    def _come_back(self, device: int) -> None:
        self.is_away.discard(device)
        self._offer()

    def _finish(self, job: DeviceTask) -> None:
        device = job.device
        self.compute_s += job.compute_s
        self.done_version[device] = job.held.number
        del self.under_way[device]
        machine = self.population.machines[device]
        if self.state.version - job.held.number > self.config.max_staleness:
            # Too stale already: its delta is never looked at, so it need not be computed.
            size = max_payload_bytes(job.held.adapters[self._rank(device)], self.config.encoding)
            self._after(size / machine.bytes_per_s, lambda: self._reject(size))
        else:
            update = self._train(job)
            size = len(update.payload)
            arrival = Arrival(update, device, job.held, 0.0)
            self.on_the_way.append(arrival)
            self._after(size / machine.bytes_per_s, lambda: self._arrive(arrival, size))
        self._offer()

    def _reject(self, size: int) -> None:
        self.num_updates += 1
        self.bytes_up += size
        self.rejected["too-stale"] += 1

    def _arrive(self, arrival: Arrival, size: int) -> None:
        self.on_the_way.remove(arrival)
        if self.state.version - arrival.held.number > self.config.max_staleness:
            self._reject(size)
            return
        self.num_updates += 1
        self.bytes_up += size
        self.waiting.append(arrival._replace(received_s=self.now_s))
        if left_s := self._pace().left_s:
            self._after(left_s, self._merge_ready)
        self._merge_ready()

    def _merge_ready(self) -> None:
        while count := self._pace().take:
            buffer, self.waiting = self.waiting[:count], self.waiting[count:]
            self._merge(buffer)
        self._offer()

    def _pace(self) -> Pace:
        waiting = [self._outline(one) for one in self.waiting]
        return self.strategy.pace(waiting, len(self.population.machines) - len(self.is_away))

    def _merge(self, buffer: Sequence[Arrival]) -> None:
        began = time.process_time()
        self.state, report = self.strategy.merge(self.state, [self._contribution(one) for one in buffer])
        self.merge_seconds.append(time.process_time() - began)
        self.reports.append(report)
        self.current = self._hold(self.current)
        self._forget()
        self._record(is_scored=self.num_updates >= self.next_score)

    def _train(self, job: DeviceTask) -> Learnt:
        device, rank = job.device, self._rank(job.device)
        task = self._offer_of(device, job.held)
        folder = self.bench.folder / f"task-{device}"
        folder.mkdir()
        plan = self.plan(device, job.held)
        start = start_adapter(task.manifest.recipe, job.held.adapters[rank], self.personal.get(device))
        result = self.bench.train(device, plan, start, folder)
        path = job.held.paths[rank]
        if self.settings.poison and device in self.settings.poisoned:
            result = poison(self.settings.poison, path, result)
        name = self.population.machines[device].name
        update = make_update(name, task, path, result, self.residuals.get(device))
        self.residuals[device] = update.residual
        if update.personal is not None:
            self.personal[device] = update.personal
        shutil.rmtree(folder)
        return update

    def _contribution(self, one: Arrival) -> Contribution:
        rank, staleness = self._rank(one.device), self.state.version - one.held.number
        train_rank = self.config.recipe_in_force(rank).train_rank
        return received(one.update, one.held.adapters[rank], train_rank, staleness)

    def _outline(self, one: Arrival) -> Waiting:
        name = self.population.machines[one.device].name
        return Waiting(name, self.state.version - one.held.number, self.now_s - one.received_s)

    def _hold(self, previous: Held | None) -> Held:
        """Writes the state's adapter for every rank; a file's size is what a download costs."""
        method, rows = self.config.method_in_force, self.config.remainder_rank
        adapters = {
            rank: dispatch(method, self.state, rank, previous.adapters[rank] if previous else None, rows)
            for rank in self._ranks
        }
        paths = {rank: self.bench.folder / f"version-{self.state.version}-{rank}" for rank in adapters}
        for rank, path in paths.items():
            save_adapter(adapters[rank], path)
        held = self.versions[self.state.version] = Held(self.state.version, adapters, paths)
        return held

    def _forget(self) -> None:
        """Removes the versions that nobody holds any more."""
        kept = {self.current.number}
        kept |= {job.held.number for job in self.under_way.values()}
        kept |= {arrival.held.number for arrival in [*self.waiting, *self.on_the_way]}
        for number in self.versions.keys() - kept:
            for path in self.versions.pop(number).paths.values():
                path.unlink()

    @property
    def _ranks(self) -> tuple[int, ...]:
        return self.config.ranks

    def _rank(self, device: int) -> int:
        """Returns a device's rank; every rank of the configuration has as many devices, in turns."""
        return self._ranks[device % len(self._ranks)]

    def _offer_of(self, device: int, held: Held) -> Task:
        rank = self._rank(device)
        return make_offer(
            held.number,
            held.paths[rank],
            rank=rank,
            base=self.bench.fingerprint,
            space=self.config.method_in_force.space,
            recipe=self.config.recipe_in_force(rank),
            encoding=self.config.encoding,
        )

    def _after(self, seconds: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self.events, (self.now_s + seconds, next(self.order), happen))

    def _record(self, *, is_scored: bool) -> None:
        test = self._score_test() if is_scored else None
        if is_scored:
            self.next_score = self.num_updates + self.settings.score_every
            if self.num_updates >= LATE * self.settings.num_updates:
                self.slow += [self._score_own(device) for device in self.population.slowest(0.25)]
                del self.slow[: -NUM_LAST * len(self.population.slowest(0.25))]
        self.points.append(
            Point(
                version=self.state.version,
                time_s=self.now_s,
                num_updates=self.num_updates,
                bytes_up=self.bytes_up,
                bytes_down=self.bytes_down,
                compute_s=self.compute_s,
                calibration_loss=self._calibration_loss(),
                loss=test.loss if test else None,
                accuracy=test.accuracy if test else None,
            )
        )

    def _calibration_loss(self) -> float:
        """Returns the current version's loss; a guard has measured it already."""
        known = self.reports[-1].loss_after if self.reports else None
        return self.bench.calibration.loss(self._adapter) if known is None else known

    @property
    def _adapter(self) -> LoraAdapter:
        """What the fleet has learnt: as devices of the fleet's own rank download it."""
        return self.current.adapters[self._ranks[0]]

    def _score_own(self, device: int) -> Quality:
        return self.bench.score(self._own_adapter(device), self.bench.own_tests[device])

    def _own_adapter(self, device: int) -> LoraAdapter:
        """Returns what a device would answer with: the fleet's adapter, with the factor that it keeps."""
        recipe = self.config.recipe_in_force(self._ranks[0])
        return start_adapter(recipe, self._adapter, self.personal.get(device))

    def _score_test(self) -> Quality:
        if self.config.method_in_force.keeps == "none":
            return self.bench.score(self._adapter, self.bench.test)
        parts = enumerate(self.bench.test_parts)
        found = [self.bench.score(self._own_adapter(device), part) for device, part in parts]
        return Quality(_mean([one.loss for one in found]), _mean([one.accuracy for one in found]))

    def _outcome(self, cpu_s: float) -> Outcome:
        names = [machine.name for machine in self.population.machines]
        weights = dict.fromkeys(names, 0.0)
        shares = [share for report in self.reports for share in report.shares]
        for share in shares:
            weights[share.device] += share.weight
        own = [self._score_own(device) for device in range(len(names))]
        losses = [point.calibration_loss for point in self.points]
        return Outcome(
            points=self.points,
            weights=weights,
            slow_loss=_mean([one.loss for one in self.slow]),
            slow_accuracy=_mean([one.accuracy for one in self.slow]),
            own_accuracy=_mean([one.accuracy for one in own]),
            num_merges=len(self.reports),
            num_harmful=sum(after > before for before, after in itertools.pairwise(losses)),
            merge_s=_mean(self.merge_seconds),
            rejected=dict(self.rejected),
            staleness_mean=_mean([share.staleness for share in shares]),
            staleness_max=max((share.staleness for share in shares), default=0),
            num_lost=self.num_lost,
            cpu_s=cpu_s,
        )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
