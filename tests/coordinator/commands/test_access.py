"""`tunefleet device`, `enroll`, `certs` and `broker-config`, as a person types them."""

import json
import stat

import pytest
from typer.testing import CliRunner

import tunefleet
from coordinator.ledger.state import CoordinatorState
from edge.errors import ConfigError, StateError

KEY = "ab" * 32


@pytest.fixture
def state(tmp_path):
    """A coordinator's state folder; nothing runs in it."""
    with CoordinatorState(tmp_path / "coordinator", "home"):
        pass
    return tmp_path / "coordinator"


def run(*arguments, text=None):
    found = CliRunner().invoke(
        tunefleet.app, [str(one) for one in arguments], input=text, catch_exceptions=False
    )
    assert found.exit_code == 0, found.output
    return found.output


def device(name, *arguments, state):
    return run("device", name, *arguments, "--state", state)


def listed(state):
    found = json.loads(device("list", "--json", state=state))
    return {one["device"]: ("banned" if one["banned_at"] else one["admitted_by"]) for one in found}


def test_a_device_is_allowed_banned_unbanned_and_forgotten(state):
    assert device("allow", "lamp", KEY, state=state) == "lamp may take part now\n"
    assert listed(state) == {"lamp": "hand"}
    assert device("ban", "lamp", state=state) == "lamp is banned\n"
    assert listed(state) == {"lamp": "banned"}
    assert device("unban", "lamp", state=state) == "lamp is banned no longer\n"
    assert device("unban", "lamp", state=state) == "lamp was not banned\n"
    assert device("forget", "lamp", state=state) == "lamp is forgotten\n"
    assert device("list", state=state) == "no device has come, and none was let in\n"


def test_a_device_that_never_came_is_banned_by_its_name(state):
    assert device("ban", "ghost", state=state) == "ghost is banned; no ghost was ever here\n"
    with pytest.raises(StateError, match="ghost is banned; `tunefleet device unban ghost` first"):
        device("allow", "ghost", KEY, state=state)


def test_the_list_fits_80_columns_and_shortens_keys(state, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    device("allow", "a-device-with-quite-a-long-name-of-its-own", KEY, state=state)
    lines = device("list", state=state).splitlines()
    assert max(map(len, lines)) <= 80
    assert "a-device-with-quite-a-long-name-of-its-own" in lines[1]


def test_a_file_of_many_is_let_in_at_once(state, tmp_path):
    many = tmp_path / "devices.txt"
    many.write_text("".join(f"lamp-{n} {n:064x}  # room {n}\n" for n in range(50)))
    assert device("allow", "--from", many, state=state) == "50 devices may take part now\n"
    assert len(listed(state)) == 50


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["allow"], "say whom to let in"),
        (["allow", "lamp"], "say whom to let in"),
        (["allow", "Lamp", KEY], "id is 'Lamp', expected 1 to 64 of a-z, 0-9 and -"),
        (["allow", "lamp", "zz"], "key is 'zz', expected 64 hex digits"),
        (["ban", "../x"], "id is '../x'"),
        (["token", "--expires", "soon"], "--expires is 'soon', expected a number and s, m, h or d"),
        (["token", "--for", "lamp", "--uses", "2"], "--for names one device"),
        (["rotate", "lamp", "no-such-file"], "no-such-file: cannot be read"),
    ],
)
def test_what_cannot_be_meant_is_one_line(state, arguments, told):
    with pytest.raises(ConfigError, match=told.replace("(", r"\(")):
        device(*arguments, state=state)


@pytest.mark.parametrize(
    "content",
    [b"lamp\n", b"lamp ab cd\n", b"lamp zz\n", b"\xff\n", b"lamp " + b"ab" * 32 + b"\nlamp " + b"ab" * 32],
)
def test_a_list_with_a_line_that_is_none_lets_nobody_in(state, tmp_path, content):
    (tmp_path / "devices.txt").write_bytes(content)
    with pytest.raises(ConfigError, match=r"devices\.txt"):
        device("allow", "--from", tmp_path / "devices.txt", state=state)
    assert listed(state) == {}


def test_a_device_enrols_by_a_token_from_a_pipe(state, tmp_path):
    made = json.loads(device("token", "--for", "lamp", "--expires", "30m", "--json", state=state))
    assert (made["fleet"], made["device"], made["uses"]) == ("home", "lamp", 1)
    found = json.loads(
        run("enroll", "--state", tmp_path / "lamp", "--token-file", "-", "--json", text=made["token"])
    )
    assert (found["device"], found["fleet"]) == ("lamp", "home")
    assert found["coordinator_key"] == made["coordinator_key"]
    assert stat.S_IMODE((tmp_path / "lamp/identity.key").stat().st_mode) == 0o600


