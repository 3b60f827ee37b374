"""A file in chunks: any order, repetitions, kills, full disks and wrong bytes."""

import hashlib
import random
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge.errors import DiskFull, Rejected
from edge.protocol.chunks import split_chunks
from edge.protocol.merkle import Tree, proof_bytes
from edge.storage.parts import PartFile

CHUNK = 1024


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def tree(data: bytes) -> Tree:
    return Tree(split_chunks(data, CHUNK))


def chunk(data: bytes, number: int) -> bytes:
    """As it comes: with its proof."""
    return tree(data).proof(number) + data[number * CHUNK : (number + 1) * CHUNK]


def new(tmp_path, data: bytes) -> PartFile:
    return PartFile(tmp_path / "parts", len(data), CHUNK, sha256(data), tree(data).root)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(size=st.integers(1, 9 * CHUNK), seed=st.integers(0, 99), restarts=st.sets(st.integers(0, 20)))
def test_chunks_in_any_order_repeated_and_over_restarts_give_the_file(tmp_path, size, seed, restarts):
    generator = random.Random(seed)
    data = generator.randbytes(size)
    order = list(range(-(-size // CHUNK))) * 2
    generator.shuffle(order)
    (tmp_path / "parts").unlink(missing_ok=True)
    part = new(tmp_path, data)
    for step, number in enumerate(order):
        if step in restarts:
            part = new(tmp_path, data)
        assert part.write(number, chunk(data, number)) is (number not in order[:step])
    assert part.received.is_complete
    assert part.received.missing() == ()
    part.finish(tmp_path / "final")
    assert (tmp_path / "final").read_bytes() == data
    assert not (tmp_path / "parts").exists()


def test_missing_names_the_holes(tmp_path):
    data = bytes(range(256)) * 40  # 10 chunks
    part = new(tmp_path, data)
    for number in (1, 2, 5, 9):
        part.write(number, chunk(data, number))
    assert part.received.missing() == ((0, 1), (3, 5), (6, 9))
    assert part.received.missing(max_ranges=2) == ((0, 1), (3, 5))


@pytest.mark.parametrize(
    ("number", "length"), [(-1, CHUNK), (3, 1), (2**60, CHUNK), (0, CHUNK - 1), (2, CHUNK), (1, 0)]
)
def test_chunks_that_do_not_belong_are_rejected(tmp_path, number, length):
    part = new(tmp_path, bytes(2 * CHUNK + 10))
    with pytest.raises(Rejected, match="malformed: chunk"):
        part.write(number, bytes(length + proof_bytes(number, 3)))
    assert part.received.missing() == ((0, 3),)


@pytest.mark.parametrize(
    "junk", [lambda good: bytes(len(good)), lambda good: good[:-1] + b"x", lambda good: b"y" + good[1:]]
)
def test_junk_is_found_out_when_it_comes_and_changes_nothing(tmp_path, junk):
    data = bytes(range(256)) * 8
    part = new(tmp_path, data)
    with pytest.raises(Rejected, match="hash-mismatch: chunk 0 does not belong") as refusal:
        part.write(0, junk(chunk(data, 0)))
    assert refusal.value.reason == "hash-mismatch"
    assert part.received.missing() == new(tmp_path, data).received.missing() == ((0, 2),)
    for number in (0, 1):
        part.write(number, chunk(data, number))
    assert part.finish(tmp_path / "final")
    assert (tmp_path / "final").read_bytes() == data


def test_what_the_disk_has_lost_is_fetched_anew_and_is_nobodys_fault(tmp_path):
    """After a power cut the trailer may say what is not so."""
    data = bytes(range(256)) * 8
    part = new(tmp_path, data)
    for number in (0, 1):
        part.write(number, chunk(data, number))
    with (tmp_path / "parts").open("r+b") as file:
        file.write(bytes(CHUNK))
    assert not part.finish(tmp_path / "final")
    assert not (tmp_path / "final").exists()
    assert part.received.missing() == new(tmp_path, data).received.missing() == ((0, 2),)


def test_a_whole_that_is_not_what_was_announced_is_its_senders_fault(tmp_path):
    data = bytes(range(256)) * 8
    part = PartFile(tmp_path / "parts", len(data), CHUNK, "0" * 64, tree(data).root)
    for number in (0, 1):
        part.write(number, chunk(data, number))
    with pytest.raises(Rejected, match="hash-mismatch: sha256"):
        part.finish(tmp_path / "final")
    assert part.received.missing() == ((0, 2),)


def test_an_unfinished_file_is_not_finished(tmp_path):
    part = new(tmp_path, bytes(CHUNK))
    with pytest.raises(Rejected, match="missing"):
        part.finish(tmp_path / "final")


def test_another_payload_at_the_same_place_starts_over(tmp_path):
    one, other = bytes(2 * CHUNK), bytes([1]) * (2 * CHUNK)
    new(tmp_path, one).write(0, chunk(one, 0))
    assert new(tmp_path, other).received.missing() == ((0, 2),)


def test_a_damaged_file_starts_over(tmp_path):
    data = bytes(2 * CHUNK)
    new(tmp_path, data).write(0, chunk(data, 0))
    with (tmp_path / "parts").open("r+b") as file:
        file.truncate(CHUNK)
    assert new(tmp_path, data).received.missing() == ((0, 2),)


def test_a_kill_between_truncation_and_renaming_loses_nothing(tmp_path):
    data = bytes(range(256)) * 8
    (tmp_path / "parts").write_bytes(data)
    part = new(tmp_path, data)
    assert part.received.is_complete
    part.finish(tmp_path / "final")
    assert (tmp_path / "final").read_bytes() == data


def test_discard_leaves_nothing(tmp_path):
    part = new(tmp_path, bytes(CHUNK))
    part.discard()
    part.discard()
    assert list(tmp_path.iterdir()) == []


WRITER = """
import hashlib, os, random, signal, sys
from pathlib import Path
from edge.protocol.merkle import Tree
from edge.storage.parts import PartFile
data = random.Random(0).randbytes(300 * 1024)
chunks = [data[start : start + 1024] for start in range(0, len(data), 1024)]
tree = Tree(chunks)
part = PartFile(Path(sys.argv[1]), len(data), 1024, hashlib.sha256(data).hexdigest(), tree.root)
order = list(range(300))
random.Random(1).shuffle(order)
for step, number in enumerate(order):
    part.write(number, tree.proof(number) + chunks[number])
    if step == 149:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_receiver_continues_where_it_stopped(tmp_path):
    subprocess.run([sys.executable, "-c", WRITER, tmp_path / "parts"], check=False)
    data = random.Random(0).randbytes(300 * 1024)
    part = new(tmp_path, data)
    missing = [number for start, end in part.received.missing(300) for number in range(start, end)]
    assert len(missing) == 150
    for number in missing:
        part.write(number, chunk(data, number))
    part.finish(tmp_path / "final")
    assert (tmp_path / "final").read_bytes() == data


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_said_so(tmp_path):
    (tmp_path / "parts").symlink_to("/dev/full")
    with pytest.raises(
        DiskFull, match=r"parts: no room for what is received .No space left on device.; free some"
    ):
        new(tmp_path, bytes(CHUNK))


def test_memory_is_a_byte_per_chunk(tmp_path):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    PartFile(tmp_path / "parts", 1 << 34, 1 << 16, "0" * 64, "0" * 64)  # 16 GiB, sparse
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16_000


def test_more_chunks_than_memory_is_for_are_refused_before_any_is_taken(tmp_path):
    with pytest.raises(Rejected, match="too-large: 1099511627 chunks, expected at most 1048576"):
        PartFile(tmp_path / "parts", 1099511627 * CHUNK, CHUNK, "0" * 64, "0" * 64)
    assert not (tmp_path / "parts").exists()
