"""One run: a fleet is brought under way, the schedule is done to it, and it is waited for to go on."""

import asyncio
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.faults.acts import do_all
from benchmarks.faults.fleet import Fleet
from benchmarks.faults.record import LABORATORY, Entry, Recorder, Settings, write_settings

START_S = 120.0
POLL_S = 0.1


class Progress:
    """What has gone on so far, for those who wait and for those who watch."""

    def __init__(self) -> None:
        self.last_s: dict[str, float] = {}  # when each device's last update was receipted
        self.num_accepted = 0
        self.num_done = 0  # faults that are over
        self.num_kills = 0

    def take(self, entry: Entry) -> None:
        """Takes one more entry of the record."""
        if entry.event == "accepted" and "base_version" in entry.facts and entry.who != "coordinator":
            self.last_s[entry.who] = entry.at_s
            self.num_accepted += 1
        elif (entry.who, entry.event) == (LABORATORY, "lifted"):
            self.num_done += 1
            self.num_kills += bool(entry.facts["struck"]) and entry.facts["kind"].startswith(
                ("kill", "forget")
            )


async def run(folder: Path, settings: Settings, tell: Callable[[str], None]) -> None:
    """Does one run in an empty folder; the audit is another matter.

    Raises:
        TunefleetError: The laboratory itself cannot work here.
        TimeoutError: The fleet never got under way.
    """
    write_settings(folder, settings)
    recorder, progress = Recorder(folder), Progress()
    recorder.listen(progress.take)
    try:
        async with Fleet(folder, settings, recorder) as fleet:
            devices = settings.wish.devices
            await until_all(progress, devices, 0.0, START_S)
            recorder.note(LABORATORY, "under-way")
            watching = asyncio.create_task(_watch(progress, settings, recorder, tell))
            try:
                _arm(fleet)
                await do_all(fleet)
                while sum(link.num_cuts for link in fleet.links.values()) < settings.cuts:
                    await asyncio.sleep(POLL_S)
                for link in fleet.links.values():
                    link.cut_after = None
                recorder.note(LABORATORY, "over", cuts=sum(link.num_cuts for link in fleet.links.values()))
                await until_all(progress, devices, recorder.now_s, settings.bound_s, is_required=False)
            finally:
                watching.cancel()
            recorder.note(LABORATORY, "stopping")
            await fleet.stop()
    finally:
        recorder.close()


def _arm(fleet: Fleet) -> None:
    """Has every connection of a device break after a drawn number of bytes."""
    low, high = fleet.settings.cut_bytes
    if not high:
        return
    for name in fleet.settings.wish.devices:
        generator = random.Random(f"{fleet.settings.wish.seed} {name}")
        fleet.links[name].cut_after = partial(generator.randint, low, high)
        fleet.links[name].cut()


async def until_all(
    progress: Progress, devices: tuple[str, ...], since_s: float, within_s: float, *, is_required: bool = True
) -> None:
    """Waits until an update of every device was receipted since then."""
    try:
        async with asyncio.timeout(within_s):
            while any(progress.last_s.get(name, -1.0) <= since_s for name in devices):
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        if is_required:
            raise


async def _watch(
    progress: Progress, settings: Settings, recorder: Recorder, tell: Callable[[str], None]
) -> None:
    total = len(settings.faults)
    while True:
        tell(
            f"{recorder.now_s:5.0f} s: {progress.num_done} of {total} faults over, "
            f"{progress.num_kills} kills, {progress.num_accepted} updates receipted"
        )
        await asyncio.sleep(5.0)
