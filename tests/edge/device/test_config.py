import tomllib

import pytest
import tomli_w

from edge.device.config import mqtt_settings, read_config
from edge.errors import ConfigError
from edge.settings import write_toml


@pytest.fixture
def settings(tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "data.jsonl").write_text('{"text": "a"}\n')
    return {
        "broker": "mqtt://user:secret@127.0.0.1:1884",
        "fleet": "home",
        "base": str(tmp_path / "base"),
        "data": {"path": str(tmp_path / "data.jsonl")},
        "device_id": "lamp-1",
        "state": str(tmp_path / "state"),
    }


def test_what_is_printed_reads_back_as_the_same_settings(settings, tmp_path):
    given = read_config(None, {**settings, "max_rank": 8, "slowdown": 2.5, "coordinator_key": "a" * 64})
    (tmp_path / "config.toml").write_text(write_toml(given))
    assert read_config(tmp_path / "config.toml", {}) == given


def test_a_file_that_was_printed_before_the_broker_had_a_record_is_read(settings, tmp_path):
    before = """
        broker = "mqtt://h"
        fleet = "home"
        base = "{base}"
        device_id = "d"
        state = "s"
        backend = "toy"
        precision = "auto"
        max_rank = 4
        slowdown = 1.0
        micro_batch_tokens = 0
        checkpoint_every_s = 60.0
        patience_s = 10.0
        max_pending = 2
        max_tasks = 3
        broker_user = "ann"
        protocol = "5"
        waits_for_broker = true
        [data]
        path = "{data}"
        train_on_prompt = false
    """.format(base=settings["base"], data=settings["data"]["path"])
    (tmp_path / "c.toml").write_text(before)
    config = read_config(tmp_path / "c.toml", {})
    assert (config.broker_user, config.protocol, config.waits_for_broker) == ("ann", "5", True)
    printed = tomllib.loads(write_toml(config))
    assert printed.pop("privacy") == {"at": "device", "delta": 1e-05, "noise": 0.0, "unit": "none"}
    assert printed == tomllib.loads(before) | {"max_download_bytes": 1 << 30}


def test_the_command_line_stands_above_the_file(settings, tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(tomli_w.dumps({**settings, "max_rank": 8, "slowdown": 3.0}))
    config = read_config(path, {"max_rank": 4, "slowdown": None, "data": {"prompt_column": "question"}})
    assert (config.max_rank, config.slowdown) == (4, 3.0)
    assert (config.data.path, config.data.prompt_column) == (settings["data"]["path"], "question")


def test_data_may_be_a_plain_path_in_the_file(settings, tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(tomli_w.dumps({**settings, "data": settings["data"]["path"]}))
    assert read_config(path, {}).data.path == settings["data"]["path"]


def test_all_faults_are_told_at_once(settings):
    wrong = {
        "fleet": "My Home",
        "device_id": "-lamp",
        "max_rank": 0,
        "patience_s": 0,
        "slowdown": "fast",
        "base": "/no/such/folder",
        "data": {"path": "/no/such/file"},
        "tls_key": "/no/such/key",
        "backend": "jax",
        "colour": "red",
    }
    del settings["state"]
    with pytest.raises(ConfigError) as caught:
        read_config(None, settings | wrong)
    for fault in (
        "fleet is 'My Home'",
        "device_id is '-lamp'",
        "max_rank is 0",
        "patience_s is 0",
        "slowdown is 'fast'",
        "base is '/no/such/folder', which does not exist",
        "data.path is '/no/such/file', which is not a file",
        "tls_key is '/no/such/key', which does not exist",
        "tls_cert and tls_key belong together",
        "backend is 'jax'",
        "colour unknown",
        "state is missing",
    ):
        assert fault in caught.value.whole
    assert "\n" not in caught.value.whole


def test_a_malformed_broker_is_told_without_its_password(settings):
    with pytest.raises(ConfigError, match="expected mqtt://") as caught:
        read_config(None, settings | {"broker": "http://user:secret@host"})
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("content", [b"fleet = ", b"\xff\xfe"])
def test_a_file_that_is_not_toml_is_named(tmp_path, content):
    (tmp_path / "config.toml").write_bytes(content)
    with pytest.raises(ConfigError, match=r"config.toml: is not TOML"):
        read_config(tmp_path / "config.toml", {})


def test_a_device_keeps_its_client_id_which_no_other_key_has(settings):
    settings = read_config(None, settings | {"waits_for_broker": True})
    mqtt = mqtt_settings(settings, "0123456789abcdef")
    assert (mqtt.client_id, mqtt.port, mqtt.password) == ("home-lamp-1-0123456789abcdef", 1884, "secret")
    assert mqtt.client_id != mqtt_settings(settings, "89abcdef01234567").client_id
    assert mqtt.wait_for_broker_s == float("inf")
