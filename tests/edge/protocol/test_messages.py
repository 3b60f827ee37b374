"""Golden bytes of every message: field names and their order are the wire."""

import msgspec
import pytest

from edge.errors import ProtocolError
from edge.privacy.terms import Terms
from edge.protocol.messages import (
    Answer,
    Blob,
    Challenge,
    Hello,
    Manifest,
    Presence,
    Receipt,
    Recipe,
    Signed,
    Telemetry,
    UpdateHeader,
    Want,
    decode_message,
    encode_message,
)
from edge.protocol.topics import Topics

SHA, ROOT = "ab" * 32, "ba" * 32
UPDATE = "cd" * 16
GOLDEN = [
    (Presence(online=True), b'{"online":true}'),
    (
        Manifest(
            fleet="home",
            tier="r8",
            version=3,
            parent=2,
            sha256=SHA,
            root=ROOT,
            size_bytes=100,
            chunk_bytes=65536,
            encoding="int8",
            base=SHA,
            rank=8,
            space="product",
            recipe=Recipe(steps=50),
            sketch=Blob(sha256=SHA, root=ROOT, size_bytes=4),
        ),
        b'{"fleet":"home","tier":"r8","version":3,"parent":2,"sha256":"'
        + SHA.encode()
        + b'","root":"'
        + ROOT.encode()
        + b'","size_bytes":100,'
        b'"chunk_bytes":65536,"encoding":"int8","base":"' + SHA.encode() + b'","rank":8,"space":"product",'
        b'"recipe":{"steps":50,"seconds":0.0,"lr":0.001,"weight_decay":0.0,"clip_norm":1.0,"seq_tokens":512,'
        b'"batch_tokens":2048,"attempts":1,"pull":0.0,"trains":"both","train_rank":0,"keeps":"none"},"sketch":{"sha256":"'
        + SHA.encode()
        + b'","root":"'
        + ROOT.encode()
        + b'","size_bytes":4}}',
    ),
    (
        Hello(
            device_id="kitchen-1",
            backend="mlx",
            ranks=(8, 4),
            encodings=("int8", "f16"),
            memory_bytes=8000000000,
            tokens_per_s=None,
            base=SHA,
        ),
        b'{"device_id":"kitchen-1","backend":"mlx","ranks":[8,4],"encodings":["int8","f16"],'
        b'"memory_bytes":8000000000,"tokens_per_s":null,"base":"' + SHA.encode() + b'"}',
    ),
    (
        Want(sha256=SHA, ranges=((0, 3), (7, 9)), window=16),
        b'{"sha256":"' + SHA.encode() + b'","ranges":[[0,3],[7,9]],"window":16}',
    ),
    (
        UpdateHeader(
            update=UPDATE,
            fleet="home",
            device_id="kitchen-1",
            tier="r8",
            base_version=3,
            base=SHA,
            attempt=0,
            sha256=SHA,
            root=ROOT,
            size_bytes=100,
            chunk_bytes=65536,
            encoding="int8",
            num_examples=10,
            num_tokens=1000,
            num_steps=50,
            seconds=1.5,
            loss_before=2.0,
            loss_after=1.0,
        ),
        b'{"update":"' + UPDATE.encode() + b'","fleet":"home","device_id":"kitchen-1","tier":"r8",'
        b'"base_version":3,"base":"' + SHA.encode() + b'","attempt":0,"sha256":"' + SHA.encode() + b'",'
        b'"root":"' + ROOT.encode() + b'",'
        b'"size_bytes":100,"chunk_bytes":65536,"encoding":"int8","num_examples":10,"num_tokens":1000,'
        b'"num_steps":50,"seconds":1.5,"loss_before":2.0,"loss_after":1.0}',
    ),
    (
        Receipt(update=UPDATE, header=SHA, status="rejected", reason="too-stale", detail="8 behind"),
        b'{"update":"'
        + UPDATE.encode()
        + b'","header":"'
        + SHA.encode()
        + b'","status":"rejected","reason":"too-stale","detail":"8 behind",'
        b'"missing":[]}',
    ),
    (
        Challenge(nonce=UPDATE, session="ef" * 16, host="pi-4.local"),
        b'{"nonce":"' + UPDATE.encode() + b'","session":"' + b"ef" * 16 + b'","host":"pi-4.local"}',
    ),
    (
        Answer(
            fleet="home",
            nonces=(UPDATE,),
            session="ef" * 16,
            epoch=1760000000000,
            version=57,
            since=1760000000.5,
            host="pi-4.local",
        ),
        b'{"fleet":"home","nonces":["' + UPDATE.encode() + b'"],"session":"' + b"ef" * 16 + b'",'
        b'"epoch":1760000000000,"version":57,"since":1760000000.5,"host":"pi-4.local"}',
    ),
    (
        Receipt(update=UPDATE, header=SHA, status="missing", missing=((0, 2),)),
        b'{"update":"'
        + UPDATE.encode()
        + b'","header":"'
        + SHA.encode()
        + b'","status":"missing","reason":null,"detail":"","missing":[[0,2]]}',
    ),
    (
        Telemetry(base_version=3, step=5, steps=50, loss=1.25, tokens_per_s=100.0, memory_bytes=1),
        b'{"base_version":3,"step":5,"steps":50,"loss":1.25,"tokens_per_s":100.0,"memory_bytes":1}',
    ),
    (
        Signed(body=msgspec.Raw(b'{"a":1}'), key=SHA, signature=SHA * 2, epoch=1760000000000, count=3),
        b'{"body":{"a":1},"key":"' + SHA.encode() + b'","signature":"' + (SHA * 2).encode() + b'",'
        b'"epoch":1760000000000,"count":3}',
    ),
]


