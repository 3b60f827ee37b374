"""Settings as TOML, every fault named at once; device and coordinator read theirs alike."""

import tomllib
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import msgspec
from msgspec import Struct, structs

from converters.faults import Fault
from edge.errors import ConfigError


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises:
        ConfigError: It cannot be read, or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not TOML: {error}") from error


def type_faults(settings: Mapping[str, Any], kind: type[Struct]) -> Iterator[Fault]:
    """What keeps `settings` from being a record of `kind`: unknown, missing and mistyped fields."""
    fields = {field.name: field for field in structs.fields(kind)}
    unknown = sorted(settings.keys() - fields.keys())
    if unknown:
        text = f"{', '.join(unknown)} unknown; expected some of {', '.join(fields)}"
        yield Fault(text, brief="; ".join(_unknown(name, fields) for name in unknown))
    for name, field in fields.items():
        if name not in settings:
            if field.required:
                yield Fault(f"{name} is missing", "settings are missing", name)
            continue
        try:
            msgspec.convert(settings[name], field.type)
        except msgspec.ValidationError as error:
            kinds = get_args(field.type) if get_origin(field.type) in (Union, UnionType) else (field.type,)
            names = [name for one in kinds if get_origin(one) is Literal for name in get_args(one)]
            told = f", expected one of {', '.join(names)}" if names else f": {error}"
            value = "not a URL" if name == "broker" else repr(settings[name])  # it may hold a password
            yield Fault(f"{name} is {value}{told}")


def defaults_of(kind: type[Struct], options: Iterable[str], places: Mapping[str, str]) -> dict[str, Any]:
    """Finds what holds for the options that a record of `kind` has a default for.

    Args:
        kind: The settings' record.
        options: Names on the command line.
        places: The field of an option whose field bears another name, as `field` or `field.inner`.
    """
    held = {field.name: field.default for field in structs.fields(kind) if not field.required}
    for field in structs.fields(kind):
        inner = held.get(field.name, field.type)
        if isinstance(inner, Struct):
            held |= {f"{field.name}.{name}": value for name, value in structs.asdict(inner).items()}
    return {name: held[places.get(name, name)] for name in options if places.get(name, name) in held}


def _unknown(name: str, known: Iterable[str]) -> str:
    near = get_close_matches(name, list(known), n=1)
    return f"{name} unknown" + (f", did you mean {near[0]}?" if near else "")
