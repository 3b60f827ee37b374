import pytest

from converters.adapter import initial_adapter
from coordinator.demo.files import Paths
from coordinator.demo.folder import fresh_folder, leave
from coordinator.ledger.state import CoordinatorState
from coordinator.strategies.contract import State
from edge.errors import ConfigError


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years")
    with pytest.raises(ConfigError, match="no earlier demo's; give another --out"):
        fresh_folder(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_file_is_left_alone(tmp_path):
    (tmp_path / "demo").write_text("years")
    with pytest.raises(ConfigError, match="is a file; give another --out"):
        fresh_folder(tmp_path / "demo")


def test_a_run_goes_beside_those_that_are_there(tmp_path):
    first = fresh_folder(tmp_path / "demo")
    (first / "plot.png").touch()
    (tmp_path / "demo-2").mkdir()
    (tmp_path / "demo-2" / "thesis.txt").touch()
    assert fresh_folder(tmp_path / "demo") == tmp_path / "demo-3"
    assert fresh_folder(tmp_path / "demo") == tmp_path / "demo-4"
    assert (first / "plot.png").exists()


def test_an_empty_folder_is_taken_as_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    here = fresh_folder(tmp_path.relative_to(tmp_path))
    assert here.resolve() == tmp_path
    (here / "plot.png").touch()
    assert fresh_folder(here).resolve() == tmp_path.with_name(f"{tmp_path.name}-2")


def test_what_has_learnt_nothing_is_cleared_away(tmp_path):
    folder = fresh_folder(tmp_path / "demo")
    (folder / "logs").mkdir()
    (folder / "logs" / "flat.log").touch()
    assert leave(folder, ["peft"]) == "stopped before the fleet's first version; nothing is kept"
    assert not folder.exists()


def test_what_was_learnt_is_kept_and_where_is_said(tmp_path):
    folder = fresh_folder(tmp_path / "demo")
    paths = Paths(folder)
    with CoordinatorState(paths.state, "demo") as state:
        adapter = initial_adapter({"m": (4, 3)}, rank=2, scale=1.0, seed=0)
        for parent in (None, 0, 1):
            state.versions.add(state.versions.store(State(0, adapter), {}), parent, None, at=0.0)
    paths.adapter("gguf").touch()
    line = leave(folder, ["peft", "gguf"])
    assert f"kept in {folder}/: the adapter as GGUF, configurations, logs, and versions 0 to 2 " in line
    assert f"(tunefleet history --state {folder}/state)" in line
