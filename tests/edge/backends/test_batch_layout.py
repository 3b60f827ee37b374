import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.backends.batch_layout import (
    ROW_TOKENS,
    group_by_length,
    one_row,
    pack_rows,
    round_up,
    row_each,
)
from edge.backends.contract import Batch

LENGTHS = st.lists(st.integers(1, 700), min_size=1, max_size=40)


def numbered(lengths) -> Batch:
    """Example n's tokens are 100 n + 1, 100 n + 2, …; each one's target is the next."""
    tokens = np.concatenate([100 * n + 1 + np.arange(length) for n, length in enumerate(lengths)])
    tokens = tokens.astype(np.int32)
    return Batch(tokens, tokens + 1, np.ones(len(tokens), np.float32), np.array(lengths))


@pytest.fixture
def batch():
    return numbered([3, 2, 4])


def test_one_row_has_no_padding_unless_it_is_widened(batch):
    rows = one_row(batch)
    assert rows.tokens.tolist() == [[1, 2, 3, 101, 102, 201, 202, 203, 204]]
    assert rows.segments.tolist() == [[1, 1, 1, 2, 2, 3, 3, 3, 3]]
    assert rows.positions.tolist() == [[0, 1, 2, 0, 1, 0, 1, 2, 3]]
    assert rows.places.tolist() == list(range(9))
    wide = one_row(batch, width=12)
    assert wide.tokens.shape == (1, 12)
    assert wide.segments[0, 9:].tolist() == [0, 0, 0]


def test_each_example_can_have_a_row_of_its_own(batch):
    rows = row_each(batch)
    assert rows.tokens.tolist() == [[1, 2, 3, 0], [101, 102, 0, 0], [201, 202, 203, 204]]
    assert rows.segments.tolist() == [[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]]
    assert rows.places.tolist() == [0, 1, 2, 4, 5, 8, 9, 10, 11]


def test_packed_rows_hold_short_examples_beside_long_ones():
    rows = pack_rows(numbered([20, 30, 12, 2]))
    assert rows.tokens.shape == (2, 32)
    assert rows.segments.tolist() == [[1] * 30 + [2] * 2, [1] * 20 + [2] * 12]
    assert rows.positions.tolist() == [[*range(30), 0, 1], [*range(20), *range(12)]]


@pytest.mark.parametrize("layout", [one_row, row_each, pack_rows])
@given(lengths=LENGTHS)
def test_every_token_has_a_place_of_its_own_whatever_the_layout(layout, lengths):
    batch = numbered(lengths)
    rows = layout(batch)
    assert np.array_equal(rows.tokens.ravel()[rows.places], batch.tokens)
    assert np.array_equal(rows.positions.ravel()[rows.places], batch.positions)
    assert np.count_nonzero(rows.segments) == batch.num_tokens
    width, segments = rows.tokens.shape[1], rows.segments.ravel()
    owners = {(place // width, int(segments[place])) for place in rows.places}
    assert len(owners) == batch.num_examples
    assert all(np.ptp(rows.places[at]) == at.stop - at.start - 1 for at in batch.spans)


@given(lengths=LENGTHS)
def test_packed_rows_are_no_wider_than_the_longest_example_asks_for(lengths):
    rows = pack_rows(numbered(lengths))
    assert rows.tokens.shape[1] % 32 == 0
    assert rows.tokens.shape[1] < max(ROW_TOKENS, *lengths) + 32


def test_packed_rows_are_nearly_full_on_mixed_lengths():
    lengths = np.random.default_rng(0).integers(10, 400, 40)
    assert lengths.sum() / pack_rows(numbered(lengths)).tokens.size > 0.9


def test_examples_of_like_lengths_share_a_group(batch):
    groups = group_by_length(batch)
    assert [group.tokens.tolist() for group in groups] == [[201, 202, 203, 204], [1, 2, 3], [101, 102]]


@given(lengths=LENGTHS)
def test_groups_are_the_batch_and_their_rows_nearly_full(lengths):
    batch = numbered(lengths)
    groups = group_by_length(batch)
    assert sorted(token for group in groups for token in group.tokens) == sorted(batch.tokens)
    assert sum(group.num_examples for group in groups) == batch.num_examples
    assert all(group.lengths.min() * 8 >= group.lengths.max() * 7 for group in groups)
    assert all(field.dtype == old.dtype for group in groups for field, old in zip(group, batch, strict=True))


@pytest.mark.parametrize("count", [0, 1, 16, 17, 100, 1000, 2049])
def test_counts_are_rounded_up_to_few_sizes(count):
    rounded = round_up(count)
    assert max(count, 1) <= rounded <= max(32, count * 1.25)
