"""Attempts to break in at real brokers with the configuration that `broker-config` writes."""

import shutil
import ssl
import time

import pytest

from coordinator.access.certificates import Certificates
from edge.protocol.rights import ROOT

pytestmark = [
    pytest.mark.broker,
    pytest.mark.timeout(120),
]

HOME = f"{ROOT}/home"
COORDINATOR = "home_coordinator"
UPDATE = "0" * 32
KINDS = ("hello", "state", "want", "telemetry", f"up/{UPDATE}/header", f"up/{UPDATE}/0")
OF_THE_COORDINATOR = (
    "coordinator",
    "version/r8",
    f"blob/{'0' * 64}/0",
    "device/pi4/receipt",
    "device/lamp/receipt",
)


@pytest.fixture
def coordinator(site):
    found = site.member(COORDINATOR)
    for kind in ("hello", "state", "want", "telemetry", "up/+/+"):
        assert found.subscribe(f"{HOME}/device/+/{kind}")
    for topic in ("coordinator", "version/+"):
        assert found.subscribe(f"{HOME}/{topic}")
    return found


@pytest.fixture
def pi4(site):
    found = site.member("pi4")
    for topic in ("coordinator", "version/+", "blob/+/+", "device/pi4/receipt"):
        assert found.subscribe(f"{HOME}/{topic}")
    return found


def comes_last(sender, receiver, topic):
    """Waits for a message that is allowed and was sent last: what has not come before it does not come."""
    sender.publish(topic, "last")
    assert receiver.hears(topic, "last")


def test_everybody_may_do_what_the_fleet_needs(site, coordinator, pi4):
    for kind in KINDS:
        pi4.publish(f"{HOME}/device/pi4/{kind}", "mine")
        assert coordinator.hears(f"{HOME}/device/pi4/{kind}", "mine"), kind
    for topic in OF_THE_COORDINATOR[:4]:
        coordinator.publish(f"{HOME}/{topic}", "ours", retain=topic.startswith(("coordinator", "version")))
        assert pi4.hears(f"{HOME}/{topic}", "ours"), topic
    lamp = site.member("lamp")
    assert lamp.subscribe(f"{HOME}/version/+")
    assert lamp.hears(f"{HOME}/version/r8", "ours")  # retained


def test_nobody_comes_in_without_a_certificate_or_with_one_of_another_authority(site, tmp_path):
    assert not site.stranger("lamp", None).connect()
    other = Certificates(tmp_path / "other", "home", time.time())
    other.found()
    other.add_device("lamp", 30)
    assert not site.stranger("lamp", tmp_path / "other/devices/lamp").connect()


def test_the_brokers_own_certificate_lets_nobody_in(site, tmp_path):
    stolen = tmp_path / "stolen"
    stolen.mkdir()
    for end in ("crt", "key"):
        shutil.copy(site.certs / f"broker/broker.{end}", stolen / f"tls.{end}")
    assert not site.stranger("lamp", stolen).connect()


def test_a_devices_certificate_opens_nothing_at_the_coordinators_port(site):
    if site.kind != "mosquitto":
        pytest.skip("it has one port for all")
    assert not site.stranger("lamp", site.folder_of("lamp"), port=site.coordinator_port).connect()
    assert not site.stranger(COORDINATOR, site.folder_of(COORDINATOR), port=site.port).connect()


@pytest.mark.parametrize("kind", KINDS)
def test_no_device_writes_to_anothers_topics(site, coordinator, kind):
    lamp = site.member("lamp")
    lamp.publish(f"{HOME}/device/pi4/{kind}", "forged", retain=True)
    again = lamp if lamp.is_here else site.member("lamp")
    comes_last(again, coordinator, f"{HOME}/device/lamp/hello")
    assert not [one for one in coordinator.heard if one[1] == "forged"]


@pytest.mark.parametrize("topic", OF_THE_COORDINATOR)
def test_no_device_forges_what_the_coordinator_says(site, coordinator, pi4, topic):
    lamp = site.member("lamp")
    lamp.publish(f"{HOME}/{topic}", "forged", retain=True)
    comes_last(coordinator, pi4, f"{HOME}/coordinator")
    late = site.member("lamp", client_id="late")
    late.subscribe(f"{HOME}/{topic}")
    late.subscribe(f"{HOME}/version/+")
    coordinator.publish(f"{HOME}/version/r1", "last")
    assert late.hears(f"{HOME}/version/r1", "last")
    assert not [one for one in pi4.heard + late.heard if one[1] == "forged"]


