"""Buffers of small updates."""

import pytest


@pytest.fixture(scope="session")
def lengths(vector, contribution):
    """`lengths(1, 2, …)` is a buffer of updates of these lengths, each of a device of its own."""

    def make(*sizes, **fields):
        return [contribution(vector(x), vector(0), f"u{n}", **fields) for n, x in enumerate(sizes)]

    return make


@pytest.fixture(scope="session")
def buffer_of(vector, contribution):
    """`buffer_of((3, 4), …)` is a buffer of one update for each vector."""

    def make(*entries):
        base = vector(*[0.0] * len(entries[0]))
        return [contribution(vector(*entry), base, f"u{n}") for n, entry in enumerate(entries)]

    return make
