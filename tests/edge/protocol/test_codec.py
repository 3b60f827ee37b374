"""Encodings of adapters: numbers by hand, golden bytes, round trips, hostile payloads."""

import hashlib
import json
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load, save

from converters.adapter import Factors, LoraAdapter
from edge.errors import Rejected
from edge.protocol.codec import decode_adapter, encode_adapter, max_payload_bytes

ENCODINGS = ("f32", "f16", "int8", "int4")


def adapter(a, b, scale: float = 2.0, name: str = "q_proj") -> LoraAdapter:
    return LoraAdapter({name: Factors(np.asarray(a, np.float32), np.asarray(b, np.float32), scale)})


SMALL = adapter([[1.0, -0.75, 0.25]], [[7.0], [-3.0]])

GOLDEN = {
    "f32": (
        b'{"q_proj.a":{"dtype":"F32","shape":[1,3],"data_offsets":[0,12]},'
        b'"q_proj.b":{"dtype":"F32","shape":[2,1],"data_offsets":[12,20]}}',
        "0000803f000040bf0000803e0000e040000040c0",
    ),
    "f16": (
        b'{"q_proj.a":{"dtype":"F16","shape":[1,3],"data_offsets":[0,6]},'
        b'"q_proj.b":{"dtype":"F16","shape":[2,1],"data_offsets":[6,10]}}',
        "003c00ba0034" + "004700c2",
    ),
    "int8": (  # 127 -95 32 over 127; 127 -54 over 127 / 7
        b'{"q_proj.a.step":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
        b'"q_proj.b.step":{"dtype":"F32","shape":[1],"data_offsets":[4,8]},'
        b'"q_proj.a":{"dtype":"I8","shape":[1,3],"data_offsets":[8,11]},'
        b'"q_proj.b":{"dtype":"I8","shape":[2,1],"data_offsets":[11,13]}}',
        struct.pack("<ff", 1 / 127, 7 / 127).hex() + "7fa1207fca",
    ),
    "int4": (  # 7 -5 2, plus 8: f 3 a, the first in the low bits, then zero; 7 -3: f 5
        b'{"q_proj.a.step":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
        b'"q_proj.b.step":{"dtype":"F32","shape":[1],"data_offsets":[4,8]},'
        b'"q_proj.a":{"dtype":"U8","shape":[2],"data_offsets":[8,10]},'
        b'"q_proj.b":{"dtype":"U8","shape":[1],"data_offsets":[10,11]}}',
        struct.pack("<ff", 1 / 7, 1.0).hex() + "3f8a5f",
    ),
}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_golden_bytes(encoding):
    payload = encode_adapter(SMALL, encoding)
    length = int.from_bytes(payload[:8], "little")
    header, data = GOLDEN[encoding]
    assert payload[8 : 8 + length].rstrip() == header
    assert payload[8 + length :].hex() == data


def test_decoded_values_by_hand():
    int4 = decode_adapter(encode_adapter(SMALL, "int4"), like=SMALL).modules["q_proj"]
    np.testing.assert_allclose(int4.a, [[7 / 7, -5 / 7, 2 / 7]], rtol=1e-6)
    assert int4.b.tolist() == [[7.0], [-3.0]]
    int8 = decode_adapter(encode_adapter(SMALL, "int8"), like=SMALL).modules["q_proj"]
    np.testing.assert_allclose(int8.a, [[1.0, -95 / 127, 32 / 127]], rtol=1e-6)
    assert decode_adapter(encode_adapter(SMALL, "f16"), like=SMALL) == SMALL
    assert decode_adapter(encode_adapter(SMALL, "f32"), like=SMALL) == SMALL


finite = st.floats(-(2.0**100), 2.0**100, width=32)


@st.composite
def adapters(draw):
    rank, inputs, outputs = (draw(st.integers(1, 9)), draw(st.integers(1, 40)), draw(st.integers(1, 40)))
    a = draw(hnp.arrays(np.float32, (rank, inputs), elements=finite))
    b = draw(hnp.arrays(np.float32, (outputs, rank), elements=finite))
    return adapter(a, b)


