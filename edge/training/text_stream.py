"""Text out of tokens as they come: a character that is cut between two tokens waits for its rest."""

from collections.abc import Sequence

from edge.backends.contract import Tokenizer

BROKEN = "\ufffd"  # what a tokenizer shows for bytes that are no character
MOST_HELD = 8  # tokens; a character has four bytes at most, so more than that are broken for good


class TextStream:
    """The text of one completion, piece by piece.

    Each piece is what a token adds to the text of the tokens before it, since many tokenizers write a token
    differently at the beginning of a text; only the last two pieces' tokens are decoded again.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._told: list[int] = []  # tokens of the last piece
        self._held: list[int] = []  # tokens since then
        self.text = ""

    def push(self, token: int) -> str:
        """Takes the next token; gives the text that is certain now, which may be none."""
        self._held.append(token)
        piece = self._piece()
        if not piece or (piece.endswith(BROKEN) and len(self._held) < MOST_HELD):
            return ""
        self._told, self._held = self._held, []
        self.text += piece
        return piece

    def end(self) -> str:
        """Gives the rest, without a character that was cut."""
        piece = self._piece().rstrip(BROKEN) if self._held else ""
        self._told, self._held = self._held, []
        self.text += piece
        return piece

    def _piece(self) -> str:
        before, whole = self._decode(self._told), self._decode(self._told + self._held)
        return whole[len(before) :]

    def _decode(self, tokens: Sequence[int]) -> str:
        return self._tokenizer.decode(tokens) if tokens else ""
