"""Text of strangers as it may be shown: nothing in it moves a cursor, colours, hides or turns writing around.

A device's name for its backend, a model's name, a column of a data file, a broker's words: whoever wrote it,
it reaches terminals, logs and pages. What Unicode does not call printable is escaped, and so are half
characters, which no terminal's encoding has. Markup is the business of whoever renders: rich is handed plain
text only, pages escape their own.
"""

import json
import unicodedata

_TURNS = frozenset(map(chr, (*range(0x202A, 0x202F), *range(0x2066, 0x206A))))  # overrides of direction


def plain(text: object, most: int | None = None) -> str:
    """Writes `text` in printable characters, on one line.

    Args:
        text: Anything; what is no string as `str` writes it.
        most: Characters of it that are shown; of more, an ellipsis stands for the rest.
    """
    told = str(text)
    cut = told if most is None or len(told) <= most else f"{told[: most - 1]}…"
    return cut if cut.isprintable() else "".join(map(_escaped, cut))


def plain_lines(text: str) -> str:
    """Writes a text of several lines in printable characters; its line breaks stay."""
    return "\n".join(map(plain, text.split("\n")))


def harmless(text: str) -> str:
    """Writes what a model says for a terminal: all but what that would obey, or what turns writing around.

    Line breaks and tabs stay, and so do the joiners and marks that scripts and emoji are written with.
    """
    return "".join("\N{REPLACEMENT CHARACTER}" if _steers(letter) else letter for letter in text)


def plain_json(text: str) -> str:
    """Writes JSON in printable characters: what is none stands in strings, and is escaped as JSON does."""
    return text if text.isprintable() else "".join(map(_escaped_json, text))


def _steers(letter: str) -> bool:
    is_control = unicodedata.category(letter) in ("Cc", "Cs") and letter not in "\n\t"
    return is_control or letter in _TURNS


def _escaped(letter: str) -> str:
    return letter if letter.isprintable() else ascii(letter)[1:-1]


def _escaped_json(letter: str) -> str:
    return letter if letter.isprintable() or letter == "\n" else json.dumps(letter)[1:-1]
