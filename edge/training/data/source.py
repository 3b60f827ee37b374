"""What to train on, and how to read it."""

from msgspec import Struct


class DataSource(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A file or folder of training data."""

    path: str
    prompt_column: str | None = None
    completion_column: str | None = None
    train_on_prompt: bool = False
