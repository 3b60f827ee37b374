"""Does to a fleet what a schedule says: each fault at its time, and over after its own."""

import asyncio
import signal

from benchmarks.faults.fleet import Fleet
from benchmarks.faults.links import Link
from benchmarks.faults.record import LABORATORY
from benchmarks.faults.schedule import DISKS, Fault


async def do_all(fleet: Fleet) -> None:
    """Does the whole schedule, from now on; returns when the last fault is over."""
    began = fleet.recorder.now_s
    async with asyncio.TaskGroup() as group:
        for number, fault in enumerate(fleet.settings.faults):
            group.create_task(_do(fleet, number, fault, began))
        group.create_task(asyncio.sleep(fleet.settings.wish.span_s))


async def _do(fleet: Fleet, number: int, fault: Fault, began: float) -> None:
    await asyncio.sleep(max(0.0, began + fault.at_s - fleet.recorder.now_s))
    struck = await _strike(fleet, fault)
    facts = {"number": number, "kind": fault.kind, "target": fault.target}
    fleet.recorder.note(LABORATORY, "fault", **facts, amount=fault.amount, struck=struck)
    await asyncio.sleep(fault.lasts_s)
    await _lift(fleet, fault)
    fleet.recorder.note(LABORATORY, "lifted", **facts, struck=struck)


async def _strike(fleet: Fleet, fault: Fault) -> bool:
    """Returns whether there was anything to strike: a process that is dead dies no second time."""
    program, link = fleet.programs[fault.target], fleet.links.get(fault.target)
    was_alive = program.pid is not None
    match fault.kind:
        case "kill":
            await program.kill()
        case "kill-alone":
            await program.kill(alone=True)
        case "kill-worker":
            return program.kill_children() > 0
        case "forget":
            await program.kill()
            for path in fleet.broker_folder.iterdir():
                path.unlink()
        case "pause":
            program.signal_group(signal.SIGSTOP)
        case "clock":
            fleet.shims[fault.target].set_clock(fault.amount)
        case kind if kind in DISKS:
            fleet.shims[fault.target].break_disk(fault.kind.removeprefix("disk-"))
        case _:
            assert link
            _strain(link, fault)
    return was_alive


def _strain(link: Link, fault: Fault) -> None:
    match fault.kind:
        case "cut":
            link.cut()
        case "freeze":
            link.freeze()
        case "refuse":
            link.refuse()
        case "block-up":
            link.block("up")
        case "block-down":
            link.block("down")
        case "delay":
            link.delay_s = fault.amount
        case "throttle":
            link.bytes_per_s = fault.amount


async def _lift(fleet: Fleet, fault: Fault) -> None:
    program, link = fleet.programs[fault.target], fleet.links.get(fault.target)
    match fault.kind:
        case "kill" | "kill-alone" | "forget":
            await program.start()
        case "kill-worker":
            pass
        case "pause":
            program.signal_group(signal.SIGCONT)
        case "clock":
            fleet.shims[fault.target].set_clock(0.0)
        case kind if kind in DISKS:
            fleet.shims[fault.target].mend_disk()
        case _:
            assert link
            link.mend()
