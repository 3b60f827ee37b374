"""A private authority: what it signs is good for one thing, and for as long as it says."""

import ssl
import time

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from coordinator.access.authority import Subject, certificate_uri, issue, new_authority, revocation_list
from coordinator.access.certificates import Certificates
from edge.errors import StateError

NOW = 1_800_000_000.0
DAY = 86_400.0


@pytest.fixture(scope="module")
def authority():
    return new_authority("tunefleet home devices", NOW)


def load(pair):
    return x509.load_pem_x509_certificate(pair.certificate)


def names(certificate):
    return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value


def test_a_devices_certificate_bears_its_id_and_proves_a_client_alone(authority):
    made = issue(authority, Subject("lamp", "home", "client"), 30, NOW)
    certificate = load(made)
    assert [one.value for one in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)] == ["lamp"]
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (constraints.critical, constraints.value.ca) == (True, False)
    assert names(certificate).get_values_for_type(x509.UniformResourceIdentifier) == [
        certificate_uri("home", "lamp", made.serial)
    ]
    certificate.verify_directly_issued_by(load(authority))


def test_a_brokers_certificate_bears_its_names_and_addresses(authority):
    hosts = ["broker.lan", "192.168.1.5", "fd00::1"]
    certificate = load(issue(authority, Subject("home_broker", "home", "server", hosts), 30, NOW))
    found = names(certificate)
    assert found.get_values_for_type(x509.DNSName) == ["broker.lan"]
    assert [str(one) for one in found.get_values_for_type(x509.IPAddress)] == hosts[1:]
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH]


def test_a_certificate_holds_from_the_day_before_and_never_outlives_its_authority(authority):
    short = load(issue(authority, Subject("lamp", "home", "client"), 30, NOW))
    assert short.not_valid_before_utc.timestamp() == NOW - DAY
    assert short.not_valid_after_utc.timestamp() == NOW + 30 * DAY
    late = load(issue(authority, Subject("lamp", "home", "client"), 3650, NOW + 3000 * DAY))
    assert late.not_valid_after_utc == load(authority).not_valid_after_utc


def test_the_list_of_revoked_ones_holds_as_long_as_the_authority(authority):
    found = x509.load_pem_x509_crl(revocation_list(authority, {7: NOW, 8: NOW}, NOW))
    assert [one.serial_number for one in found] == [7, 8]
    assert found.next_update_utc == load(authority).not_valid_after_utc
    assert found.is_signature_valid(load(authority).public_key())


def test_openssl_takes_what_was_made_at_its_strictest(tmp_path):
    held = Certificates(tmp_path / "certs", "home", time.time())
    held.found()
    held.add_broker(["localhost"], 30)
    held.add_device("lamp", 30)
    server, client = (ssl.SSLContext(one) for one in (ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT))
    server.load_cert_chain(tmp_path / "certs/broker/broker.crt", tmp_path / "certs/broker/broker.key")
    server.load_verify_locations(tmp_path / "certs/broker/devices-ca.crt")
    server.load_verify_locations(tmp_path / "certs/broker/devices-ca.crl")
    server.verify_mode = ssl.CERT_REQUIRED
    client.load_cert_chain(tmp_path / "certs/devices/lamp/tls.crt", tmp_path / "certs/devices/lamp/tls.key")
    client.load_verify_locations(tmp_path / "certs/devices/lamp/ca.crt")
    for one in (server, client):
        one.verify_flags |= ssl.VERIFY_X509_STRICT
    server.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    assert handshake(server, client)["subject"] == ((("commonName", "lamp"),),)


def handshake(server, client):
    """Whom the server sees."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    broker = server.wrap_bio(to_server, to_client, server_side=True)
    device = client.wrap_bio(to_client, to_server, server_hostname="localhost")
    for one in (device, broker, device, broker):
        try:
            one.do_handshake()
        except ssl.SSLWantReadError:
            continue
    return broker.getpeercert()


def test_names_that_were_taken_back_hold_none_and_a_new_one_is_another(tmp_path):
    held = Certificates(tmp_path / "certs", "home", NOW)
    held.found()
    held.add_device("lamp", 30)
    held.add_device("pi4", 30)
    held.add_device("lamp", 30)
    assert held.revoke("lamp") == 2
    assert held.holders("devices") == ["pi4"]
    again = Certificates(tmp_path / "certs", None, NOW)
    again.add_device("lamp", 30)
    assert [one.name for one in again.holding("devices")] == ["pi4", "lamp"]
    assert len({one.serial for one in again.issued}) == 4


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"[" * 5000, b'{"format":1,"fleet":"Home"}', b"\xff"])
def test_a_damaged_record_is_one_error(tmp_path, content):
    (tmp_path / "private").mkdir()
    (tmp_path / "private/issued.json").write_bytes(content)
    with pytest.raises(StateError, match=r"issued\.json: is damaged"):
        Certificates(tmp_path, None, NOW)


def test_another_fleets_folder_is_refused(tmp_path):
    Certificates(tmp_path / "certs", "home", NOW).found()
    with pytest.raises(StateError, match="is of fleet home, expected away"):
        Certificates(tmp_path / "certs", "away", NOW)
