"""The self-test finds what it is there to find, and is run once per installation."""

import ctypes
import os

import pytest

pytest.importorskip("llama_cpp", reason="needs the llama extra")
pytest.importorskip("gguf", reason="needs the llama extra")

from edge.backends.llama_cpp import native, operations, selftest, tape
from edge.backends.llama_cpp.selftest import ensure_tested, run_test
from edge.errors import BackendError

pytestmark = pytest.mark.llama
FAILED = r"llama-cpp-python \d.* failed its self-test: .*; install another one from 0\.3"


@pytest.fixture
def runs(monkeypatch):
    """One entry for each run of the test."""
    found = []

    def counted() -> None:
        found.append(1)
        run_test()

    monkeypatch.setattr(selftest, "run_test", counted)
    return found


def test_the_installed_llama_cpp_passes():
    run_test()


@pytest.mark.parametrize("op", ["ADD", "CACHE", "GET_ROWS", "GLU", "MUL", "MUL_MAT", "RMS_NORM", "ROPE"])
def test_a_gradient_that_is_off_by_a_twentieth_is_found(op, monkeypatch):
    right = operations.BACKWARD[op]
    monkeypatch.setitem(operations.BACKWARD, op, lambda tape, node, g: right(tape, node, 1.05 * g))
    with pytest.raises(BackendError, match=FAILED) as caught:
        run_test()
    assert "the slope of blk.0." in str(caught.value)


def test_parameters_of_operations_in_another_place_are_found(monkeypatch):
    fields = dict(native.Tensor._fields_)
    order = [name for name in fields if name != "flags"]
    order.insert(order.index("op_params"), "flags")  # four bytes further on
    shifted = type("Tensor", (ctypes.Structure,), {"_fields_": [(name, fields[name]) for name in order]})
    assert ctypes.sizeof(shifted) == native.TENSOR_BYTES
    monkeypatch.setattr(native, "Tensor", shifted)
    with pytest.raises(BackendError, match=FAILED):
        run_test()


def test_factors_that_do_not_reach_the_forward_pass_are_found(monkeypatch):
    monkeypatch.setattr(tape.Tape, "_add_lora", lambda self, node, result, x: None)
    with pytest.raises(BackendError, match=FAILED):
        run_test()


def test_a_test_that_was_passed_is_not_repeated(tmp_path, runs):
    for _ in range(3):
        ensure_tested(tmp_path / "cache")
    assert len(runs) == 1


def test_by_default_it_is_remembered_in_the_users_cache(tmp_path, runs, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for _ in range(2):
        ensure_tested()
    assert len(runs) == 1
    assert list((tmp_path / "tunefleet").iterdir())


def test_another_library_is_tested_anew(tmp_path, runs, monkeypatch):
    library = tmp_path / "libllama.so"
    library.write_bytes(b"one")
    monkeypatch.setattr(native, "library_files", lambda: [library])
    ensure_tested(tmp_path / "cache")
    os.utime(library, ns=(0, 0))
    ensure_tested(tmp_path / "cache")
    assert len(runs) == 2


def test_a_test_that_failed_is_repeated(tmp_path, runs, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(selftest, "SLOPE_BOUND", 0.0)
        for _ in range(2):
            with pytest.raises(BackendError, match=FAILED):
                ensure_tested(tmp_path)
    ensure_tested(tmp_path)
    assert len(runs) == 3


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, runs):
    (tmp_path / "file").touch()
    for _ in range(2):
        ensure_tested(tmp_path / "file" / "cache")
    assert len(runs) == 2
