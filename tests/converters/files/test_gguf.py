"""GGUF files read in place, and every way in which a file can be wrong."""

import struct
from pathlib import Path

import numpy as np
import pytest

gguf = pytest.importorskip("gguf", reason="needs the llama extra")

from converters.errors import BaseModelError  # noqa: E402
from converters.files.gguf import MAX_HEADER_BYTES, is_gguf, open_gguf  # noqa: E402

pytestmark = pytest.mark.llama

VALUES = np.arange(6 * 32, dtype=np.float32).reshape(6, 32) / 7


def write(path: Path, **tensors: np.ndarray) -> Path:
    """A file with one value of every kind."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("a.count", 7)
    writer.add_float32("a.number", 0.5)
    writer.add_bool("a.truth", True)
    writer.add_array("a.words", ["ä", "b"])
    writer.add_array("a.numbers", [1.5, 2.5])
    writer.add_array("a.nothing", [])
    for name, values in (tensors or {"plain": VALUES, "half": VALUES.astype(np.float16)}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def header(
    num_tensors: int = 0, num_values: int = 0, rest: bytes = b"", magic: bytes = b"GGUF", version: int = 3
) -> bytes:
    return magic + struct.pack("<IQQ", version, num_tensors, num_values) + rest


def tensor(name: bytes = b"x", sizes: tuple[int, ...] = (32,), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset)


def value(key: bytes, kind: int, rest: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + rest


def test_metadata_and_tensors_are_read_as_they_were_written(tmp_path: Path) -> None:
    file = open_gguf(write(tmp_path / "x.gguf"), BaseModelError)
    assert file.metadata["general.architecture"] == "llama"
    assert (file.metadata["a.count"], file.metadata["a.number"], file.metadata["a.truth"]) == (7, 0.5, True)
    assert file.metadata["a.words"] == ["ä", "b"]
    np.testing.assert_array_equal(file.metadata["a.numbers"], [1.5, 2.5])
    assert {name: (t.type, t.shape) for name, t in file.tensors.items()} == {
        "plain": ("F32", (6, 32)),
        "half": ("F16", (6, 32)),
    }
    np.testing.assert_array_equal(file.floats("plain"), VALUES)
    np.testing.assert_array_equal(file.floats("half", 2, 3), VALUES[2:5].astype(np.float16))
    assert file.floats("plain", 6, 0).shape == (0, 32)
    assert file.floats("plain").flags.writeable


def test_the_library_reads_the_same(tmp_path: Path) -> None:
    path = write(tmp_path / "x.gguf")
    file = open_gguf(path, BaseModelError)
    for expected in gguf.GGUFReader(path).tensors:
        assert file.tensors[expected.name].start == expected.data_offset
        np.testing.assert_array_equal(file.floats(expected.name), expected.data.astype(np.float32))


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q5_1", "BF16"])
def test_rows_of_a_quantised_tensor_are_those_of_the_whole(tmp_path: Path, kind: str) -> None:
    number = gguf.GGMLQuantizationType[kind]
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    packed = gguf.quants.quantize(VALUES, number)
    writer.add_tensor("x", packed, raw_dtype=number)
    writer.add_tensor("vector", gguf.quants.quantize(VALUES[0], number), raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = open_gguf(tmp_path / "x.gguf", BaseModelError)
    whole = gguf.quants.dequantize(packed, number)
    np.testing.assert_array_equal(file.floats("x"), whole)
    np.testing.assert_array_equal(file.floats("x", 1, 2), whole[1:3])
    np.testing.assert_array_equal(file.floats("vector", 5, 20), whole[0, 5:25])


def test_a_type_that_nothing_dequantises_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "x.gguf", x=VALUES.astype(np.int8))
    with pytest.raises(BaseModelError, match="x is of type I8, which cannot be read"):
        open_gguf(path, BaseModelError).floats("x")


DAMAGED = {
    "begins with b'PK": header(magic=b"PK\3\4"),
    "is truncated": header()[:10],
    "is of GGUF version 1": header(version=1),
    "is of GGUF version 4": header(version=4),
    "is big-endian": header(version=3 << 24),
    "tells of 1099511627776 tensors": header(num_tensors=1 << 40),
    "is truncated: at byte 24 it wants": header(num_values=1 << 60),
    "wants 4611686018427387904 more": header(0, 1, value(b"k", 9, struct.pack("<IQ", 4, 1 << 60))),
    "wants 9223372036854775808 more": header(0, 1, value(b"k", 9, struct.pack("<IQ", 8, 1 << 60))),
    "wants 18446744073709551615 more": header(0, 1, value(b"k", 8, struct.pack("<Q", (1 << 64) - 1))),
    "unknown type 13": header(0, 1, value(b"k", 13, b"\0" * 8)),
    "unknown type 9": header(0, 1, value(b"k", 9, struct.pack("<IQ", 9, 1))),
    "has 'k' twice": header(0, 2, 2 * value(b"k", 4, b"\1\0\0\0")),
    "not a power of two": header(0, 1, value(b"general.alignment", 4, struct.pack("<I", 48))),
    "is one of 3 parts; join": header(0, 1, value(b"split.count", 2, b"\3\0")),
    "has tensor 'x' twice": header(2, 0, tensor() + tensor(offset=128)) + b"\0" * 512,
    "does not lie where": header(1, 0, tensor(offset=32)) + b"\0" * 512,
    "tensor 'x' ends at byte 192, the file at 191": (header(1, 0, tensor()) + b"\0" * 256)[:191],
    "ends at byte 549755813984": header(1, 0, tensor(sizes=(1 << 36, 2))) + b"\0" * 256,
    "is of the unknown type 99": header(1, 0, tensor(kind=99)) + b"\0" * 256,
    r"impossible shape \[33\]": header(1, 0, tensor(sizes=(33,), kind=8)) + b"\0" * 256,
    r"impossible shape \[0, 32\]": header(1, 0, tensor(sizes=(32, 0))) + b"\0" * 256,
    "has 5 dimensions": header(1, 0, tensor(sizes=(1,) * 5)) + b"\0" * 256,
    "has 4294967295 dimensions": header(1, 0, text(b"x") + b"\xff" * 12) + b"\0" * 256,
    "called 'xxx": header(1, 0, tensor(name=b"x" * 64)) + b"\0" * 256,
    r"called '\\udcff'": header(1, 0, tensor(name=b"\xff")) + b"\0" * 256,
}


@pytest.mark.parametrize(("reason", "content"), DAMAGED.items())
def test_a_damaged_or_hostile_header_is_one_clear_error(tmp_path: Path, reason: str, content: bytes) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    with pytest.raises(BaseModelError, match=reason) as caught:
        open_gguf(path, BaseModelError)
    assert str(caught.value).startswith(str(path))
    assert len(str(caught.value)) < len(str(path)) + 300


def test_a_file_cut_anywhere_is_one_clear_error(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.gguf").read_bytes()
    last = open_gguf(tmp_path / "whole.gguf", BaseModelError).tensors["half"]
    cut = tmp_path / "cut.gguf"
    for kept in range(0, last.start + last.num_bytes, 7):
        cut.write_bytes(whole[:kept])
        with pytest.raises(BaseModelError, match=r"truncated|is empty"):
            open_gguf(cut, BaseModelError)


def test_a_file_with_any_byte_changed_never_crashes(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.gguf").read_bytes()
    start = open_gguf(tmp_path / "whole.gguf", BaseModelError).tensors["plain"].start
    changed = tmp_path / "changed.gguf"
    for at in range(start):
        changed.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            file = open_gguf(changed, BaseModelError)
            for name in file.tensors:
                file.floats(name)
        except BaseModelError:
            pass


def test_a_header_without_end_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    with path.open("wb") as file:
        file.write(header(0, 1, value(b"k", 8, struct.pack("<Q", MAX_HEADER_BYTES))))
        file.truncate(2 * MAX_HEADER_BYTES)  # a hole: takes no room on disk
    with pytest.raises(BaseModelError, match="header is longer than any model's"):
        open_gguf(path, BaseModelError)


def test_what_is_not_there_or_no_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match=r"nowhere\.gguf: cannot be read: No such file"):
        open_gguf(tmp_path / "nowhere.gguf", BaseModelError)
    with pytest.raises(BaseModelError, match="cannot be read: Is a directory"):
        open_gguf(tmp_path, BaseModelError)


def test_a_missing_library_is_one_sentence(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("converters.files.gguf.find_spec", lambda name: None)
    with pytest.raises(BaseModelError, match=r"gguf is needed; run: pip install 'tunefleet\[llama\]'"):
        open_gguf(write(tmp_path / "x.gguf"), BaseModelError)


def test_a_gguf_file_is_known_by_its_first_bytes_or_its_name(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"GGUF")
    (tmp_path / "b.gguf").touch()
    (tmp_path / "c").touch()
    assert [is_gguf(tmp_path / name) for name in ("a", "b.gguf", "c", "d.gguf")] == [True, True, False, False]
