"""llama.cpp's adapter file: its conventions, and what cannot be carried."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

gguf = pytest.importorskip("gguf", reason="needs the llama extra")

from converters.adapter import Factors, LoraAdapter  # noqa: E402
from converters.bases.read import read_base  # noqa: E402
from converters.errors import AdapterError, BaseModelError, UnsupportedAdapter  # noqa: E402
from converters.files.gguf import open_gguf  # noqa: E402
from converters.formats.gguf import load_gguf_adapter, save_gguf_adapter  # noqa: E402

pytestmark = pytest.mark.llama

HEADS, KV_HEADS, HIDDEN, INNER, VOCAB = 4, 2, 32, 48, 64
HEAD = HIDDEN // HEADS
SHAPES = {  # (in, out)
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN, KV_HEADS * HEAD),
    "mlp.down_proj": (INNER, HIDDEN),
}
# Of what convert_lora_to_gguf.py of llama.cpp 0c1e57098 (llama-cpp-python 0.3.36) made of `make_adapter()`,
# saved by `save_peft` in a folder called my-adapter, with the folder that `make_base` writes.
CONVERTED = {
    "llama": "4e6e781f83c6c49241df9d11c11fd81fae388dd5dda15d1c00b664fe97ead28a",
    "qwen2": "6a5208f837168e7d7aebf5e595568d6f516b4e06233de568414c64aa4da098a9",
}


def make_base(folder: Path, kind: str = "llama", *, is_tied: bool = False):
    """A folder that is little more than a configuration."""
    folder.mkdir(exist_ok=True)
    config = {
        "architectures": [{"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}.get(kind, kind)],
        "model_type": kind,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "hidden_size": HIDDEN,
        "num_hidden_layers": 2,
        "vocab_size": VOCAB,
        "tie_word_embeddings": is_tied,
    }
    (folder / "config.json").write_text(json.dumps(config))
    shapes = {f"model.layers.{i}.{name}": shape for i in (0, 1) for name, shape in SHAPES.items()}
    shapes |= {"model.embed_tokens": (HIDDEN, VOCAB), "lm_head": (HIDDEN, VOCAB)}
    weights = {f"{name}.weight": np.zeros(shape[::-1], np.float32) for name, shape in shapes.items()}
    save_file(weights, folder / "model.safetensors")
    return read_base(folder)


def make_adapter(rank: int = 4, scale: float = 1.5, **changes: Factors) -> LoraAdapter:
    """Numbers that tell every place from every other."""
    names = [f"model.layers.{i}.{name}" for i in (0, 1) for name in SHAPES] + ["lm_head"]
    modules = {}
    for number, name in enumerate(names):
        num_in, num_out = SHAPES.get(name.partition("layers.")[2][2:], (HIDDEN, VOCAB))
        a = np.arange(rank * num_in, dtype=np.float32).reshape(rank, num_in) + 1000 * number
        b = -np.arange(num_out * rank, dtype=np.float32).reshape(num_out, rank) - 1000 * number - 1
        modules[name] = Factors(a, b, scale)
    return LoraAdapter(modules | {name.replace("__", "."): one for name, one in changes.items()})


def write(path: Path, tensors: Mapping[str, np.ndarray], **metadata: object) -> Path:
    """A file as llama.cpp's converter writes it, with changes; None leaves a key out."""
    keys = {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": 6.0}
    keys |= {name.replace("__", "."): value for name, value in metadata.items()}
    writer = gguf.GGUFWriter(path, str(keys.pop("general.architecture", "llama")))
    for key, value in keys.items():
        kinds = {str: writer.add_string, float: writer.add_float32, int: writer.add_uint32}
        if value is not None:
            kinds.get(type(value), writer.add_array)(key, value)
    for name, values in tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def pair(stem: str, num_in: int, num_out: int, rank: int = 2) -> dict[str, np.ndarray]:
    ones = np.ones((rank, num_in), np.float32), np.ones((num_out, rank), np.float32)
    return {f"{stem}.lora_a": ones[0], f"{stem}.lora_b": ones[1]}


DOWN = pair("blk.0.ffn_down.weight", INNER, HIDDEN)


@pytest.mark.parametrize("kind", CONVERTED)
def test_the_file_is_the_one_that_llama_cpp_converts_to(tmp_path: Path, kind: str) -> None:
    save_gguf_adapter(make_adapter(), tmp_path / "my-adapter.gguf", make_base(tmp_path / "base", kind))
    content = (tmp_path / "my-adapter.gguf").read_bytes()
    assert hashlib.sha256(content).hexdigest() == CONVERTED[kind]


def test_names_and_metadata_are_those_of_llama_cpp(tmp_path: Path) -> None:
    save_gguf_adapter(make_adapter(), tmp_path / "my-adapter.gguf", make_base(tmp_path / "base"))
    file = open_gguf(tmp_path / "my-adapter.gguf", AdapterError)
    assert list(file.metadata.items()) == [
        ("general.architecture", "llama"),
        ("general.type", "adapter"),
        ("adapter.type", "lora"),
        ("general.name", "My Adapter"),
        ("adapter.lora.alpha", 6.0),
        ("general.quantization_version", 2),
    ]
    assert {name: (t.type, t.shape) for name, t in file.tensors.items() if "blk.1" not in name} == {
        "output.weight.lora_a": ("F32", (4, 32)),
        "output.weight.lora_b": ("F32", (64, 4)),
        "blk.0.ffn_down.weight.lora_a": ("F32", (4, 48)),
        "blk.0.ffn_down.weight.lora_b": ("F32", (32, 4)),
        "blk.0.attn_k.weight.lora_a": ("F32", (4, 32)),
        "blk.0.attn_k.weight.lora_b": ("F32", (16, 4)),
        "blk.0.attn_q.weight.lora_a": ("F32", (4, 32)),
        "blk.0.attn_q.weight.lora_b": ("F32", (32, 4)),
    }


@pytest.mark.parametrize(("kind", "is_permuted"), [("llama", True), ("mistral", True), ("qwen2", False)])
def test_rows_of_b_are_those_of_the_weight(tmp_path: Path, kind: str, is_permuted: bool) -> None:
    adapter = make_adapter()
    save_gguf_adapter(adapter, tmp_path / "x.gguf", make_base(tmp_path / "base", kind))
    file = open_gguf(tmp_path / "x.gguf", AdapterError)
    for layer, heads in (("q", HEADS), ("k", KV_HEADS)):
        a, b, _ = adapter.modules[f"model.layers.0.self_attn.{layer}_proj"]
        in_turns = b.reshape(heads, 2, HEAD // 2, -1).swapaxes(1, 2).reshape(b.shape)
        stored = file.floats(f"blk.0.attn_{layer}.weight.lora_b")
        np.testing.assert_array_equal(stored, in_turns if is_permuted else b)
        np.testing.assert_array_equal(file.floats(f"blk.0.attn_{layer}.weight.lora_a"), a)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    save_gguf_adapter(make_adapter(), tmp_path / "new" / "x.gguf", base)
    assert load_gguf_adapter(tmp_path / "new" / "x.gguf", base) == make_adapter()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["x.gguf"]


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "q8_0"])
def test_smaller_types_are_read(tmp_path: Path, kind: str) -> None:
    number = {"float16": gguf.GGMLQuantizationType.F16, "bfloat16": gguf.GGMLQuantizationType.BF16}
    packed_as = number.get(kind, gguf.GGMLQuantizationType.Q8_0)
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    for name, shape in (("lora_a", (2, HIDDEN)), ("lora_b", (HIDDEN, 2))):
        values = np.ones(shape, np.float32) * 0.5
        kind_of = packed_as if shape[1] % 32 == 0 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(
            f"blk.0.attn_q.weight.{name}", gguf.quants.quantize(values, kind_of), raw_dtype=kind_of
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    adapter = load_gguf_adapter(tmp_path / "x.gguf", make_base(tmp_path / "base"))
    (factors,) = adapter.modules.values()
    np.testing.assert_allclose(factors.a, 0.5, rtol=1e-3)
    assert factors.scale == 1.0  # llama.cpp's, where there is no alpha


def test_alpha_is_divided_by_each_rank(tmp_path: Path) -> None:
    tensors = DOWN | pair("output.weight", HIDDEN, VOCAB, rank=3)
    adapter = load_gguf_adapter(write(tmp_path / "x.gguf", tensors), make_base(tmp_path / "base"))
    assert {name: one.scale for name, one in adapter} == {"lm_head": 2.0, "model.layers.0.mlp.down_proj": 3.0}


def test_everything_that_is_not_lora_on_this_base_is_named_at_once(tmp_path: Path) -> None:
    tensors = {
        **DOWN,
        **pair("blk.7.ffn_down.weight", INNER, HIDDEN),
        **pair("blk.0.ffn_gate_exps.weight", HIDDEN, INNER),
        **pair("token_embd.weight", 2, VOCAB, rank=HIDDEN),
        **pair("output.weight", HIDDEN, VOCAB),
        "blk.0.attn_norm.weight": np.ones(HIDDEN, np.float32),
        "blk.0.attn_q.bias": np.ones(HIDDEN, np.float32),
        "blk.1.ffn_down.weight.lora_a": np.ones((2, INNER), np.float32),
    }
    changes = {"general__architecture": "qwen2", "adapter__alora__invocation_tokens": [1, 2]}
    path = write(tmp_path / "x.gguf", tensors, **changes)
    with pytest.raises(UnsupportedAdapter) as caught:
        load_gguf_adapter(path, make_base(tmp_path / "base", is_tied=True))
    for fault in (
        "is for architecture 'qwen2', the base model is of 'llama'",
        "activated LoRA",
        "LoRA on token embeddings (token_embd.weight)",
        "LoRA on a head that is tied to the token embeddings (output.weight)",
        *(
            f"{name} is no LoRA factor of a linear layer of this base"
            for name in (
                "blk.0.attn_norm.weight",
                "blk.0.attn_q.bias",
                "blk.0.ffn_gate_exps.weight",
                "blk.7.ffn_down.weight",
            )
        ),
        "blk.1.ffn_down.weight.lora_b is missing",
    ):
        assert fault in caught.value.whole
    assert len(str(caught.value).encode()) <= 300


@pytest.mark.parametrize(
    ("tensors", "metadata", "reason"),
    [
        ({}, {}, "holds no LoRA factors"),
        (DOWN, {"general__type": "model"}, "of type 'model', expected an adapter"),
        (DOWN, {"general__type": None}, "of type 'model', expected an adapter"),
        (DOWN, {"adapter__lora__alpha": "x"}, "alpha is 'x', expected a finite float32"),
        (DOWN, {"adapter__lora__alpha": float("nan")}, "alpha is nan, expected a finite float32"),
        (DOWN, {"tunefleet__lora": "{"}, r"tunefleet\.lora is not tunefleet's"),
        (DOWN | {"blk.0.ffn_down.weight.lora_a": np.ones((3, INNER), np.float32)}, {}, "share one rank"),
        (DOWN | {"blk.0.ffn_down.weight.lora_a": np.ones(INNER, np.float32)}, {}, "must be matrices"),
        (DOWN | {"blk.0.ffn_down.weight.lora_a": np.ones((2, INNER), np.int8)}, {}, "of type I8"),
        (DOWN | {"blk.0.ffn_down.weight.lora_a": np.full((2, INNER), np.inf, np.float32)}, {}, "not finite"),
    ],
)
def test_a_malformed_adapter_is_one_clear_error(tmp_path: Path, tensors, metadata, reason: str) -> None:
    path = write(tmp_path / "x.gguf", tensors, **metadata)
    with pytest.raises(AdapterError, match=reason):
        load_gguf_adapter(path, make_base(tmp_path / "base"))


def test_an_adapter_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x.gguf", DOWN, adapter__type="ia3")
    with pytest.raises(UnsupportedAdapter, match=r"adapter\.type is 'ia3', expected 'lora'"):
        load_gguf_adapter(path, make_base(tmp_path / "base"))


def test_an_adapter_for_other_shapes_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x.gguf", pair("blk.0.ffn_down.weight", 8, 8))
    with pytest.raises(
        UnsupportedAdapter, match=r"is for \(8, 8\) features .*, the base model has \(48, 32\)"
    ):
        load_gguf_adapter(path, make_base(tmp_path / "base"))
    small = LoraAdapter({"lm_head": Factors(np.ones((1, 3), np.float32), np.ones((4, 1), np.float32), 1.0)})
    with pytest.raises(UnsupportedAdapter, match=r"lm_head is for \(3, 4\)"):
        save_gguf_adapter(small, tmp_path / "y.gguf", make_base(tmp_path / "base"))


def test_without_a_base_the_names_mean_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "x.gguf", DOWN)
    with pytest.raises(BaseModelError, match=r"give the base model, a \.gguf file or a folder, with --base"):
        load_gguf_adapter(path, None)
    with pytest.raises(BaseModelError, match="give the base model"):
        save_gguf_adapter(make_adapter(), tmp_path / "y.gguf", None)
    with pytest.raises(BaseModelError, match="is of architecture mamba, expected one of arcee"):
        save_gguf_adapter(make_adapter(), tmp_path / "y.gguf", make_base(tmp_path / "base", "mamba"))


