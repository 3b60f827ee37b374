"""Settings as TOML, every fault named at once; device, coordinator and watcher read theirs alike.

Above what a file holds go the command line's options (`placed`, `laid_over`); then types and values are
checked (`checked`).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import msgspec
from msgspec import Struct, structs

from converters.faults import Fault
from converters.files.content import is_there, read_content
from converters.files.text import decode_toml
from edge.errors import ConfigError

S = TypeVar("S", bound=Struct)


def read_toml(path: Path) -> dict[str, Any]:
    """Reads the tables of a TOML file.

    Raises:
        ConfigError: It cannot be read, or is not TOML.
    """

    def told(why: str) -> ConfigError:
        return ConfigError(f"{path}: {why}")

    return decode_toml(read_content(path, told, takes_pipes=True), told)


def write_toml(record: Struct | Mapping[str, Any]) -> str:
    """Writes settings as TOML; what is None is left out."""
    import tomli_w  # only `--print-config` writes

    return tomli_w.dumps(_without_none(msgspec.to_builtins(record)))


def placed(options: Mapping[str, Any], places: Mapping[str, str]) -> dict[str, Any]:
    """Turns options, by their names, into settings; what was not given, a flag among it, is left out."""
    settings: dict[str, Any] = {}
    for option, value in options.items():
        if value is not None and value is not False:
            table, _, name = places.get(option, option).rpartition(".")
            (settings.setdefault(table, {}) if table else settings)[name] = value
    return settings


def laid_over(settings: Mapping[str, Any], given: Mapping[str, Any], kind: type[Struct]) -> dict[str, Any]:
    """Lays `given` over `settings`, where it is not None; a field that is a record itself, field by field."""
    result, records = dict(settings), _records(kind)
    for name, value in given.items():
        if name in records and isinstance(value, Mapping):
            inner = {field: entry for field, entry in value.items() if entry is not None}
            value = {**result.get(name, records[name]), **inner} if inner else None
        if value is not None:
            result[name] = value
    return result


def checked(
    kind: type[S],
    settings: Mapping[str, Any],
    path: Path | None = None,
    faults: Iterable[Fault | str] = (),
    check: Callable[[S], Iterable[Fault | str]] = lambda _: (),
) -> S:
    """Builds a record of the settings in `path`, unless there are `faults`, or `check` finds some in it.

    Raises:
        ConfigError: Naming every fault at once.
    """
    found: list[Fault | str] = [*type_faults(settings, kind), *faults]
    if not found:
        record = msgspec.convert(settings, kind)
        found = list(check(record))
    if found:
        raise ConfigError.of(str(path or "settings"), found)
    return record


def path_faults(settings: Mapping[str, Any], *names: str) -> Iterator[str]:
    """Finds the settings that name a file or folder which is not there."""
    for name in names:
        value = settings.get(name)
        if isinstance(value, str) and not is_there(Path(value)):
            yield f"{name} is {value!r}, which does not exist"


def type_faults(settings: Mapping[str, Any], kind: type[Struct]) -> Iterator[Fault]:
    """Finds what keeps `settings` from being a record of `kind`: unknown, missing and mistyped fields."""
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
        if isinstance(settings[name], str) and "\0" in settings[name]:
            yield Fault(f"{name} is {settings[name]!r}, which holds a zero byte")
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


def _records(kind: type[Struct]) -> dict[str, Mapping[str, Any]]:
    """Finds the fields that are records themselves, with what they hold by default."""
    fields = [field for field in structs.fields(kind) if isinstance(field.type, type(Struct))]
    return {field.name: {} if field.required else structs.asdict(field.default) for field in fields}


def _without_none(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {name: _without_none(entry) for name, entry in value.items() if entry is not None}


def _unknown(name: str, known: Iterable[str]) -> str:
    near = get_close_matches(name, list(known), n=1)
    return f"{name} unknown" + (f", did you mean {near[0]}?" if near else "")
