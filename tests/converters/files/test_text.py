"""Text from outside: whatever the parsers raise, it is the caller's own error."""

import os

import msgspec
import pytest

from converters.errors import AdapterError
from converters.files.content import map_file, read_content
from converters.files.text import MAX_DEPTH, decode_object, decode_record, decode_text, decode_toml


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "is not JSON"),
        (b"[1]", "holds a list"),
        (b'{"a": ' + b"[" * 5000 + b"]" * 5000 + b"}", "nested too deeply"),
        (b'{"a":' * (MAX_DEPTH + 1) + b"1" + b"}" * (MAX_DEPTH + 1), "nested too deeply"),
        (b"{" * 5000, "nested too deeply"),
        (b'{"a": ' + b"1" * 5000 + b"}", "is not JSON: Exceeds the limit"),
        (b'{"a": "\\ud800"}', "half of a character"),
        (b'{"\\ud800": 1}', "half of a character"),
        (b'{"a": "\xff"}', "is not UTF-8 at byte 7"),
        ('{"a": 1}'.encode("utf-16"), "is not UTF-8 at byte 0"),
    ],
)
def test_an_object_that_is_none_is_the_callers_error(content, why):
    with pytest.raises(AdapterError, match=f"there: .*{why}"):
        decode_object(content, lambda told: AdapterError(f"there: {told}"))


def test_an_object_is_read_as_pythons_tools_write_it():
    content = b'\xef\xbb\xbf{"a": NaN, "b": 1000000000000000019884624838656, "c": "\\ud83d\\ude00", "d": {}}'
    found = decode_object(content, AdapterError)
    assert found["b"] == 1000000000000000019884624838656
    assert found["c"] == "\U0001f600"


def test_brackets_in_strings_are_not_depth():
    text = "[{" * 100
    content = msgspec.json.encode({"a": text, text: '\\"' + text, "b": [[] for _ in range(1000)]})
    assert decode_object(content, AdapterError)["a"] == text


def test_as_deep_as_allowed_is_read():
    content = b'{"a":' * MAX_DEPTH + b"1" + b"}" * MAX_DEPTH
    assert "a" in decode_object(content, AdapterError)


@pytest.mark.parametrize(
    "content",
    [b"[" * 5000, b"[" * 5000 + b"]" * 5000, b"1" * 5000, b"\xff", b'"\\ud800"', b"", b"NaN", b"null"],
)
def test_a_record_that_is_none_is_the_callers_error(content):
    with pytest.raises(AdapterError):
        decode_record(content, list[int], AdapterError)


def test_a_text_with_half_a_character_is_no_record():
    with pytest.raises(AdapterError):
        decode_record('"\ud800"', str, AdapterError)


@pytest.mark.parametrize(
    "content",
    [
        b"a = " + b"[" * 5000 + b"]" * 5000,
        b"a = " + b"1" * 5000,
        b"a" + b".a" * 5000 + b" = 1",
        b"[a" + b".a" * 5000 + b"]",
        b"a = \xff",
        b"\0",
        b"a = 1\na = 2",
    ],
)
def test_settings_that_are_none_are_the_callers_error(content):
    with pytest.raises(AdapterError):
        decode_toml(content, AdapterError)


def test_what_is_no_utf8_is_the_callers_error():
    with pytest.raises(AdapterError, match="is not UTF-8 at byte 1"):
        decode_text(b"a\xc3\x28", AdapterError)


def test_what_is_no_file_is_the_callers_error(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")  # reading it would wait for ever
    told = {"loop": "symbolic links", "dangling": "No such file", "pipe": "a pipe", ".": "Is a directory"}
    for read in (read_content, map_file):
        for name, why in told.items():
            with pytest.raises(AdapterError, match=f"cannot be read: .*{why}"):
                read(tmp_path / name, AdapterError)
        for name in ("a\0b", "x" * 5000, "a\ud800"):
            with pytest.raises(AdapterError, match="cannot be read"):
                read(tmp_path / name, AdapterError)


def test_a_file_is_read_and_mapped(tmp_path):
    (tmp_path / "a").write_bytes(b"bytes")
    (tmp_path / "empty").write_bytes(b"")
    assert (
        read_content(tmp_path / "a", AdapterError)
        == bytes(map_file(tmp_path / "a", AdapterError))
        == b"bytes"
    )
    assert map_file(tmp_path / "empty", AdapterError) == b""
