"""Text from tokens one at a time, whatever a tokenizer does with bytes."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.backends.toy import EOS, ByteTokenizer
from edge.training.text_stream import BROKEN, MOST_HELD, TextStream

BYTES = ByteTokenizer()
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=BROKEN), max_size=40)


class Spelling:
    """SentencePiece's ways: "▁" for a space, one left out at the beginning, bytes for rare letters."""

    def encode(self, text):
        pieces = ("▁" + text.replace(" ", "▁")).replace("▁a", "\0")
        return [part for letter in pieces for part in self._spell(letter)]

    def decode(self, tokens):
        whole = b"".join("▁a".encode() if token == 300 else bytes([token]) for token in tokens)
        return whole.decode(errors="replace").replace("▁", " ").removeprefix(" ")

    def _spell(self, letter):
        return [300] if letter == "\0" else list(letter.encode())


def spell(tokenizer, tokens):
    stream = TextStream(tokenizer)
    pieces = [*map(stream.push, tokens), stream.end()]
    assert "".join(pieces) == stream.text
    return pieces


@pytest.mark.parametrize("tokenizer", [BYTES, Spelling()], ids=["bytes", "sentencepiece"])
@settings(max_examples=200)
@given(text=TEXTS)
def test_no_piece_ends_within_a_character_and_none_is_lost(tokenizer, text):
    tokens = tokenizer.encode(text)
    pieces = spell(tokenizer, tokens)
    assert "".join(pieces) == tokenizer.decode(tokens)
    assert not any(BROKEN in piece for piece in pieces)


@settings(max_examples=200)
@given(text=TEXTS, cut=st.integers(0, 60))
def test_a_character_that_is_cut_off_is_left_out(text, cut):
    told = "".join(spell(BYTES, BYTES.encode(text)[:cut]))
    assert text.startswith(told)
    assert len(told.encode()) > min(cut, len(text.encode())) - 4


def test_text_comes_at_once_where_nothing_is_missing():
    assert spell(BYTES, BYTES.encode("hä")) == ["h", "", "ä", ""]


def test_special_tokens_are_no_text():
    assert spell(BYTES, [*b"a", EOS, *b"b"]) == ["a", "", "b", ""]


def test_bytes_that_are_broken_for_good_hold_nothing_back_for_long():
    pieces = spell(BYTES, [0x80] * MOST_HELD + [*b"ok"])
    assert pieces[MOST_HELD - 1] == BROKEN * MOST_HELD
    assert pieces[-3:] == ["o", "k", ""]
