import pytest

from coordinator.intake.open_uploads import MAX_PER_DEVICE, Uploads
from coordinator.ledger.sqlite import SqliteJournal
from edge.errors import Rejected
from edge.protocol.chunks import split_chunks
from edge.protocol.merkle import Tree
from edge.protocol.messages import encode_message

PAYLOAD = bytes(3000)
TREE = Tree(split_chunks(PAYLOAD, 1024))


@pytest.fixture
def header(make_header):
    return lambda number, device_id="x": make_header(PAYLOAD, attempt=number, device_id=device_id)


@pytest.fixture
def folders(tmp_path):
    for name in ("incoming", "updates"):
        (tmp_path / name).mkdir()
    return tmp_path / "incoming", tmp_path / "updates"


def begin(uploads, header):
    return uploads.begin(header, encode_message(header))


def opened(header, uploads, devices="xyz"):
    return [n for n in range(20) for d in devices if uploads.find(d, header(n, d).update)]


def test_the_one_without_progress_for_longest_makes_room(folders, header):
    uploads = Uploads(*folders, max_open=3)
    for number, device_id in enumerate("xyz"):
        begin(uploads, header(number, device_id))
    uploads.write(uploads.find("x", header(0).update), 0, TREE.proof(0) + PAYLOAD[:1024])
    begin(uploads, header(3, "x"))
    assert opened(header, uploads) == [0, 2, 3]
    assert len(list(folders[0].iterdir())) == 6


def test_one_device_cannot_take_all_the_room(folders, header):
    uploads = Uploads(*folders, max_open=100)
    begin(uploads, header(10, "y"))
    for number in range(MAX_PER_DEVICE + 2):
        begin(uploads, header(number))
    assert opened(header, uploads) == [2, 3, 4, 5, 10]


def test_a_device_finds_its_own_uploads_only(folders, header):
    uploads = Uploads(*folders, max_open=3)
    begin(uploads, header(1, "x"))
    assert uploads.find("y", header(1).update) is None


def test_a_chunk_that_cannot_be_is_rejected(folders, header):
    uploads = Uploads(*folders, max_open=3)
    upload = begin(uploads, header(1))
    for number, chunk in ((3, b""), (-1, PAYLOAD[:1024]), (0, PAYLOAD[:1023]), (2**60, PAYLOAD[:1024])):
        with pytest.raises(Rejected, match="malformed"):
            uploads.write(upload, number, chunk)


def test_another_process_takes_up_what_was_under_way(tmp_path, folders, header):
    first = Uploads(*folders, max_open=3)
    first.write(begin(first, header(1)), 1, TREE.proof(1) + PAYLOAD[1024:2048])
    begin(first, header(2))
    (folders[0] / "left-over.part").write_bytes(b"")
    (folders[0] / f"{'f' * 32}.header").write_bytes(b"of an older version")
    journal = SqliteJournal(None, "home")
    journal.record(header(2), at=0.0)
    second = Uploads(*folders, max_open=3)
    second.recover(journal)
    assert opened(header, second) == [1]
    assert second.find("x", header(1).update).part.received.missing() == ((0, 1), (2, 3))
    assert {path.name for path in folders[0].iterdir()} == {
        f"{header(1).update}.{kind}" for kind in ("header", "part")
    }
