"""The canonical file: golden bytes, and nothing a stranger sends gets through."""

import json
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from converters.adapter import Factors, LoraAdapter
from converters.errors import AdapterError
from converters.formats.canonical import dump_adapter, load_adapter, parse_adapter, save_adapter

A = np.array([[1, 2]], np.float32)
B = np.array([[3], [4], [5]], np.float32)
ADAPTER = LoraAdapter({"m": Factors(A, B, 0.5)})
HEADER = (
    b'{"__metadata__":{"scales":"{\\"m\\":0.5}"},'
    b'"m.a":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},'
    b'"m.b":{"dtype":"F32","shape":[3,1],"data_offsets":[8,20]}}'
)
GOLDEN = (160).to_bytes(8, "little") + HEADER.ljust(160) + np.float32([1, 2, 3, 4, 5]).tobytes()


def test_golden_bytes() -> None:
    assert dump_adapter(ADAPTER) == GOLDEN
    assert parse_adapter(GOLDEN) == ADAPTER


def test_what_is_parsed_can_be_written_to() -> None:
    parse_adapter(GOLDEN).modules["m"].a[0, 0] = 9.0


def test_an_adapter_without_modules_is_the_plain_base() -> None:
    assert parse_adapter(dump_adapter(LoraAdapter({}))) == LoraAdapter({})


@pytest.mark.parametrize("length", range(len(GOLDEN)))
def test_a_truncated_file_is_refused_wherever_it_ends(length: int) -> None:
    with pytest.raises(AdapterError):
        parse_adapter(GOLDEN[:length])


@given(at=st.integers(0, 8 + 159), byte=st.integers(0, 255))
def test_a_changed_header_is_an_adapter_or_an_error_and_nothing_else(at: int, byte: int) -> None:
    payload = bytearray(GOLDEN)
    payload[at] = byte
    with suppress(AdapterError):
        assert parse_adapter(bytes(payload)).num_parameters <= 5


@given(st.binary(max_size=200))
def test_noise_is_refused(noise: bytes) -> None:
    with pytest.raises(AdapterError):
        parse_adapter(noise)


def hostile(header: dict[str, object], data: bytes = b"") -> bytes:
    raw = json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + data


F32 = {"dtype": "F32", "shape": [1, 1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        ((1 << 60).to_bytes(8, "little") + b"{}", "truncated"),
        (hostile({"m.a": F32 | {"shape": [1 << 40, 1 << 40]}}, bytes(4)), "does not lie where"),
        (hostile({"m.a": F32 | {"shape": [-1, -1]}}, bytes(4)), "impossible shape"),
        (hostile({"m.a": F32 | {"shape": [1] * 1000}}, bytes(4)), "impossible shape"),
        (hostile({"m.a": F32 | {"dtype": "F99"}}, bytes(4)), "unknown type"),
        (hostile({"m.a": F32, "m.b": F32}, bytes(4)), "does not lie where"),  # both in the same place
        (hostile({"m.a": F32}, bytes(8)), "take 4 bytes, but 8 are there"),
        (hostile({"m.a": 1}), "not that of a safetensors file"),
        (save({"m.a": A}, {"scales": '{"m": 1}'}), "'m.b' is missing"),
        (save({"m.a": A, "m.b": B}), "is not a canonical adapter"),
        (save({"m.a": A, "m.b": B}, {"scales": '{"m": "1"}'}), "is not a canonical adapter"),
        (save({"m.a": A, "m.b": B, "n.a": A}, {"scales": '{"m": 1}'}), "'n.a' has no scale"),
        (save({"m.a": A.astype(np.float16), "m.b": B}, {"scales": '{"m": 1}'}), "m.a is F16"),
        (save({"m.a": A[0], "m.b": B}, {"scales": '{"m": 1}'}), "expected a matrix"),
        (save({"m.a": A * np.inf, "m.b": B}, {"scales": '{"m": 1}'}), "not finite"),
        (save({"m.a": A, "m.b": B}, {"scales": '{"m": 1e999}'}), "scale"),
        (save({"\n.a": A, "\n.b": B}, {"scales": '{"\\n": 1}'}), "is not plain"),
    ],
)
def test_hostile_files_are_refused_with_their_reason(payload: bytes, reason: str) -> None:
    with pytest.raises(AdapterError, match=reason):
        parse_adapter(payload)


def test_many_faults_do_not_fill_a_log() -> None:
    payload = save({f"{i}.a": A for i in range(1000)}, {"scales": "{}"})
    with pytest.raises(AdapterError, match=r"1000 tensors have no scale, e\.g\. '0\.a'") as raised:
        parse_adapter(payload)
    assert len(str(raised.value)) <= 300


def test_files_are_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "adapter.safetensors"
    path.write_bytes(b"old")
    save_adapter(ADAPTER, path)
    assert path.read_bytes() == GOLDEN
    assert load_adapter(path) == ADAPTER
    assert [file.name for file in tmp_path.iterdir()] == ["adapter.safetensors"]


def test_a_missing_or_empty_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for name, reason in (("none", "No such file"), ("empty", "truncated"), (".", "Is a directory")):
        with pytest.raises(AdapterError, match=reason):
            load_adapter(tmp_path / name)
