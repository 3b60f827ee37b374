from contextlib import closing
from typing import NamedTuple

import numpy as np
import pytest

from converters.adapter import Factors, LoraAdapter
from coordinator.errors import UnknownVersion
from coordinator.ledger.contract import Journal
from coordinator.ledger.objects import MemoryObjects
from coordinator.ledger.sqlite import SqliteJournal
from coordinator.ledger.state import CoordinatorState
from coordinator.ledger.versions import VersionStore
from coordinator.strategies.contract import Account, Report, Share, State


def adapter(value):
    return LoraAdapter({"m": Factors(np.full((2, 3), value, np.float32), np.ones((4, 2), np.float32), 1.0)})


def report(*updates):
    shares = tuple(
        Share(update=one, device="x", base_version=0, staleness=1, num_examples=1, weight=0.5, norm=1.0)
        for one in updates
    )
    return Report(strategy="fedbuff", space="product", shares=shares, step_norm=1.0)


@pytest.fixture
def header(make_header):
    return lambda number, base_version=0: make_header(tier="r2", attempt=number, base_version=base_version)


class Ledger(NamedTuple):
    """As a coordinator's state."""

    journal: Journal
    versions: VersionStore


@pytest.fixture(params=["folder", "memory"])
def state(request, tmp_path):
    if request.param == "folder":
        with CoordinatorState(tmp_path, "home") as opened:
            yield opened
    else:
        journal = SqliteJournal(None, "home")
        yield Ledger(journal, VersionStore(journal, MemoryObjects()))


def grow(state, count):
    """Versions 0 … count - 1, each of its own number."""
    for number in range(count):
        files = state.versions.store(State(number, adapter(number)), {"r2": adapter(number)})
        state.versions.add(files, number - 1 if number else None, report() if number else None, float(number))


def test_a_version_is_what_was_stored(state):
    files = state.versions.store(State(0, adapter(1), adapter(2)), {"r2": adapter(1)})
    made = state.versions.add(files, None, None, 7.0)
    assert (made.version, made.parent, made.depth, made.created_at) == (0, None, 0, 7.0)
    assert state.versions.current() == made
    assert state.versions.state(made) == State(0, adapter(1), adapter(2))
    assert made.tiers["r2"] == made.master


def test_what_a_strategy_carries_is_what_the_next_merge_begins_from(state):
    carried = State(
        0,
        adapter(1),
        adapter(2),
        {"m": adapter(3), "v": adapter(4)},
        {"x": Account(2, 0.5, -0.25)},
        (1.0, 2.0),
    )
    made = state.versions.add(state.versions.store(carried, {}), None, None, 7.0)
    assert state.versions.state(made, state.versions.accounts()) == carried


def test_a_rollback_brings_back_moments_and_norms_and_leaves_the_accounts_of_what_happened(state):
    for number, norm in enumerate((0.5, 2.0)):
        carried = State(
            number,
            adapter(number),
            None,
            {"m": adapter(10 + number)},
            {"x": Account(number)},
            (norm,),
        )
        state.versions.add(state.versions.store(carried, {}), number - 1 if number else None, None, 0.0)
    state.versions.rollback(0, 9.0)
    now = state.versions.state(state.versions.current(), state.versions.accounts())
    assert (now.version, now.norms) == (2, (0.5,))
    assert now.moments == {"m": adapter(10)}
    assert now.accounts == {"x": Account(1)}


def test_moments_lose_their_files_with_their_version(state):
    for number in range(2):
        carried = State(number, adapter(number), None, {"m": adapter(10 + number)})
        state.versions.add(state.versions.store(carried, {}), number - 1 if number else None, None, 0.0)
    state.versions.collect(keep_versions=1)
    assert state.versions.objects.names() == state.versions.current().files
    assert len(state.versions.current().files) == 2


def test_a_version_takes_its_updates_out_of_the_buffer(state, header):
    grow(state, 1)
    state.journal.record(header(1), 0.0)
    state.journal.record(header(2), 0.0)
    files = state.versions.store(State(1, adapter(1)), {})
    made = state.versions.add(files, 0, report(header(1).update), 1.0)
    assert [update.id for update in state.journal.waiting()] == [header(2).update]
    merged = state.journal.update(header(1).update)
    assert (merged.merged_into, merged.weight, merged.staleness) == (1, 0.5, 1)
    assert state.versions.version(1).report == made.report


