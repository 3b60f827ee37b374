"""The self-test finds what it is there to find, and is run once per installation."""

import ctypes
import os

import pytest

pytest.importorskip("llama_cpp", reason="needs the llama extra")
pytest.importorskip("gguf", reason="needs the llama extra")

from edge.backends.llama_cpp import native
from edge.backends.llama_cpp.gradients.forward import Forward
from edge.backends.llama_cpp.gradients.operations import OPERATIONS
from edge.backends.llama_cpp.selftest import Tried, ensure_tested, run_test
from edge.errors import BackendError

pytestmark = pytest.mark.llama
FAILED = r"llama-cpp-python \d.* failed its self-test: .*; install another one from 0\.3"


class Counted:
    """The test, and how often it was run."""

    def __init__(self, **tried) -> None:
        self.num_runs, self.tried = 0, Tried(**tried)

    def __call__(self) -> None:
        self.num_runs += 1
        run_test(self.tried)


class Forgetful(Forward):
    """A pass in which the factors do not reach the results."""

    def add_lora(self, node, result, x) -> None: ...


@pytest.fixture
def counted():
    return Counted()


def test_the_installed_llama_cpp_passes():
    run_test()


@pytest.mark.parametrize("op", ["ADD", "CACHE", "GET_ROWS", "GLU", "MUL", "MUL_MAT", "RMS_NORM", "ROPE"])
def test_a_gradient_that_is_off_by_a_twentieth_is_found(op):
    right = OPERATIONS.backward[op]
    wrong = {**OPERATIONS.backward, op: lambda tape, node, g: right(tape, node, 1.05 * g)}
    with pytest.raises(BackendError, match=FAILED) as caught:
        run_test(Tried(OPERATIONS._replace(backward=wrong)))
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


def test_factors_that_do_not_reach_the_forward_pass_are_found():
    with pytest.raises(BackendError, match=FAILED):
        run_test(Tried(forward=Forgetful))


def test_a_test_that_was_passed_is_not_repeated(tmp_path, counted):
    for _ in range(3):
        ensure_tested(tmp_path / "cache", test=counted)
    assert counted.num_runs == 1


def test_by_default_it_is_remembered_in_the_users_cache(tmp_path, counted, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for _ in range(2):
        ensure_tested(test=counted)
    assert counted.num_runs == 1
    assert list((tmp_path / "tunefleet").iterdir())


def test_another_library_is_tested_anew(tmp_path, counted):
    library = tmp_path / "libllama.so"
    library.write_bytes(b"one")
    ensure_tested(tmp_path / "cache", test=counted, library_files=lambda: [library])
    os.utime(library, ns=(0, 0))
    ensure_tested(tmp_path / "cache", test=counted, library_files=lambda: [library])
    assert counted.num_runs == 2


def test_a_test_that_failed_is_repeated(tmp_path, counted):
    strict = Counted(slope_bound=0.0)
    for _ in range(2):
        with pytest.raises(BackendError, match=FAILED):
            ensure_tested(tmp_path, test=strict)
    ensure_tested(tmp_path, test=counted)
    assert (strict.num_runs, counted.num_runs) == (2, 1)


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, counted):
    (tmp_path / "file").touch()
    for _ in range(2):
        ensure_tested(tmp_path / "file" / "cache", test=counted)
    assert counted.num_runs == 2
