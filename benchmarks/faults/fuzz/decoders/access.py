"""What lets devices in: tokens as people paste them, lists, what waits to be told; and a device's account."""

from collections.abc import Iterator
from pathlib import Path

import msgspec

from benchmarks.faults.fuzz.decoders.folder import Replaced
from benchmarks.faults.fuzz.target import Target
from coordinator.access.device_list import read_device_list
from edge.device.budget import read_spendings
from edge.protocol.enrolment import draw_token, make_claim, read_token, write_token
from edge.protocol.signing import new_key, public_key
from edge.storage.enrolment import Enrolment, read_enrolment, save_enrolment


def targets(root: Path) -> Iterator[Target]:
    """Lists the readers of what lets devices in; files lie below `root`."""
    folder = root / "access"
    folder.mkdir()
    private = new_key()
    token = draw_token(private, "home", 2_000_000_000, 1)
    word = write_token(token).encode()
    yield Target("access/token", "bytes", [word], _read_token, 10)
    names = b"# id and key\nlamp " + b"a" * 64 + b"\nfan " + b"b" * 64 + b" # the tall one\n"
    decode = Replaced(folder, "devices", lambda path: read_device_list(path / "devices"))
    yield Target("access/devices", "bytes", [names], decode, 3)
    claim = make_claim(token, "lamp", public_key(new_key()))
    enrolment = Enrolment(fleet="home", device_id="lamp", coordinator=public_key(private), claim=claim)
    save_enrolment(folder, enrolment)
    seed = (folder / "enrolment.json").read_bytes()
    yield Target(
        "access/enrolment.json", "json", [seed], Replaced(folder, "enrolment.json", read_enrolment), 4
    )
    spent = {"at": 1.8e9, "epoch": 1, "version": 2, "attempt": 0, "unit": "example", "noise": 1.0}
    spent |= {"clip_norm": 1.0, "place": "device", "num_steps": 20}
    line = msgspec.json.encode(spent) + b"\n"
    decode = Replaced(folder, "privacy.jsonl", lambda path: read_spendings(path / "privacy.jsonl"))
    yield Target("access/privacy.jsonl", "lines", [line * 3], decode, 4)


def _read_token(text: bytes) -> None:
    read_token(text.decode("utf-8", "replace"))
