"""Text of strangers as it may be shown: nothing in it moves a cursor, colours, hides or turns writing around.

A device's name for its backend, a model's name, a column of a data file, a broker's words: whoever wrote it,
it reaches terminals, logs and pages. What Unicode does not call printable is escaped, and so are half
characters, which no terminal's encoding has. Markup is the business of whoever renders: rich is handed plain
text only, pages escape their own.
"""


def plain(text: object, most: int | None = None) -> str:
    """Writes `text` in printable characters, on one line.

    Args:
        text: Anything; what is no string as `str` writes it.
        most: Characters of it that are shown; of more, an ellipsis stands for the rest.
    """
    told = str(text)
    cut = told if most is None or len(told) <= most else f"{told[: most - 1]}…"
    return cut if cut.isprintable() else "".join(map(_escaped, cut))


def _escaped(letter: str) -> str:
    return letter if letter.isprintable() else ascii(letter)[1:-1]
