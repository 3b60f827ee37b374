import hashlib
from contextlib import closing

import pytest

from coordinator.intake.open_uploads import MAX_PER_DEVICE, Uploads
from coordinator.ledger.sqlite import SqliteJournal
from edge.errors import Rejected
from edge.protocol.messages import UpdateHeader

PAYLOAD = bytes(3000)


def header(number, device_id="x"):
    return UpdateHeader(
        update=f"{number:032x}", fleet="home", device_id=device_id, tier="r2", base_version=0, base="ab" * 32,
        attempt=number, sha256=hashlib.sha256(PAYLOAD).hexdigest(), size_bytes=len(PAYLOAD), chunk_bytes=1024,
        encoding="f32", num_examples=1, num_tokens=2, num_steps=3, seconds=4.0, loss_before=2.0,
        loss_after=1.0,
    )  # fmt: skip


@pytest.fixture
def folders(tmp_path):
    for name in ("incoming", "updates"):
        (tmp_path / name).mkdir()
    return tmp_path / "incoming", tmp_path / "updates"


def opened(uploads, devices="xyz"):
    return [n for n in range(20) for d in devices if uploads.find(d, header(n).update)]


def test_the_one_without_progress_for_longest_makes_room(folders):
    uploads = Uploads(*folders, max_open=3)
    for number, device_id in enumerate("xyz"):
        uploads.begin(header(number, device_id))
    uploads.write(uploads.find("x", header(0).update), 0, PAYLOAD[:1024])
    uploads.begin(header(3, "x"))
    assert opened(uploads) == [0, 2, 3]
    assert len(list(folders[0].iterdir())) == 6


def test_one_device_cannot_take_all_the_room(folders):
    uploads = Uploads(*folders, max_open=100)
    uploads.begin(header(10, "y"))
    for number in range(MAX_PER_DEVICE + 2):
        uploads.begin(header(number))
    assert opened(uploads) == [2, 3, 4, 5, 10]


def test_a_device_finds_its_own_uploads_only(folders):
    uploads = Uploads(*folders, max_open=3)
    uploads.begin(header(1, "x"))
    assert uploads.find("y", header(1).update) is None


def test_a_chunk_that_cannot_be_is_rejected(folders):
    uploads = Uploads(*folders, max_open=3)
    upload = uploads.begin(header(1))
    for number, chunk in ((3, b""), (-1, PAYLOAD[:1024]), (0, PAYLOAD[:1023]), (2**60, PAYLOAD[:1024])):
        with pytest.raises(Rejected, match="malformed"):
            uploads.write(upload, number, chunk)


def test_another_process_takes_up_what_was_under_way(tmp_path, folders):
    first = Uploads(*folders, max_open=3)
    first.write(first.begin(header(1)), 1, PAYLOAD[1024:2048])
    first.begin(header(2))
    (folders[0] / "left-over.part").write_bytes(b"")
    (folders[0] / f"{'f' * 32}.header").write_bytes(b"of an older version")
    with closing(SqliteJournal(tmp_path, "home")) as journal:
        journal.record(header(2), at=0.0)
        second = Uploads(*folders, max_open=3)
        second.recover(journal)
    assert opened(second) == [1]
    assert second.find("x", header(1).update).part.missing() == ((0, 1), (2, 3))
    assert {path.name for path in folders[0].iterdir()} == {
        f"{header(1).update}.{kind}" for kind in ("header", "part")
    }
