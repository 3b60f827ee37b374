import json
import stat

import pytest

from edge.device.state import DeviceState, Memory
from edge.device.task import Task
from edge.errors import StateError
from edge.protocol.merkle import Tree

BASE = "b" * 64


def memory(**changes):
    return Memory(**{"fleet": "home", "device_id": "lamp", "base": BASE} | changes)


def test_what_was_remembered_is_there_after_a_restart(tmp_path, make_manifest):
    task = Task(make_manifest(version=3), attempt=1)
    with DeviceState(tmp_path, memory()) as state:
        state.update(task=task, coordinator_key="c" * 64)
        key = state.signer.key
    with DeviceState(tmp_path, memory()) as state:
        assert (state.memory.task, state.memory.coordinator_key) == (task, "c" * 64)
        assert state.signer.key == key


def test_the_key_is_readable_by_its_owner_only(tmp_path):
    with DeviceState(tmp_path, memory()):
        pass
    assert stat.S_IMODE((tmp_path / "identity.key").stat().st_mode) == 0o600


def test_a_damaged_key_is_not_replaced_in_silence(tmp_path):
    (tmp_path / "identity.key").write_text("00ff")
    with pytest.raises(StateError, match=r"identity.key: is damaged, expected 64 hex digits"):
        DeviceState(tmp_path, memory()).__enter__()


def test_every_session_is_later_than_the_one_before_also_where_the_clock_goes_back(tmp_path):
    epochs = []
    for clock in (2000.0, 1000.0, 3000.0):
        with DeviceState(tmp_path, memory(), lambda now=clock: now) as state:
            epochs.append(state.signer.epoch)
    assert epochs == [2_000_000, 2_000_001, 3_000_000]


def test_two_clients_cannot_share_a_folder(tmp_path):
    with DeviceState(tmp_path, memory()), pytest.raises(StateError, match="another client is running"):
        DeviceState(tmp_path, memory()).__enter__()
    with DeviceState(tmp_path, memory()):
        pass


def test_a_folder_of_others_is_refused_with_all_names_at_once(tmp_path):
    with DeviceState(tmp_path, memory()):
        pass
    other = memory(fleet="plant", device_id="fan", base="c" * 64)
    with pytest.raises(StateError) as caught, DeviceState(tmp_path, other):
        pass
    for part in ("fleet 'home', expected 'plant'", "device 'lamp', expected 'fan'", BASE, "c" * 64):
        assert part in caught.value.whole


def test_another_configured_key_than_the_pinned_one_is_refused(tmp_path):
    with DeviceState(tmp_path, memory(coordinator_key="1" * 64)):
        pass
    with pytest.raises(StateError, match="pinned coordinator key 1"):
        DeviceState(tmp_path, memory(coordinator_key="2" * 64)).__enter__()
    with DeviceState(tmp_path, memory()) as state:
        assert state.memory.coordinator_key == "1" * 64


def test_a_newer_format_is_refused_and_left_alone(tmp_path):
    content = '{"format": 4, "what": "comes"}'
    (tmp_path / "state.json").write_text(content)
    with pytest.raises(StateError, match=r"has format 4, this tunefleet reads up to 3; upgrade it"):
        DeviceState(tmp_path, memory()).__enter__()
    assert (tmp_path / "state.json").read_text() == content


def test_a_folder_of_format_1_is_taken_up_with_its_task(tmp_path):
    manifest = {
        "fleet": "home", "tier": "r4", "version": 3, "parent": 2, "sha256": "0" * 64, "size_bytes": 10,
        "chunk_bytes": 1024, "encoding": "f32", "base": BASE, "rank": 4, "space": "product",
        "recipe": {"steps": 1}, "sketch": None,
    }  # fmt: skip
    old = {"format": 1, "fleet": "home", "device_id": "lamp", "base": BASE, "version": 3, "attempts": 1}
    old["task"] = {"manifest": manifest, "attempt": 1}
    (tmp_path / "state.json").write_text(json.dumps(old))
    (tmp_path / "versions").mkdir()
    (tmp_path / "versions" / f"{'0' * 64}.safetensors").write_bytes(b"0123456789")
    with DeviceState(tmp_path, memory()) as state:
        assert state.memory.task.manifest.root == Tree([b"0123456789"]).root
        assert (state.memory.version, state.memory.attempts, state.memory.epoch) == (3, 1, 0)
        assert state.task_folder(state.memory.task).name == "3-1-r4"  # its checkpoints are still found
        state.update(task=None)
    assert json.loads((tmp_path / "state.json").read_text())["format"] == 3


def test_a_task_of_format_2_whose_version_did_not_come_is_offered_anew(tmp_path):
    manifest = {"sha256": "0" * 64, "chunk_bytes": 1024}
    old = {"format": 2, "fleet": "home", "device_id": "lamp", "base": BASE, "version": 3, "epoch": 7}
    (tmp_path / "state.json").write_text(json.dumps(old | {"task": {"manifest": manifest, "attempt": 0}}))
    with DeviceState(tmp_path, memory()) as state:
        assert (state.memory.task, state.memory.epoch, state.memory.version) == (None, 7, 3)


def test_tasks_of_two_versions_of_one_number_have_folders_of_their_own(tmp_path, make_manifest):
    with DeviceState(tmp_path, memory()) as state:
        old = state.task_folder(Task(make_manifest(version=58, epoch=1), 0))
        (old / "checkpoint").write_text("of the other one")
        new = state.task_folder(Task(make_manifest(version=58, epoch=2), 0))
        assert list(new.iterdir()) == []


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"format": 1}', '{"format": 1, "fleet": 3}', '{"format": 2, "task": {"manifest": 1}}'],
)
def test_a_damaged_state_is_told(tmp_path, content):
    (tmp_path / "state.json").write_text(content)
    with pytest.raises(StateError, match="is damaged"):
        DeviceState(tmp_path, memory()).__enter__()


def test_a_file_is_no_state_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="cannot be used as a state folder"):
        DeviceState(tmp_path / "file", memory()).__enter__()


def test_only_the_folder_of_the_task_under_way_is_kept(tmp_path, make_manifest):
    with DeviceState(tmp_path, memory()) as state:
        old = state.task_folder(Task(make_manifest(version=1), 0))
        new = state.task_folder(Task(make_manifest(version=1), 1))
        assert not old.exists()
        assert state.task_folder(Task(make_manifest(version=1), 1)) == new


def test_a_state_folder_of_an_older_tunefleet_is_taken_up(tmp_path):
    memory = Memory(fleet="home", device_id="lamp", base="b" * 64)
    with DeviceState(tmp_path, memory):
        pass
    content = json.loads((tmp_path / "state.json").read_text())
    del content["base_files"]
    (tmp_path / "state.json").write_text(json.dumps(content))
    with DeviceState(tmp_path, memory) as state:
        assert state.memory.base == "b" * 64
