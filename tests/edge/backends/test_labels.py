import numpy as np
import pytest

from edge.backends.batch_layout import group_by_length, pack_rows
from edge.backends.contract import Batch
from edge.backends.labels import average_examples, fill_labels, find_labels, mean_weights, sum_score
from edge.training.packing import Example, build_batch


@pytest.fixture
def batch():
    """Three examples, of 3, 2 and 4 tokens; the last two of each are labelled."""
    return Batch(
        tokens=np.array([11, 12, 13, 21, 22, 31, 32, 33, 34], np.int32),
        targets=np.array([12, 13, 14, 22, 23, 32, 33, 34, 35], np.int32),
        weights=np.array([0, 1, 1, 1, 1, 0, 0, 1, 1], np.float32),
        lengths=np.array([3, 2, 4]),
    )


def test_labels_are_where_the_weight_is_not_0(batch):
    labels = find_labels(batch)
    assert labels.places.tolist() == [1, 2, 3, 4, 7, 8]
    assert labels.targets.tolist() == [13, 14, 22, 23, 34, 35]


def test_labels_that_fill_up_weigh_nothing(batch):
    labels = fill_labels(find_labels(batch), 16)
    assert {len(field) for field in labels} == {16}
    assert labels.weights.sum() == 6


def test_an_example_is_exact_when_all_its_labels_are(batch):
    predicted = np.array([13, 14, 22, 99, 34, 35])  # the second example's last token is wrong
    score = sum_score(batch, find_labels(batch), np.full(6, 0.5), predicted)
    assert score == (3.0, 6.0, 5, 6, 2, 3)


def test_features_are_means_over_each_example(batch):
    hidden = batch.tokens[:, None].astype(np.float32)
    assert average_examples(batch, hidden)[:, 0].tolist() == [12.0, 21.5, 32.5]
    assert (mean_weights(batch) @ hidden)[:, 0] == pytest.approx([12.0, 21.5, 32.5])


def test_means_are_the_same_over_rows(batch):
    rows = pack_rows(batch)
    found = mean_weights(batch, rows) @ rows.tokens.ravel()
    assert found == pytest.approx([12.0, 21.5, 32.5])


@pytest.fixture
def many_short_and_one_long():
    """More examples than the shortest groups have columns."""
    random = np.random.default_rng(0)
    return build_batch(
        Example(random.integers(0, 99, length).astype(np.int32), np.arange(length) > 0)
        for length in [*random.integers(2, 6, 400), 200, 90, 90, 2, 2]
    )


def test_scores_of_groups_add_up_to_that_of_the_batch(many_short_and_one_long):
    batch, sums = many_short_and_one_long, np.zeros(6)
    for part in group_by_length(batch):
        labels = find_labels(part)
        sums += sum_score(part, labels, np.ones(len(labels.targets)), labels.targets)
    labels = find_labels(batch)
    assert tuple(sums) == sum_score(batch, labels, np.ones(len(labels.targets)), labels.targets)
    assert sums[4] == sums[5] == 405


def test_grouping_by_length_keeps_the_mean_of_every_example(many_short_and_one_long):
    batch = many_short_and_one_long
    whole = average_examples(batch, batch.tokens[:, None].astype(np.float32))[:, 0]
    parts = [mean_weights(part) @ part.tokens for part in group_by_length(batch)]
    np.testing.assert_allclose(sorted(np.concatenate(parts)), sorted(whole), rtol=1e-6)