def test_a_token_that_waits_is_told_before_the_key_is_changed(state, tmp_path):
    token = device("token", "--for", "lamp", state=state)
    run("enroll", "--state", tmp_path / "lamp", "--token-file", "-", text=token)
    own = ["--state", tmp_path / "lamp", "--device-id", "lamp", "--fleet", "home"]
    with pytest.raises(ConfigError, match="its token waits to be told to the coordinator; join first"):
        run("enroll", *own, "--rotate")


def test_a_token_that_lost_its_end_is_refused_before_anything_is_written(tmp_path, state):
    whole = device("token", state=state).strip()
    for text in (whole[:-1], whole[:-9], whole[1:], whole.swapcase(), "tunefleet-token-", "x"):
        with pytest.raises(ConfigError, match="the token is not whole"):
            run("enroll", "--state", tmp_path / "lamp", "--device-id", "lamp", "--token", text)
    assert not (tmp_path / "lamp").exists()


def test_a_new_key_is_brought_by_hand_and_only_along_the_old_ones_word(state, tmp_path):
    folder, word = tmp_path / "lamp", tmp_path / "word.json"
    first = json.loads(run("enroll", "--state", folder, "--device-id", "lamp", "--json"))["key"]
    assert json.loads(run("enroll", "--state", folder, "--device-id", "lamp", "--json"))["key"] == first
    device("allow", "lamp", first, state=state)
    own = ["--state", folder, "--rotate", "--device-id", "lamp", "--fleet", "home"]
    for _ in range(2):
        second = json.loads(run("enroll", *own, "--out", word, "--json"))["key"]
    assert device("rotate", "lamp", word, state=state) == f"lamp has key {second} now\n"
    run("enroll", "--state", tmp_path / "thief", "--device-id", "lamp")
    run("enroll", *["--state", tmp_path / "thief", *own[2:]], "--out", word)
    with pytest.raises(ConfigError, match="lamp keeps its key"):
        device("rotate", "lamp", word, state=state)
    assert stat.S_IMODE((folder / "identity.key").stat().st_mode) == 0o600


def test_a_coordinators_folder_is_no_devices(state):
    with pytest.raises(StateError, match="is a coordinator's state folder"):
        run("enroll", "--state", state, "--device-id", "lamp")


def test_certificates_are_made_added_to_and_taken_back(tmp_path):
    folder = tmp_path / "certs"
    run("certs", folder, "--fleet", "home", "--host", "broker.lan", "--device", "lamp")
    assert run("certs", folder, "--device", "pi4") == f"pi4 → {folder}/devices/pi4\n"
    assert "lamp: 1 certificate taken back" in run("certs", folder, "--revoke", "lamp")
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*.key")}
    assert len(modes) == 6
    assert set(modes.values()) == {0o600}
    assert stat.S_IMODE((folder / "private").stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--host", "x"], "say for which --fleet"),
        (["--fleet", "home"], "say by which --host"),
        (["--fleet", "home", "--host", "a b"], "--host is 'a b'"),
        (
            ["--fleet", "home", "--host", "x", "--device", "home_coordinator"],
            "--device is 'home_coordinator'",
        ),
        (["--fleet", "home", "--host", "x", "--revoke", "ghost"], "no certificate of ghost holds"),
    ],
)
def test_certificates_that_cannot_be_meant_are_one_line(tmp_path, arguments, told):
    with pytest.raises(ConfigError, match=told):
        run("certs", tmp_path / "certs", *arguments)


def test_a_folder_of_other_things_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(StateError, match="holds other things"):
        run("certs", tmp_path, "--fleet", "home", "--host", "x")


def test_a_brokers_configuration_is_written_anew_but_never_over_somebody_elses(tmp_path):
    out = tmp_path / "broker"
    for _ in range(2):
        run("broker-config", "mosquitto", "--fleet", "home", "--out", out)
    (out / "mosquitto.conf").write_text("listener 1883\n")
    with pytest.raises(StateError, match="was not written by broker-config"):
        run("broker-config", "mosquitto", "--fleet", "home", "--out", out)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["mosquitto"], "say which --fleet"),
        (["mosquitto", "--fleet", "Home"], "--fleet is 'Home'"),
        (
            ["mosquitto", "--fleet", "home", "--port", "1", "--coordinator-port", "1"],
            "are both 1, expected two",
        ),
        (["nats", "--fleet", "home"], "nats: knows its users by their certificates"),
        (["nats", "--certs", "nowhere"], "nowhere: is no folder"),
    ],
)
def test_a_configuration_that_cannot_be_meant_is_one_line(tmp_path, arguments, told):
    with pytest.raises(ConfigError, match=told):
        run("broker-config", *arguments, "--out", tmp_path / "broker")
