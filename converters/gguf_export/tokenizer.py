"""A Hugging Face tokenizer in a GGUF file's words, so that llama.cpp cuts texts as transformers does.

llama.cpp has no tokenizer language, only a list of known kinds; what it cannot do exactly is refused. Two
kinds are enough for the models that `gguf_model` writes:

- byte-level BPE (`gpt2`): merges by rank. How words are cut beforehand goes by a name (`pre`), chosen here
  by the pattern that stands in tokenizer.json; llama.cpp's own converter goes by a hash of known models.
- BPE over characters with "▁" for spaces (`llama`, after SentencePiece): merges any two neighbours whose
  union is a token, in order of the union's score. With minus the rank of its first merge as a token's score
  that is what tokenizer.json asks for, if its merges are all such pairs; where some are missing (a tokenizer
  that was trained as BPE), both ways are tried on test sentences.

Texts must be in NFC where tokenizer.json normalises to it: llama.cpp does not.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from converters.errors import BaseModelError
from converters.gguf_export.bpe_order import same_tokens

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # llama.cpp's llama_token_type
_SPACE = "▁"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _CONTRACTIONS + r"\p{N}{1,3}" + _REST
_QWEN2 = _CONTRACTIONS + r"\p{N}" + _REST
_PHI3_PLAIN = ("<unk>", "<s>", "<|endoftext|>")
_LLAMA_CLASSES = ("LlamaTokenizer", "LlamaTokenizerFast")

Prefix = Literal["none", "always", "unless-space"]


@dataclass(frozen=True)
class Vocabulary:
    """What a GGUF file says of its tokenizer.

    Attributes:
        model: llama.cpp's kind of tokenizer.
        pre: llama.cpp's name for how words are cut.
        tokens: Texts in order of ids; of byte-level BPE, each byte as one printable character.
        types: One of the constants above for each token.
        merges: Pairs, highest rank first; byte-level BPE only.
        scores: What a merge into each token is worth; BPE over characters only.
        special: bos, eos, unk and pad, those that the tokenizer has.
        prefix: When a space is put before a text. llama.cpp knows `always` and `none`; transformers' newer
            Llama tokenizers do without where the text begins with one.
        strips_like_phi3: Special tokens take the spaces behind them, those of `_PHI3_PLAIN` excepted.
    """

    model: Literal["gpt2", "llama"]
    pre: str
    tokens: Sequence[str]
    types: Sequence[int]
    special: Mapping[str, int]
    adds_bos: bool
    adds_eos: bool
    prefix: Prefix = "none"
    merges: Sequence[str] = ()
    scores: Sequence[float] = ()
    chat_template: str | None = None
    strips_like_phi3: bool = False


@dataclass
class _Source:
    """tokenizer.json and tokenizer_config.json."""

    folder: Path
    whole: dict[str, Any]
    settings: dict[str, Any]
    faults: list[str] = field(default_factory=list)

    @property
    def model(self) -> dict[str, Any]:
        found: dict[str, Any] = self.whole.get("model") or {}
        return found

    @property
    def added(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.whole.get("added_tokens") or []
        return found

    @property
    def merges(self) -> list[tuple[str, str]]:
        pairs = (m.split(" ", 1) if isinstance(m, str) else m for m in self.model.get("merges") or [])
        return [(first, second) for first, second in pairs]

    def steps(self, kind: str, inner: str) -> list[dict[str, Any]]:
        """Normalizers, pre-tokenizers or post-processors, a sequence laid flat."""
        step = self.whole.get(kind)
        if not step:
            return []
        found: list[dict[str, Any]] = step[inner] if step["type"] == "Sequence" else [step]
        return found


def read_vocabulary(folder: Path, vocab_size: int) -> Vocabulary:
    """Reads the tokenizer of the model in `folder`, whose embedding has `vocab_size` rows.

    Raises:
        BaseModelError: No tokenizer.json, or one that llama.cpp's tokenizers cannot follow to the letter,
            with everything in it that they cannot do.
    """
    source = _Source(folder, _json(folder, "tokenizer.json"), _json(folder, "tokenizer_config.json"))
    if source.model.get("type") != "BPE":
        raise BaseModelError(
            f"{folder / 'tokenizer.json'}: is a {source.model.get('type')} tokenizer, expected BPE: no other "
            "has an exact counterpart in llama.cpp"
        )
    tokens, types = _tokens(source, vocab_size)
    is_byte_level = any(
        step["type"] == "ByteLevel" for step in source.steps("pre_tokenizer", "pretokenizers")
    )
    made = (_byte_level if is_byte_level else _character_level)(source, tokens, types)
    if source.faults:
        where = f"{folder / 'tokenizer.json'}: cannot be put in llama.cpp's words"
        raise BaseModelError.of(where, source.faults)
    return made


def _json(folder: Path, name: str) -> dict[str, Any]:
    try:
        content = json.loads((folder / name).read_bytes())
    except OSError as cause:
        raise BaseModelError(
            f"{folder / name}: cannot be read: {cause.strerror}; a GGUF file needs it"
        ) from cause
    except ValueError as cause:
        raise BaseModelError(f"{folder / name}: is not JSON: {cause}") from cause
    if not isinstance(content, dict):
        raise BaseModelError(f"{folder / name}: holds a {type(content).__name__}, expected a JSON object")
    return content


def _tokens(source: _Source, vocab_size: int) -> tuple[list[str], list[int]]:
    named: dict[str, int] = dict(source.model.get("vocab") or {})
    tokens = [f"[PAD{number}]" for number in range(vocab_size)]  # rows of the embedding without a token
    types = [UNUSED] * vocab_size
    places = [(text, int(place), _type(text, source)) for text, place in named.items()]
    places += [
        (_raw(token), int(token["id"]), CONTROL if token["special"] else USER_DEFINED)
        for token in source.added
    ]
    beyond = [text for text, place, _ in places if place >= vocab_size]
    if beyond:
        source.faults.append(f"{len(beyond)} tokens, such as {beyond[0]!r}, have no row among {vocab_size}")
    for text, place, kind in places:
        if place < vocab_size:
            tokens[place] = text
            types[place] = UNKNOWN if text == source.model.get("unk_token") else kind
    if len(set(tokens)) != len(tokens):  # llama.cpp aborts the process
        source.faults.append("two ids have the same text")
    return tokens, types


def _type(text: str, source: _Source) -> int:
    is_byte = source.model.get("byte_fallback") and len(text) == 6 and text[:3] == "<0x" and text[5] == ">"
    return BYTE if is_byte else NORMAL


def _raw(token: Mapping[str, Any]) -> str:
    # llama.cpp looks for these in the text as it came, before spaces become "▁".
    content: str = token["content"]
    return content if token["special"] else content.replace(_SPACE, " ")


def _byte_level(source: _Source, tokens: list[str], types: list[int]) -> Vocabulary:
    pre = _pre(source)
    normalizers = [step["type"] for step in source.steps("normalizer", "normalizers")]
    source.faults += [f"the normalizer {name}" for name in normalizers if name != "NFC"]
    missing = sum(character not in source.model["vocab"] for character in _byte_characters())
    if missing:
        source.faults.append(f"{missing} of 256 bytes have no token")
    special, adds_bos, adds_eos = _special(source)
    return Vocabulary(
        "gpt2",
        pre,
        tokens,
        types,
        special,
        adds_bos,
        adds_eos,
        merges=[f"{first} {second}" for first, second in source.merges],
        chat_template=_chat_template(source),
        strips_like_phi3=_strips_like_phi3(source),
    )


def _pre(source: _Source) -> str:
    """llama.cpp's name for the way words are cut. Of names for one pattern, that of equal other habits."""
    steps = source.steps("pre_tokenizer", "pretokenizers")
    kinds, last = [step["type"] for step in steps], steps[-1]
    ignores_merges = bool(source.model.get("ignore_merges"))
    by_bytes = last.get("use_regex", True)
    if last.get("add_prefix_space"):
        source.faults.append("a space before each text in byte-level BPE")
    is_gpt2 = kinds == ["ByteLevel"] and by_bytes
    if (is_gpt2 or not source.merges) and not ignores_merges:  # without merges every cut does
        return "gpt-2" if source.settings.get("clean_up_tokenization_spaces") else "trillion"
    if (
        kinds == ["Digits", "ByteLevel"]
        and steps[0].get("individual_digits")
        and by_bytes
        and not ignores_merges
    ):
        return "smollm"
    if kinds == ["Split", "ByteLevel"] and steps[0].get("behavior") == "Isolated" and not by_bytes:
        pattern = (steps[0].get("pattern") or {}).get("Regex")
        if pattern == _LLAMA3:
            return "llama-bpe" if ignores_merges else "dbrx"
        if pattern == _QWEN2 and not ignores_merges:
            return "qwen2"
    source.faults.append(f"the pre-tokenizer {json.dumps(steps, ensure_ascii=False)[:300]}")
    return ""