@pytest.mark.parametrize(("message", "golden"), GOLDEN, ids=lambda x: type(x).__name__)
def test_golden_bytes(message, golden):
    assert encode_message(message) == golden
    assert encode_message(decode_message(golden, type(message))) == golden


def test_the_fields_of_epochs_come_last_and_only_where_they_are_told():
    manifest, header = (
        next(one for one, _ in GOLDEN if isinstance(one, k)) for k in (Manifest, UpdateHeader)
    )
    told = encode_message(msgspec.structs.replace(manifest, epoch=1760000000000))
    assert told == encode_message(manifest)[:-1] + b',"epoch":1760000000000}'
    assert decode_message(encode_message(manifest), Manifest).epoch == 0
    told = encode_message(msgspec.structs.replace(header, base_sha256=SHA))
    assert told == encode_message(header)[:-1] + b',"base_sha256":"' + SHA.encode() + b'"}'
    without = encode_message(msgspec.structs.replace(manifest, sketch=None))[:-1] + b',"sketch":null}'
    assert decode_message(without, Manifest).sketch is None  # as an older coordinator writes it


@pytest.mark.parametrize(
    ("payload", "kind", "complaint"),
    [
        (b"", Want, "Want: Input data was truncated"),
        (b"\xff\xfe", Want, "Want: "),
        (b"{}", Presence, "missing required field `online`"),
        (b'{"online":true,"x":1}', Presence, "unknown field `x`"),
        (b'{"steps":-1}', Recipe, ">= 0"),
        (b'{"steps":1,"pull":-0.5}', Recipe, ">= 0.0"),
        (b'{"steps":1,"trains":"c"}', Recipe, "Invalid enum value 'c'"),
        (b'{"steps":1e400}', Recipe, "Recipe: "),
        (b'{"nonce":"1"}', Challenge, "matching regex"),
        (b'{"sha256":"../x","ranges":[],"window":1}', Want, "matching regex"),
        (b'{"sha256":"' + SHA.encode() + b'","ranges":[[0,1,2]],"window":1}', Want, "`array` of length 2"),
        (b'{"sha256":"' + SHA.encode() + b'","ranges":[],"window":17}', Want, "<= 16"),
        (b"[" * 100_000, Want, "Want: "),
        (b'{"body":' + b"[" * 30_000 + b"]" * 30_000 + b"}", Signed, "Signed: is nested too deeply"),
    ],
)
def test_what_is_no_message_is_one_line(payload, kind, complaint):
    with pytest.raises(ProtocolError) as refusal:
        decode_message(payload, kind)
    assert complaint in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_topics_are_golden_and_have_at_most_7_slashes():
    topics = Topics("home")
    names = [
        topics.coordinator,
        topics.challenge,
        topics.answer,
        topics.version("r8"),
        topics.blob(SHA, 5),
        topics.device("kitchen-1", "hello"),
        topics.up("kitchen-1", UPDATE, "header"),
    ]
    assert names == [
        "tunefleet/v2/home/coordinator",
        "tunefleet/v2/home/coordinator/challenge",
        "tunefleet/v2/home/coordinator/answer",
        "tunefleet/v2/home/version/r8",
        f"tunefleet/v2/home/blob/{SHA}/5",
        "tunefleet/v2/home/device/kitchen-1/hello",
        f"tunefleet/v2/home/device/kitchen-1/up/{UPDATE}/header",
    ]
    assert max(name.count("/") for name in names) <= 7


@pytest.mark.parametrize(
    ("kind", "field", "one", "most"),
    [
        (Hello, "backend", "x", 64),
        (Hello, "ranks", [8], 64),
        (Hello, "encodings", ["f16"], 16),
        (Want, "ranges", [[0, 1]], 256),
        (Receipt, "missing", [[0, 1]], 256),
        (Receipt, "detail", "x", 2000),
    ],
)
def test_every_text_and_every_list_is_bounded(kind, field, one, most):
    golden = next(msgspec.json.decode(wire) for record, wire in GOLDEN if type(record) is kind)
    decode_message(msgspec.json.encode(golden | {field: most * one}), kind)
    with pytest.raises(ProtocolError, match=f"length <= {most} - at `..{field}`"):
        decode_message(msgspec.json.encode(golden | {field: (most + 1) * one}), kind)


def test_what_is_long_is_not_looked_into():
    with pytest.raises(ProtocolError, match="Hello: 65537 bytes, expected at most 65536"):
        decode_message(b" " * 65537, Hello)


def test_privacy_and_seals_stand_in_a_manifest_only_where_there_are_some():
    manifest, header = (
        next(one for one, _ in GOLDEN if isinstance(one, k)) for k in (Manifest, UpdateHeader)
    )
    assert b"privacy" not in encode_message(manifest)
    told = msgspec.structs.replace(manifest, privacy=Terms(unit="device", noise=0.5), seal=SHA)
    end = b',"privacy":{"unit":"device","noise":0.5},"seal":"' + SHA.encode() + b'"}'
    assert encode_message(told) == encode_message(manifest)[:-1] + end
    assert decode_message(encode_message(told), Manifest) == told
    sealed = msgspec.structs.replace(header, is_sealed=True)
    assert encode_message(sealed) == encode_message(header)[:-1] + b',"is_sealed":true}'
