import numpy as np
import pytest

from edge.backends.batch_layout import (
    average_examples,
    find_labels,
    flatten,
    group_by_length,
    mean_weights,
    number_examples,
    sum_score,
    unpack,
)
from edge.backends.contract import Batch
from edge.training.packing import Example, build_batch


@pytest.fixture
def batch():
    # Row 0 holds examples of 3 and 2 tokens, row 1 one of 4 and padding; the last two of each are labelled.
    return Batch(
        tokens=np.array([[11, 12, 13, 21, 22], [31, 32, 33, 34, 0]], np.int32),
        targets=np.array([[12, 13, 14, 22, 23], [32, 33, 34, 35, 0]], np.int32),
        weights=np.array([[0, 1, 1, 1, 1], [0, 0, 1, 1, 0]], np.float32),
        segments=np.array([[1, 1, 1, 2, 2], [1, 1, 1, 1, 0]], np.int32),
        positions=np.array([[0, 1, 2, 0, 1], [0, 1, 2, 3, 0]], np.int32),
    )


def test_labels_are_where_the_weight_is_not_0(batch):
    labels = find_labels(batch)
    assert labels.places.tolist() == [1, 2, 3, 4, 7, 8]
    assert labels.targets.tolist() == [13, 14, 22, 23, 34, 35]


def test_an_example_is_exact_when_all_its_labels_are(batch):
    predicted = np.array([13, 14, 22, 99, 34, 35])  # the second example's last token is wrong
    score = sum_score(batch, find_labels(batch), np.full(6, 0.5), predicted)
    assert score == (3.0, 6.0, 5, 6, 2, 3)


def test_features_are_means_over_each_example(batch):
    hidden = batch.tokens[..., None].astype(np.float32)
    assert average_examples(batch, hidden)[:, 0].tolist() == [12.0, 21.5, 32.5]


def test_a_flattened_batch_has_no_padding(batch):
    flat = flatten(batch)
    assert flat.tokens.tolist() == [[11, 12, 13, 21, 22, 31, 32, 33, 34]]
    assert flat.segments.tolist() == [[1, 1, 1, 2, 2, 3, 3, 3, 3]]
    assert flat.positions.tolist() == [[0, 1, 2, 0, 1, 0, 1, 2, 3]]


def test_unpacked_examples_have_rows_of_their_own(batch):
    assert unpack(batch).tokens.tolist() == [[11, 12, 13, 0], [21, 22, 0, 0], [31, 32, 33, 34]]
    assert unpack(batch).weights.tolist() == [[0, 1, 1, 0], [1, 1, 0, 0], [0, 0, 1, 1]]


def test_examples_of_like_lengths_share_a_group(batch):
    groups = group_by_length(batch)
    assert [group.tokens.tolist() for group in groups] == [[[31, 32, 33, 34]], [[11, 12, 13]], [[21, 22]]]


def test_a_group_keeps_every_label_once(batch):
    groups = group_by_length(batch)
    assert sorted(target for group in groups for target in find_labels(group).targets) == [
        13,
        14,
        22,
        23,
        34,
        35,
    ]
    assert all(field.dtype == old.dtype for group in groups for field, old in zip(group, batch, strict=True))


def many_short_and_one_long():
    """Rows with more examples than the shortest groups have columns."""
    random = np.random.default_rng(0)
    examples = [
        Example(random.integers(0, 99, length).astype(np.int32), np.arange(length) > 0)
        for length in [*random.integers(2, 6, 400), 200, 90, 90, 2, 2]
    ]
    return build_batch(examples, [list(range(300)), list(range(300, 405))], seq_tokens=4096)


def test_grouping_by_length_keeps_the_number_of_examples():
    batch = many_short_and_one_long()
    groups = group_by_length(batch)
    assert sum(group.num_examples for group in groups) == batch.num_examples == 405
    sums = np.zeros(6)
    for part in groups:
        labels = find_labels(part)
        sums += sum_score(part, labels, np.ones(len(labels.targets)), labels.targets)
    labels = find_labels(batch)
    assert tuple(sums) == sum_score(batch, labels, np.ones(len(labels.targets)), labels.targets)
    assert sums[4] == sums[5] == 405


def test_grouping_by_length_keeps_the_mean_of_every_example():
    batch = many_short_and_one_long()
    whole = average_examples(batch, batch.tokens[..., None].astype(np.float32))[:, 0]
    parts = [mean_weights(part) @ part.tokens.ravel() for part in group_by_length(batch)]
    np.testing.assert_allclose(sorted(np.concatenate(parts)), sorted(whole), rtol=1e-6)


def test_examples_are_told_apart_by_any_numbers_of_segments(batch):
    far = batch._replace(segments=np.where(batch.segments > 0, batch.segments * 7, 0))
    assert number_examples(far).tolist() == [[1, 1, 1, 2, 2], [3, 3, 3, 3, 0]]
