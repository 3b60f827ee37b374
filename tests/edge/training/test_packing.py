from hashlib import sha256

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.backends.contract import Batch
from edge.training.packing import (
    Example,
    build_batch,
    iterate_batches,
    iterate_once,
    pack_epoch,
    split_batch,
)

SIZES = {"seq_tokens": 64, "batch_tokens": 256}
ORDER = "0dea0f0e4c1ed7290e6030086daa085e6b49066d23a858895eef186602aeacb2"
lengths_strategy = st.lists(st.integers(1, 64), min_size=1, max_size=200).map(np.array)


def example(*tokens, labels=None) -> Example:
    labels = [False] + [True] * (len(tokens) - 1) if labels is None else labels
    return Example(np.array(tokens, np.int32), np.array(labels, np.bool_))


def numbered(count) -> list[Example]:
    return [example(1000 + n, *range(n % 7 + 1)) for n in range(count)]


def widths(batch, lengths):
    return [sum(lengths[row].tolist()) for row in batch]


@given(lengths_strategy, st.integers(0, 5))
def test_every_example_is_in_an_epoch_once_and_no_batch_is_too_large(lengths, epoch):
    batches = pack_epoch(lengths, **SIZES, seed=0, epoch=epoch)
    assert sorted(n for batch in batches for row in batch for n in row) == list(range(len(lengths)))
    for batch in batches:
        used = max(widths(batch, lengths))
        assert used <= 64
        assert len(batch) * -(-used // 32) * 32 <= 256


def test_the_order_comes_from_seed_and_epoch():
    lengths = np.full(100, 20)
    orders = {
        key: str(pack_epoch(lengths, **SIZES, seed=key[0], epoch=key[1])) for key in [(0, 0), (0, 1), (1, 0)]
    }
    assert len(set(orders.values())) == 3
    assert orders[0, 0] == str(pack_epoch(lengths, **SIZES, seed=0, epoch=0))


def test_the_order_is_that_of_every_version_so_that_a_checkpoint_of_any_goes_on():
    lengths = np.random.default_rng(0).integers(1, 65, 300)
    epochs = [pack_epoch(lengths, **SIZES, seed=3, epoch=epoch) for epoch in (0, 1)]
    assert sha256(str(epochs).encode()).hexdigest() == ORDER


def test_rows_are_nearly_full_on_mixed_lengths():
    lengths = np.random.default_rng(0).integers(10, 400, 5000)
    batches = pack_epoch(lengths, seq_tokens=512, batch_tokens=2048, seed=0, epoch=0)
    assert lengths.sum() / (2048 * len(batches)) > 0.95


def test_short_examples_get_narrow_rows():
    # 63 examples of 31 tokens fill rows of 32 to 97 %: no need for the longest rows and their attention.
    batches = pack_epoch(np.full(63, 31), seq_tokens=512, batch_tokens=1024, seed=0, epoch=0)
    assert {len(row) for batch in batches for row in batch} == {1}


def test_batches_stay_random_though_rows_are_packed_by_length():
    lengths = np.arange(1, 4097) % 64 + 1
    batches = pack_epoch(lengths, **SIZES, seed=0, epoch=0)
    firsts = [np.mean([n for row in batch for n in row]) for batch in batches]
    assert np.std(firsts[: len(firsts) // 2]) > 100  # in order of the file it would climb
    assert abs(np.corrcoef(firsts, np.arange(len(firsts)))[0, 1]) < 0.2


def test_a_batch_holds_examples_end_to_end():
    examples = [example(1, 2, 3, labels=[False, False, True]), example(4, 5)]
    batch = build_batch([*examples, examples[1]])
    assert batch.tokens.tolist() == [1, 2, 4, 4]
    assert batch.targets.tolist() == [2, 3, 5, 5]
    assert batch.weights.tolist() == [0, 1, 1, 1]
    assert batch.lengths.tolist() == [2, 1, 1]
    assert (batch.num_tokens, batch.num_examples) == (4, 3)
    assert [field.dtype for field in batch] == [np.int32, np.int32, np.float32, np.int64]


def test_a_batch_knows_where_its_examples_lie():
    batch = build_batch([example(1, 2, 3, 4), example(5, 6), example(7, 8, 9)])
    assert batch.starts.tolist() == [0, 3, 4]
    assert batch.owners.tolist() == [0, 0, 0, 1, 2, 2]
    assert batch.positions.tolist() == [0, 1, 2, 0, 0, 1]
    assert [batch.tokens[at].tolist() for at in batch.spans] == [[1, 2, 3], [5], [7, 8]]
    chosen = batch.select([2, 0])
    assert chosen.tokens.tolist() == [7, 8, 1, 2, 3]
    assert chosen.targets.tolist() == [8, 9, 2, 3, 4]
    assert chosen.lengths.tolist() == [2, 3]


@pytest.mark.parametrize("start", [0, 1, 4, 9, 30])
def test_a_run_goes_on_from_any_batch(start):
    sizes = {"seq_tokens": 32, "batch_tokens": 64}
    whole, resumed = iterate_batches(numbered(60), **sizes, seed=3), None
    for _ in range(start):
        next(whole)
    resumed = iterate_batches(numbered(60), **sizes, seed=3, start=start)
    for _ in range(10):
        one, other = next(whole), next(resumed)
        assert all(np.array_equal(mine, theirs) for mine, theirs in zip(one, other, strict=True))


def test_scoring_visits_every_example_once():
    firsts = [batch.tokens[batch.starts] for batch in iterate_once(numbered(50), **SIZES)]
    assert sorted(np.concatenate(firsts).tolist()) == [1000 + n for n in range(50)]


def test_a_batch_is_one_row_where_not_even_one_fits():
    assert pack_epoch(np.array([60, 60]), seq_tokens=64, batch_tokens=32, seed=0, epoch=0) in (
        [[[0]], [[1]]],
        [[[1]], [[0]]],
    )


def test_micro_batches_are_whole_examples_and_together_the_batch():
    batch = build_batch(numbered(5))
    parts = split_batch(batch, 6)
    assert [part.lengths.tolist() for part in parts] == [[1, 2, 3], [4], [5]]
    for name in Batch._fields:
        whole = np.concatenate([getattr(part, name) for part in parts])
        assert np.array_equal(whole, getattr(batch, name))
    assert len(split_batch(batch, 0)) == 1
    assert [part.num_examples for part in split_batch(batch, 2)] == [1] * 5  # an example is never cut
