import json
import os
import shutil
from pathlib import Path

import pytest

from converters.errors import BaseModelError
from converters.gguf_export.model import PREFIX_KEY, write_gguf
from converters.gguf_export.tokenizer import read_vocabulary

tokenizers = pytest.importorskip("tokenizers", reason="needs the torch extra")
transformers = pytest.importorskip("transformers", reason="needs the torch extra")

ROOT = Path(__file__).parents[3]
ASSETS = Path(os.environ.get("TUNEFLEET_ASSETS", ROOT.parent / "shared" / "assets"))
TEXTS = [
    "Hello, world! It's 12345.67 o'clock; we'll see THAT they'VE done 3 things.",
    " a space before,  two   three    four and after ",
    "new\nlines\n\n\nand\r\ntabs\t\tand\n  indents\n",
    "naïve café Łódź — “quotes” … 日本語 한국어 العربية हिन्दी 😀👍🏽 ½ Ⅻ",
    "def f(x_1, y):\n    return x_1**2 != y // 3  # 100%\n",
    "a",
    " ",
    "\n",
    "<s> no special token </s>",
]
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"


def split(pattern):
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def byte_level(use_regex):
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


CUTS = {
    "gpt-2": [byte_level(True)],
    "digits": [{"type": "Digits", "individual_digits": True}, byte_level(True)],
    "llama-3": [split(WORDS + r"\p{N}{1,3}" + REST), byte_level(False)],
    "qwen-2": [split(WORDS + r"\p{N}" + REST), byte_level(False)],
}
ADDED = [
    {"id": n, "content": text, "single_word": False, "lstrip": False, "rstrip": False}
    | {"normalized": False, "special": True}
    for n, text in enumerate(["<s>", "</s>", "<unk>"])
]
SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
PREPEND = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, SPACES]}
METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}


def model_with(make_model, tmp_path, tokenizer, **settings):
    """A tiny llama with `tokenizer` (the content of tokenizer.json)."""
    vocab = tokenizer["model"]["vocab"]
    folder = make_model("llama", vocab_size=len({*vocab.values(), *range(len(ADDED))}) + 5)
    copy = shutil.copytree(folder, tmp_path / "model")
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
    } | settings
    (copy / "tokenizer_config.json").write_text(json.dumps(settings))
    return copy


@pytest.fixture(scope="module")
def byte_bpe():
    """`byte_bpe(cut)`: tokenizer.json of a byte-level BPE that was trained with that pre-tokenizer."""

    def train(cut, **model):
        trained = tokenizers.Tokenizer(tokenizers.models.BPE())
        trained.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=420,
            special_tokens=[token["content"] for token in ADDED],
            initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        trained.train_from_iterator([*TEXTS, (ROOT / "README.md").read_text()], trainer)
        made = json.loads(trained.to_str())
        made["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": CUTS[cut]}
        made["model"] |= model
        return made

    return train


