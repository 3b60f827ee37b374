import ctypes
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from converters.bases.read import read_base
from converters.errors import BaseModelError
from converters.proof.check import Verdict, check_base
from converters.proof.quant_grid import QuantGrid, find_wrong, full_precision
from converters.proof.sample import MAX_BYTES, make_sample, parse_sample

pytest.importorskip("gguf", reason="needs the llama extra")

DEMO = Path(__file__).parents[3] / "coordinator" / "demo" / "model"
QUANTS = ["q8_0", "q6_k", "q5_k_m", "q5_0", "q5_1", "q4_k_m", "q4_0", "q4_1", "q3_k_m", "q2_k"]
ARCHITECTURES = [
    "llama",
    "llama-mqa",
    "llama-tied",
    "mistral",
    "qwen2",
    "qwen3",
    "olmo2-tied",
    "phi3",
    "gemma3",
]


def moved(folder: Path, copy: Path, size: float, only: str = "") -> Path:
    """A sibling: every matrix whose name holds `only` moved by `size` of its root mean square; norms stay."""
    shutil.copytree(folder, copy)
    rng, weights = np.random.default_rng(0), {}
    for name, values in load_file(copy / "model.safetensors").items():
        values = values.astype(np.float32)
        if values.ndim == 2 and only in name:
            noise = rng.standard_normal(values.shape).astype(np.float32)
            values = values + np.float32(size * np.sqrt(np.mean(values**2))) * noise
        weights[name] = values
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    return copy


@pytest.fixture(scope="module")
def demo_sample():
    return parse_sample(make_sample(read_base(DEMO)))


@pytest.fixture(scope="module")
def demo_copy(llama, tmp_path_factory):
    """`demo_copy(quant, folder)`: a model as GGUF in one type; the demo's own by default."""
    from converters.gguf_export.model import write_gguf

    place, made = tmp_path_factory.mktemp("copies"), {}

    def copy(quant: str, folder: Path = DEMO) -> Path:
        if folder not in made:
            made[folder] = place / f"{len(made)}.gguf"
            write_gguf(folder, made[folder])
        return llama.quantize(made[folder], made[folder].with_suffix(f".{quant}.gguf"), quant)

    return copy


@pytest.mark.parametrize("quant", QUANTS)
def test_of_a_copy_no_sampled_value_is_wrong(demo_copy, demo_sample, quant):
    assert check_base(read_base(demo_copy(quant)), demo_sample) == Verdict(num_values=76_544, num_wrong=0)


