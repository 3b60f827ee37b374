import asyncio
import itertools
import json
import signal
import subprocess
import sys
from contextlib import AsyncExitStack

import pytest
from typer.testing import CliRunner

from converters.bases.read import read_base
from converters.errors import AdapterError, BaseModelError
from converters.formats.load import load_any
from coordinator.commands.cli import app
from coordinator.config import read_config
from coordinator.errors import UnknownVersion
from coordinator.observers.status import fleet_status
from coordinator.strategies.choice import METHODS
from edge.errors import StateError


@pytest.fixture
def grown(fleet):
    """A state folder with two versions, one waiting update and two rejected ones."""

    async def scenario():
        async with fleet.serving(), fleet.device("x").joined() as x, fleet.device("y").joined() as y:
            await x.teach(seed=1)
            await y.teach(seed=2)
            await x.teach(seed=3, version=1)
            await y.teach(seed=4, version=1, base="0" * 64)
            await y.teach(seed=5, version=1, update="0" * 32)

    asyncio.run(scenario())
    return fleet


def invoke(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_status_counts_the_fleet(grown):
    report = json.loads(invoke("status", "--state", grown.folder, "--json"))
    assert (report["fleet"], report["version"], report["waiting"]) == ("home", 1, 1)
    assert (report["accepted"], report["rejected"], report["refused"]) == (3, 1, 1)
    x, y = report["devices"]
    assert (x["device"], x["accepted"], x["merged"], x["weight_share"]) == ("x", 2, 1, 0.5)
    assert (y["device"], y["rejected"], y["mean_staleness"], y["backend"]) == ("y", 1, 0.0, "none")


def test_history_tells_lineage_contributors_and_reasons(grown):
    report = json.loads(invoke("history", "--state", grown.folder, "--json"))
    first, second = report["versions"]
    assert (first["kind"], first["parent"], second["kind"], second["parent"]) == ("first", None, "merge", 0)
    assert sorted(share["device"] for share in second["shares"]) == ["x", "y"]
    assert [(one["status"], one["reason"]) for one in report["rejections"]] == [
        ("rejected", "foreign-base"),
        ("refused", "malformed"),
    ]


def test_status_tells_a_running_coordinators_pace_without_its_lock(fleet):
    async def scenario():
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(fleet.serving(buffer_size=None))
            x, _ = [await stack.enter_async_context(fleet.device(name).joined()) for name in "xy"]
            for told in ("0 of 2 updates", "1 of 2 updates"):
                while not any(told in line for line in fleet.said):
                    await asyncio.sleep(0.01)
                if told.startswith("0"):
                    await x.teach(seed=1)
            with fleet.opened() as (journal, versions):
                return fleet_status(journal, versions, fleet.now)

    report = asyncio.run(scenario())
    assert (report.pace.have, report.pace.needed, report.pace.due_at) == (1, 2, fleet.now + 60)
    assert [one.online for one in report.devices] == [True, True]
    stopped = json.loads(invoke("status", "--state", fleet.folder, "--json"))
    assert stopped["pace"] is None
    assert [one["online"] for one in stopped["devices"]] == [False, False]


def test_an_export_of_a_version_that_nothing_trained_says_so(grown, tmp_path):
    arguments = ["export", "--state", str(grown.folder), "--version", "0", "--json"]
    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "old")])
    assert result.exit_code == 0
    told = "version 0 has learnt nothing, no update is in it yet; it is the base model itself"
    assert told in result.stderr
    report = json.loads(result.stdout)
    assert (report["num_updates"], report["caution"]) == (
        0,
        result.stderr.strip().removeprefix("tunefleet: "),
    )
    trained = CliRunner().invoke(
        app, ["export", "--state", str(grown.folder), "--out", str(tmp_path / "new"), "--json"]
    )
    assert (json.loads(trained.stdout)["num_updates"], trained.stderr) == (2, "")


def test_an_export_of_a_version_whose_merges_were_all_refused_says_so(fleet, tmp_path):
    (tmp_path / "c.jsonl").write_text("")

    class Stern:
        """Finds every step worse than none."""

        losses = itertools.count(1)

        def loss(self, adapter):
            return float(next(self.losses))

    async def scenario():
        settings = {"strategy": "fedbuff", "stages": {"guard": "backtrack"}}
        settings |= {"calibration_data": str(tmp_path / "c.jsonl"), "calibrator": Stern()}
        async with fleet.serving(buffer_size=1, **settings), fleet.device("x").joined() as x:
            await x.teach(seed=1)
            await x.manifest(version=1)

    asyncio.run(scenario())
    result = CliRunner().invoke(app, ["export", "--state", str(fleet.folder), "--out", str(tmp_path / "out")])
    assert "version 1 has learnt nothing, no step was taken so far, see `tunefleet history`" in result.stderr