def test_a_merge_that_a_rollback_overtook_changes_nothing(state, header):
    grow(state, 3)
    state.journal.record(header(1), 0.0)
    files = state.versions.store(State(3, adapter(3), accounts={"x": Account(1)}), {})
    state.versions.rollback(0, 9.0)
    assert state.versions.add(files, 2, report(header(1).update), 1.0) is None
    assert state.versions.current().version == 3
    assert state.versions.accounts() == {}
    assert [update.id for update in state.journal.waiting()] == [header(1).update]


def test_a_rollback_is_a_new_version_of_old_files_whose_parent_is_the_old_one(state):
    grow(state, 4)
    made = state.versions.rollback(1, 9.0)
    assert (made.version, made.parent, made.depth) == (4, 1, 1)
    assert state.versions.state(made).adapter == adapter(1)
    assert state.versions.lineage(4) == {4: 1, 1: 1, 0: 0}
    assert state.versions.lineage(3) == {3: 3, 2: 2, 1: 1, 0: 0}


def test_a_rollback_discards_what_was_learnt_on_what_is_gone(state, header):
    grow(state, 3)
    for number, base_version in ((1, 0), (2, 2)):
        state.journal.record(header(number, base_version), 0.0)
    state.versions.rollback(1, 9.0)
    assert [update.base_version for update in state.journal.waiting()] == [0]
    gone = state.journal.update(header(2, 2).update)
    assert (gone.status, gone.reason, gone.detail) == ("discarded", "rolled-back", "version 3 went back to 1")


def test_old_versions_lose_their_files_and_keep_their_rows(state):
    grow(state, 5)
    state.versions.objects.put("of-a-merge-that-was-killed", b"")
    state.versions.collect(keep_versions=2)
    assert [version.kept for version in state.versions.history()] == [False] * 3 + [True] * 2
    assert state.versions.objects.names() == {version.master for version in state.versions.history(limit=2)}
    assert [version.version for version in state.versions.kept()] == [3, 4]
    with pytest.raises(UnknownVersion, match="version 1 is no longer kept"):
        state.versions.rollback(1, 0.0)
    with pytest.raises(UnknownVersion, match="version 1 is no longer kept"):
        state.versions.state(state.versions.version(1))


def test_a_version_that_is_held_keeps_its_files_however_old_it_is(state):
    grow(state, 5)
    state.versions.collect(keep_versions=1, held={1, 3})
    assert [version.version for version in state.versions.kept()] == [1, 3, 4]
    assert state.versions.state(state.versions.version(1)).adapter == adapter(1)
    state.versions.collect(keep_versions=1, held={0, 3})
    assert [version.version for version in state.versions.kept()] == [3, 4]


def test_files_that_a_kept_version_shares_with_an_old_one_stay(state):
    grow(state, 3)
    made = state.versions.rollback(0, 9.0)
    state.versions.collect(keep_versions=1)
    assert state.versions.state(made).adapter == adapter(0)


def test_a_version_that_was_never_made_is_unknown(state):
    with pytest.raises(UnknownVersion, match="version 3 was never made: there is none yet"):
        state.versions.version(3)
    grow(state, 2)
    with pytest.raises(UnknownVersion, match="version 3 was never made: the newest is 1"):
        state.versions.rollback(3, 0.0)


def test_a_payload_that_was_damaged_leaves_the_buffer_at_the_start(tmp_path, header):
    with CoordinatorState(tmp_path, "home") as state:
        state.journal.record(header(1), 0.0)
        (state.updates / header(1).update).write_bytes(b"other")
        (state.updates / "nobody's").write_bytes(b"other")
        assert state.recover() == [header(1).update]
        assert not (state.updates / "nobody's").exists()
    with closing(SqliteJournal(tmp_path)) as journal:
        assert journal.update(header(1).update).status == "discarded"


def test_a_version_that_holds_an_update_of_a_device_banned_meanwhile_is_not_made(state, header):
    grow(state, 1)
    for number in range(2):
        state.journal.record(header(number), at=1.0)
    ids = [update.id for update in state.journal.waiting()]
    files = state.versions.store(State(1, adapter(1)), {"r2": adapter(1)})
    assert state.journal.access.ban("x", 2.0) == 2
    assert state.versions.add(files, 0, report(*ids), 3.0) is None
    assert state.versions.current().version == 0
    assert {update.status for update in state.journal.updates()} == {"discarded"}
