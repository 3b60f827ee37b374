"""A GGUF base model means what its Hugging Face source means."""

import os
from pathlib import Path

import numpy as np
import pytest

gguf = pytest.importorskip("gguf", reason="needs the llama extra")

from converters.bases.folder import read_folder  # noqa: E402
from converters.bases.gguf import read_gguf  # noqa: E402
from converters.bases.gguf_names import file_names, hub_names  # noqa: E402
from converters.bases.read import read_base  # noqa: E402
from converters.errors import BaseModelError  # noqa: E402

pytestmark = pytest.mark.llama

ASSETS = Path(os.environ.get("TUNEFLEET_ASSETS", Path(__file__).parents[4] / "shared" / "assets"))
NAMES = ("llama", "llama-mha", "llama-mqa", "llama-tied", "mistral", "qwen2", "qwen3", "olmo2", "phi3")
LLAMA = {
    "block_count": 1,
    "context_length": 32,
    "embedding_length": 8,
    "attention.head_count": 2,
    "attention.head_count_kv": 1,
    "attention.layer_norm_rms_epsilon": 1e-5,
}
SHAPES = {"token_embd.weight": (16, 8), "blk.0.attn_q.weight": (8, 8), "blk.0.attn_k.weight": (4, 8)}


def write(path: Path, numbers: dict = LLAMA, shapes: dict = SHAPES, arch: str = "llama", kind: str = "model"):
    """A file with just these numbers and weights."""
    writer = gguf.GGUFWriter(path, arch)
    writer.add_type(kind)
    for key, value in numbers.items():
        add = {int: writer.add_uint32, float: writer.add_float32, list: writer.add_array}.get(type(value))
        (add or writer.add_string)(f"{arch}.{key}", value)
    for name, shape in shapes.items():
        writer.add_tensor(name, np.arange(np.prod(shape), dtype=np.float32).reshape(shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.torch
@pytest.mark.parametrize("name", [*NAMES, "olmo2-tied"])
def test_the_fingerprint_is_that_of_the_source(make_model, make_gguf, name: str) -> None:
    assert read_base(make_gguf(name)).fingerprint == read_base(make_model(name)).fingerprint


@pytest.mark.torch
def test_another_model_of_the_same_shape_has_another_fingerprint(make_gguf) -> None:
    assert read_base(make_gguf("llama")).fingerprint != read_base(make_gguf("llama", seed=1)).fingerprint
    rope = {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}
    assert read_base(make_gguf("llama")).fingerprint != read_base(make_gguf("llama", **rope)).fingerprint


@pytest.mark.torch
def test_linear_scaling_is_told_from_the_metadata(make_model, make_gguf) -> None:
    rope = {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}
    source = read_base(make_model("qwen2", **rope))
    assert read_base(make_gguf("qwen2", **rope)).fingerprint == source.fingerprint


@pytest.mark.torch
@pytest.mark.parametrize("name", NAMES)
def test_layers_and_values_are_those_of_the_source(make_model, make_gguf, name: str) -> None:
    base, source = read_gguf(make_gguf(name)), read_folder(make_model(name))
    assert dict(base.modules) == dict(source.modules)
    assert list(base.modules) == sorted(base.modules)
    assert base.num_layers == source.num_layers == 2
    assert base.max_tokens == (
        source.config.get("sliding_window") or source.config["max_position_embeddings"]
    )
    assert base.vocab_size == source.config["vocab_size"]
    assert base.num_parameters == sum(file.tensors[name].size for name, file in source.weights.items())
    assert set(base.names) == set(source.weights)
    for hub_name, name in base.names.items():
        np.testing.assert_array_equal(base.hub_floats(name), source.weights[hub_name].array(hub_name))


@pytest.mark.torch
@pytest.mark.parametrize("quant", ["f16", "bf16", "q8_0", "q4_k_m"])
def test_only_fewer_than_16_bits_are_called_quantised(make_gguf, quant: str) -> None:
    base = read_gguf(make_gguf("llama-mha", quant, hidden_size=256, intermediate_size=256))
    assert base.is_quantized == quant.startswith("q")
    assert base.types["blk.0.attn_q.weight"].lower() == quant.removesuffix("_m")
    if base.is_quantized:
        with pytest.raises(BaseModelError, match="is quantised and has no fingerprint of its own"):
            _ = base.fingerprint
    else:
        assert len(base.fingerprint) == 64


@pytest.mark.torch
@pytest.mark.parametrize(
    ("name", "rope", "reason"),
    [
        ("gemma3", {}, "norms stored plus one"),
        ("llama", {"rope_type": "llama3", "factor": 8.0}, "rotary frequencies whose formula"),
    ],
)
def test_what_the_file_does_not_tell_is_not_guessed(make_gguf, name: str, rope: dict, reason: str) -> None:
    llama3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    changes = {"rope_parameters": {"rope_theta": 1e4, **llama3, **rope}} if rope else {}
    with pytest.raises(BaseModelError, match=f"{reason}.* and has no fingerprint of its own"):
        _ = read_gguf(make_gguf(name, **changes)).fingerprint


@pytest.mark.assets
def test_a_file_of_another_converter_has_the_fingerprint_of_its_source() -> None:
    path = ASSETS / "models" / "stories260K-F32.gguf"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    base, source = read_gguf(path), read_folder(ASSETS / "models" / "stories260K")
    assert base.modules == source.modules
    assert base.fingerprint == source.fingerprint


def test_rows_can_be_read_in_either_order(tmp_path: Path) -> None:
    base = read_gguf(write(tmp_path / "x.gguf"))
    naming, module = base.naming(), "model.layers.0.self_attn.q_proj"
    assert naming.heads == {module: 2, module.replace("q_proj", "k_proj"): 1}
    assert naming.tensors[module] == "blk.0.attn_q.weight"
    stored, hub = base.floats("blk.0.attn_q.weight"), base.hub_floats("blk.0.attn_q.weight")
    np.testing.assert_array_equal(naming.to_hub_rows(module, stored), hub)
    np.testing.assert_array_equal(naming.to_file_rows(module, hub), stored)
    for first in range(8):
        for count in range(8 - first + 1):
            read = base.hub_floats("blk.0.attn_q.weight", first, count)
            np.testing.assert_array_equal(read, hub[first : first + count])


@pytest.mark.parametrize("arch", ["qwen2", "qwen3", "olmo2", "phi3", "gemma3"])
def test_other_families_keep_their_rows(tmp_path: Path, arch: str) -> None:
    base = read_gguf(write(tmp_path / "x.gguf", arch=arch))
    assert not base.heads
    rows = np.ones((8, 2), np.float32)
    assert base.naming().to_file_rows("model.layers.0.self_attn.q_proj", rows) is rows


def test_heads_may_differ_from_block_to_block(tmp_path: Path) -> None:
    shapes = {**SHAPES, "blk.1.attn_q.weight": (8, 8), "blk.1.attn_k.weight": (8, 8)}
    numbers = {**LLAMA, "block_count": 2, "attention.head_count_kv": [1, 4]}
    base = read_gguf(write(tmp_path / "x.gguf", numbers, shapes))
    assert [base.heads[f"blk.{block}.attn_k.weight"] for block in (0, 1)] == [1, 4]


def test_names_are_translated_both_ways() -> None:
    tensors = [
        "blk.0.attn_q.weight",
        "blk.11.ffn_up.bias",
        "output.weight",
        "blk.0.ffn_gate_exps.weight",
        "x",
    ]
    assert hub_names("llama", tensors) == {
        "blk.0.attn_q.weight": "model.layers.0.self_attn.q_proj.weight",
        "blk.11.ffn_up.bias": "model.layers.11.mlp.up_proj.bias",
        "output.weight": "lm_head.weight",
    }
    modules = ["model.layers.11.mlp.up_proj", "lm_head", "model.layers.0.mlp.experts.0.up_proj"]
    assert file_names("llama", modules) == {modules[0]: "blk.11.ffn_up", "lm_head": "output"}
    fused = "model.layers.3.mlp.gate_up_proj"
    assert file_names("phi3", [fused]) == {fused: "blk.3.ffn_up"}


WITHOUT = [(key, f"None for llama.{key}") for key in ("block_count", "attention.head_count_kv")]
BAD = [
    *(({k: v for k, v in LLAMA.items() if k != key}, SHAPES, reason) for key, reason in WITHOUT),
    ({**LLAMA, "block_count": 3}, SHAPES, "tells of 3 blocks and holds 1"),
    ({**LLAMA, "block_count": "many"}, SHAPES, "has 'many' for llama.block_count, expected a count"),
    ({**LLAMA, "attention.head_count": 3}, SHAPES, "has 8 rows, which .*head_count 3 does not divide"),
    ({**LLAMA, "attention.head_count_kv": []}, SHAPES, "expected a count"),
    (LLAMA, {}, "holds a vocabulary and no weights"),
    (LLAMA, {"blk.0.attn_q.weight": (8, 8)}, r"has no matrix token_embd\.weight"),
    (LLAMA, {**SHAPES, "token_embd.weight": (8,)}, r"has no matrix token_embd\.weight"),
    (LLAMA, {**SHAPES, "blk.99999.attn_q.weight": (8, 8)}, "holds 100000"),
]


@pytest.mark.parametrize(("numbers", "shapes", "reason"), BAD)
def test_a_model_that_is_not_whole_is_one_clear_error(tmp_path, numbers, shapes, reason) -> None:
    with pytest.raises(BaseModelError, match=reason):
        read_base(write(tmp_path / "x.gguf", numbers, shapes))


def test_unknown_architectures_and_other_kinds_of_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match="of architecture 'gpt2', expected one of arcee, exaone4, gemma"):
        read_gguf(write(tmp_path / "x.gguf", arch="gpt2"))
    with pytest.raises(BaseModelError, match="is a GGUF file of type 'adapter', expected a model"):
        read_gguf(write(tmp_path / "y.gguf", kind="adapter"))
    with pytest.raises(BaseModelError, match=r"z\.gguf: cannot be read"):
        read_base(tmp_path / "z.gguf")


def test_an_architecture_younger_than_the_library_is_named(tmp_path: Path, monkeypatch) -> None:
    path = write(tmp_path / "x.gguf")
    monkeypatch.delitem(gguf.MODEL_ARCH_NAMES, gguf.MODEL_ARCH.LLAMA)
    with pytest.raises(BaseModelError, match="the installed gguf does not know llama"):
        read_gguf(path)


def test_numbers_that_only_the_fingerprint_needs_are_named_then(tmp_path: Path) -> None:
    numbers = {key: value for key, value in LLAMA.items() if key != "attention.layer_norm_rms_epsilon"}
    with pytest.raises(
        BaseModelError, match=r"None for llama\.attention\.layer_norm_rms_epsilon, expected a number"
    ):
        _ = read_gguf(write(tmp_path / "x.gguf", numbers)).fingerprint


def test_weights_without_a_counterpart_leave_the_fingerprint_open(tmp_path: Path) -> None:
    base = read_gguf(write(tmp_path / "x.gguf", shapes={**SHAPES, "blk.0.ffn_gate_exps.weight": (2, 8, 8)}))
    assert not any("exps" in module for module in base.modules)
    with pytest.raises(BaseModelError, match=r"without a counterpart \(blk\.0\.ffn_gate_exps\.weight\)"):
        _ = base.fingerprint
