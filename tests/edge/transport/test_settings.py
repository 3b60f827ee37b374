import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import ConfigError
from edge.transport.settings import MqttSettings, from_environment, has_password, without_password


def settings(url, **given):
    return MqttSettings.from_url(url, "c", **given)


@pytest.fixture
def secret(tmp_path):
    path = tmp_path / "password"
    path.write_text("s e:c@ret\nsecond line\n")
    return str(path)


def test_the_password_is_the_first_line_of_its_file(secret):
    found = settings("mqtt://host", user="ann", password_file=secret)
    assert (found.username, found.password) == ("ann", "s e:c@ret")


def test_the_password_file_goes_before_the_url(secret):
    found = settings("mqtt://bob:old@host", password_file=secret)
    assert (found.username, found.password) == ("bob", "s e:c@ret")


def test_a_password_needs_a_user(secret):
    with pytest.raises(ConfigError, match="there is a password file and no user; give --broker-user"):
        settings("mqtt://host", password_file=secret)


def test_a_password_file_that_holds_none_is_told(tmp_path):
    with pytest.raises(ConfigError, match="gone: the broker's password cannot be read: No such file"):
        settings("mqtt://ann@host", password_file=str(tmp_path / "gone"))
    (tmp_path / "empty").write_text("\nsecret\n")
    with pytest.raises(ConfigError, match="its first line is empty, expected the broker's password"):
        settings("mqtt://ann@host", password_file=str(tmp_path / "empty"))


@pytest.mark.parametrize(
    "url",
    [
        "mqtt:ann:hunter2@host",
        "mqtt://ann:hunter2",
        "mqtt://ann:hunter2/x@host",
        "mqtt://ann:hunter2#x@host",
        "mqtt://ann:x://hunter2@host",
        "mqtt://ann:hunter2@host:port",
        "http://ann:hunter2@host",
        "mqtt://hunter2@host/path",
        "mqtt://[ann:hunter2@host",
    ],
)
def test_no_error_tells_a_password(url):
    with pytest.raises(ConfigError) as found:
        settings(url)
    assert "hunter2" not in str(found.value)
    assert "hunter2" not in str(found.value.__cause__)


@given(st.text(), st.text(), st.sampled_from(["mqtt://", "mqtts://", "mqtt:", ""]))
def test_a_url_is_shown_without_what_stands_before_its_host(user, password, scheme):
    shown = without_password(f"{scheme}{user}:{password}@host:1883")
    assert shown.removeprefix("mqtt://").removeprefix("mqtts://") == "…@host:1883"


@pytest.mark.parametrize("url", ["mqtt://host", "mqtts://host:8883", "mqtt://[::1]:1883"])
def test_a_url_without_a_password_is_shown_as_it_is(url):
    assert without_password(url) == url
    assert not has_password(url)


def test_the_environment_stands_in_for_what_is_not_given():
    environ = {"TUNEFLEET_BROKER": "mqtt://e", "TUNEFLEET_BROKER_USER": "ann", "OTHER": "x"}
    assert from_environment({"fleet": "home"}, environ) == {
        "fleet": "home",
        "broker": "mqtt://e",
        "broker_user": "ann",
    }
    assert from_environment({"broker": "mqtt://h"}, environ) == {"broker": "mqtt://h", "broker_user": "ann"}


def test_a_url_with_a_user_of_its_own_takes_nothing_from_the_environment():
    environ = {"TUNEFLEET_BROKER_USER": "ann", "TUNEFLEET_BROKER_PASSWORD_FILE": "file"}
    assert from_environment({"broker": "mqtt://bob@h"}, environ) == {"broker": "mqtt://bob@h"}
