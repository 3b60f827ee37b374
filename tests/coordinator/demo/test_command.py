import pytest

from coordinator.demo import plan
from coordinator.demo.command import demo, fresh_folder
from edge.errors import ConfigError, MissingExtra


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years")
    with pytest.raises(ConfigError, match="no earlier demo's; give another --out"):
        fresh_folder(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years"


def test_an_earlier_demo_makes_room(tmp_path):
    folder = fresh_folder(tmp_path / "demo")
    (folder / "plot.png").touch()
    assert not (fresh_folder(folder) / "plot.png").exists()


def test_missing_libraries_are_named_at_once(monkeypatch, tmp_path):
    absent = {"torch", "amqtt"}
    monkeypatch.setattr(plan, "find_spec", lambda name: None if name in absent else name)
    with pytest.raises(
        MissingExtra, match=r"torch, amqtt is not installed; run: pip install 'tunefleet\[torch,broker\]'"
    ):
        demo(out=tmp_path / "demo")
    assert not (tmp_path / "demo").exists()


def test_without_mlx_its_devices_train_with_torch_and_say_so(monkeypatch):
    monkeypatch.setattr(plan, "find_spec", lambda name: None if name == "mlx_lm" else name)
    chosen = plan.make_plan()
    assert {member.backend for member in chosen.members} == {"torch"}
    assert "pip install 'tunefleet[mlx]'" in chosen.notes[0]