def largest_per_block(factor: np.ndarray) -> np.ndarray:
    flat = np.abs(factor.reshape(-1))
    blocks = [flat[start : start + 64] for start in range(0, flat.size, 64)]
    return np.concatenate([np.full(block.size, block.max()) for block in blocks]).reshape(factor.shape)


@given(adapters(), st.sampled_from([("int8", 127), ("int4", 7)]))
def test_quantisation_is_within_half_a_step(original, how):
    encoding, levels = how
    decoded = decode_adapter(encode_adapter(original, encoding), like=original)
    for name, factors in original:
        for mine, theirs in zip(factors[:2], decoded.modules[name][:2], strict=True):
            step = largest_per_block(mine) / levels
            assert np.all(np.abs(mine - theirs) <= 0.5001 * step + 1e-37)


@given(adapters())
def test_f32_is_lossless(original):
    assert decode_adapter(encode_adapter(original, "f32"), like=original) == original


def test_f16_saturates():
    large = adapter([[1e6]], [[-1e6]])
    decoded = decode_adapter(encode_adapter(large, "f16"), like=large).modules["q_proj"]
    assert (decoded.a[0, 0], decoded.b[0, 0]) == (65504.0, -65504.0)


def test_an_encoded_delta_is_small():
    generator = np.random.default_rng(0)
    wide = adapter(generator.standard_normal((8, 4096)), generator.standard_normal((4096, 8)))
    sizes = {encoding: len(encode_adapter(wide, encoding)) / wide.num_parameters for encoding in ENCODINGS}
    assert sizes["f32"] < 4.01
    assert sizes["f16"] < 2.01
    assert sizes["int8"] < 1.07
    assert sizes["int4"] < 0.57


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_no_payload_is_larger_than_its_bound(encoding):
    like = LoraAdapter({f"layer.{n}": SMALL.modules["q_proj"] for n in range(50)})
    assert len(encode_adapter(like, encoding)) <= max_payload_bytes(like, encoding)


def test_modules_may_be_left_out():
    like = LoraAdapter({"q_proj": SMALL.modules["q_proj"], "v_proj": SMALL.modules["q_proj"]})
    assert decode_adapter(encode_adapter(SMALL, "int8"), like=like) == decode_adapter(
        encode_adapter(SMALL, "int8"), like=SMALL
    )


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("kind", ["a", "b"])
def test_a_factor_that_did_not_change_is_not_sent(encoding, kind):
    like = SMALL.modules["q_proj"]
    half = LoraAdapter({"q_proj": like._replace(**{kind: np.zeros_like(getattr(like, kind))})})
    payload = encode_adapter(half, encoding)
    assert {name.split(".")[1] for name in load(payload)} == {"a", "b"} - {kind}
    decoded = decode_adapter(payload, like=SMALL)
    assert not getattr(decoded.modules["q_proj"], kind).any()
    assert decoded == decode_adapter(encode_adapter(decoded, encoding), like=SMALL)


def test_one_factor_takes_half_the_bytes():
    wide = adapter(np.ones((8, 4096)), np.ones((4096, 8)))
    half = adapter(np.ones((8, 4096)), np.zeros((4096, 8)))
    for encoding in ENCODINGS:
        whole = len(encode_adapter(wide, encoding))
        assert len(encode_adapter(half, encoding)) == pytest.approx(whole / 2, rel=0.01)


def test_a_module_that_did_not_change_is_not_sent():
    still = adapter([[0.0, 0.0, 0.0]], [[0.0], [0.0]]).modules["q_proj"]
    both = LoraAdapter({**SMALL.modules, "v_proj": still})
    assert decode_adapter(encode_adapter(both, "f32"), like=both) == SMALL


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_an_adapter_of_zeros_is_sent_whole(encoding):
    still = adapter([[0.0, 0.0, 0.0]], [[0.0], [0.0]])
    assert decode_adapter(encode_adapter(still, encoding), like=still) == still


