"""docs/json.md names every field of every report and every kind of event."""

import re
from pathlib import Path
from typing import get_args

import pytest

from coordinator import events as coordinator_events
from coordinator.pace import FleetPace
from coordinator.reports import DeviceStatus, FleetStatus, Rejection, VersionStatus
from coordinator.strategies.base import Share
from edge import events as edge_events

PAGE = (Path(__file__).parents[1] / "docs/json.md").read_text()
SECTIONS = dict(re.findall(r"^## ([^\n]*)\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S))


@pytest.mark.parametrize(
    ("section", "record"),
    [
        ("status", FleetStatus),
        ("status", FleetPace),
        ("status", DeviceStatus),
        ("history, rollback", VersionStatus),
        ("history, rollback", Share),
        ("history, rollback", Rejection),
    ],
)
def test_every_field_of_a_report_is_documented(section, record):
    missing = [name for name in record.__struct_fields__ if f"`{name}`" not in SECTIONS[section]]
    assert missing == []


@pytest.mark.parametrize(
    ("section", "events"), [("Events of serve", coordinator_events), ("Events of join", edge_events)]
)
def test_every_kind_of_event_is_documented(section, events):
    rows = "".join(line.split("|")[1] for line in SECTIONS[section].splitlines() if line.startswith("| "))
    assert set(re.findall(r"`(\w+)`", rows)) == set(get_args(events.EventKind))
