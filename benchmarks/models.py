"""Models to measure backends with: a LLaMA of random weights as a Hugging Face folder, and GGUF files of it.

How long a step takes does not depend on what the weights know. Written without torch and transformers, so
that a machine with the `llama` extra alone can measure itself. The tokenizer has a token for each byte; the
rest of the vocabulary has rows in the weights and no text.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from benchmarks.assets import ASSETS
from benchmarks.assets import NAME as ASSETS_NAME
from benchmarks.measuring import run_module
from converters.errors import BaseModelError
from converters.gguf_export.model import write_gguf

NUM_BYTES = 256
CONTEXT = 2048


class Shape(NamedTuple):
    """Of a LLaMA with untied head."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    feed_forward: int
    vocabulary: int


SHAPES = {
    "LLaMA-124M": Shape(768, 12, 12, 4, 2048, 32_000),  # 124.7 million parameters
    "LLaMA-2M": Shape(256, 2, 8, 4, 512, 1024),  # for counting bytes, not seconds
}


def find_model(name: str, quant: str, folder: Path) -> Path:
    """Returns the model called `name`, of `SHAPES` or the assets; makes it in `folder` where it is missing.

    Args:
        name: Of the model.
        quant: llama.cpp's name of a quantisation, or f32, for a GGUF file; empty for a folder.
        folder: Where models are made.

    Raises:
        TunefleetError: The assets or the library that writes the file are missing, or it refuses.
    """
    base = folder / name if name in SHAPES else ASSETS / "models" / name
    if name in SHAPES and not (base / "model.safetensors").exists():
        write_llama(base, SHAPES[name])
    if not base.exists():
        raise BaseModelError(f"{name} needs {ASSETS_NAME}, which is not there")
    return _find_gguf(base, quant, folder) if quant else base


def write_llama(folder: Path, shape: Shape, seed: int = 0) -> None:
    """Writes a model that transformers, mlx-lm and `write_gguf` read; the same bytes for the same seed."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_tokenizer(folder)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.feed_forward,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": NUM_BYTES,
        "eos_token_id": NUM_BYTES + 1,
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))
    part = folder / "model.part"  # a benchmark that was interrupted leaves no half a model
    save_file(_weights(shape, seed), part, {"format": "pt"})
    part.replace(folder / "model.safetensors")


def _weights(shape: Shape, seed: int) -> dict[str, NDArray[np.float32]]:
    hidden, wide = shape.hidden, shape.feed_forward
    kv = hidden * shape.kv_heads // shape.heads
    shapes = {"model.embed_tokens": (shape.vocabulary, hidden), "lm_head": (shape.vocabulary, hidden)}
    norms = ["model.norm"]
    for layer in range(shape.layers):
        block = f"model.layers.{layer}"
        shapes |= {f"{block}.self_attn.{name}_proj": (hidden, hidden) for name in "qo"}
        shapes |= {f"{block}.self_attn.{name}_proj": (kv, hidden) for name in "kv"}
        shapes |= {f"{block}.mlp.{name}_proj": (wide, hidden) for name in ("gate", "up")}
        shapes[f"{block}.mlp.down_proj"] = (hidden, wide)
        norms += [f"{block}.input_layernorm", f"{block}.post_attention_layernorm"]
    random = np.random.default_rng(seed)
    weights = {f"{name}.weight": np.ones(hidden, np.float32) for name in norms}
    for name, (num_out, num_in) in shapes.items():
        weights[f"{name}.weight"] = random.standard_normal((num_out, num_in), np.float32)
        weights[f"{name}.weight"] *= np.float32(num_in**-0.5)
    return weights


def _write_tokenizer(folder: Path) -> None:
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]  # byte-level BPE's stand-ins for bytes
    texts = [*map(chr, printable), *map(chr, range(NUM_BYTES, 2 * NUM_BYTES - len(printable)))]
    special = [
        {"id": NUM_BYTES + n, "content": text, "special": True, "single_word": False, "lstrip": False}
        | {"rstrip": False, "normalized": False}
        for n, text in enumerate(("<s>", "</s>"))
    ]
    vocabulary = {text: n for n, text in enumerate([*texts, "<s>", "</s>"])}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    whole = {
        "version": "1.0",
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": None,
        "decoder": level,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    }
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def _find_gguf(base: Path, quant: str, folder: Path) -> Path:
    path = folder / f"{base.name}-{quant}.gguf"
    if path.exists():
        return path
    if quant == "f32":
        write_gguf(base, path)
        return path
    part = path.with_suffix(".part")
    run_module("edge.backends.llama_cpp.quantize", str(_find_gguf(base, "f32", folder)), str(part), quant)
    part.replace(path)
    return path
