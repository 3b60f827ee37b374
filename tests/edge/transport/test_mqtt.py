"""What only MQTT has: passwords, TLS, versions, limits from CONNACK, the window over a reconnection."""

import asyncio
import contextlib
import datetime
import gc
import ipaddress
import random
import subprocess
import warnings
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from msgspec import structs
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode

from edge.errors import BrokerRefused, ConfigError, PlaceTaken, TlsFailure, TransportError
from edge.transport.base import BirthAndWill
from edge.transport.mqtt.dial import ProtocolRefused, refusal
from edge.transport.mqtt.transport import MqttTransport
from edge.transport.settings import MqttSettings


@pytest.fixture
def leaky_handshake():
    """Paho leaves a socket whose TLS handshake failed to the garbage collector, which warns of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield
        gc.collect()


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
@pytest.mark.broker
def test_the_right_password_is_let_in_and_a_wrong_one_refused_in_one_line(mosquitto, tmp_path, protocol):
    passwords = tmp_path / "passwords"
    subprocess.run(["mosquitto_passwd", "-b", "-c", passwords, "ann", "s:cr@t"], check=True)
    passwords.chmod(0o644)

    async def scenario():
        async with mosquitto(protocol, f"allow_anonymous false\npassword_file {passwords}") as site:
            place = site.url.removeprefix("mqtt://")
            right = MqttSettings.from_url(f"mqtt://ann:s%3Acr%40t@{place}", "d1", protocol=protocol)
            async with MqttTransport(right):
                pass
            wrong = MqttSettings.from_url(f"mqtt://ann:guess@{place}", "d1", protocol=protocol)
            with pytest.raises(
                BrokerRefused, match=f"{place} refused client d1: .*; check user name"
            ) as refusal:
                async with MqttTransport(wrong):
                    pass
            assert "guess" not in str(refusal.value)
            assert "\n" not in str(refusal.value)

    asyncio.run(scenario())


def test_a_broker_that_is_not_there_is_one_line():
    settings = MqttSettings.from_url("mqtt://127.0.0.1:9", "d1")
    with pytest.raises(
        TransportError, match=r"broker 127.0.0.1:9 cannot be reached: Connection refused; is it"
    ):
        asyncio.run(_connect(settings))


def test_a_host_that_has_no_address_is_one_line():
    with pytest.raises(TransportError, match=r"broker nowhere.invalid:1883 cannot be reached: "):
        asyncio.run(_connect(MqttSettings.from_url("mqtt://nowhere.invalid", "d1")))


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (0x84, ProtocolRefused),  # unsupported protocol version
        (0x86, BrokerRefused),  # bad user name or password
        (0x87, BrokerRefused),  # not authorized
        (0x88, TransportError),  # server unavailable
        (0x89, TransportError),  # server busy
        (0x97, TransportError),  # quota exceeded
        (0x9F, TransportError),  # connection rate exceeded
    ],
)
def test_what_a_refusal_means_is_told_by_its_code(code, kind):
    """Only what may pass is tried again."""
    error = refusal(ReasonCode(PacketTypes.CONNACK, identifier=code), MqttSettings(host="h", client_id="d1"))
    assert type(error) is kind
    assert "broker h:1883 refused client d1: " in str(error)


@pytest.mark.broker
def test_a_client_can_wait_for_its_broker(mosquitto):
    async def scenario():
        site = mosquitto("5")
        connecting = asyncio.create_task(
            _connect(MqttSettings.from_url(site.url, "d1", wait_for_broker_s=20))
        )
        await asyncio.sleep(0.2)
        async with site:
            await connecting

    asyncio.run(scenario())


@pytest.mark.broker
def test_a_first_connection_can_be_given_up(mosquitto):
    async def scenario():
        connecting = asyncio.create_task(
            _connect(MqttSettings.from_url("mqtt://127.0.0.1:9", "d1", wait_for_broker_s=60))
        )
        await asyncio.sleep(0.1)
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting

    asyncio.run(scenario())


@pytest.mark.broker
def test_limits_come_from_the_brokers_answer(mosquitto, caplog):
    async def scenario():
        lines = "allow_anonymous true\nmax_packet_size 100000\nmax_inflight_messages 5"
        async with mosquitto("5", lines) as site, site.client("d1") as client:
            assert client.limits.max_packet_bytes == 100_000
            assert client.limits.max_in_flight == 5
            assert not await client.publish("up/1", bytes(100_000))
            assert await client.publish("up/1", bytes(1_000))

    asyncio.run(scenario())
    assert "refused 100,000 bytes to up/1: it takes 100,000 bytes in a packet; it is too lar" in caplog.text


@pytest.mark.broker
def test_auto_speaks_5_where_it_can(mosquitto):
    async def scenario():
        async with mosquitto("auto") as site, site.client("d1") as client:
            assert client.version == "5"

    asyncio.run(scenario())


def test_auto_falls_back_to_3_1_1_and_5_alone_is_refused():
    pytest.importorskip("amqtt", reason="needs the broker extra")
    broker = pytest.importorskip("edge.transport.amqtt", reason="needs the broker extra")

    async def scenario():
        async with broker.EmbeddedBroker() as embedded:
            async with MqttTransport(MqttSettings.from_url(embedded.url, "d1")) as client:
                assert client.version == "3.1.1"
            only_5 = MqttSettings(
                host="127.0.0.1", port=embedded.port, client_id="d1", protocol="5", connect_timeout_s=0.3
            )
            with pytest.raises(BrokerRefused, match="Unsupported protocol version"):
                await _connect(only_5)

    asyncio.run(scenario())


def test_the_embedded_broker_asks_for_a_password_where_it_has_users():
    pytest.importorskip("amqtt", reason="needs the broker extra")
    broker = pytest.importorskip("edge.transport.amqtt", reason="needs the broker extra")

    async def scenario():
        async with broker.EmbeddedBroker(users={"ann": "secret"}) as embedded:
            place = embedded.url.removeprefix("mqtt://")
            await _connect(MqttSettings.from_url(f"mqtt://ann:secret@{place}", "d1", protocol="3.1.1"))
            for user in ("ann:wrong@", "bob:secret@", ""):
                with pytest.raises(BrokerRefused):
                    await _connect(MqttSettings.from_url(f"mqtt://{user}{place}", "d1", protocol="3.1.1"))

    asyncio.run(scenario())


@pytest.mark.broker
@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_tls_carries_large_messages(mosquitto, tmp_path, authority, take, protocol):
    async def scenario():
        lines = _tls_lines(authority, "localhost")
        async with mosquitto(protocol, lines) as site:
            settings = [_tls(site, authority, client_id, protocol) for client_id in ("reader", "writer")]
            async with MqttTransport(settings[0]) as reader, MqttTransport(settings[1]) as writer:
                await reader.subscribe("up/+")
                chunks = {random.Random(seed).randbytes(65536) for seed in range(40)}
                reading = asyncio.create_task(take(reader.messages(), chunks))
                await asyncio.gather(*(writer.publish("up/1", chunk) for chunk in chunks))
                await reading

    asyncio.run(scenario())


@pytest.mark.broker
def test_a_client_certificate_is_shown(mosquitto, authority):
    async def scenario():
        lines = (
            _tls_lines(authority, "localhost") + "\nrequire_certificate true\nuse_identity_as_username true"
        )
        cert, key = authority("device-1")
        async with mosquitto("5", lines) as site:
            bare = _tls(site, authority, "d1", "5")
            with pytest.raises(TransportError, match="does it ask for a client certificate"):
                await _connect(bare)
            url = f"mqtts://localhost:{site.port}"
            ca = str(authority.ca)
            await _connect(
                MqttSettings.from_url(url, "d1", ca_file=ca, cert_file=str(cert), key_file=str(key))
            )

    asyncio.run(scenario())


@pytest.mark.broker
def test_tls_that_cannot_be_trusted_is_one_line(mosquitto, authority, leaky_handshake):
    async def scenario():
        async with mosquitto("5", _tls_lines(authority, "another.host")) as site:
            with pytest.raises(
                TlsFailure, match=r"localhost:\d+: no TLS connection: .*not valid for 'localhost'"
            ):
                await _connect(_tls(site, authority, "d1", "5"))
            unknown_authority = MqttSettings.from_url(f"mqtts://localhost:{site.port}", "d1")
            with pytest.raises(TlsFailure, match="self-signed certificate in certificate chain; check CA"):
                await _connect(unknown_authority)
            with pytest.raises(TransportError, match="without an answer; is this its TLS port"):
                await _connect(MqttSettings.from_url(f"mqtt://localhost:{site.port}", "d1"))

    asyncio.run(scenario())


@pytest.mark.broker
def test_tls_to_a_plain_port_is_one_line(mosquitto, authority, leaky_handshake):
    async def scenario():
        async with mosquitto("5") as site:
            with pytest.raises(TlsFailure):
                await _connect(_tls(site, authority, "d1", "5"))

    asyncio.run(scenario())


def test_missing_certificate_files_are_all_named():
    settings = MqttSettings.from_url(
        "mqtts://localhost", "d1", ca_file="/no/ca.pem", cert_file="/no/cert.pem"
    )
    with pytest.raises(TlsFailure, match=r"no such file: /no/ca.pem, /no/cert.pem"):
        asyncio.run(_connect(settings))


def test_urls():
    plain = MqttSettings.from_url("mqtt://broker", "d1")
    assert (plain.host, plain.port, plain.is_encrypted, plain.username) == ("broker", 1883, False, None)
    full = MqttSettings.from_url("mqtts://a%40b:p%3Aw@[::1]:99/", "d1")
    assert (full.host, full.port, full.is_encrypted) == ("::1", 99, True)
    assert (full.username, full.password) == ("a@b", "p:w")


@pytest.mark.parametrize(
    "url", ["broker:1883", "http://broker", "mqtt://", "mqtt://a:b@c:port", "mqtt://h/topic"]
)
def test_urls_that_are_none(url):
    with pytest.raises(ConfigError, match="expected mqtt://") as refusal:
        MqttSettings.from_url(url, "d1")
    assert "a:b" not in str(refusal.value)


def test_the_window_holds_over_a_reconnection():
    """A broker that swallows the first connection's publishes, and acknowledges the second's."""

    async def scenario():
        seen: list[list[bytes]] = []
        served = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            seen.append([])
            is_first = len(seen) == 1
            while packet := await _packet(reader):
                kind, body = packet
                if kind == 0x10:
                    writer.write(b"\x20\x02\x00\x00")
                elif kind & 0xF0 == 0x30:
                    topic_bytes = int.from_bytes(body[:2], "big") + 2
                    seen[-1].append(body[topic_bytes + 2 :])
                    if not is_first:
                        writer.write(b"\x40\x02" + body[topic_bytes : topic_bytes + 2])
                if is_first and len(seen[0]) == 16:
                    with contextlib.suppress(TimeoutError):  # a seventeenth has time to come
                        async with asyncio.timeout(0.1):
                            seen[0].append(await reader.readexactly(1))
                    break
            writer.close()
            await writer.wait_closed()
            if not is_first:
                served.set()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        settings = MqttSettings(host="127.0.0.1", port=port, client_id="d1", protocol="3.1.1")
        payloads = [b"%d" % number for number in range(50)]
        async with MqttTransport(settings, max_backoff_s=0.1) as client:
            await asyncio.gather(*(client.publish("up/1", payload) for payload in payloads))
        await served.wait()
        server.close()
        assert len(seen[0]) == 16
        assert sorted(seen[1]) == sorted(payloads)

    asyncio.run(scenario())


def test_a_topic_that_is_no_utf8_takes_no_place_in_the_window():
    """No broker may pass one on, and one that does would have its whole window filled by them."""

    async def scenario():
        acknowledged, left = asyncio.Event(), asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await _packet(reader)
            writer.write(bytes([0x20, 2, 0, 0]))  # CONNACK of 3.1.1: accepted
            writer.write(bytes([0x32, 7, 0, 2, 0xC3, 0x28, 0, 9]) + b"x")  # QoS 1, packet 9
            if await reader.readexactly(4) == bytes([0x40, 2, 0, 9]):
                acknowledged.set()
            while await _packet(reader):
                continue
            writer.close()
            await writer.wait_closed()
            left.set()

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server, asyncio.timeout(10):
            port = server.sockets[0].getsockname()[1]
            settings = MqttSettings.from_url(f"mqtt://127.0.0.1:{port}", "d1", protocol="3.1.1")
            async with MqttTransport(settings):
                await acknowledged.wait()
            await left.wait()

    asyncio.run(scenario())


def test_a_connection_that_ends_with_its_answer_is_a_clear_error():
    """Once taken for alive, with no socket under it, every subscription spun for ever."""

    async def answer_and_leave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _packet(reader)
        writer.write(bytes([0x20, 2, 0, 0]))  # CONNACK of 3.1.1: accepted
        writer.close()

    async def scenario():
        async with await asyncio.start_server(answer_and_leave, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            settings = MqttSettings.from_url(f"mqtt://127.0.0.1:{port}", "d1", protocol="3.1.1")
            async with asyncio.timeout(10):
                with pytest.raises(TransportError, match="closed the connection"):
                    async with MqttTransport(settings) as transport:
                        await transport.subscribe("a/b")

    asyncio.run(scenario())


def test_the_back_off_grows_to_its_bound_and_is_drawn_from_the_generator():
    async def scenario():
        pauses: list[float] = []

        async def sleep(pause_s: float) -> None:
            pauses.append(pause_s)

        settings = MqttSettings.from_url("mqtt://127.0.0.1:9", "d1", wait_for_broker_s=60)
        client = MqttTransport(settings, generator=random.Random(7), sleep=sleep, max_backoff_s=3.0)
        connecting = asyncio.create_task(client.__aenter__())
        while len(pauses) < 20:
            await asyncio.sleep(0.01)
        connecting.cancel()
        await asyncio.wait([connecting])
        generator = random.Random(7)
        bounds = [0.5, 1.0, 2.0, 3.0, 3.0, 3.0]
        assert pauses[:6] == [generator.uniform(0, bound) for bound in bounds]

    asyncio.run(scenario())


def test_a_client_whose_broker_has_gone_can_be_left():
    pytest.importorskip("amqtt", reason="needs the broker extra")
    broker = pytest.importorskip("edge.transport.amqtt", reason="needs the broker extra")

    async def scenario():
        settings = None
        async with broker.EmbeddedBroker() as embedded:
            settings = MqttSettings.from_url(embedded.url, "d1", protocol="3.1.1")
            client = await MqttTransport(settings, lambda: BirthAndWill("d1", b"on", b"off")).__aenter__()
        waiting = asyncio.create_task(client.publish("up/1", b"never"))
        await asyncio.sleep(0.05)
        async with asyncio.timeout(5):
            await client.__aexit__(None, None, None)
            with pytest.raises(TransportError, match="left"):
                await waiting

    asyncio.run(scenario())


async def _connect(settings: MqttSettings) -> None:
    async with MqttTransport(settings):
        pass


async def _packet(reader: asyncio.StreamReader) -> tuple[int, bytes] | None:
    first = await reader.read(1)
    if not first:
        return None
    length = shift = 0
    while True:
        byte = (await reader.readexactly(1))[0]
        length |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return first[0], await reader.readexactly(length)


def _tls(site, authority, client_id: str, protocol: str) -> MqttSettings:
    url = f"mqtts://localhost:{site.port}"
    return MqttSettings.from_url(url, client_id, protocol=protocol, ca_file=str(authority.ca))


def _tls_lines(authority, host: str) -> str:
    cert, key = authority(host)
    return f"allow_anonymous true\ncafile {authority.ca}\ncertfile {cert}\nkeyfile {key}"


class Authority:
    """A certificate authority of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
        constraints = x509.BasicConstraints(ca=True, path_length=None)
        certificate = self._builder(self._name, self._key).add_extension(constraints, critical=True)
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        certificate = certificate.add_extension(usage, critical=True)
        self.ca = self._write("ca.pem", certificate.sign(self._key, hashes.SHA256()))

    def __call__(self, host: str) -> tuple[Path, Path]:
        """Certificate and key for a host name."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName(
            [x509.DNSName(host), x509.IPAddress(ipaddress.ip_address("192.0.2.1"))]
        )
        builder = self._builder(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)]), key)
        authority_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = builder.add_extension(names, critical=False).add_extension(authority_key, critical=False)
        cert = self._write(f"{host}.pem", builder.sign(self._key, hashes.SHA256()))
        key_file = self._folder / f"{host}.key"
        form = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        key_file.write_bytes(key.private_bytes(serialization.Encoding.PEM, *form))
        return cert, key_file

    def _builder(self, subject, key):
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )

    def _write(self, name: str, certificate: x509.Certificate) -> Path:
        path = self._folder / name
        path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        return path


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


CONNACK, TAKEN_OVER = b"\x20\x03\x00\x00\x00", b"\xe0\x01\x8e"


@pytest.mark.parametrize("pause_s", [0.0, 0.3], ids=["in the handshake", "later"])
def test_a_client_whose_session_is_taken_over_asks_its_claim_and_ends(pause_s):
    """As a broker of MQTT 5 tells it; Mosquitto 2.0.11 only closes the connection."""

    async def scenario():
        asked = []

        async def claim(was_taken):
            asked.append(was_taken)
            if was_taken:
                raise PlaceTaken("the other one has it")

        async with taken_over(pause_s) as settings:
            with pytest.raises(PlaceTaken, match="the other one has it"):
                await listen(MqttTransport(settings, claim=claim))
        assert asked == [False, True]

    asyncio.run(scenario())


async def listen(transport):
    async with asyncio.timeout(10), transport:
        async for _ in transport.messages():
            pass


def test_what_waits_for_the_broker_gets_the_claims_error():
    async def claim(was_taken):
        if was_taken:
            raise PlaceTaken("the other one has it")

    async def scenario():
        async with (
            taken_over(0.2) as settings,
            asyncio.timeout(10),
            MqttTransport(settings, claim=claim) as transport,
        ):
            for _ in range(2):
                with pytest.raises(PlaceTaken):
                    await transport.publish("a", b"1")

    asyncio.run(scenario())


@contextlib.asynccontextmanager
async def taken_over(pause_s):
    """A broker of MQTT 5 that takes a client's session from it; gives how to reach it."""

    async def take_over(reader, writer):
        await reader.read(100)
        writer.write(CONNACK)
        await asyncio.sleep(pause_s)
        writer.write(TAKEN_OVER)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(take_over, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        yield MqttSettings(host="127.0.0.1", port=port, client_id="d1", protocol="5")


@pytest.mark.broker
@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_session_that_is_to_expire_at_once_is_not_kept(mosquitto, protocol):
    async def scenario():
        async with mosquitto(protocol) as site:
            settings = MqttSettings.from_url(site.url, "aside", protocol=protocol)
            brief = structs.replace(settings, session_expiry_s=0)
            async with MqttTransport(brief) as transport:
                await transport.subscribe("a")
            async with site.client("other") as other:
                await other.publish("a", b"for nobody")
            async with MqttTransport(settings) as transport:
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.5):
                        await anext(transport.messages())

    asyncio.run(scenario())
