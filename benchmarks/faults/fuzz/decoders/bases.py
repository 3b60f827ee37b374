"""Base models as folders and GGUF files: headers, numbers, fingerprints, proofs, and their tokenizers."""

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from benchmarks.faults.fuzz.decoders.folder import Replaced
from benchmarks.faults.fuzz.target import Target
from converters.bases.contract import Base
from converters.bases.folder import read_folder
from converters.bases.gguf import read_gguf
from converters.bases.name import name_base
from converters.errors import BaseModelError
from converters.gguf_export.tokenizer import read_vocabulary
from converters.gguf_export.toy import make_weights, write_toy
from converters.proof.check import check_base
from converters.proof.sample import make_sample, parse_sample
from edge.backends.chat import ChatTemplate
from edge.backends.tokenizer import context_tokens
from edge.backends.toy import load, make_toy_base
from edge.device.own_base import base_fingerprint

HIDDEN, INNER, VOCAB, ROWS = 8, 12, 16, 300
LETTERS = [
    *map(chr, range(33, 127)),
    *map(chr, range(161, 173)),
    *map(chr, range(174, 324)),
    "▁",
]  # GPT-2's bytes
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "attention_bias": False,
    "tie_word_embeddings": False,
    "vocab_size": VOCAB,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
GEMMA = {
    "model_type": "gemma3_text",
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 4,
    "sliding_window": 16,
    "layer_types": ["full_attention"],
    "rope_local_base_freq": 1e4,
    "final_logit_softcapping": None,
}
QUANTIZED = {"quantization": {"bits": 4, "group_size": 32, "model.layers.0.mlp.up_proj": {"bits": 8}}}
TOKENIZER = {
    "version": "1.0",
    "added_tokens": [{"id": 0, "content": "<s>", "special": True, "lstrip": False, "rstrip": False}],
    "normalizer": None,
    "pre_tokenizer": {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    },
    "post_processor": {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
    },
    "decoder": {"type": "ByteLevel"},
    "model": {
        "type": "BPE",
        "unk_token": None,
        "byte_fallback": False,
        "vocab": {"<s>": 0, "ab": 1} | {letter: number for number, letter in enumerate(LETTERS, 2)},
        "merges": ["a b"],
    },
}
CHARACTERS = TOKENIZER | {
    "normalizer": {
        "type": "Sequence",
        "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ],
    },
    "pre_tokenizer": None,
    "decoder": None,
    "model": TOKENIZER["model"] | {"byte_fallback": True, "unk_token": "<s>", "merges": [["a", "b"]]},  # type: ignore[operator]
}
TOKENIZER_CONFIG = {
    "add_bos_token": True,
    "bos_token": {"content": "<s>", "lstrip": False},
    "eos_token": "<s>",
    "chat_template": [{"name": "default", "template": "{{ messages[0]['content'] }}"}],
    "model_max_length": 1000000000000000019884624838656,
}
TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SHAPES = {
    "model.embed_tokens.weight": (VOCAB, HIDDEN),
    "model.norm.weight": (HIDDEN,),
    "lm_head.weight": (VOCAB, HIDDEN),
    "model.layers.0.input_layernorm.weight": (HIDDEN,),
    "model.layers.0.post_attention_layernorm.weight": (HIDDEN,),
    **{f"model.layers.0.self_attn.{letter}_proj.weight": (HIDDEN, HIDDEN) for letter in "qkvo"},
    "model.layers.0.mlp.gate_proj.weight": (INNER, HIDDEN),
    "model.layers.0.mlp.up_proj.weight": (INNER, HIDDEN),
    "model.layers.0.mlp.down_proj.weight": (HIDDEN, INNER),
}


