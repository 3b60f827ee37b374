"""tokenizer.json and tokenizer_config.json of a model's folder, read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, field

from converters.bases.config import read_json
from converters.errors import BaseModelError
from converters.files.content import is_file, read_content
from converters.files.text import decode_text

TokenId = Annotated[int, Meta(ge=0, le=2**31)]
SPACE = "▁"  # what stands for a space in BPE over characters

Step = Mapping[str, Any]  # a normalizer, pre-tokenizer or post-processor
_INNER = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "post_processor": "processors"}


class _Added(Struct):
    id: TokenId
    content: str
    special: bool = False
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


class _Form(Struct):
    """What stands in any tokenizer.json."""

    model: dict[str, Any] | None = None
    added_tokens: list[_Added] | None = None


class _Bpe(Struct):
    """A table of tokens and merges."""

    vocab: dict[str, TokenId] | None = None
    merges: list[Annotated[str, Meta(pattern=" ")] | tuple[str, str]] | None = None
    unk_token: str | None = None
    byte_fallback: bool | None = None


class _Id(Struct):
    id: str


class _Piece(Struct):
    special: _Id | None = field(name="SpecialToken", default=None)


class _Special(Struct):
    ids: list[int]


class _Step(Struct):
    """A normalizer, pre-tokenizer or post-processor."""

    type: str
    pattern: dict[str, Any] | None = None
    single: list[_Piece] | None = None
    special_tokens: dict[str, _Special] | None = None


@dataclass(frozen=True)
class TokenizerFiles:
    """What the files of one tokenizer say."""

    folder: Path
    whole: Mapping[str, Any]  # tokenizer.json
    settings: Mapping[str, Any]  # tokenizer_config.json

    @property
    def model(self) -> Mapping[str, Any]:
        """The table of tokens and merges, with its settings."""
        return self.whole.get("model") or {}

    @property
    def vocab(self) -> Mapping[str, int]:
        """Tokens that the model knows, to their ids."""
        return self.model.get("vocab") or {}

    @property
    def added(self) -> Sequence[Mapping[str, Any]]:
        """Tokens that are found before anything is cut or merged."""
        return self.whole.get("added_tokens") or []

    @property
    def merges(self) -> list[tuple[str, str]]:
        """Pairs, lowest rank first."""
        pairs = (m.split(" ", 1) if isinstance(m, str) else m for m in self.model.get("merges") or [])
        return [(first, second) for first, second in pairs]

    @property
    def normalizers(self) -> list[Step]:
        """What changes a text first."""
        return self._steps("normalizer")

    @property
    def pre_tokenizers(self) -> list[Step]:
        """What cuts a text into words."""
        return self._steps("pre_tokenizer")

    @property
    def special(self) -> dict[str, int]:
        """Ids of bos, eos, unk and pad, those that there are."""
        ids = {**self.vocab, **{token["content"]: token["id"] for token in self.added}}
        found = {}
        for role in ("bos", "eos", "unk", "pad"):
            named = self.settings.get(f"{role}_token")
            text = named.get("content") if isinstance(named, dict) else named
            if isinstance(text, str) and text in ids:
                found[role] = ids[text]
        return found

    @property
    def chat_template(self) -> str | None:
        """The one that is used where none is named."""
        beside = self.folder / "chat_template.jinja"
        if is_file(beside):

            def told(why: str) -> BaseModelError:
                return BaseModelError(f"{beside}: {why}")

            return decode_text(read_content(beside, told), told)
        found = self.settings.get("chat_template")
        if isinstance(found, list):  # several by name
            named = [one for one in found if isinstance(one, dict) and one.get("name") == "default"]
            found = named[0].get("template") if named else None
        return found if isinstance(found, str) else None

    def adds(self, role: Literal["bos", "eos"]) -> bool:
        """Tells whether bos or eos is put around a text."""
        around = [
            number
            for step in self._steps("post_processor")
            if step["type"] == "TemplateProcessing"
            for piece in step.get("single") or ()
            if "SpecialToken" in piece
            for number in (step.get("special_tokens") or {}).get(piece["SpecialToken"]["id"], {"ids": []})[
                "ids"
            ]
        ]
        special = self.special
        return role in special and bool(self.settings.get(f"add_{role}_token", special[role] in around))

    def _steps(self, kind: str) -> list[Step]:
        return _steps_of(self.whole, kind)


def read_tokenizer_files(folder: Path) -> TokenizerFiles:
    """Reads both files.

    Raises:
        BaseModelError: One is missing, or no JSON object, or not of its library's form.
    """
    needed_by = "a GGUF file"
    whole, settings = (
        read_json(folder / name, needed_by) for name in ("tokenizer.json", "tokenizer_config.json")
    )
    _check(whole, folder / "tokenizer.json")
    return TokenizerFiles(folder, whole, settings)


def _check(whole: Mapping[str, Any], where: Path) -> None:
    """Checks that tokenizer.json has the form of its library's, as far as it is looked at.

    Raises:
        BaseModelError: Naming the first place where it has not.
    """
    steps = [step for kind in _INNER for step in _steps_of(whole, kind)]
    model = whole.get("model") or {}
    is_bpe = isinstance(model, dict) and model.get("type") == "BPE"  # others have tables of another form
    try:
        msgspec.convert(whole, _Form)
        msgspec.convert(steps, list[_Step])
        if is_bpe:
            msgspec.convert(model, _Bpe)
    except (msgspec.ValidationError, OverflowError) as error:
        raise BaseModelError(f"{where}: has not the form of a tokenizer: {error}") from error


def _steps_of(whole: Mapping[str, Any], kind: str) -> list[Any]:
    step = whole.get(kind)
    if not step:
        return []
    is_sequence = isinstance(step, dict) and step.get("type") == "Sequence"
    found = step.get(_INNER[kind]) if is_sequence else [step]
    return found if isinstance(found, list) else [found]