@pytest.fixture(scope="module")
def sentencepiece_bpe():
    """tokenizer.json as transformers makes it of a SentencePiece BPE: every pair whose union is a token."""

    def make(**changes):
        text = " ".join([*TEXTS, (ROOT / "README.md").read_text()]).replace(" ", "▁")
        pieces = sorted({text[i : i + n] for i in range(len(text)) for n in (2, 3, 4)}, key=text.count)
        characters = sorted(set(text[:4000]) - {"½", "👍", "ह"})  # these come as bytes
        ranked = [piece for piece in pieces[::-1][:300] if set(piece) <= set(characters)]
        names = ["<s>", "</s>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *characters, *ranked]
        vocab = {name: number for number, name in enumerate(dict.fromkeys(names))}
        merges = [
            (piece[:at], piece[at:])
            for piece in ranked
            for at in range(1, len(piece))
            if piece[:at] in vocab and piece[at:] in vocab
        ]
        model = {"type": "BPE", "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True, "vocab": vocab}
        whole = {"version": "1.0", "added_tokens": ADDED, "normalizer": PREPEND, "pre_tokenizer": None}
        whole |= {"post_processor": None, "decoder": None, "model": model | {"merges": merges}}
        return whole | changes

    return make


def same_ids(llama, folder, tmp_path, texts=TEXTS):
    write_gguf(folder, tmp_path / "model.gguf")
    model = llama.load(tmp_path / "model.gguf")
    reference = transformers.AutoTokenizer.from_pretrained(folder)
    if special := set(reference.all_special_tokens):
        texts = [text for text in texts if not any(token in text for token in special)]
    expected = [reference.encode(text, add_special_tokens=False, verbose=False) for text in texts]
    assert [llama.encode(model, text) for text in texts] == expected


@pytest.mark.torch
@pytest.mark.parametrize("cut", CUTS)
def test_byte_level_bpe_gives_the_same_ids(llama, make_model, byte_bpe, tmp_path, cut):
    same_ids(llama, model_with(make_model, tmp_path, byte_bpe(cut)), tmp_path)


@pytest.mark.torch
def test_whole_words_before_merges_are_kept(llama, make_model, byte_bpe, tmp_path):
    tokenizer = byte_bpe("llama-3", ignore_merges=True)
    tokenizer["model"]["vocab"]["Ġworldly"] = max(tokenizer["model"]["vocab"].values()) + 1
    folder = model_with(make_model, tmp_path, tokenizer)
    same_ids(llama, folder, tmp_path, [*TEXTS, "a worldly thing"])


@pytest.mark.torch
@pytest.mark.parametrize(
    ("changes", "leading"),
    [
        ({}, True),
        ({"normalizer": SPACES}, True),
        ({"normalizer": None, "pre_tokenizer": METASPACE}, False),
        ({"normalizer": None, "pre_tokenizer": METASPACE | {"prepend_scheme": "never"}}, True),
    ],
    ids=["llama-2", "gemma", "mistral", "no prefix"],
)
def test_sentencepiece_bpe_gives_the_same_ids(
    llama, make_model, sentencepiece_bpe, tmp_path, changes, leading
):
    """A text that begins with a space gets another one from llama.cpp, but not from Metaspace."""
    texts = [text for text in TEXTS if leading or not text.startswith(" ")]
    same_ids(llama, model_with(make_model, tmp_path, sentencepiece_bpe(**changes)), tmp_path, texts)


@pytest.mark.torch
def test_the_prefix_is_written_down_where_llama_cpp_knows_only_half(make_model, sentencepiece_bpe, tmp_path):
    tokenizer = sentencepiece_bpe(normalizer=None, pre_tokenizer=METASPACE)
    folder = model_with(make_model, tmp_path, tokenizer)
    assert read_vocabulary(folder, 2000).prefix == "unless-space"
    write_gguf(folder, tmp_path / "model.gguf")
    assert PREFIX_KEY.encode() in (tmp_path / "model.gguf").read_bytes()


def shipped(name):
    return ROOT / "coordinator" / "demo" / "model" if name == "demo" else ASSETS / "models" / name


@pytest.mark.torch
@pytest.mark.assets
@pytest.mark.parametrize("name", ["demo", "stories260K", "tinystories-656K"])
def test_real_tokenizers_give_the_same_ids(llama, tmp_path, name):
    if not ASSETS.is_dir():
        pytest.skip("needs ../shared/assets or TUNEFLEET_ASSETS")
    stories = (ASSETS / "data" / "tinystories" / "atome-lm_sample.txt").read_text()[:40000]
    texts = [line for line in stories.split("\n") if line]
    if name == "tinystories-656K":  # it has no tokens for other characters, not even bytes
        known = set(json.loads((shipped(name) / "tokenizer.json").read_text())["model"]["vocab"]) | {" "}
        texts = ["".join(character for character in text if character in known) for text in texts]
    assert len(texts) > 200
    same_ids(llama, shipped(name), tmp_path, texts)


@pytest.mark.torch
def test_special_tokens_and_the_chat_template_are_carried_over(llama, make_model, byte_bpe, tmp_path):
    folder = model_with(make_model, tmp_path, byte_bpe("gpt-2"), pad_token="<unk>", chat_template="{{ x }}")
    write_gguf(folder, tmp_path / "model.gguf")
    model = llama.load(tmp_path / "model.gguf")
    vocab = llama.api.llama_model_get_vocab(model)
    special = [getattr(llama.api, f"llama_vocab_{role}")(vocab) for role in ("bos", "eos", "pad")]
    assert special == [0, 1, 2]
    assert not llama.api.llama_vocab_get_add_bos(vocab)
    assert llama.api.llama_model_chat_template(model, None) == b"{{ x }}"


@pytest.mark.torch
@pytest.mark.parametrize("flag", [None, True, False])
def test_bos_is_added_where_the_tokenizer_adds_it(make_model, byte_bpe, tmp_path, flag):
    tokenizer = byte_bpe("gpt-2")
    piece = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [piece, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
    }
    settings = {} if flag is None else {"add_bos_token": flag}
    folder = model_with(make_model, tmp_path, tokenizer, **settings)
    assert read_vocabulary(folder, 2000).adds_bos is (flag is not False)


@pytest.mark.torch
def test_everything_that_cannot_be_followed_is_named_at_once(make_model, byte_bpe, tmp_path):
    tokenizer = byte_bpe("gpt-2") | {"normalizer": {"type": "Lowercase"}, "pre_tokenizer": byte_level(False)}
    del tokenizer["model"]["vocab"]["a"]
    folder = model_with(make_model, tmp_path, tokenizer)
    named = "pre-tokenizer.*; the normalizer Lowercase; 1 of 256 bytes have no token"
    with pytest.raises(BaseModelError, match=named):
        read_vocabulary(folder, 2000)


@pytest.mark.torch
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model": {"type": "Unigram"}}, "is a Unigram tokenizer, expected BPE"),
        ({"pre_tokenizer": METASPACE | {"split": True}}, "with the pre-tokenizer"),
        ({"normalizer": {"type": "NFKC"}}, "the normalizer .*NFKC"),
    ],
)
def test_other_tokenizers_are_refused(make_model, sentencepiece_bpe, tmp_path, changes, named):
    folder = model_with(make_model, tmp_path, sentencepiece_bpe())
    (folder / "tokenizer.json").write_text(json.dumps(sentencepiece_bpe(**changes)))
    with pytest.raises(BaseModelError, match=named):
        read_vocabulary(folder, 2000)


@pytest.mark.torch
def test_merges_that_scores_cannot_express_are_refused(make_model, sentencepiece_bpe, tmp_path):
    tokenizer = sentencepiece_bpe()
    merges = tokenizer["model"]["merges"]
    tokenizer["model"]["merges"] = [pair for pair in merges if len(pair[0]) == 1]  # the + m, but not th + em
    folder = model_with(make_model, tmp_path, tokenizer)
    with pytest.raises(BaseModelError, match="other tokens than merging by scores"):
        read_vocabulary(folder, 2000)


@pytest.mark.torch
def test_more_tokens_than_rows_are_refused(make_model, tmp_path):
    with pytest.raises(BaseModelError, match=r"8 tokens, .* have no row among 250"):
        read_vocabulary(make_model("llama"), 250)


@pytest.mark.torch
def test_a_missing_tokenizer_is_said(make_model, tmp_path):
    folder = shutil.copytree(make_model("llama"), tmp_path / "copy")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(BaseModelError, match=r"tokenizer\.json: cannot be read: No such file"):
        write_gguf(folder, tmp_path / "model.gguf")
