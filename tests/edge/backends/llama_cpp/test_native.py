"""Another llama.cpp than those that were tried is refused in one line, before anything is done with it."""

import ctypes
import os
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("llama_cpp", reason="needs the llama extra")

from converters.gguf_export.toy import make_weights, write_toy
from edge.backends.llama_cpp import native
from edge.backends.llama_cpp.context import Context, Model
from edge.errors import BackendError

pytestmark = pytest.mark.llama
TOKENS = np.array([3, 1, 4, 1, 5], np.int32)
PLACES, ZEROS, EVERYWHERE = np.arange(5, dtype=np.int32), np.zeros(5, np.int32), np.ones(5, np.bool_)


@pytest.fixture
def context(tmp_path):
    """Of the self-test's toy."""
    write_toy(tmp_path / "toy.gguf", make_weights(seed=0))
    model = Model(tmp_path / "toy.gguf")
    context = Context(model, 16, 1, 1)
    model.api.llama_log_set(model.library.keep[0], None)  # other tests silence it
    yield context
    context.close()
    model.close()


def logits_of(context) -> np.ndarray:
    context.clear()
    context.hook = lambda pointer, is_asked: False
    context.decode(TOKENS, PLACES, ZEROS, EVERYWHERE)
    return context.logits(len(TOKENS)).copy()


def refusal(check, *arguments) -> str:
    with pytest.raises(BackendError) as caught:
        check(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("found", ["0.2.90", "0.3.19", "0.3.37", "1.0.0", "0.4", "unknown"])
def test_a_version_that_was_not_tried_is_refused(found):
    told = refusal(native.check_version, found)
    assert f"llama-cpp-python {found} is installed, expected 0.3." in told
    assert "run pip install 'llama-cpp-python>=0.3." in told


@pytest.mark.parametrize("end", [native.OLDEST, native.NEWEST])
@pytest.mark.parametrize("suffix", ["", "+cpu", ".post1"])
def test_both_ends_of_the_range_are_taken(end, suffix):
    native.check_version(".".join(map(str, end)) + suffix)


def test_a_package_without_metadata_tells_its_version_itself():
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    assert native.installed_version(missing) == native.installed_version().partition("+")[0]


def test_tensors_of_another_size_are_refused():
    told = refusal(native.check_layout, native.open_library().ggml, native.TENSOR_BYTES + 8)
    assert "a tensor of the installed ggml has 336 bytes, expected 344" in told


def test_types_of_other_numbers_are_refused():
    swapped = {**native.TYPE_NAMES, 2: b"f16"}
    told = refusal(native.check_layout, native.open_library().ggml, native.TENSOR_BYTES, swapped)
    assert "numbers its types otherwise" in told


def test_every_missing_function_is_named():
    told = refusal(native.declare_ggml, ctypes.PyDLL(None))  # Python itself
    assert "lacks ggml_op_name, ggml_op_desc, ggml_tensor_overhead, ggml_get_type_traits" in told


def test_what_a_hook_raises_ends_the_pass_and_the_next_is_as_before(context):
    expected = logits_of(context)
    seen = []

    def fail(pointer: int, is_asked: bool) -> bool:
        seen.append(pointer)
        if not is_asked:
            raise KeyError("from a hook")
        return len(seen) == 5

    context.clear()
    context.hook = fail
    with pytest.raises(KeyError, match="from a hook"):
        context.decode(TOKENS, PLACES, ZEROS, EVERYWHERE)
    assert len(seen) == 6
    np.testing.assert_array_equal(logits_of(context), expected)


@pytest.mark.parametrize("node", [0, 1, 10, 30])
def test_a_pass_that_was_stopped_leaves_no_trace(node, context):
    expected, seen = logits_of(context), []
    context.clear()
    context.hook = lambda pointer, is_asked: bool(seen.append(is_asked)) or True
    context.decode(TOKENS, PLACES, ZEROS, EVERYWHERE, stop_before=node)
    assert seen == [True, False] * node
    np.testing.assert_array_equal(logits_of(context), expected)


def test_tokens_that_are_not_in_the_vocabulary_are_refused_in_llama_cpps_words(context):
    with pytest.raises(BackendError, match=r"llama_decode gave -1: .*invalid token"):
        context.decode(TOKENS + 1000, PLACES, ZEROS, EVERYWHERE)


def test_a_broken_installation_is_one_error(tmp_path):
    package = Path(native.open_library().api.__file__).parent
    shutil.copytree(package, tmp_path / "llama_cpp", ignore=shutil.ignore_patterns("lib", "__pycache__"))
    code = """
from edge.errors import BackendError
from edge.backends.llama_cpp.native import open_library
try:
    open_library()
except BackendError as error:
    print(error)
"""
    found = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )
    told = "backend llama_cpp: the installed llama-cpp-python cannot be loaded: "
    assert found.stdout.startswith(told), found.stderr
    assert found.stdout.count("\n") == 1
