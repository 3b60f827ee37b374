"""What config.json says of a model, alike from transformers 4 and 5."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct, structs

from converters.errors import BaseModelError
from converters.files.content import read_content
from converters.files.text import decode_object
from converters.plain import plain

Config = Mapping[str, Any]  # of a model with several towers, the text model's part
SLIDING, FULL = "sliding_attention", "full_attention"  # kinds of layers in the words of transformers
_TABLES = ("text_config", "rope_parameters", "rope_scaling", "quantization", "quantization_config")


def read_json(path: Path, needed_by: str) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        BaseModelError: There is none; `needed_by` says what cannot do without it.
    """
    content = read_content(path, lambda why: BaseModelError(f"{path}: {why}; {needed_by} needs it"))
    return decode_object(content, lambda why: BaseModelError(f"{path}: {why}"))


def check_tables(config: Config, where: Path) -> None:
    """Checks that what must be tables of config.json are tables; what else is in it, any model may have.

    Raises:
        BaseModelError: Naming those that are not.
    """
    rope = config.get("rope_parameters")
    inner = {key: rope[key] for key in (SLIDING, FULL) if key in rope} if isinstance(rope, dict) else {}
    tables = {key: config.get(key) for key in _TABLES} | inner
    faults = [
        f"{key} is a {type(value).__name__}, expected a table"
        for key, value in tables.items()
        if value and not isinstance(value, dict)
    ]
    if faults:
        raise BaseModelError.of(str(where), faults)


def mistyped(table: Config, kind: type[Struct]) -> Iterator[str]:
    """Finds what of a table is of another type than the fields of `kind`; null is as good as absent."""
    for field in structs.fields(kind):
        value = table.get(field.name)
        if value is not None:
            try:
                msgspec.convert(value, field.type)
            except (msgspec.ValidationError, OverflowError) as error:
                yield f"{field.name} is {plain(repr(value), 40)}: {error}"


def rope_of(config: Config, layers: str = "", default_theta: float = 1e4) -> dict[str, Any]:
    """Returns the rotary embedding's parameters in the words of transformers 5.

    Args:
        config: Of any model.
        layers: Of which kind of layers, where they differ.
        default_theta: Where config.json has none.
    """
    given: Config = config.get("rope_parameters") or {}
    is_local = layers == SLIDING and not given
    rope = {"rope_theta": config.get("rope_local_base_freq" if is_local else "rope_theta", default_theta)}
    if not is_local:
        rope |= config.get("rope_scaling") or {}
    rope |= given.get(layers, given)
    kind = rope.pop("type", None) or rope.get("rope_type")
    partial = rope.pop("partial_rotary_factor", None) or config.get("partial_rotary_factor")
    if partial not in (None, 1):
        rope["partial_rotary_factor"] = partial
    return rope | {"rope_type": kind or "default"}


def num_heads_of(config: Config, key: str = "num_attention_heads") -> Any:
    """Returns how many heads `key` gives; where it is missing, as many as there are queries'."""
    return config.get(key) or config.get("num_attention_heads")


def head_dim_of(config: Config, default: int | None = None) -> Any:
    """Returns the width of a head; None where config.json does not tell."""
    if found := config.get("head_dim") or default:
        return found
    hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
    are_counts = type(hidden) is int and type(heads) is int
    return hidden // heads if are_counts and hidden and heads else None
