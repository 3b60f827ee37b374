"""Whether merging neighbours by the union's score cuts texts as the merges of tokenizer.json do.

The two orders of BPE over characters: transformers merges a pair that stands in its list, lowest rank first;
llama.cpp's SentencePiece tokenizer merges any pair whose union is a token, highest score first; ties go to
the leftmost pair in both. Where every such pair is in the list, and the pairs of one token are neighbours in
it, the two do the same. Otherwise they may part on some texts, and test sentences say whether they do on
ordinary ones: a `no▁` that stands in the list as n + o▁ alone is also made of no + ▁ by the second.
"""

from collections.abc import Callable, Mapping, Sequence

_SENTENCES = (
    "The quick brown fox jumps over the lazy dog. It's 1,234.56 o'clock!",
    "Once upon a time, there was a little girl named Lily; she didn't want to go home.",
    '"Oh no!" said Tom, "we\'ll never find it." But they looked, and looked again.',
    "He isn't sure: can't, won't, shouldn't, they've, I'm, you're, she'd.",
    "set the lamp in the kitchen to 40 % and turn off the heater at 07:30 tomorrow",
    "def add(a, b):\n    return a + b  # sum\n\n\nprint(add(1, 2))",
    "  leading, trailing and   several    spaces  ",
    "Tabs\tand\nnew lines\n\nand\r\nanother (x_1 = y^2 / 3) [a-z]* {key: value} <tag> &c. @home #1 $5 ~/file",
    "Zürich, naïve café, Ærøskøbing, Łódź, мир, Ελλάδα, 日本語, العربية, हिन्दी, 한국어, 😀.",
    "internationalization counterrevolutionaries AAAAaaaaAAAA zzzzzz hahahaha 0000000 ----====",
    "Summarise: In 1969, Apollo 11 landed on the Moon. Question: who walked on it? Answer: Armstrong.",
)


def same_tokens(vocab: Mapping[str, int], merges: Sequence[tuple[str, str]], rank: Mapping[str, int]) -> bool:
    """Compares both orders; `rank` is that of each token's first merge.

    Args:
        vocab: Tokens, spaces as "▁".
        merges: Pairs, lowest rank first.
        rank: Minus llama.cpp's score of each token that is merged.
    """
    pairs = {pair: number for number, pair in enumerate(merges)}
    for sentence in _SENTENCES:
        known = [character for character in "▁" + sentence.replace(" ", "▁") if character in vocab]
        by_pair = _merge(known, lambda first, second: pairs.get((first, second)))
        by_union = _merge(known, lambda a, b: rank.get(a + b, len(merges)) if a + b in vocab else None)
        if by_pair != by_union:
            return False
    return True


def _merge(symbols: Sequence[str], rank: Callable[[str, str], int | None]) -> list[str]:
    """Joins the leftmost pair of lowest rank until none is left."""
    left = list(symbols)
    while True:
        found = [
            (order, at) for at in range(len(left) - 1) if (order := rank(left[at], left[at + 1])) is not None
        ]
        if not found:
            return left
        _, at = min(found)
        left[at : at + 2] = [left[at] + left[at + 1]]
