"""Another llama.cpp than those that were tried is refused in one line, before anything is done with it."""

import ctypes
import os
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

pytest.importorskip("llama_cpp", reason="needs the llama extra")

from edge.errors import BackendError
from edge.training.backends.llama_cpp import native

pytestmark = pytest.mark.llama
open_anew = native.open_library.__wrapped__


def refusal() -> str:
    with pytest.raises(BackendError) as caught:
        open_anew()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("found", ["0.2.90", "0.3.19", "0.3.37", "1.0.0", "0.4", "unknown"])
def test_a_version_that_was_not_tried_is_refused(found, monkeypatch):
    monkeypatch.setattr(native, "version", lambda _: found)
    assert f"llama-cpp-python {found} is installed, expected 0.3." in refusal()
    assert "run pip install 'llama-cpp-python>=0.3." in refusal()


@pytest.mark.parametrize("end", [native.OLDEST, native.NEWEST])
@pytest.mark.parametrize("suffix", ["", "+cpu", ".post1"])
def test_both_ends_of_the_range_are_taken(end, suffix, monkeypatch):
    monkeypatch.setattr(native, "version", lambda _: ".".join(map(str, end)) + suffix)
    native.check_version()


def test_a_package_without_metadata_tells_its_version_itself(monkeypatch):
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    expected = native.installed_version().partition("+")[0]
    monkeypatch.setattr(native, "version", missing)
    assert native.installed_version() == expected


def test_tensors_of_another_size_are_refused(monkeypatch):
    class Longer(native.Tensor):
        _fields_ = (("more", ctypes.c_void_p),)

    monkeypatch.setattr(native, "Tensor", Longer)
    monkeypatch.setattr(native, "TENSOR_BYTES", ctypes.sizeof(Longer))
    assert "a tensor of the installed ggml has 336 bytes, expected 344" in refusal()


def test_types_of_other_numbers_are_refused(monkeypatch):
    monkeypatch.setattr(native, "F16", 2)
    assert "numbers its types otherwise" in refusal()


def test_every_missing_function_is_named(monkeypatch):
    monkeypatch.setattr(native.ctypes, "CDLL", lambda _: ctypes.PyDLL(None))  # Python itself
    assert "lacks ggml_op_name, ggml_op_desc, ggml_tensor_overhead, ggml_get_type_traits" in refusal()


def test_a_broken_installation_is_one_error(tmp_path):
    package = Path(native.api.__file__).parent
    shutil.copytree(package, tmp_path / "llama_cpp", ignore=shutil.ignore_patterns("lib", "__pycache__"))
    code = """
from edge.errors import BackendError
try:
    import edge.training.backends.llama_cpp
except BackendError as error:
    print(error)
"""
    found = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.startswith("backend llama_cpp: the installed llama-cpp-python cannot be loaded: ")
    assert found.stdout.count("\n") == 1
