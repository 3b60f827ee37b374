import numpy as np
import pytest

pytest.importorskip("gguf", reason="needs the llama extra")

from converters.bases.gguf import read_gguf
from converters.gguf_export.toy import HIDDEN, MATRICES, VOCAB, make_weights, write_toy

pytestmark = pytest.mark.llama


def test_the_toy_is_a_whole_model_that_llama_cpp_computes(tmp_path, llama):
    weights = make_weights(seed=0)
    write_toy(tmp_path / "toy.gguf", weights)
    base = read_gguf(tmp_path / "toy.gguf")
    assert (base.architecture.name, base.num_layers, base.vocab_size) == ("llama", 1, VOCAB)
    assert len(base.modules) == len(MATRICES) + 1  # the head is not tied
    assert base.num_parameters == sum(values.size for values in weights.values())
    assert np.array_equal(base.floats("blk.0.attn_k.weight"), weights["blk.0.attn_k.weight"])
    assert llama.logits(llama.load(base.path), [1, 2, 3]).shape == (3, VOCAB)


def test_the_same_seed_gives_the_same_weights():
    one, same, other = (make_weights(seed)["token_embd.weight"] for seed in (0, 0, 1))
    assert one.shape == (VOCAB, HIDDEN)
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
