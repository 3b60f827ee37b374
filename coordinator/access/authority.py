"""A private certificate authority: X.509 with keys on the curve P-256, which every broker and device takes.

An authority signs certificates of one purpose: a device's proves a client and never a broker, a broker's a
broker and never a client, so that nobody in the fleet can play the broker to another. The common name is the
user name at the broker. Each certificate bears a URI with its serial number besides, for brokers that know no
revocation lists and map certificates to users one by one (NATS).

Pure: bytes in, bytes out; the time is handed in.
"""

import ipaddress
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Literal, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_DAYS = 3650
EARLIER = timedelta(days=1)  # certificates hold from then: clocks of small devices are behind
Purpose = Literal["client", "server"]
_PURPOSES = {"client": ExtendedKeyUsageOID.CLIENT_AUTH, "server": ExtendedKeyUsageOID.SERVER_AUTH}


class Pair(NamedTuple):
    """A certificate and its private key, PEM."""

    certificate: bytes
    key: bytes

    @property
    def serial(self) -> int:
        """Returns the certificate's serial number."""
        return x509.load_pem_x509_certificate(self.certificate).serial_number


class Subject(NamedTuple):
    """Whom a certificate is for."""

    name: str  # common name: the user name at the broker
    fleet: str
    purpose: Purpose
    hosts: Sequence[str] = ()  # a server's names and addresses


def new_authority(name: str, at: float) -> Pair:
    """Makes an authority.

    Args:
        name: Common name of its certificate.
        at: Unix time in seconds.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    begin = datetime.fromtimestamp(at, UTC) - EARLIER
    usage = _usage(key_cert_sign=True, crl_sign=True)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(_named(name))
        .issuer_name(_named(name))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + timedelta(days=AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Pair(certificate.public_bytes(Encoding.PEM), _pem(key))


def issue(authority: Pair, subject: Subject, days: int, at: float) -> Pair:
    """Makes a certificate that `authority` has signed; it never outlives the authority.

    Args:
        authority: Signs.
        subject: Whom it is for.
        days: How long it holds.
        at: Unix time in seconds.
    """
    issuer, signer = x509.load_pem_x509_certificate(authority.certificate), _signer(authority)
    key, serial = ec.generate_private_key(ec.SECP256R1()), x509.random_serial_number()
    now = datetime.fromtimestamp(at, UTC)
    names: list[x509.GeneralName] = [_host(host) for host in subject.hosts]
    names.append(x509.UniformResourceIdentifier(certificate_uri(subject.fleet, subject.name, serial)))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(_named(subject.name))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(max(now - EARLIER, issuer.not_valid_before_utc))
        .not_valid_after(min(now + timedelta(days=days), issuer.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([_PURPOSES[subject.purpose]]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
        .sign(signer, hashes.SHA256())
    )
    return Pair(certificate.public_bytes(Encoding.PEM), _pem(key))


def revocation_list(authority: Pair, revoked: Mapping[int, float], at: float) -> bytes:
    """Makes the list of revoked certificates, PEM.

    It holds for as long as the authority: a broker that has an outdated list lets nobody in at all.

    Args:
        authority: Signs.
        revoked: Serial number to Unix time.
        at: Unix time in seconds.
    """
    issuer = x509.load_pem_x509_certificate(authority.certificate)
    now = datetime.fromtimestamp(at, UTC)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.subject)
        .last_update(now - EARLIER)
        .next_update(max(issuer.not_valid_after_utc, now + EARLIER))
        .add_extension(x509.CRLNumber(int(at)), critical=False)
    )
    for serial, revoked_at in sorted(revoked.items()):
        one = x509.RevokedCertificateBuilder().serial_number(serial)
        builder = builder.add_revoked_certificate(
            one.revocation_date(datetime.fromtimestamp(revoked_at, UTC)).build()
        )
    return builder.sign(_signer(authority), hashes.SHA256()).public_bytes(Encoding.PEM)


def certificate_uri(fleet: str, name: str, serial: int) -> str:
    """Names one certificate."""
    return f"tunefleet://{fleet}/{name}/{serial:x}"


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _signer(authority: Pair) -> ec.EllipticCurvePrivateKey:
    key = load_pem_private_key(authority.key, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("its key is not on an elliptic curve")
    return key


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _usage(**used: bool) -> x509.KeyUsage:
    names = (
        "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
        "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
    )  # fmt: skip
    return x509.KeyUsage(**{name: used.get(name, False) for name in names})
