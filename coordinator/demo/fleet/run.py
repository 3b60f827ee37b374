"""The fleet's part of the demo: broker, coordinator and devices run, until they have learnt their task."""

import asyncio
import time
from collections.abc import Mapping

from coordinator.demo.files import Paths, write_configs
from coordinator.demo.fleet.devices import Events
from coordinator.demo.fleet.record import FleetRecord, is_done, read_record
from coordinator.demo.plan import DemoPlan, Member
from coordinator.demo.processes import Children
from coordinator.demo.shown.screen import Screen
from coordinator.demo.shown.views import DeviceView, FleetView
from coordinator.errors import CoordinatorError
from edge.transport.amqtt import EmbeddedBroker

POLL_S = 0.3
COORDINATOR = "coordinator"


async def run_fleet(paths: Paths, plan: DemoPlan, screen: Screen) -> FleetRecord:
    """Runs a fleet until it has learnt its task, or learns no more.

    Raises:
        ChildFailed: A process ended that should not have.
        CoordinatorError: No version was made.
    """
    # The children are inside: a broker that ends before its clients would have them search for it.
    async with EmbeddedBroker() as broker, Children(paths.logs, plan.threads) as children:
        screen.stage(f"A broker, a coordinator and {len(plan.members)} devices")
        write_configs(paths, plan, broker.url)
        await children.start(COORDINATOR, ["serve", "--config", str(paths.config(COORDINATOR))])
        for name in plan.device_ids:
            await children.start(name, ["join", "--config", str(paths.config(name)), "--json"])
        await _watch(children, paths, plan, screen)
    record = read_record(paths.state)
    if not record.merged:
        raise CoordinatorError(f"the fleet made no version in {plan.stall_seconds:.0f} s; see {paths.logs}")
    return record


async def _watch(children: Children, paths: Paths, plan: DemoPlan, screen: Screen) -> None:
    """Shows what each device does and each version as it is made, until the fleet is to stop."""
    events = {name: Events(paths.logs / f"{name}.out") for name in plan.device_ids}
    start = moved = time.monotonic()
    num_versions = 0
    while True:
        await asyncio.sleep(POLL_S)
        children.check(COORDINATOR, *events)
        record = read_record(paths.state)
        now = time.monotonic()
        if len(record.versions) > num_versions:
            num_versions, moved = len(record.versions), now
        screen.fleet(
            FleetView(
                devices=tuple(_device_view(member, record, events) for member in plan.members),
                versions=record.version_points(),
                most=plan.num_versions,
                most_s=start + plan.fleet_seconds - now,
            )
        )
        if is_done(record, plan) or now > min(start + plan.fleet_seconds, moved + plan.stall_seconds):
            return


def _device_view(member: Member, record: FleetRecord, events: Mapping[str, Events]) -> DeviceView:
    name = member.home.device_id
    return DeviceView(
        device_id=name,
        backend=member.trains_with,
        slowdown=member.slowdown,
        activity=events[name].now(),
        updates=record.accepted[name],
    )