def test_an_adapter_without_modules_or_with_nameless_ones_is_not_written(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    with pytest.raises(AdapterError, match="without modules cannot be written in GGUF"):
        save_gguf_adapter(LoraAdapter({}), tmp_path / "x.gguf", base)
    name = "model.layers.0.mlp.surprise"
    save_file({f"{name}.weight": np.ones((4, 3), np.float32)}, tmp_path / "base" / "model.safetensors")
    one = Factors(np.ones((1, 3), np.float32), np.ones((4, 1), np.float32), 1.0)
    with pytest.raises(UnsupportedAdapter, match=f"llama.cpp has no name for {name}"):
        save_gguf_adapter(LoraAdapter({name: one}), tmp_path / "x.gguf", read_base(tmp_path / "base"))
    assert not (tmp_path / "x.gguf").exists()


def test_a_folder_must_tell_its_heads(tmp_path: Path) -> None:
    make_base(tmp_path / "base")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    for heads in (None, 5, "many"):
        (tmp_path / "base" / "config.json").write_text(json.dumps(config | {"num_attention_heads": heads}))
        with pytest.raises(BaseModelError, match=f"gives {heads!r} heads for the 32 rows of model.layers.0"):
            save_gguf_adapter(make_adapter(), tmp_path / "x.gguf", read_base(tmp_path / "base"))
