"""A whole fleet in this process: for research, tests and notebooks.

A broker in memory, a coordinator and devices (`gathering.py`) run in a thread of their own with its own event
loop, so that plain code drives them, in a notebook as well. Devices share one loaded model: twenty
of them need no more memory than one.
"""

import asyncio
import math
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

from converters.adapter import LoraAdapter
from converters.bases.read import find_base
from coordinator.config import CoordinatorConfig, read_config
from coordinator.errors import CoordinatorError
from coordinator.in_process.gathering import Gathering
from coordinator.observers.history import VersionStatus
from coordinator.strategies.choice import as_strategy
from coordinator.strategies.contract import Strategy
from coordinator.strategies.function import Merge
from coordinator.strategies.method import Method
from coordinator.strategies.written import Stages, method_fields, read_stages
from edge.backends import BackendName
from edge.backends.contract import Precision
from edge.errors import ConfigError, DataError
from edge.training.data.in_memory import Data, save_rows
from edge.training.data.source import DataSource
from edge.training.local_run.model import canonical_file
from edge.training.requests import Evaluation, Scoring

BROKER = "mqtt://memory"  # settings ask for one; nobody connects to it
POLL_S = 0.05
PATIENCE_S = 2.0  # until a device repeats a request: nothing is far here
T = TypeVar("T")


class Running(NamedTuple):
    """What the fleet's thread runs."""

    loop: asyncio.AbstractEventLoop
    gathering: Gathering