@pytest.mark.torch
@pytest.mark.parametrize("quant", ["q8_0", "q4_0", "f16", "bf16", "f32"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_copies_of_every_architecture_pass(make_model, make_gguf, name, quant):
    sample = parse_sample(make_sample(read_base(make_model(name))))
    assert check_base(read_base(make_gguf(name, quant)), sample).num_wrong == 0


@pytest.mark.torch
@pytest.mark.parametrize("quant", ["q8_0", "q4_0", "f16"])
@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma3"])
def test_another_model_of_the_same_shape_is_refused(make_model, make_gguf, name, quant):
    sample = parse_sample(make_sample(read_base(make_model(name, seed=1))))
    with pytest.raises(BaseModelError, match=r"not a copy of the fleet's base model: \d\d\.\d% of"):
        check_base(read_base(make_gguf(name, quant)), sample)


@pytest.mark.parametrize(
    ("quant", "size"), [("q8_0", 0.0015), ("q6_k", 0.005), ("q4_k_m", 0.005), ("q2_k", 0.005)]
)
def test_a_sibling_all_of_whose_matrices_moved_is_refused(demo_copy, demo_sample, tmp_path, quant, size):
    """llama.cpp keeps the embedding, which is the head here, in Q6_K in every file but q8_0's."""
    sibling = moved(DEMO, tmp_path / "sibling", size)
    with pytest.raises(BaseModelError, match="not a copy"):
        check_base(read_base(demo_copy(quant, sibling)), demo_sample)


# The table in docs/architecture.md: of its root mean square, what a weight of that type may move by.
TOLD_FROM = {"q8_0": 0.0025, "q6_k": 0.006, "q5_k_m": 0.012, "q5_0": 0.012, "q4_k_m": 0.03, "q4_0": 0.02}
TOLD_FROM |= {"q3_k_m": 0.045, "q2_k": 0.1}


@pytest.mark.parametrize("quant", TOLD_FROM)
def test_a_sibling_is_told_by_a_single_projection_that_moved(demo_copy, demo_sample, tmp_path, quant):
    name = "2.self_attn.q_proj"
    sibling = moved(DEMO, tmp_path / "sibling", TOLD_FROM[quant], name)
    with pytest.raises(BaseModelError, match=rf"layers\.{name}\.weight \(Q"):
        check_base(read_base(demo_copy(quant, sibling)), demo_sample)
    sibling = moved(DEMO, tmp_path / "nearer", TOLD_FROM[quant] / 2, name)
    assert check_base(read_base(demo_copy(quant, sibling)), demo_sample).num_wrong > 0  # and is taken for it


def test_a_copy_by_way_of_a_type_that_lost_nothing_passes(llama, demo_copy, demo_sample, tmp_path):
    """The demo's weights are in float16: bfloat16 in between rounds them by a part of q8_0's step."""
    for way, quant, passes in (("f16", "q8_0", True), ("bf16", "q4_0", True), ("bf16", "q8_0", False)):
        path = llama.quantize(demo_copy(way), tmp_path / f"{way}-{quant}.gguf", quant)
        if passes:
            assert check_base(read_base(path), demo_sample).num_wrong < 10
        else:
            with pytest.raises(BaseModelError, match=r"\d\.\d% of .* are not of its weights"):
                check_base(read_base(path), demo_sample)


def quantize_by_importance(api, source, path, number, weights):
    entries = (api.llama_model_imatrix_data * (len(weights) + 1))()  # ends with an empty one
    for entry, (name, values) in zip(entries, weights.items(), strict=False):
        entry.name, entry.size = name.encode(), values.size
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    params = api.llama_model_quantize_default_params()
    params.ftype, params.nthread, params.imatrix = number, 1, entries
    assert api.llama_model_quantize(str(source).encode(), str(path).encode(), ctypes.byref(params)) == 0


@pytest.mark.parametrize(("quant", "most"), [("q4_0", 0.008), ("q5_1", 0.008), ("q4_k_m", 0), ("q2_k", 0)])
def test_a_copy_that_was_quantised_by_importance_passes(llama, demo_copy, demo_sample, tmp_path, quant, most):
    """The importance of columns spans three orders of magnitude, more than that of any real activations."""
    plain, rng = read_base(demo_copy("f16")), np.random.default_rng(0)
    matrices = {name: t.shape[-1] for name, t in plain.file.tensors.items() if len(t.shape) > 1}
    weights = {name: np.exp(rng.normal(0, 1.5, size)).astype(np.float32) for name, size in matrices.items()}
    numbers = {"q4_0": 2, "q5_1": 9, "q4_k_m": 15, "q2_k": 10}
    path = tmp_path / "model.gguf"
    quantize_by_importance(llama.api, plain.path, path, numbers[quant], weights)
    verdict = check_base(read_base(path), demo_sample)
    assert verdict.num_wrong <= most * verdict.num_values


@pytest.mark.parametrize("quant", QUANTS)
def test_weights_with_heavy_tails_pass(demo_copy, tmp_path, quant):
    """A block with one value that is many times the others' has a step that drowns them."""
    folder = shutil.copytree(DEMO, tmp_path / "copy")
    rng, weights = np.random.default_rng(0), {}
    for name, values in load_file(folder / "model.safetensors").items():
        weights[name] = (0.02 * rng.standard_t(2, values.shape)).astype(np.float32)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    sample = parse_sample(make_sample(read_base(folder)))
    assert check_base(read_base(demo_copy(quant, folder)), sample).num_wrong == 0


def test_a_sibling_that_moved_less_than_a_step_cannot_be_told(demo_copy, demo_sample, tmp_path):
    sibling = moved(DEMO, tmp_path / "sibling", 0.001)
    assert check_base(read_base(demo_copy("q4_0", sibling)), demo_sample).num_wrong < 10


def test_a_norm_that_moved_by_a_trifle_is_named(demo_copy, demo_sample, tmp_path):
    folder = shutil.copytree(DEMO, tmp_path / "copy")
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] * np.float16(1.001)
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(BaseModelError, match=r"model\.norm\.weight \(F32\) has \d+ of 256 sampled values"):
        check_base(read_base(demo_copy("q4_0", folder)), demo_sample)


@pytest.mark.torch
@pytest.mark.parametrize(
    ("name", "changes", "named"),
    [
        ("llama", {"rope_theta": 5e5}, r"rope\.freq_base is 500000\.0, expected 10000\.0"),
        ("llama", {"rms_norm_eps": 1e-6}, r"layer_norm_rms_epsilon is 1e-06, expected 1e-05"),
        ("llama", {"num_key_value_heads": 1}, "head_count_kv is 1, expected 2; .*k_proj.weight has shape"),
        ("llama", {"num_hidden_layers": 3}, r"block_count is 3, expected 2; has model\.layers\.2\."),
        ("llama", {"tie_word_embeddings": True}, r"lacks lm_head\.weight"),
        ("llama", {"attention_bias": True}, r"has model\.layers\.0\.self_attn\.k_proj\.bias besides"),
        ("qwen2", {}, "architecture is qwen2, expected llama"),
    ],
)
def test_what_differs_in_the_architecture_is_named(make_model, make_gguf, name, changes, named):
    sample = parse_sample(make_sample(read_base(make_model("llama"))))
    with pytest.raises(BaseModelError) as raised:
        check_base(read_base(make_gguf(name, "q8_0", **changes)), sample)
    assert re.search(named, raised.value.whole)
    assert len(str(raised.value).encode()) <= 300 or str(raised.value) == raised.value.whole


@pytest.mark.torch
def test_scaled_rotary_embeddings_are_compared(make_model, make_gguf):
    rope = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    gguf = read_base(make_gguf("llama", "q8_0", rope_parameters=rope))
    same, other, without = (
        parse_sample(make_sample(read_base(make_model("llama", **changes))))
        for changes in ({"rope_parameters": rope}, {"rope_parameters": rope | {"factor": 4.0}}, {})
    )
    assert check_base(gguf, same).num_wrong == 0
    with pytest.raises(BaseModelError, match=r"rope_freqs\.weight \(F32\)"):
        check_base(gguf, other)
    with pytest.raises(BaseModelError, match=r"has rope_freqs\.weight besides"):
        check_base(gguf, without)


@pytest.mark.torch
def test_a_plain_gguf_can_be_the_original(make_gguf):
    sample = parse_sample(make_sample(read_base(make_gguf("llama"))))
    assert check_base(read_base(make_gguf("llama", "q4_0")), sample).num_wrong == 0
    with pytest.raises(BaseModelError, match="is quantised"):
        make_sample(read_base(make_gguf("llama", "q4_0")))


@pytest.mark.torch
@pytest.mark.parametrize("damage", ["scales are zero", "scales are halved", "not a number"])
def test_a_copy_with_other_scales_is_refused(make_model, make_gguf, tmp_path, damage):
    sample = parse_sample(make_sample(read_base(make_model("llama"))))
    path = Path(shutil.copy(make_gguf("llama", "q8_0"), tmp_path))
    tensor = read_base(path).file.tensors["blk.0.attn_v.weight"]
    content = bytearray(path.read_bytes())
    blocks = np.frombuffer(content, np.uint8, tensor.num_bytes, tensor.start).reshape(-1, 34)
    scales = blocks[:, :2].copy().view(np.float16)
    factor = {"scales are zero": 0.0, "scales are halved": 0.5, "not a number": np.nan}[damage]
    blocks[:, :2] = (scales * np.float16(factor)).view(np.uint8)
    path.write_bytes(content)
    with pytest.raises(BaseModelError) as refused:
        check_base(read_base(path), sample)
    assert "layers.0.self_attn.v_proj.weight (Q8_0)" in refused.value.whole


def test_a_type_without_a_known_grid_is_said(llama, demo_copy, demo_sample, tmp_path):
    path = demo_copy("q4_0")
    content = bytearray(path.read_bytes())
    at = content.index(b"blk.0.attn_v.weight") + len("blk.0.attn_v.weight") + 4 + 2 * 8
    assert content[at] == 2  # ggml's number of Q4_0; IQ4_NL has blocks of the same size
    content[at] = 20
    (tmp_path / "other.gguf").write_bytes(content)
    with pytest.raises(BaseModelError, match=r"attn_v.weight is of type IQ4_NL, expected .*--fingerprint"):
        check_base(read_base(tmp_path / "other.gguf"), demo_sample)


def mlx_copy(folder: Path, copy: Path, bits: int, dtype: str, group: int = 32) -> Path:
    """What mlx-lm makes of a folder: every matrix packed, the rest in `dtype`."""
    mx = pytest.importorskip("mlx.core", reason="needs the mlx extra")
    shutil.copytree(folder, copy)
    packed = {}
    for name, values in mx.load(str(copy / "model.safetensors")).items():
        values = values.astype(getattr(mx, dtype))
        packed[name] = values
        if values.ndim == 2:
            parts = mx.quantize(values, group_size=group, bits=bits)
            stem = name.removesuffix("weight")
            packed |= {
                stem + part: value for part, value in zip(("weight", "scales", "biases"), parts, strict=True)
            }
    mx.save_safetensors(str(copy / "model.safetensors"), packed, {"format": "mlx"})
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(
        json.dumps(config | {"quantization": {"bits": bits, "group_size": group}})
    )
    return copy


@pytest.mark.mlx
@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_what_mlx_quantised_passes(demo_sample, tmp_path, bits, dtype):
    base = read_base(mlx_copy(DEMO, tmp_path / "mlx", bits, dtype))
    assert base.is_quantized
    verdict = check_base(base, demo_sample)
    assert verdict.num_wrong == 0
    assert verdict.num_values > 70_000


@pytest.mark.mlx
@pytest.mark.torch
@pytest.mark.parametrize("bits", [4, 8])
def test_bfloat16_is_as_good_for_mlx(make_model, tmp_path, bits):
    folder = shutil.copytree(make_model("qwen3"), tmp_path / "source")
    weights = load_file(folder / "model.safetensors")
    upper = {name: (v.view(np.uint32) & 0xFFFF0000).view(np.float32) for name, v in weights.items()}
    save_file(upper, folder / "model.safetensors")
    sample = parse_sample(make_sample(read_base(folder)))
    assert check_base(read_base(mlx_copy(folder, tmp_path / "mlx", bits, "bfloat16")), sample).num_wrong == 0


@pytest.mark.mlx
@pytest.mark.torch
@pytest.mark.parametrize("bits", [4, 8])
def test_another_model_that_mlx_quantised_is_refused(make_model, tmp_path, bits):
    sample = parse_sample(make_sample(read_base(make_model("qwen2", seed=1))))
    base = read_base(mlx_copy(make_model("qwen2"), tmp_path / "mlx", bits, "float16"))
    with pytest.raises(BaseModelError, match=r"\d\d\.\d% of .* are not of its weights"):
        check_base(base, sample)


@pytest.mark.mlx
@pytest.mark.torch
@pytest.mark.parametrize(("theta", "passes"), [(1e4, True), (5e5, False)])
def test_an_architecture_unknown_to_llama_cpp_goes_by_its_configuration(make_model, tmp_path, theta, passes):
    source = shutil.copytree(make_model("llama"), tmp_path / "source")
    config = json.loads((source / "config.json").read_text()) | {"model_type": "starcoder2"}
    (source / "config.json").write_text(json.dumps(config))
    sample = parse_sample(make_sample(read_base(source)))
    (source / "config.json").write_text(json.dumps(config | {"rope_parameters": {"rope_theta": theta}}))
    base = read_base(mlx_copy(source, tmp_path / "mlx", 4, "float16"))
    if passes:
        assert check_base(base, sample).num_wrong == 0
    else:
        with pytest.raises(BaseModelError, match=r"config\.json has other numbers"):
            check_base(base, sample)


def test_a_value_is_wrong_where_another_code_is_nearer():
    low, step = np.zeros(5, np.float32), np.ones(5, np.float32)
    held = QuantGrid("Q4_0", np.array([1, 1, 1, 15, 15], np.float32), low, step, 16, 0.0)
    original = np.array([1.4, 1.51, 1.7, 40.0, 14.2], np.float32)  # the second by less than the slack
    assert find_wrong(original, held).tolist() == [False, False, True, False, True]


def test_full_precision_allows_its_own_rounding_and_no_more():
    values = np.array([1.0, 1.0, 1.0], np.float32)
    original = np.array([1.0 + 2**-9, 1.0 + 2**-12, 1.0], np.float32)
    for kind, expected in (
        ("F32", [True, True, False]),
        ("F16", [True, False, False]),
        ("BF16", [False] * 3),
    ):
        assert find_wrong(original, full_precision(kind, values)).tolist() == expected


def test_the_sample_is_small_and_always_the_same(demo_sample):
    first, second = (make_sample(read_base(DEMO)) for _ in range(2))
    assert first == second
    assert len(first) <= 256 << 10 <= MAX_BYTES
    weights = load_file(DEMO / "model.safetensors")
    for (row, column), values in demo_sample.runs("model.layers.0.mlp.down_proj.weight"):
        there = weights["model.layers.0.mlp.down_proj.weight"][row, column : column + 256]
        assert np.array_equal(values, there.astype(np.float32))


@pytest.mark.parametrize("payload", [b"", b"x" * 100, make_sample(read_base(DEMO))[:-1]])
def test_a_damaged_sample_is_said(payload):
    with pytest.raises(BaseModelError, match="the fleet's sample of its base model"):
        parse_sample(payload)


@pytest.mark.parametrize(
    ("old", "new"),
    [(b'\\"format\\":1', b'\\"format\\":2'), (b'\\"places\\"', b'\\"Places\\"'), (b"[[0,0]", b"[[9,0]")],
)
def test_a_sample_of_another_format_is_said(old, new):
    payload = make_sample(read_base(DEMO))
    assert old in payload
    with pytest.raises(BaseModelError, match=r"sample of its base model: is (not )?of format"):
        parse_sample(payload.replace(old, new))
