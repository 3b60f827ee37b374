"""A device's key: made once, replaced in one step, with the word of those before it."""

import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import StateError
from edge.protocol.enrolment import MAX_ROTATIONS, check_rotations
from edge.protocol.signing import public_key
from edge.storage.identity import FILE, read_identity, read_rotations, rotate_identity

ADVICE = "restore it"


def key_of(folder):
    return public_key(read_identity(folder, ADVICE))


def rotate(folder):
    return rotate_identity(folder, "home", "lamp", ADVICE)


def test_a_key_of_the_release_before_is_read_and_has_no_word_behind_it(tmp_path):
    (tmp_path / FILE).write_text("ab" * 32)
    assert read_identity(tmp_path, ADVICE) == b"\xab" * 32
    assert read_rotations(tmp_path, ADVICE) == ()


def test_each_new_key_is_led_to_from_all_before_it(tmp_path):
    keys = [key_of(tmp_path)]
    for _ in range(3):
        rotate(tmp_path)
        keys.append(key_of(tmp_path))
    chain = read_rotations(tmp_path, ADVICE)
    assert check_rotations(chain, "home", "lamp", keys[0]) == tuple(keys)
    assert stat.S_IMODE((tmp_path / FILE).stat().st_mode) == 0o600


def test_a_chain_keeps_its_newest_words(tmp_path):
    key_of(tmp_path)
    for _ in range(MAX_ROTATIONS + 2):
        rotate(tmp_path)
    chain = read_rotations(tmp_path, ADVICE)
    assert (len(chain), chain[-1].new) == (MAX_ROTATIONS, key_of(tmp_path))


def test_a_kill_while_the_key_is_replaced_leaves_the_old_one(tmp_path):
    before = key_of(tmp_path)
    (tmp_path / f".{FILE}.partial").write_text("half of a")
    assert key_of(tmp_path) == before
    rotate(tmp_path)
    assert key_of(tmp_path) != before


def test_where_there_is_no_key_there_is_none_to_replace(tmp_path):
    with pytest.raises(StateError, match="holds no key that another could replace"):
        rotate(tmp_path)
    assert list(tmp_path.iterdir()) == []


@given(st.binary(max_size=300))
def test_a_damaged_file_is_one_error(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("device")
    (folder / FILE).write_bytes(b"zz" + content)
    with pytest.raises(StateError, match=r"identity\.key: is damaged"):
        read_identity(folder, ADVICE)


@pytest.mark.parametrize("behind", [b"x", b"{}", b"[" * 5000, b"\xff", b'{"fleet":"home"}'])
def test_a_damaged_word_behind_the_key_is_one_error(tmp_path, behind):
    (tmp_path / FILE).write_bytes(b"ab" * 32 + b"\n" + behind)
    with pytest.raises(StateError, match="is damaged behind its key"):
        read_rotations(tmp_path, ADVICE)
