"""What strangers write, as it may be shown."""

import json

import pytest

from converters.plain import harmless, plain, plain_json, plain_lines

HOSTILE = "[/red]\x1b[2J\u202e\x9b31m\r\nfake\x00\ud800"


def test_what_steers_a_terminal_is_escaped():
    assert plain(HOSTILE) == "[/red]\\x1b[2J\\u202e\\x9b31m\\r\\nfake\\x00\\ud800"
    assert plain("naïve 水 😀") == "naïve 水 😀"


def test_a_long_text_is_cut_and_anything_can_be_shown():
    assert plain("x" * 50, 10) == "xxxxxxxxx…"
    assert plain(ValueError("a\nb")) == "a\\nb"


def test_lines_stay_lines():
    assert plain_lines("a\x1b\nb") == "a\\x1b\nb"


@pytest.mark.parametrize("text", ["\u202e", "\x7f", "\x9b", "\U000e0001", "水", "a\nb"])
def test_json_is_escaped_as_json_does_and_says_the_same(text):
    told = plain_json(json.dumps({"text": text}, ensure_ascii=False))
    assert told.isprintable()
    assert json.loads(told) == {"text": text}


def test_what_a_model_says_keeps_its_letters_and_steers_nothing():
    assert harmless("a\n\tb\x1b[2J\x9b\u202edcba\u2066") == "a\n\tb\ufffd[2J\ufffd\ufffddcba\ufffd"
    for written in ("👩\u200d💻", "\u0645\u06cc\u200c\u062e", "naïve 水"):
        assert harmless(written) == written
