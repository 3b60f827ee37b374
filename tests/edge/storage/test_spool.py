import errno

import numpy as np
import pytest

from converters.adapter import Factors, LoraAdapter
from edge.errors import DiskFull, StateError
from edge.storage.spool import Spool


def adapter(value):
    return LoraAdapter(
        {"q": Factors(np.full((1, 2), value, np.float32), np.full((3, 1), value, np.float32), 2.0)}
    )


@pytest.fixture
def header(make_header):
    def make(version, attempt=0):
        return make_header(b"payload", device_id="lamp", base_version=version, attempt=attempt)

    return make


def add(header, spool, version, attempt=0, residual=None):
    head = header(version, attempt)
    spool.add(head, b"payload", residual)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "spool").mkdir()
    return tmp_path / "spool"


def make(folder):
    return Spool(folder, folder.parent / "residual.safetensors")


def test_updates_are_there_after_a_restart_oldest_first(folder, header):
    for version, attempt in ((10, 0), (2, 1), (2, 0)):
        add(header, make(folder), version, attempt)
    entries = make(folder).entries()
    assert [(one.header.base_version, one.header.attempt) for one in entries] == [(2, 0), (2, 1), (10, 0)]
    assert entries[0].payload.read_bytes() == b"payload"
    assert make(folder).holds(2, 1)
    assert not make(folder).holds(3, 0)


def test_after_a_restore_of_the_coordinator_updates_are_in_the_order_of_time(folder, header):
    """Its versions fall, its epochs rise; what was spooled before epochs were told comes first."""
    for version, epoch in ((58, 1_760_000_000_001), (72, 1_760_000_000_000), (99, 0)):
        head = header(version)
        make(folder).add(head, b"payload", adapter(version), epoch)
    entries = make(folder).entries()
    assert [one.header.base_version for one in entries] == [99, 72, 58]
    assert make(folder).residual() == adapter(58)
    assert make(folder).holds(58, 0, 1_760_000_000_001)
    assert not make(folder).holds(58, 0, 1_760_000_000_000)


def test_what_a_kill_left_half_done_is_no_update(folder, header):
    (folder / ".draft").mkdir()
    (folder / ".draft" / "header.json").write_text("{")
    spool = make(folder)
    assert spool.entries() == []
    add(header, spool, 1)
    assert len(spool.entries()) == 1


def test_an_accepted_update_leaves_its_residual(folder, header):
    spool = make(folder)
    assert spool.residual() is None
    add(header, spool, 0, residual=adapter(0.5))
    assert spool.residual() == adapter(0.5)
    spool.accept(spool.entries()[0])
    assert spool.entries() == []
    assert make(folder).residual() == adapter(0.5)


def test_a_refused_update_takes_its_residual_with_it(folder, header):
    spool = make(folder)
    add(header, spool, 0, residual=adapter(0.5))
    spool.accept(spool.entries()[0])
    add(header, spool, 1, residual=adapter(0.25))
    assert spool.residual() == adapter(0.25)
    spool.drop(spool.entries()[0])
    assert spool.residual() == adapter(0.5)


def test_accepting_again_after_a_kill_in_between_changes_nothing(folder, header):
    spool = make(folder)
    add(header, spool, 0, residual=adapter(0.5))
    (folder / "0000000000-000000" / "residual.safetensors").replace(folder.parent / "residual.safetensors")
    assert spool.residual() == adapter(0.5)
    spool.accept(spool.entries()[0])
    assert spool.residual() == adapter(0.5)


def test_a_full_disk_adds_nothing_and_leaves_nothing(folder, monkeypatch, header):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    spool = make(folder)
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(DiskFull, match=r"spool: no room for an update \(No space left"):
            add(header, spool, 0)
    assert list(folder.iterdir()) == []
    add(header, spool, 0)
    assert len(spool.entries()) == 1


def test_a_damaged_header_is_told_by_its_path(folder, header):
    spool = make(folder)
    add(header, spool, 0)
    (folder / "0000000000-000000" / "header.json").write_text("{}")
    with pytest.raises(StateError, match=r"header.json: is damaged.*remove .*0000000000-000000"):
        spool.entries()


def add_noised(header, spool, version, residual, *, is_noised):
    head = header(version)
    spool.add(head, b"payload", residual, is_noised=is_noised)


@pytest.mark.parametrize("is_accepted", [False, True])
def test_what_an_update_without_noise_left_over_is_never_added_to_one_with_noise(folder, header, is_accepted):
    spool = make(folder)
    add_noised(header, spool, 1, adapter(1.0), is_noised=False)
    if is_accepted:
        spool.accept(spool.entries()[0])
    assert spool.residual() == adapter(1.0)
    assert make(folder).residual(is_noised=True) is None
    add_noised(header, spool, 2, adapter(2.0), is_noised=True)
    if is_accepted:
        spool.accept(spool.entries()[0])
    assert make(folder).residual(is_noised=True) == adapter(2.0)
    assert make(folder).residual() == adapter(2.0)  # noise may go anywhere
    add_noised(header, spool, 3, adapter(3.0), is_noised=False)
    if is_accepted:
        spool.accept(spool.entries()[0])
    assert make(folder).residual(is_noised=True) is None
    assert make(folder).residual() == adapter(3.0)