def _byte_characters() -> Iterator[str]:
    """The characters that stand for the 256 bytes in byte-level BPE (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    yield from map(chr, printable)
    yield from map(chr, range(256, 256 + 256 - len(printable)))


def _character_level(source: _Source, tokens: list[str], types: list[int]) -> Vocabulary:
    vocab, merges = source.model["vocab"], source.merges
    rank: dict[str, int] = {}
    for number, (first, second) in enumerate(merges):
        rank.setdefault(first + second, number)
    prefix = _prefix(source)
    if source.model.get("ignore_merges"):
        source.faults.append("whole words before merges (ignore_merges)")
    elif not same_tokens(vocab, merges, rank):
        source.faults.append("its merges give other tokens than merging by scores, on test sentences")
    special, adds_bos, adds_eos = _special(source)
    return Vocabulary(
        "llama",
        "default",
        tokens,
        types,
        special,
        adds_bos,
        adds_eos,
        prefix=prefix,
        scores=[-float(rank.get(token, len(merges))) for token in tokens],
        chat_template=_chat_template(source),
        strips_like_phi3=_strips_like_phi3(source),
    )


def _prefix(source: _Source) -> Prefix:
    """When a space goes before a text; adds a fault where spaces are treated in another way than as "▁"."""
    if source.settings.get("tokenizer_class") in _LLAMA_CLASSES:
        return "none" if source.settings.get("add_prefix_space") is False else "unless-space"
    normalizers = source.steps("normalizer", "normalizers")
    steps = source.steps("pre_tokenizer", "pretokenizers")
    kinds = [step["type"] for step in normalizers]
    replaces = kinds[-1:] == ["Replace"] and normalizers[-1].get("pattern") == {"String": " "}
    if replaces and normalizers[-1].get("content") == _SPACE and _cuts_nothing(steps):
        if kinds == ["Replace"]:
            return "none"
        if kinds == ["Prepend", "Replace"] and normalizers[0].get("prepend") == _SPACE:
            return "always"
    if not kinds and [step["type"] for step in steps] == ["Metaspace"] and steps[0].get("split") is False:
        return "none" if steps[0].get("prepend_scheme") == "never" else "unless-space"
    source.faults.append(
        f"the normalizer {json.dumps(normalizers, ensure_ascii=False)[:200]} with the pre-tokenizer "
        f"{json.dumps(steps, ensure_ascii=False)[:200]}"
    )
    return "none"


def _cuts_nothing(steps: Sequence[Mapping[str, Any]]) -> bool:
    # Gemma's cuts at spaces, of which none are left behind its normalizer.
    return all(step["type"] == "Split" and step.get("pattern") == {"String": " "} for step in steps)


def _special(source: _Source) -> tuple[dict[str, int], bool, bool]:
    ids = {**source.model["vocab"], **{t["content"]: t["id"] for t in source.added}}
    special = {}
    for role in ("bos", "eos", "unk", "pad"):
        named = source.settings.get(f"{role}_token")
        text = named.get("content") if isinstance(named, dict) else named
        if text in ids:
            special[role] = ids[text]
    around = _around(source)
    adds = (source.settings.get(f"add_{role}_token", special.get(role) in around) for role in ("bos", "eos"))
    adds_bos, adds_eos = (
        bool(flag) and role in special for flag, role in zip(adds, ("bos", "eos"), strict=True)
    )
    return special, adds_bos, adds_eos


def _strips_like_phi3(source: _Source) -> bool:
    """Whether special tokens take spaces; adds a fault where they do it in a way that llama.cpp has not."""
    takers = {
        t["content"] for t in source.added if t.get("rstrip") or t.get("lstrip") or t.get("single_word")
    }
    if not takers:
        return False
    known = {t["content"] for t in source.added if t["content"] not in _PHI3_PLAIN}
    others = [t for t in source.added if t.get("lstrip") or t.get("single_word")]
    if others or takers != known or not {"</s>", *_PHI3_PLAIN} <= {t["content"] for t in source.added}:
        source.faults.append(f"special tokens that take spaces around them, such as {min(takers)}")
    return True


def _around(source: _Source) -> list[int]:
    """Ids that the post-processor puts around a text."""
    templates = [s for s in source.steps("post_processor", "processors") if s["type"] == "TemplateProcessing"]
    return [
        number
        for template in templates
        for piece in template["single"]
        if "SpecialToken" in piece
        for number in template["special_tokens"][piece["SpecialToken"]["id"]]["ids"]
    ]


def _chat_template(source: _Source) -> str | None:
    beside = source.folder / "chat_template.jinja"
    if beside.is_file():
        return beside.read_text(encoding="utf-8")
    found = source.settings.get("chat_template")
    if isinstance(found, list):  # several by name
        return next((entry["template"] for entry in found if entry.get("name") == "default"), None)
    return found if isinstance(found, str) else None