def tensors(encoding: str = "f32") -> dict[str, np.ndarray]:
    return load(encode_adapter(SMALL, encoding))


def steps(kind: str) -> dict[str, np.ndarray]:
    """An int8 factor's steps without their integers."""
    return {f"q_proj.{kind}.step": np.zeros(1, np.float32)}


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "malformed"),
        (b"\0" * 8, "malformed"),
        (b"GIF89a" * 100, "malformed"),
        (encode_adapter(SMALL, "f32")[:-1], "malformed"),
        (encode_adapter(SMALL, "f32") + b"\0", "malformed"),
        (encode_adapter(SMALL, "f32").replace(b"[12,20]", b"[11,19]"), "malformed"),
        (struct.pack("<Q", 100_000) + b"[" * 100_000, "too-large"),
        (struct.pack("<Q", 2**63) + bytes(100), "malformed"),
        (struct.pack("<Q", 2) + b"{}" + bytes(20_000), "too-large"),
        (save({}), "malformed"),
        (save({"q_proj.a": np.zeros((1, 3)), "q_proj.b": np.zeros((2, 1))}), "malformed"),
        (save(tensors() | {"q_proj.a": np.zeros((3, 1), np.float32)}), "wrong-shape"),
        (save(tensors() | {"k_proj.a": np.zeros((1, 3), np.float32)}), "wrong-shape"),
        (save({"q_proj.a": np.zeros((3, 1), np.float32)}), "wrong-shape"),
        (save({"q_proj.a": tensors("int8")["q_proj.a"]} | steps("b")), "wrong-shape"),
        (save(steps("a")), "wrong-shape"),
        (save(tensors("int8") | {"q_proj.a.step": np.zeros(2, np.float32)}), "wrong-shape"),
        (save(tensors() | {"q_proj.a": np.full((1, 3), np.nan, np.float32)}), "not-finite"),
        (save(tensors("f16") | {"q_proj.b": np.full((2, 1), np.inf, np.float16)}), "not-finite"),
        (save(tensors("int4") | {"q_proj.b.step": np.full(1, np.nan, np.float32)}), "not-finite"),
        (save(tensors("int8") | {"q_proj.b.step": np.full(1, 3e38, np.float32)}), "not-finite"),
    ],
)
def test_hostile_payloads_are_rejected(payload, reason):
    with pytest.raises(Rejected) as refusal:
        decode_adapter(payload, like=SMALL)
    assert refusal.value.reason == reason
    assert len(str(refusal.value)) < 2500
    assert "\n" not in str(refusal.value)


@settings(max_examples=300)
@given(st.sampled_from(ENCODINGS), st.integers(0, 500), st.binary(min_size=1, max_size=8))
def test_damaged_payloads_are_rejected_or_finite(encoding, place, noise):
    payload = bytearray(encode_adapter(SMALL, encoding))
    place %= len(payload)
    payload[place : place + len(noise)] = noise
    try:
        decoded = decode_adapter(bytes(payload), like=SMALL)
    except Rejected:
        return
    assert all(np.isfinite(f.a).all() and np.isfinite(f.b).all() for _, f in decoded)


def test_all_wrong_shapes_are_named_and_a_long_list_is_cut():
    like = LoraAdapter({f"layer.{n}": SMALL.modules["q_proj"] for n in range(20)})
    wrong = LoraAdapter({name: Factors(np.zeros((2, 3)), np.zeros((2, 2)), 2.0) for name, _ in like})
    with pytest.raises(
        Rejected, match=r"40 tensors .*e\.g\. layer\.0\.a F32 \(2, 3\), expected F32 \(1, 3\)"
    ):
        decode_adapter(encode_adapter(wrong, "f32"), like=like)


def test_the_same_adapter_gives_the_same_bytes():
    digests = {hashlib.sha256(encode_adapter(SMALL, "int8")).hexdigest() for _ in range(3)}
    assert len(digests) == 1
    assert json.loads(encode_adapter(SMALL, "f32")[8:].split(b"}}")[0] + b"}}").keys() == {
        "q_proj.a",
        "q_proj.b",
    }
