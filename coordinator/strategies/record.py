"""What stages, merges, optimisers and guards are: records of their own numbers, told apart by `kind`."""

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

Share = Annotated[float, Meta(ge=0.0, lt=1.0)]
Positive = Annotated[float, Meta(gt=0.0)]
NotNegative = Annotated[float, Meta(ge=0.0)]


class Record(Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind"):
    """The base of all that a method is made of; a subclass names its kind as `tag`."""

    @property
    def kind(self) -> str:
        """Returns the name that a configuration knows it by."""
        return kind_of(type(self))

    def table(self) -> Mapping[str, Any]:
        """Returns it as a configuration writes it: its kind, then its numbers."""
        found: dict[str, Any] = msgspec.to_builtins(self)
        return found


def kind_of(record: type[Record]) -> str:
    """Returns the kind that a class of records is written as."""
    return str(record.__struct_config__.tag)
