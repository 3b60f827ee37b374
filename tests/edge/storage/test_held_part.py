"""A small payload in chunks: any order, repetitions and wrong bytes, as `PartFile` has them."""

import hashlib
import random

import hypothesis.strategies as st
import pytest
from hypothesis import given

from edge.errors import Rejected
from edge.protocol.chunks import split_chunks
from edge.protocol.merkle import Tree
from edge.storage.held_part import HeldPart

CHUNK = 1024


def new(data, sha256=None):
    tree = Tree(split_chunks(data, CHUNK))
    return HeldPart(len(data), CHUNK, sha256 or hashlib.sha256(data).hexdigest(), tree.root)


def messages(data):
    tree = Tree(split_chunks(data, CHUNK))
    return [tree.proof(number) + chunk for number, chunk in enumerate(split_chunks(data, CHUNK))]


@given(size=st.integers(0, 9 * CHUNK), seed=st.integers(0, 99))
def test_chunks_in_any_order_and_repeated_give_the_payload(size, seed):
    generator = random.Random(seed)
    data = generator.randbytes(size)
    part, chunks = new(data), messages(data)
    order = list(range(len(chunks))) * 2
    generator.shuffle(order)
    for step, number in enumerate(order):
        assert part.write(number, chunks[number]) is (number not in order[:step])
    assert part.received.is_complete
    assert part.content() == data


def test_what_is_none_of_its_chunks_is_refused_and_never_kept():
    data = random.Random(1).randbytes(3 * CHUNK)
    part, chunks = new(data), messages(data)
    for number, message, reason in (
        (1, chunks[0], "hash-mismatch"),
        (3, chunks[2], "malformed"),
        (1, chunks[1] + b"x", "malformed"),
        (1, b"", "malformed"),
    ):
        with pytest.raises(Rejected, match=reason):
            part.write(number, message)
    assert part.received.missing() == ((0, 3),)
    with pytest.raises(Rejected, match="are missing"):
        part.content()


def test_a_payload_that_is_not_what_its_header_says_is_refused():
    data = b"x" * CHUNK
    part = new(data, sha256="0" * 64)
    part.write(0, messages(data)[0])
    with pytest.raises(Rejected, match="hash-mismatch"):
        part.content()
