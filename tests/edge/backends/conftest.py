"""Tiny base models, made on the spot: one for the toy backend, one that all others load; and all backends."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from converters.adapter import Factors, LoraAdapter
from converters.bases.gguf import read_gguf
from converters.bases.targets import match_targets
from converters.gguf_export.model import write_gguf
from edge.backends import load_model
from edge.backends.toy import make_toy_base
from edge.training.data.dataset import load_dataset
from edge.training.data.source import DataSource
from edge.training.packing import iterate_once

DIM, LAYERS, HEADS, KV_HEADS, HIDDEN = 32, 2, 4, 2, 64
WORDS = ("on", "off", "left", "right", "up", "down", "in", "out")
CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
CHAT += "{% if add_generation_prompt %}<assistant>{% endif %}"


@pytest.fixture(scope="session")
def toy_base(tmp_path_factory) -> Path:
    return make_toy_base(tmp_path_factory.mktemp("toy"), seed=0)


@pytest.fixture(scope="session")
def llama_base(tmp_path_factory) -> Path:
    return write_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def long_base(tmp_path_factory) -> Path:
    """The same model with room for examples of very unlike lengths."""
    return write_llama(tmp_path_factory.mktemp("long"), max_tokens=512)


def write_llama(folder: Path, max_tokens: int = 128) -> Path:
    vocab_size = _write_tokenizer(folder)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab_size,
        "hidden_size": DIM,
        "intermediate_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": max_tokens,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_file(_llama_weights(vocab_size), folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def llama_gguf(llama_base) -> Path:
    """The same model for llama.cpp."""
    pytest.importorskip("gguf", reason="needs the llama extra")
    write_gguf(llama_base, llama_base / "model.gguf")
    return llama_base / "model.gguf"


@pytest.fixture(
    scope="module",
    params=[
        "toy",
        pytest.param("torch", marks=pytest.mark.torch),
        pytest.param("mlx", marks=pytest.mark.mlx),
        pytest.param("llama_cpp", marks=pytest.mark.llama),
    ],
)
def model(request):
    """One of the backends with its tiny base: what takes it is tested over all of them."""
    library, extra, base = {
        "toy": ("numpy", "", "toy_base"),
        "torch": ("peft", "torch", "llama_base"),
        "mlx": ("mlx_lm", "mlx", "llama_base"),
        "llama_cpp": ("llama_cpp", "llama", "llama_gguf"),
    }[request.param]
    pytest.importorskip(library, reason=f"needs the {extra} extra")
    base = request.getfixturevalue(base)
    return load_model(request.param, base, precision="float32")


@pytest.fixture
def dataset(model, tmp_path):
    path = tmp_path / "data.jsonl"
    rows = [{"prompt": f"turn {word} ", "completion": word.upper()} for word in WORDS]
    path.write_text("\n".join(map(json.dumps, rows)))
    return load_dataset(DataSource(path=str(path)), model.tokenizer, seq_tokens=64)


@pytest.fixture
def batch(dataset):
    (batch,) = iterate_once(dataset.examples, seq_tokens=64, batch_tokens=512)
    return batch


@pytest.fixture
def random_adapter(model):
    """`random_adapter(b_size=0.1, targets=…)`: of rank 4 and scale 2, the same for the same arguments."""

    def make(*, b_size=0.1, targets=("q_proj", "v_proj", "o_proj")) -> LoraAdapter:
        random = np.random.default_rng(0)
        modules = match_targets(model.card.modules, targets)
        return LoraAdapter(
            {
                name: Factors(
                    random.normal(0, num_in**-0.5, (4, num_in)).astype(np.float32),
                    (b_size * random.normal(size=(num_out, 4))).astype(np.float32),
                    2.0,
                )
                for name, (num_in, num_out) in modules.items()
            }
        )

    return make


@pytest.fixture(scope="session")
def load_dequantised():
    """`load_dequantised(folder, path)`: the model in `folder` in torch, with the weights of a GGUF file."""
    torch = pytest.importorskip("torch", reason="needs the torch extra")
    pytest.importorskip("peft", reason="needs the torch extra")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from edge.backends.torch.model import TorchModel, register_attention
    from edge.backends.transformers import HubTokenizer

    def load(folder: Path, path: Path) -> TorchModel:
        register_attention()
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        weights, gguf = model.state_dict(), read_gguf(path)
        for hub_name, name in gguf.names.items():
            if weights[hub_name].ndim > 1:  # vectors are never quantised
                weights[hub_name].copy_(torch.from_numpy(gguf.hub_floats(name)))
        return TorchModel(model, HubTokenizer(AutoTokenizer.from_pretrained(folder)), str(folder))

    return load


def _llama_weights(vocab_size: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    kv = DIM * KV_HEADS // HEADS
    shapes = {"model.embed_tokens": (vocab_size, DIM), "lm_head": (vocab_size, DIM)}
    for layer in range(LAYERS):
        block = f"model.layers.{layer}."
        shapes |= {f"{block}self_attn.{name}_proj": (DIM, DIM) for name in "qo"}
        shapes |= {f"{block}self_attn.{name}_proj": (kv, DIM) for name in "kv"}
        shapes |= {f"{block}mlp.{name}_proj": (HIDDEN, DIM) for name in ("gate", "up")}
        shapes[f"{block}mlp.down_proj"] = (DIM, HIDDEN)
    weights = {
        f"{name}.weight": random.normal(0, shape[1] ** -0.5, shape).astype(np.float32)
        for name, shape in shapes.items()
    }
    norms = [
        f"model.layers.{layer}.{kind}_layernorm"
        for layer in range(LAYERS)
        for kind in ("input", "post_attention")
    ]
    return weights | {f"{name}.weight": np.ones(DIM, np.float32) for name in [*norms, "model.norm"]}


def _write_tokenizer(folder: Path) -> int:
    tokenizers = pytest.importorskip("tokenizers", reason="needs the torch or mlx extra")
    alphabet = ["<s>", "</s>", *sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab={token: n for n, token in enumerate(alphabet)}, merges=[])
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": CHAT}))
    return len(alphabet)
