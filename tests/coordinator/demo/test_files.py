from collections import Counter

import pytest

import coordinator.config
import edge.device.config
from coordinator.demo.files import CALIBRATION, HELD_OUT, Paths, write_configs, write_data
from coordinator.demo.household import FLEET, load_examples
from coordinator.demo.plan import DemoPlan, Member


@pytest.fixture
def plan():
    members = tuple(Member(home, "toy", 1.0 + number) for number, home in enumerate(FLEET))
    return DemoPlan(members, (), num_own=10, num_held_out=24, num_calibration=12)


def test_what_versions_are_watched_by_is_not_what_they_are_judged_by(tmp_path, plan):
    write_data(Paths(tmp_path), plan)
    judged, watched = (load_examples(Paths(tmp_path).data(name)) for name in (HELD_OUT, CALIBRATION))
    assert (len(judged), len(watched)) == (24, 12)
    assert not set(judged) & set(watched)


def test_every_device_has_its_own_sentences(tmp_path, plan):
    write_data(Paths(tmp_path), plan)
    for home in FLEET:
        commands = [example.completion for example in load_examples(Paths(tmp_path).data(home.device_id))]
        kinds = Counter(command.split("/")[2].split()[0] for command in commands)
        assert kinds == {home.kind: 10}


def test_coordinator_and_devices_take_their_configurations(tmp_path, plan):
    paths = Paths(tmp_path)
    write_data(paths, plan)
    write_configs(paths, plan, "mqtt://127.0.0.1:1883")
    served = coordinator.config.read_config(paths.config("coordinator"), {})
    joined = [edge.device.config.read_config(paths.config(home.device_id), {}) for home in FLEET]
    assert served.recipe.steps == plan.steps
    assert [device.slowdown for device in joined] == [1.0, 2.0, 3.0, 4.0]
    assert len({device.state for device in joined} | {served.state}) == 5
