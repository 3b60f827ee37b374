"""A batch comes out whole, in groups that llama.cpp can take."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("llama_cpp", reason="needs the llama extra")

from edge.backends.llama_cpp.context import MAX_SEQUENCES
from edge.backends.llama_cpp.model import GROUP_TOKENS, make_groups
from edge.training.packing import Example, build_batch

pytestmark = pytest.mark.llama
EXAMPLES = st.lists(st.tuples(st.integers(1, 400), st.booleans()), min_size=1, max_size=90)


def make_batch(examples):
    """Example n holds tokens n, n + 1, ...; its last target is a label, if it has any."""
    return build_batch(
        Example(np.arange(n, n + length + 1, dtype=np.int32), np.arange(length + 1) == length * is_labelled)
        for n, (length, is_labelled) in enumerate(examples)
    )


@settings(max_examples=40)
@given(EXAMPLES, st.booleans())
def test_every_example_is_in_one_group_once(examples, needs_labels):
    found = []
    for group in make_groups(make_batch(examples), needs_labels=needs_labels):
        assert group.num_examples <= MAX_SEQUENCES
        assert group.num_tokens <= GROUP_TOKENS or group.num_examples == 1
        found += [
            (int(group.tokens[at][0]), at.stop - at.start, group.weights[at].any()) for at in group.spans
        ]
    expected = [(n, length, is_labelled) for n, (length, is_labelled) in enumerate(examples)]
    assert found == [one for one in expected if one[2] or not needs_labels]
