"""Who may publish and read what: every kind of topic has its row, and nobody gets more than that."""

import itertools

import pytest

from edge.protocol.rights import ANY, OWN, REST, RIGHTS, patterns
from edge.protocol.topics import FORMS, DeviceAnswerTopic, DeviceChallengeTopic, DeviceTopic, StateTopic


def test_every_kind_of_topic_has_its_rights():
    assert set(RIGHTS) == set(FORMS)


def test_somebody_writes_and_somebody_else_reads_every_kind():
    for kind, right in RIGHTS.items():
        assert right.publish, kind
        assert right.subscribe, kind
        if kind not in (
            StateTopic,
            DeviceChallengeTopic,
            DeviceAnswerTopic,
        ):  # copies of a device, by its name
            assert "device" not in right.publish & right.subscribe


def test_a_device_writes_its_own_topics_and_nothing_else():
    for kind, right in RIGHTS.items():
        assert issubclass(kind, DeviceTopic) or "device" not in right.publish
    for levels in patterns("home", "device", "publish"):
        assert levels[:5] == ("tunefleet", levels[1], "home", "device", OWN)


def test_a_device_reads_of_devices_only_what_bears_its_own_name():
    for levels in patterns("home", "device", "subscribe"):
        assert levels[2] == "home"
        assert "device" not in levels or levels[4] == OWN


@pytest.mark.parametrize(
    ("role", "manner"), list(itertools.product(("device", "coordinator"), ("publish", "subscribe")))
)
def test_no_pattern_is_wider_than_one_level_at_a_time(role, manner):
    for levels in patterns("home", role, manner):
        assert REST not in levels or (role, levels[3:]) == ("coordinator", ("coordinator", REST))
        assert all(level in (ANY, OWN, REST) or level.strip("+<>#") == level for level in levels)