def targets(root: Path) -> Iterator[Target]:
    """Lists the readers of base models; files lie below `root`."""
    folder = make_base(root / "base")
    configs = [CONFIG, CONFIG | {"rope_scaling": LLAMA3}, CONFIG | GEMMA, CONFIG | QUANTIZED]
    texts = [json.dumps(config).encode() for config in [*configs, {"text_config": CONFIG}]]
    sample = make_sample(read_folder(folder))
    parsed = parse_sample(sample)

    def check(base: Base) -> None:
        _read(base)
        with suppress(BaseModelError):  # valid ones, too, are not this model's copies
            check_base(base, parsed)

    yield Target(
        "base/config.json", "json", texts, Replaced(folder, "config.json", lambda p: check(read_folder(p))), 8
    )
    weights = (folder / "model.safetensors").read_bytes()
    decode = Replaced(folder, "model.safetensors", lambda p: check(read_folder(p)))
    yield Target("base/model.safetensors", "tensors", [weights], decode, 4)
    sharded = make_base(root / "sharded")
    (sharded / "model.safetensors").rename(sharded / "model-1.safetensors")
    index = json.dumps({"metadata": {}, "weight_map": dict.fromkeys(SHAPES, "model-1.safetensors")}).encode()
    (sharded / "model.safetensors.index.json").write_bytes(index)
    name = "model.safetensors.index.json"
    yield Target("base/index", "json", [index], Replaced(sharded, name, lambda p: _read(read_folder(p))), 4)
    write_toy(root / "model.gguf", make_weights(0))
    (root / "gguf-base").mkdir()
    (root / "model.gguf").rename(root / "gguf-base" / "model.gguf")
    gguf = (root / "gguf-base" / "model.gguf").read_bytes()
    toy_sample = parse_sample(make_sample(read_gguf(root / "gguf-base" / "model.gguf")))
    decode = Replaced(root / "gguf-base", "model.gguf", lambda p: _read_gguf(p / "model.gguf", toy_sample))
    yield Target("base/gguf", "gguf", [gguf], decode, 6)
    yield Target("base/sample", "tensors", [sample], parse_sample, 10)
    proved = read_folder(folder)
    yield Target(
        "base/proved", "tensors", [sample], lambda payload: check_base(proved, parse_sample(payload)), 6
    )
    yield from _toy_targets(root)
    yield from _tokenizer_targets(root)


def make_base(folder: Path) -> Path:
    """Writes a random model of one block."""
    folder.mkdir()
    random = np.random.default_rng(0)
    weights = {name: random.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def _read(base: Base) -> None:
    name_base(base)
    base.modules  # noqa: B018
    base.num_layers  # noqa: B018
    for look in (lambda: base.fingerprint, base.naming, lambda: make_sample(base)):
        try:
            look()
        except BaseModelError:  # the others are to be looked at all the same
            continue
    context_tokens(base.path)


def _read_gguf(path: Path, sample: object) -> None:
    base = read_gguf(path)
    _read(base)
    check_base(base, sample)  # type: ignore[arg-type]


def _toy_targets(root: Path) -> Iterator[Target]:
    folder = make_toy_base(root / "toy", dim=8)
    for name in ("toy.json", "config.json"):
        seed = (folder / name).read_bytes()

        def read(path: Path) -> None:
            base_fingerprint(path, None)
            load(path)

        yield Target(f"base/toy/{name}", "json", [seed], Replaced(folder, name, read), 2)


def _tokenizer_targets(root: Path) -> Iterator[Target]:
    folder = root / "tokenizer"
    folder.mkdir()
    tokenizers = [json.dumps(one, ensure_ascii=False).encode() for one in (TOKENIZER, CHARACTERS)]
    settings = json.dumps(TOKENIZER_CONFIG).encode()
    (folder / "tokenizer.json").write_bytes(tokenizers[0])
    (folder / "tokenizer_config.json").write_bytes(settings)
    for name, seeds in (("tokenizer.json", tokenizers), ("tokenizer_config.json", [settings])):
        decode = Replaced(folder, name, lambda path: read_vocabulary(path, ROWS))
        yield Target(f"tokenizer/{name}", "json", seeds, decode, 6)
    beside = root / "template"
    beside.mkdir()
    for path in folder.iterdir():
        (beside / path.name).write_bytes(path.read_bytes())
    decode = Replaced(beside, "chat_template.jinja", lambda path: read_vocabulary(path, ROWS))
    yield Target("tokenizer/chat_template.jinja", "bytes", [TEMPLATE.encode()], decode, 1)
    yield Target("tokenizer/rendered", "bytes", [TEMPLATE.encode()], _render, 1)


def _render(source: bytes) -> None:
    template = ChatTemplate(source.decode("utf-8", "replace"), {"bos_token": "<s>"})
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    template.render(turns, tools=None, add_generation_prompt=True)
