"""What reads a file as a test looks at it."""

import pytest

from edge.backends.toy import ByteTokenizer
from edge.training.data.dataset import load_dataset
from edge.training.data.source import DataSource


@pytest.fixture(scope="session")
def read():
    """`read(path, **settings)` gives the examples of a file, in bytes."""

    def read(path, **settings):
        return load_dataset(DataSource(path=str(path), **settings), ByteTokenizer(), seq_tokens=512)

    return read


@pytest.fixture(scope="session")
def complaint(read):
    """`complaint(path, **settings)` gives the error of a file that cannot be used."""
    from edge.errors import DataError

    def complaint(path, **settings) -> str:
        with pytest.raises(DataError) as caught:
            read(path, **settings)
        return str(caught.value)

    return complaint
