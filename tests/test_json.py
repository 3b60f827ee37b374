"""docs/json.md names every field of every report and every kind of event."""

import json
import re
from pathlib import Path
from typing import get_args

import pytest
from typer.testing import CliRunner

import tunefleet
from coordinator.events.pace import FleetPace
from coordinator.events.records import FleetEvent, PaceChanged, VersionMade
from coordinator.ledger.backup import Backup
from coordinator.observers.access import DeviceAccess
from coordinator.observers.history import OriginStatus, Rejection, VersionStatus
from coordinator.observers.status import DeviceStatus, FleetStatus
from coordinator.strategies.contract import Share
from edge import events as edge_events
from edge.backends.toy import make_toy_base

PAGE = (Path(__file__).parents[1] / "docs/json.md").read_text()
SECTIONS = dict(re.findall(r"^## ([^\n]*)\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S))


@pytest.mark.parametrize(
    ("section", "record"),
    [
        ("status", FleetStatus),
        ("status", FleetPace),
        ("status", DeviceStatus),
        ("history, rollback", VersionStatus),
        ("history, rollback", OriginStatus),
        ("history, rollback", Share),
        ("history, rollback", Rejection),
        ("backup", Backup),
        ("device", DeviceAccess),
    ],
)
def test_every_field_of_a_report_is_documented(section, record):
    missing = [name for name in record.__struct_fields__ if f"`{name}`" not in SECTIONS[section]]
    assert missing == []


FLEET_EVENTS = {record.__struct_config__.tag: record for record in FleetEvent.__subclasses__()}


@pytest.mark.parametrize(
    ("section", "kinds"),
    [("Events of serve", FLEET_EVENTS), ("Events of join", get_args(edge_events.EventKind))],
)
def test_every_kind_of_event_is_documented(section, kinds):
    rows = "".join(line.split("|")[1] for line in SECTIONS[section].splitlines() if line.startswith("| "))
    assert set(re.findall(r"`(\w+)`", rows)) == set(kinds)


@pytest.mark.parametrize("record", FleetEvent.__subclasses__(), ids=lambda record: record.__name__)
def test_every_field_of_an_event_of_serve_is_documented(record):
    rows = [
        line.split("|")[1:4] for line in SECTIONS["Events of serve"].splitlines() if line.startswith("| `")
    ]
    (row,) = [fields for kinds, _, fields in rows if f"`{record.__struct_config__.tag}`" in kinds]
    named = set(re.findall(r"`(\w+)`", row))
    for kinds, _, fields in rows:  # as `rejected` has what `accepted` has
        named |= set(re.findall(r"`(\w+)`", fields)) if kinds.strip(" `") in named else set()
    told = {"version", "num_updates", "devices"} if record is VersionMade else set(record.__struct_fields__)
    told = set(FleetPace.__struct_fields__) - {"noted_at"} if record is PaceChanged else told
    assert told - record.untold <= named


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs a command on a toy model and gives its report."""
    folder = tmp_path_factory.mktemp("json")
    base, data = make_toy_base(folder / "base"), folder / "data.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"{n}: ", "completion": "x"}) + "\n" for n in range(8)))
    places = {
        "BASE": base,
        "DATA": data,
        "OUT": folder / "out",
        "OTHER": folder / "other",
        "MLX": folder / "mlx",
    }

    def run(*words):
        command = [str(places.get(word, word)) for word in words]
        result = CliRunner().invoke(tunefleet.app, [*command, "--json"], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout.splitlines()[0])

    run("train", "--base", "BASE", "--data", "DATA", "--out", "OUT", "--steps", "2")
    return run


@pytest.mark.parametrize(
    "words",
    [
        ("train", "--base", "BASE", "--data", "DATA", "--valid", "DATA", "--out", "OTHER", "--steps", "1"),
        ("eval", "--base", "BASE", "--data", "DATA"),
        ("generate", "--base", "BASE", "--max-tokens", "1", "hello"),
        ("data", "check", "DATA", "--base", "BASE"),
        ("convert", "OUT", "MLX", "--to", "mlx"),
    ],
    ids=lambda words: words[0],
)
def test_every_field_that_a_command_prints_is_documented(run, words):
    name = "data check" if words[0] == "data" else words[0]
    title = "train, eval, generate, data check, convert, bench device, demo"
    (row,) = [line for line in SECTIONS[title].splitlines() if line.startswith(f"| `{name}`")]
    assert [field for field in run(*words) if f"`{field}`" not in row] == []
