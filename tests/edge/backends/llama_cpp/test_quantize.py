import subprocess
import sys

import pytest

pytest.importorskip("llama_cpp", reason="needs the llama extra")
pytest.importorskip("gguf", reason="needs the llama extra")

from converters.bases.gguf import read_gguf
from converters.errors import BaseModelError
from converters.gguf_export.toy import make_weights, write_toy
from edge.backends.llama_cpp.quantize import quantize

pytestmark = pytest.mark.llama
PROGRAM = [sys.executable, "-m", "edge.backends.llama_cpp.quantize"]


@pytest.fixture
def toy(tmp_path):
    write_toy(tmp_path / "toy.gguf", make_weights(seed=0))
    return tmp_path / "toy.gguf"


@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0", "q4_0"])
def test_matrices_are_written_in_the_type_that_was_asked_for(toy, tmp_path, kind):
    quantize(toy, tmp_path / "small.gguf", kind)
    types = read_gguf(tmp_path / "small.gguf").types
    assert types["blk.0.attn_q.weight"] == kind.upper()
    assert types["blk.0.attn_norm.weight"] == "F32"
    assert (tmp_path / "small.gguf").stat().st_size < toy.stat().st_size


def test_k_quants_are_written_where_rows_are_long_enough(make_gguf, tmp_path):
    base = make_gguf("llama", hidden_size=256, intermediate_size=512)
    for kind, expected in (("q4_K_M", "Q4_K"), ("q5_K_M", "Q5_K"), ("q6_K", "Q6_K")):
        quantize(base, tmp_path / f"{kind}.gguf", kind)
        assert read_gguf(tmp_path / f"{kind}.gguf").types["blk.0.attn_q.weight"] == expected


def test_an_unknown_type_is_refused_with_those_there_are(toy, tmp_path):
    with pytest.raises(BaseModelError, match=r"quantisation 'q3', expected one of f16, q4_0"):
        quantize(toy, tmp_path / "small.gguf", "q3")


def test_the_program_says_in_one_line_what_it_cannot_do(toy, tmp_path):
    target = str(tmp_path / "small.gguf")
    done = subprocess.run([*PROGRAM, str(toy), target, "q8_0"], capture_output=True, check=True)
    assert done.stdout == done.stderr == b""
    (tmp_path / "broken.gguf").write_bytes(toy.read_bytes()[:5000])
    failed = subprocess.run(
        [*PROGRAM, str(tmp_path / "broken.gguf"), target, "q8_0"], capture_output=True, text=True
    )
    assert failed.returncode == 1
    assert failed.stderr.startswith("tunefleet: ")
    assert failed.stderr.count("\n") == 1
