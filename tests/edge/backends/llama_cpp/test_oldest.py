"""The lower end of the range of llama-cpp-python: what holds of the installed one holds of it, too."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

pytest.importorskip("llama_cpp", reason="needs the llama extra")

from edge.backends.llama_cpp import native

pytestmark = pytest.mark.llama
ROOT = Path(__file__).parents[4]
OLDEST, NEWEST = (".".join(map(str, end)) for end in (native.OLDEST, native.NEWEST))
FOLDER = Path(sys.prefix) / f"llama-{OLDEST}"
NAMES = ("test_contract", "test_parity", "llama_cpp/test_gradients", "llama_cpp/test_native")
NAMES += ("llama_cpp/gradients/test_operations", "llama_cpp/test_selftest", "llama_cpp/test_weights")
SUITE = [Path(__file__).parents[1] / f"{name}.py" for name in NAMES]


def in_oldest(*arguments: str) -> str:
    path = os.pathsep.join([str(FOLDER), str(ROOT)])
    found = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout[-4000:] + found.stderr[-2000:]
    return found.stdout


def test_what_is_installed_by_pip_is_what_was_tried():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    *ahead, last = native.NEWEST
    after = ".".join(map(str, [*ahead, last + 1]))
    assert f"llama-cpp-python>={OLDEST},<{after}" in extras["llama"]
    assert native.installed_version() in (OLDEST, NEWEST)


@pytest.mark.skipif(not FOLDER.exists(), reason=f"needs llama-cpp-python {OLDEST}; run make oldest")
def test_the_oldest_llama_cpp_passes_the_tests_of_the_newest():
    code = "from edge.backends.llama_cpp import native; print(native.installed_version())"
    assert in_oldest("-c", code).strip() == OLDEST
    # Before 0.3.36 llama.cpp quantises no rows like those of stories260K, of 172 values.
    told = in_oldest(
        "-m", "pytest", "-q", "-m", "llama", "-k", "not quantised_weights_are_near", *map(str, SUITE)
    )
    assert "passed" in told.splitlines()[-1]
