"""A random Llama of one block as a GGUF file of 50 KB: what the llama.cpp backend tries itself out on."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from converters.adapter import Array

VOCAB, HIDDEN, INNER, HEADS, KV_HEADS = 64, 32, 48, 4, 2
MATRICES = {  # (out, in)
    "attn_q": (HIDDEN, HIDDEN),
    "attn_k": (HIDDEN * KV_HEADS // HEADS, HIDDEN),
    "attn_v": (HIDDEN * KV_HEADS // HEADS, HIDDEN),
    "attn_output": (HIDDEN, HIDDEN),
    "ffn_gate": (INNER, HIDDEN),
    "ffn_up": (INNER, HIDDEN),
    "ffn_down": (HIDDEN, INNER),
}


def make_weights(seed: int) -> dict[str, Array]:
    """Draws values for every tensor, by its name in the file."""
    random = np.random.default_rng(seed)
    shapes = {f"blk.0.{name}.weight": shape for name, shape in MATRICES.items()}
    shapes |= {"token_embd.weight": (VOCAB, HIDDEN), "output.weight": (VOCAB, HIDDEN)}
    norms = ("blk.0.attn_norm.weight", "blk.0.ffn_norm.weight", "output_norm.weight")
    return {
        **{
            name: random.normal(0, shape[1] ** -0.5, shape).astype(np.float32)
            for name, shape in shapes.items()
        },
        **{name: random.normal(1, 0.2, HIDDEN).astype(np.float32) for name in norms},
    }


def write_toy(path: Path, weights: Mapping[str, Array]) -> None:
    """Writes such weights as a model without a vocabulary."""
    from gguf import GGUFWriter

    writer = GGUFWriter(path, "llama")
    writer.add_vocab_size(VOCAB)
    writer.add_tokenizer_model("no_vocab")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    for name, values in weights.items():
        writer.add_tensor(name, values)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