@pytest.mark.parametrize(
    "wide", ["#", "tunefleet/#", f"{HOME}/#", f"{HOME}/device/+/receipt", "+/+/+/device/#"]
)
def test_a_wide_subscription_tells_a_device_nothing_of_others(site, coordinator, pi4, wide):
    lamp = site.member("lamp")
    lamp.subscribe(wide)
    if not lamp.is_here:
        lamp = site.member("lamp")
    assert lamp.subscribe(f"{HOME}/device/lamp/receipt")
    coordinator.publish(f"{HOME}/device/pi4/receipt", "secret")
    pi4.publish(f"{HOME}/device/pi4/up/{UPDATE}/0", "secret")
    pi4.publish(f"{HOME}/device/pi4/hello", "secret", retain=True)
    comes_last(coordinator, lamp, f"{HOME}/device/lamp/receipt")
    assert not [one for one in lamp.heard if one[1] == "secret"]


def test_no_device_learns_of_the_broker_itself(site):
    lamp = site.member("lamp")
    for topic in ("$SYS/#", "$SYS/broker/clients/total", "$MQTT/#", "$JS/#"):
        lamp.subscribe(topic)
        if not lamp.is_here:
            lamp = site.member("lamp")
    time.sleep(1.0)  # Mosquitto retains $SYS: it would come at once
    assert lamp.heard == []


@pytest.mark.parametrize("topic", ["device/pi4/state", "coordinator"])
def test_a_will_on_a_foreign_topic_is_never_sent(site, coordinator, pi4, topic):
    lamp = site.stranger("lamp", site.folder_of("lamp"), will=(f"{HOME}/{topic}", "forged"))
    if lamp.connect():
        lamp.vanish()
    time.sleep(0.5)
    comes_last(pi4, coordinator, f"{HOME}/device/pi4/hello")
    assert not [one for one in coordinator.heard + pi4.heard if one[1] == "forged"]


def test_a_will_on_ones_own_topic_is_sent(site, coordinator):
    lamp = site.member("lamp", will=(f"{HOME}/device/lamp/state", "gone"))
    lamp.vanish()
    assert coordinator.hears(f"{HOME}/device/lamp/state", "gone")


@pytest.mark.parametrize("victim", [COORDINATOR, "pi4"])
def test_whoever_says_anothers_client_id_gets_nothing_of_what_is_for_it(site, victim):
    """The victim's connection ends, which is why nobody can tell its id (`Signer.alias`)."""
    own = "device/+/hello" if victim == COORDINATOR else "device/pi4/receipt"
    sender, kind = (
        ("pi4", "device/pi4/hello") if victim == COORDINATOR else (COORDINATOR, "device/pi4/receipt")
    )
    target = site.member(victim, client_id="victim", is_clean=False)
    assert target.subscribe(f"{HOME}/{own}")
    lamp = site.member("lamp", client_id="victim", is_clean=False)
    time.sleep(0.5)
    other = site.member(sender)
    other.publish(f"{HOME}/{kind}", "secret")
    if not target.is_here:
        target = site.member(victim, client_id="victim", is_clean=False)
        target.subscribe(f"{HOME}/{own}")
        other.publish(f"{HOME}/{kind}", "secret")
    assert target.hears(f"{HOME}/{kind}", "secret")
    assert lamp.heard == []


def test_a_certificate_that_was_taken_back_opens_nothing_and_a_new_one_does(site, tmp_path):
    old = tmp_path / "old"
    shutil.copytree(site.folder_of("lamp"), old)
    held = site.certificates()
    assert held.revoke("lamp") == 1
    site.reload()
    assert not site.stranger("lamp", old).connect()
    site.member("pi4").leave()
    held.add_device("lamp", 30)
    site.reload()
    site.member("lamp").leave()
    assert not site.stranger("lamp", old).connect()


def test_a_device_cannot_play_the_broker_to_another(site):
    """Its certificate is no server's: whoever checks against the fleet's authority does not go on."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(site.folder_of("lamp") / "tls.crt", site.folder_of("lamp") / "tls.key")
    client = ssl.create_default_context(cafile=site.certs / "broker/devices-ca.crt")
    ends = [ssl.MemoryBIO() for _ in range(2)]
    lamp = server.wrap_bio(*ends, server_side=True)
    pi4 = client.wrap_bio(*reversed(ends), server_hostname="127.0.0.1")
    for one in (pi4, lamp):
        with pytest.raises(ssl.SSLWantReadError):
            one.do_handshake()
    with pytest.raises(ssl.SSLCertVerificationError, match="unsuitable certificate purpose"):
        pi4.do_handshake()
