"""tokenizer.json and tokenizer_config.json of a model's folder, read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from converters.bases.config import read_json

SPACE = "▁"  # what stands for a space in BPE over characters

Step = Mapping[str, Any]  # a normalizer, pre-tokenizer or post-processor
_INNER = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "post_processor": "processors"}


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
            if text in ids:
                found[role] = ids[text]
        return found

    @property
    def chat_template(self) -> str | None:
        """The one that is used where none is named."""
        beside = self.folder / "chat_template.jinja"
        if beside.is_file():
            return beside.read_text(encoding="utf-8")
        found = self.settings.get("chat_template")
        if isinstance(found, list):  # several by name
            return next((entry["template"] for entry in found if entry.get("name") == "default"), None)
        return found if isinstance(found, str) else None

    def adds(self, role: Literal["bos", "eos"]) -> bool:
        """Tells whether bos or eos is put around a text."""
        around = [
            number
            for step in self._steps("post_processor")
            if step["type"] == "TemplateProcessing"
            for piece in step["single"]
            if "SpecialToken" in piece
            for number in step["special_tokens"][piece["SpecialToken"]["id"]]["ids"]
        ]
        special = self.special
        return role in special and bool(self.settings.get(f"add_{role}_token", special[role] in around))

    def _steps(self, kind: str) -> list[Step]:
        step = self.whole.get(kind)
        if not step:
            return []
        found: list[Step] = step[_INNER[kind]] if step["type"] == "Sequence" else [step]
        return found


def read_tokenizer_files(folder: Path) -> TokenizerFiles:
    """Reads both files.

    Raises:
        BaseModelError: One is missing or no JSON object.
    """
    needed_by = "a GGUF file"
    whole, settings = (
        read_json(folder / name, needed_by) for name in ("tokenizer.json", "tokenizer_config.json")
    )
    return TokenizerFiles(folder, whole, settings)