def test_a_watched_report_is_printed_when_it_changes_and_ctrl_c_ends_it_in_order(grown):
    command = [sys.executable, "-m", "tunefleet", "status", "--state", grown.folder, "--json", "--watch"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watching:
        assert json.loads(watching.stdout.readline())["version"] == 1
        invoke("rollback", "--state", grown.folder, 0)
        assert json.loads(watching.stdout.readline())["version"] == 2
        watching.send_signal(signal.SIGINT)
        assert watching.wait(timeout=30) == 0
        assert watching.stderr.read() == ""


def test_reports_are_tables_for_people(grown):
    assert "version 1" in invoke("status", "--state", grown.folder)
    assert "foreign-base" in invoke("history", "--state", grown.folder)


def test_a_rollback_is_one_command(grown):
    assert json.loads(invoke("rollback", "--state", grown.folder, 0, "--json"))["parent"] == 0
    report = json.loads(invoke("history", "--state", grown.folder, "--json"))
    assert [version["kind"] for version in report["versions"]] == ["first", "merge", "rollback"]
    with pytest.raises(UnknownVersion, match="version 9 was never made"):
        invoke("rollback", "--state", grown.folder, 9)


@pytest.mark.parametrize("form", ["peft", "mlx"])
def test_a_version_is_exported_to_the_last_bit(grown, tmp_path, form):
    out = tmp_path / "out"
    told = json.loads(invoke("export", "--state", grown.folder, "--out", out, "--to", form, "--json"))
    assert told["version"] == 1
    assert load_any(out) == load_any(grown.folder / "objects" / told["sha256"])
    assert "version 0" in invoke("export", "--state", grown.folder, "--out", tmp_path / "old", "--version", 0)


def test_a_version_is_exported_for_llama_cpp(grown, tmp_path):
    pytest.importorskip("gguf", reason="needs the llama extra")
    out, base = tmp_path / "out.gguf", ["--base", grown.base]
    config = json.loads((grown.base / "config.json").read_text())
    (grown.base / "config.json").write_text(json.dumps(config | {"num_attention_heads": 2}))
    told = json.loads(
        invoke("export", "--state", grown.folder, "--out", out, "--to", "gguf", *base, "--json")
    )
    assert load_any(out, read_base(grown.base)) == load_any(grown.folder / "objects" / told["sha256"])
    with pytest.raises(AdapterError, match="is there already"):
        invoke("export", "--state", grown.folder, "--out", out, "--to", "gguf", *base)
    with pytest.raises(BaseModelError, match="give the base model"):
        invoke("export", "--state", grown.folder, "--out", tmp_path / "new.gguf", "--to", "gguf")


def test_a_folder_that_is_none_of_a_coordinators_is_told(tmp_path):
    with pytest.raises(StateError, match="expected the folder given to `tunefleet serve --state`"):
        invoke("status", "--state", tmp_path)


@pytest.mark.parametrize("name", METHODS)
def test_every_strategy_can_be_named_on_the_command_line(name, fleet, tmp_path):
    (tmp_path / "few.jsonl").touch()
    given = ["--broker", "mqtt://h", "--fleet", "home", "--base", fleet.base, "--state", tmp_path / "s"]
    told = invoke(
        "serve", *given, "--calibration", tmp_path / "few.jsonl", "--strategy", name, "--print-config"
    )
    assert f'strategy = "{name}"' in told


def test_the_printed_configuration_is_what_the_command_line_said(fleet, tmp_path):
    given = ["--broker", "mqtt://h", "--fleet", "home", "--base", fleet.base, "--state", tmp_path / "s"]
    more = ["--rank", "8,4", "--targets", "q_proj", "--strategy", "fedavg", "--steps", "7", "--wait"]
    (tmp_path / "c.toml").write_text(invoke("serve", *given, *more, "--print-config"))
    config = read_config(tmp_path / "c.toml", {})
    assert (config.ranks, config.targets, config.strategy) == ((8, 4), ("q_proj",), "fedavg")
    assert (config.recipe.steps, config.waits_for_broker) == (7, True)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"--base": "."}, "config.json"),
        ({"--targets": "nose"}, "no module is called nose"),
        ({"--broker": "mqtt://127.0.0.1:1"}, "broker 127.0.0.1:1 cannot be reached"),
        ({"--broker": "http://127.0.0.1"}, "expected mqtt://"),
        ({"--fleet": "No"}, "fleet is 'No'"),
        ({"--rank": "eight"}, "--rank is 'eight'"),
    ],
)
def test_what_the_user_can_mend_is_one_line(fleet, tmp_path, changes, part):
    options = {
        "--broker": "mqtt://127.0.0.1:1",
        "--fleet": "home",
        "--base": fleet.base,
        "--state": tmp_path / "s",
    }
    arguments = [str(part) for pair in (options | changes).items() for part in pair]
    command = [sys.executable, "-m", "tunefleet", "serve", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert part in done.stderr
    assert done.stderr.count("\n") == 1
