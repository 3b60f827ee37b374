"""A batch comes out whole, in groups that llama.cpp can take."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("llama_cpp", reason="needs the llama extra")

from edge.backends.llama_cpp.groups import GROUP_TOKENS, make_groups
from edge.backends.llama_cpp.native import MAX_SEQUENCES
from edge.training.packing import Example, build_batch

pytestmark = pytest.mark.llama
EXAMPLES = st.lists(st.tuples(st.integers(1, 400), st.booleans()), min_size=1, max_size=90)


def make_batch(examples, num_rows):
    """Example n holds tokens n, n + 1, ...; its last target is a label, if it has any."""
    made = [
        Example(np.arange(n, n + length + 1, dtype=np.int32), np.arange(length + 1) == length * is_labelled)
        for n, (length, is_labelled) in enumerate(examples)
    ]
    rows = [list(range(row, len(made), num_rows)) for row in range(num_rows)]
    return build_batch(made, [row for row in rows if row], seq_tokens=400 * len(made))


def in_order(examples, num_rows):
    return [pair for row in range(num_rows) for pair in list(enumerate(examples))[row::num_rows]]


@settings(deadline=None, max_examples=40)
@given(EXAMPLES, st.integers(1, 3), st.booleans())
def test_every_example_is_in_one_group_once(examples, num_rows, needs_labels):
    found = []
    for group in make_groups(make_batch(examples, num_rows), needs_labels=needs_labels):
        num_sequences = int(group.sequences.max()) + 1
        assert num_sequences <= MAX_SEQUENCES
        assert len(group.tokens) <= GROUP_TOKENS or num_sequences == 1
        assert sorted(set(group.sequences.tolist())) == list(range(num_sequences))
        for sequence in range(num_sequences):
            own = group.sequences == sequence
            assert np.array_equal(group.positions[own], np.arange(own.sum()))
            found.append((int(group.tokens[own][0]), int(own.sum()), bool(group.is_label[own].any())))
    expected = [(n, length, is_labelled) for n, (length, is_labelled) in in_order(examples, num_rows)]
    assert found == [one for one in expected if one[2] or not needs_labels]
