"""Text that came from outside, UTF-8, JSON or TOML, as values, or as the one error of whoever asked.

Everything that the parsers raise about a hostile text ends here: malformed, of another type, not UTF-8,
nested deeper than Python recurses, numbers of 5,000 digits. What is not nested deeply here is not so later,
where it is compared, told or written again. Callers say how their error is told, and no parser's error leaves
this file. Nothing is read here: `converters.files.content` does that.
"""

import json
import re
import tomllib
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from converters.errors import TunefleetError

MAX_DEPTH = 64  # of free-form text; transformers' deepest configurations have 6 levels
_BOM = b"\xef\xbb\xbf"
# All but brackets: strings, closed or not, and what stands between.
_NO_BRACKETS = re.compile(rb'"(?:[^"\\]+|\\.)*"?|[^\[\]{}"]+', re.DOTALL)
_HALF = re.compile(r"\\u[dD][89a-fA-F]")  # of a character beyond 16 bits

Told = Callable[[str], TunefleetError]  # from what is wrong to the error that is raised
T = TypeVar("T")


def decode_text(content: bytes, told: Told) -> str:
    """Returns the text of UTF-8.

    Raises:
        TunefleetError: What `told` makes of it.
    """
    try:
        return content.decode()
    except UnicodeDecodeError as cause:
        raise told(f"is not UTF-8 at byte {cause.start}") from cause


def decode_record(content: bytes | str, kind: type[T], told: Told) -> T:
    """Returns the value of `kind` in a JSON text; the kind says what may stand in it, and how deep.

    Raises:
        TunefleetError: What `told` makes of it.
    """
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.MsgspecError, UnicodeError) as cause:
        raise told(str(cause)) from cause
    except RecursionError as cause:
        raise told("is nested too deeply") from cause


def decode_object(content: bytes | str, told: Told) -> dict[str, Any]:
    """Returns the JSON object in a text of any form, as Python's tools write it: also NaN, and long numbers.

    Raises:
        TunefleetError: What `told` makes of it.
    """
    content = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    text = decode_text(content.removeprefix(_BOM), told)
    if _is_deep(content):
        raise told(f"is nested too deeply: more than {MAX_DEPTH} levels, or brackets that do not match")
    try:
        found = json.loads(text)
    except ValueError as cause:  # JSONDecodeError is one; the others are of numbers that are too long
        raise told(f"is not JSON: {cause}") from cause
    if not isinstance(found, dict):
        raise told(f"holds a {type(found).__name__}, expected a JSON object")
    if _HALF.search(text) and not _is_encodable(found):
        raise told("holds half of a character, which no UTF-8 can")
    return found


def decode_toml(content: bytes, told: Told) -> dict[str, Any]:
    """Returns the tables of a TOML text.

    Raises:
        TunefleetError: What `told` makes of it.
    """
    text = decode_text(content, lambda why: told(f"is not TOML: it {why}"))
    try:
        found = tomllib.loads(text)
    except ValueError as cause:  # TOMLDecodeError is one
        raise told(f"is not TOML: {cause}") from cause
    except RecursionError as cause:
        raise told("is nested too deeply") from cause
    level: list[Any] = [found]
    for _ in range(MAX_DEPTH):  # dotted names make tables without any bracket
        level = [entry for one in level for entry in _inside(one)]
        if not level:
            return found
    raise told(f"is nested too deeply: more than {MAX_DEPTH} levels")


def _is_deep(content: bytes) -> bool:
    """Tells whether brackets are nested deeper than `MAX_DEPTH`, or do not match, without parsing."""
    if content.count(b"[") + content.count(b"{") <= MAX_DEPTH:
        return False
    brackets = _NO_BRACKETS.sub(b"", content)
    for _ in range(MAX_DEPTH):  # each round takes the innermost away
        if not brackets:
            return False
        brackets = brackets.replace(b"[]", b"").replace(b"{}", b"")
    return bool(brackets)


def _is_encodable(found: object) -> bool:
    try:
        json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _inside(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
