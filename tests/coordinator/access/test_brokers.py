"""What is written for each broker, held to golden files and to the grammar that its maker documents.

Run as: python -m pytest tests/coordinator/access/test_brokers.py; after a change that is meant, with
TUNEFLEET_GOLDEN=write, and read the difference.
"""

import json
import os
import re
from pathlib import Path

import pytest

from coordinator.access.brokers.aws_iot import MAX_CHARACTERS, aws_iot_files
from coordinator.access.brokers.emqx import emqx_files
from coordinator.access.brokers.mosquitto import mosquitto_files
from coordinator.access.brokers.nats import nats_files
from coordinator.access.brokers.plan import BrokerPlan
from edge.protocol.rights import OWN, patterns

GOLDEN = Path(__file__).parent / "golden"
PLAN = BrokerPlan(
    fleet="home", port=8883, coordinator_port=8884, certs=Path("/certs"), max_devices=100,
    devices={"tunefleet://home/lamp/1f": "lamp", "tunefleet://home/pi4/2e": "pi4"},
    coordinators=("tunefleet://home/home_coordinator/3d",), authorities="PEM\n", revoked=("phone",),
)  # fmt: skip
WRITERS = {
    "mosquitto": lambda plan: mosquitto_files(plan, "/etc/tunefleet"),
    "mosquitto-2.1": lambda plan: mosquitto_files(plan, "/etc/tunefleet", "2.1"),
    "nats": lambda plan: nats_files(plan, "/etc/tunefleet"),
    "emqx": lambda plan: emqx_files(plan, "/etc/tunefleet"),
    "aws-iot": aws_iot_files,
    "mosquitto-passwords": lambda plan: mosquitto_files(plan._replace(certs=None), "/etc/tunefleet"),
    "emqx-passwords": lambda plan: emqx_files(plan._replace(certs=None), "/etc/tunefleet"),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_the_files_are_these(kind):
    files = WRITERS[kind](PLAN)
    folder = GOLDEN / kind
    if os.environ.get("TUNEFLEET_GOLDEN") == "write":
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name).write_text(content)
    assert files == {path.name: path.read_text() for path in folder.iterdir()}


def topics(role, manner, own):
    return {"/".join(levels).replace(OWN, own) for levels in patterns("home", role, manner)}


@pytest.mark.parametrize("kind", ["mosquitto", "mosquitto-2.1"])
def test_mosquittos_rules_are_the_tables(kind):
    lines = WRITERS[kind](PLAN)["tunefleet.acl"].splitlines()
    user = lines.index("user home_coordinator")
    for part, word, role, own in (
        (lines[:user], "pattern", "device", "%u"),
        (lines[user + 1 :], "topic", "coordinator", "+"),
    ):
        rules = [line.split() for line in part if line.startswith(word)]
        for manner, accesses in (("publish", {"write", "readwrite"}), ("subscribe", {"read", "readwrite"})):
            assert {topic for _, access, topic in rules if access in accesses} == topics(role, manner, own)
    assert "%c" not in "".join(line for line in lines if not line.startswith("#"))


def test_nats_names_every_certificate_that_holds_and_no_other():
    text = WRITERS["nats"](PLAN)["nats.conf"]
    assert re.findall(r'user: "([^"]+)"', text) == [*PLAN.coordinators, *PLAN.devices]
    assert text.count("verify_and_map: true") == 2
    lamp = text[text.index("home/lamp/1f") : text.index("home/pi4/2e")]
    assert "pi4" not in lamp
    for subject in re.findall(r'"(tunefleet\.[^"]+)"', lamp):
        assert ".device." not in subject or ".device.lamp." in subject


def test_emqx_gets_erlang_terms_the_last_of_which_forbids():
    """The grammar of acl.conf: {allow | deny, who, publish | subscribe | all, [topics]}. or {deny, all}."""
    text = re.sub(r"%%.*", "", WRITERS["emqx"](PLAN)["acl.conf"])
    terms = [term.strip() for term in text.split("}.\n") if term.strip()]
    who = r'(all|\{username, "[a-z0-9_-]+"\})'
    rule = rf'\{{(allow|deny), {who}, (publish|subscribe|all), \[\s*("[^"]+"(,\s*)?)+\s*\]'
    for term in terms[:-1]:
        assert re.fullmatch(rule, term), term
    assert terms[-1] == "{deny, all"
    assert '{deny, {username, "phone"}, all, ["#"]' in terms
    assert set(re.findall(r"\$\{\w+\}", text)) == {"${username}"}


@pytest.mark.parametrize("kind", ["emqx", "emqx-passwords", "nats"])
def test_what_is_opened_in_a_configuration_is_closed(kind):
    text = WRITERS[kind](PLAN)["nats.conf" if kind == "nats" else "emqx.conf"]
    open_ones = []
    for letter in re.sub(r'"[^"]*"|#[^\n]*', "", text):
        if letter in "{[":
            open_ones.append({"{": "}", "[": "]"}[letter])
        elif letter in "}]":
            assert open_ones.pop() == letter
    assert open_ones == []


def test_aws_policies_have_known_actions_whole_arns_and_a_length_that_is_taken():
    files = WRITERS["aws-iot"](PLAN)
    kinds = {"iot:Connect": "client", "iot:Publish": "topic", "iot:RetainPublish": "topic",
             "iot:Receive": "topic", "iot:Subscribe": "topicfilter"}  # fmt: skip
    for name in (one for one in files if one.endswith(".json")):
        policy = json.loads(files[name])
        assert policy["Version"] == "2012-10-17"
        assert len("".join(json.dumps(policy).split())) <= MAX_CHARACTERS
        for statement in policy["Statement"]:
            (kind,) = {kinds[action] for action in statement["Action"]}
            for resource in statement["Resource"]:
                assert re.fullmatch(rf"arn:aws:iot:\*:\*:{kind}/[A-Za-z0-9/+*?:_.${{}}-]+", resource)


def test_an_aws_device_publishes_under_its_certificates_name_alone():
    (published,) = [
        one["Resource"]
        for one in json.loads(WRITERS["aws-iot"](PLAN)["device-publish-policy.json"])["Statement"]
        if "iot:Publish" in one["Action"]
    ]
    own = "/device/${iot:Certificate.Subject.CommonName}/"
    assert all(own in resource for resource in published)


def test_a_fleet_of_any_name_fits_the_policies():
    assert aws_iot_files(PLAN._replace(fleet="h" * 64))