class Fleet:
    """A fleet in this process; used as `with Fleet(base) as fleet:`.

    Args:
        base: Folder of the base model, or a hub name.
        strategy: How a buffer becomes a version: a name such as `fedavg`, a `Method`, an object that follows
            `Strategy`, or a function from the adapter and the updates to the next adapter.
        state: The fleet's folder, where another `Fleet` goes on later; None keeps nothing.
        backend: What trains; `auto` chooses by machine and base.
        precision: Of the forward and backward pass.
        calibration: Rows or a file that the guard, the cosine filter and the alignment judge by.
        say: Gets one line for everything that happens, of the coordinator and of every device.
        settings: As in the file that `tunefleet serve --config` reads: `buffer_size`, `ranks`, `recipe`,
            `targets`, `encoding`, …; see `tunefleet serve --print-config`.

    Raises:
        ConfigError: On entering: a setting cannot be used, all faults at once.
        BaseModelError, StateError, DataError: On entering, as `tunefleet serve`.

    Example:
        >>> with tunefleet.Fleet("base", strategy="fedavg", buffer_size=2) as fleet:
        ...     for rows in ([{"text": "lamp on"}], [{"text": "pump off"}]):
        ...         device = fleet.add_device(rows)
        ...     fleet.until(version=1)
        ...     fleet.adapter().max_rank
        8
    """

    def __init__(
        self,
        base: str | Path,
        *,
        strategy: "str | Method | Stages | Strategy | Merge | None" = None,
        state: str | Path | None = None,
        backend: BackendName = "auto",
        precision: Precision = "auto",
        calibration: Data | None = None,
        say: Callable[[str], None] = lambda _: None,
        **settings: Any,
    ) -> None:
        self._base = find_base(str(base))
        self._backend, self._precision = backend, precision
        self._asked, self._settings, self._state = strategy, settings, state
        self._calibration = calibration
        self._say = say
        self._cleanup = ExitStack()
        self._num_devices = 0
        self._rows: dict[str, str] = {}  # files of rows that came from memory, to whose they are
        self._closing = asyncio.Event()
        self._running: Future[Running] = Future()
        self._thread = Thread(target=self._run, name="tunefleet-fleet", daemon=True)

    def __enter__(self) -> Self:
        try:
            self._prepare()
            self._thread.start()
            with self._named_rows():
                self._running.result()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def add_device(
        self,
        data: Data,
        *,
        device_id: str | None = None,
        base: str | Path | None = None,
        backend: BackendName | None = None,
        max_rank: int = 64,
        slowdown: float = 1.0,
        prompt_column: str | None = None,
        completion_column: str | None = None,
        train_on_prompt: bool = False,
    ) -> str:
        """Lets a device join.

        Args:
            data: What it trains on: a file, or rows.
            device_id: Its name; by default `device-1`, `device-2`, ….
            base: Its own copy of the fleet's base model, such as a quantised one; by default the fleet's.
            backend: By default the fleet's.
            max_rank: The largest rank it trains.
            slowdown: Every step takes this many times as long.
            prompt_column: Column of the prompts, if it is not `prompt`.
            completion_column: Column of the completions, if it is not `completion`.
            train_on_prompt: Prompts count in the loss too.

        Returns:
            Its name.

        Raises:
            ConfigError: A setting cannot be used, or a device of that name is there.
            DataError: A row cannot be used; what only the tokenizer can tell, `until` raises.
        """
        self._num_devices += 1
        name = device_id or f"device-{self._num_devices}"
        if name in self.devices:
            raise ConfigError(f"device {name} is in the fleet already; choose another device_id")
        columns = {"prompt_column": prompt_column, "completion_column": completion_column}
        source = {"path": str(self._data_file(name, data)), **columns, "train_on_prompt": train_on_prompt}
        settings = {
            "broker": BROKER,
            "fleet": self._config.fleet,
            "base": str(find_base(str(base)) if base is not None else self._base),
            "data": {key: value for key, value in source.items() if value is not None},
            "device_id": name,
            "state": str(self._folder / "devices" / name),
            "backend": backend or self._backend,
            "precision": self._precision,
            "max_rank": max_rank,
            "slowdown": slowdown,
            "patience_s": PATIENCE_S,
        }
        self._call(lambda inside: inside.join(settings))
        return name

    def remove_device(self, device_id: str) -> None:
        """Lets a device go: it ends after the step under way, and may join again under its name.

        Raises:
            ConfigError: There is none of that name.
        """
        if device_id not in self.devices:
            there = ", ".join(self.devices) or "none"
            raise ConfigError(f"no device {device_id} in the fleet; there are {there}")
        self._call(lambda inside: inside.leave(device_id))

    def until(self, version: int, timeout_s: float | None = None) -> None:
        """Waits until a version is made.

        Args:
            version: Its number; the first that devices make is 1.
            timeout_s: Seconds; None waits for ever.

        Raises:
            TimeoutError: It was not made in time, with what is there.
            CoordinatorError: The coordinator ended before it.
            TunefleetError: What ended a device or the coordinator, as that raised it.
        """
        deadline = math.inf if timeout_s is None else time.monotonic() + timeout_s
        while (current := self.version) < version:
            with self._named_rows():
                self._call(lambda inside: inside.check(version))
            if time.monotonic() > deadline:
                waiting = self._call(lambda inside: inside.num_waiting())
                raise TimeoutError(
                    f"no version {version} in {timeout_s:g} s: the fleet is at version {current}, "
                    f"with {waiting} updates waiting and {len(self.devices)} devices"
                )
            time.sleep(POLL_S)

    @property
    def devices(self) -> list[str]:
        """Names of the devices, in the order in which they joined."""
        return self._call(_devices)

    @property
    def version(self) -> int:
        """The current version's number; 0 changes nothing yet."""
        return self._call(lambda inside: inside.version())

    def adapter(self, version: int | None = None) -> LoraAdapter:
        """Returns a version as an adapter, by default the current one.

        Raises:
            UnknownVersion: It was never made, or is no longer kept.
        """
        return self._call(lambda inside: inside.adapter(version))

    def history(self) -> list[VersionStatus]:
        """Returns all versions, oldest first: contributors with weight and staleness, norms, losses."""
        return self._call(lambda inside: inside.history())

    def evaluate(self, data: Data, *, version: int | None = None) -> Evaluation:
        """Scores a version on data, by default the current one; see `tunefleet.evaluate`.

        Raises:
            DataError: The data cannot be used.
        """
        adapter, path = self.adapter(version), self._data_file("evaluation", data)
        recipe = self._config.recipe
        with canonical_file(adapter, self._base) as file:
            scoring = Scoring(
                adapter=str(file),
                data=DataSource(path=str(path)),
                seq_tokens=recipe.seq_tokens,
                batch_tokens=recipe.batch_tokens,
            )
            model = (str(self._base), self._backend, self._precision)
            with self._named_rows():
                return self._call(lambda inside: inside.score(model, scoring))

    def _prepare(self) -> None:
        folder = self._state or self._cleanup.enter_context(TemporaryDirectory(prefix="tunefleet-"))
        self._folder = Path(folder)
        places = {"broker": BROKER, "base": str(self._base), "state": str(self._folder / "coordinator")}
        settings = {"fleet": "lab", **self._settings, **places}
        if self._calibration is not None:
            settings["calibration_data"] = str(self._data_file("calibration", self._calibration))
        self._config, self._strategy = _choose(self._asked, settings)

    def _run(self) -> None:
        """Runs the fleet, in a thread of its own."""
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # whoever waits is told; the thread has nobody to tell
            if self._running.done():
                raise
            self._running.set_exception(error)

    async def _serve(self) -> None:
        async with Gathering(self._config, self._strategy, self._say) as gathering:
            self._running.set_result(Running(asyncio.get_running_loop(), gathering))
            await self._closing.wait()

    def _call(self, work: Callable[[Gathering], Coroutine[Any, Any, T]]) -> T:
        """Does something in the fleet's thread."""
        if not self._thread.is_alive():
            raise CoordinatorError("the fleet is not running; use it inside `with Fleet(…) as fleet:`")
        loop, gathering = self._running.result()
        return asyncio.run_coroutine_threadsafe(work(gathering), loop).result()

    def _end(self) -> None:
        if self._thread.ident is not None and self._running.exception() is None:
            self._running.result().loop.call_soon_threadsafe(self._closing.set)
            self._thread.join()
        self._cleanup.close()

    def _data_file(self, name: str, data: Data) -> Path:
        if isinstance(data, str | Path):
            return Path(data)
        path = self._folder / "data" / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_rows(data, path, name)
        self._rows[str(path)] = name
        return path

    @contextmanager
    def _named_rows(self) -> Iterator[None]:
        """Names rows in errors by whose they are, and not by a file that the caller never saw."""
        try:
            yield
        except DataError as error:
            text = str(error)
            for path, name in self._rows.items():
                text = text.replace(path, name)
            raise DataError(text) from error


async def _devices(inside: Gathering) -> list[str]:
    return inside.devices


def _choose(
    strategy: "str | Method | Stages | Strategy | Merge | None", settings: dict[str, Any]
) -> tuple[CoordinatorConfig, Strategy | None]:
    """Reads the coordinator's settings, and returns the strategy where it is the caller's own.

    Raises:
        ConfigError: A setting cannot be used, or the strategy is none.
    """
    if isinstance(strategy, Stages):
        read = read_stages(strategy)
        if read.faults:
            raise ConfigError.of("stages", read.faults)
        strategy = read.method
    if isinstance(strategy, Method):
        return read_config(None, settings | {"stages": method_fields(strategy)}), None
    if strategy is None or isinstance(strategy, str):
        return read_config(None, settings | {"strategy": strategy}), None
    config = read_config(None, settings)
    try:
        return config, as_strategy(strategy, config)
    except CoordinatorError as error:
        raise ConfigError(str(error)) from error
