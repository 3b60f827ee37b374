"""Chunks and the algebra of their ranges."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.protocol.chunks import (
    chunk_length,
    chunk_numbers,
    first_chunks,
    merge_ranges,
    missing_ranges,
    num_chunks,
    split_chunks,
)

ranges = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)))


@given(st.binary(max_size=100), st.integers(1, 30))
def test_chunks_joined_are_the_payload(payload, chunk_bytes):
    chunks = list(split_chunks(payload, chunk_bytes))
    assert b"".join(chunks) == payload
    assert len(chunks) == num_chunks(len(payload), chunk_bytes)
    assert [len(c) for c in chunks] == [
        chunk_length(n, len(payload), chunk_bytes) for n in range(len(chunks))
    ]


@pytest.mark.parametrize("number", [-1, 3, 2**53])
def test_a_chunk_outside_the_payload_has_no_length(number):
    assert chunk_length(number, 250, 100) <= 0


@given(st.lists(st.booleans()))
def test_missing_ranges_are_the_false_ones(present):
    found = missing_ranges(present, max_ranges=len(present) + 1)
    assert list(chunk_numbers(found)) == [n for n, here in enumerate(present) if not here]
    assert missing_ranges(present, max_ranges=2) == found[:2]


@given(ranges, st.integers(0, 50))
def test_merged_ranges_are_the_union_within_the_payload(parts, total):
    merged = merge_ranges(parts, total)
    wanted = {n for start, end in parts for n in range(start, end) if n < total}
    assert list(chunk_numbers(merged)) == sorted(wanted)
    assert all(one[1] < other[0] for one, other in itertools.pairwise(merged))


@given(ranges, st.integers(0, 50))
def test_the_first_chunks_of_ranges(parts, count):
    merged = merge_ranges(parts, 60)
    assert list(chunk_numbers(first_chunks(merged, count))) == list(chunk_numbers(merged))[:count]


def test_a_hostile_range_costs_nothing():
    assert merge_ranges([(0, 2**53), (2**53, 0), (2**52, 2**53)], total=3) == ((0, 3),)
