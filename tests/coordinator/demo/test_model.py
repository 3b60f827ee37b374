from importlib.util import find_spec

import numpy as np
import pytest

from coordinator.demo.files import MODEL

TEXT = "Set the lamp in the bedroom to 30 percent.\nbedroom"


def test_the_model_is_small_enough_to_ship():
    files = [path for path in MODEL.rglob("*") if path.is_file()]
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= {
        path.name for path in files
    }
    assert sum(path.stat().st_size for path in files) <= 8_000_000


@pytest.mark.torch
@pytest.mark.mlx
@pytest.mark.skipif(not find_spec("transformers"), reason="needs the torch extra")
@pytest.mark.skipif(not find_spec("mlx_lm"), reason="needs the mlx extra")
def test_transformers_and_mlx_lm_read_the_same_model():
    import mlx.core as mx
    import torch
    from mlx.utils import tree_map
    from mlx_lm import load
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    tokens = tokenizer.encode(TEXT, add_special_tokens=False)
    theirs = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    with torch.no_grad():
        expected = theirs(torch.tensor([tokens])).logits.numpy()

    model, wrapped = load(str(MODEL))
    model.update(tree_map(lambda weight: weight.astype(mx.float32), model.parameters()))
    assert wrapped.encode(TEXT, add_special_tokens=False) == tokens
    np.testing.assert_allclose(np.array(model(mx.array([tokens]))), expected, atol=1e-3)


@pytest.mark.torch
@pytest.mark.skipif(not find_spec("transformers"), reason="needs the torch extra")
def test_the_tokenizer_keeps_digits_apart_and_loses_nothing():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    tokens = tokenizer.encode(TEXT, add_special_tokens=False)
    assert tokenizer.decode(tokens) == TEXT
    assert [tokenizer.decode([token]) for token in tokens].count("3") == 1
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    message = [{"role": "user", "content": "Run the pump."}]
    assert tokenizer.apply_chat_template(message, tokenize=False) == "Run the pump.\n"
