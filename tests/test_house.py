"""The house: what the wheel holds, what imports without heavy libraries, how fast the command answers."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ROOMS = ("benchmarks", "converters", "coordinator", "edge", "tests")
ELSEWHERE = {"convert_hf_to_gguf.py", "rooted.py"}  # llama.cpp's, and the reader's own
TOPICS = {"coordinator/challenge", "coordinator/answer"}
BLOCKED_IMPORTS = """
import importlib, pkgutil, sys

HEAVY = {"torch", "transformers", "peft", "mlx", "mlx_lm", "llama_cpp", "gguf", "matplotlib", "amqtt"}
HEAVY |= {"pyarrow", "datasets"}

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in HEAVY:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Refuse())
import converters, edge, tunefleet
NAMED_AFTER_ONE = (
    "edge.backends.torch",
    "edge.backends.mlx",
    "edge.backends.llama_cpp",
    "edge.transport.amqtt",
)

def pass_over(name):
    if not name.startswith(NAMED_AFTER_ONE):
        raise

for package in (converters, edge):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + ".", pass_over):
        if not module.name.startswith(NAMED_AFTER_ONE):
            importlib.import_module(module.name)
import coordinator.server
"""


def test_the_wheel_holds_the_three_packages_the_command_and_its_types_and_nothing_else(wheel: Path) -> None:
    files = zipfile.ZipFile(wheel).namelist()
    names = {name.split("/")[0] for name in files}
    assert {name for name in names if not name.endswith(".dist-info")} == {
        "converters",
        "coordinator",
        "edge",
        "tunefleet.py",
        "tunefleet-stubs",
    }
    assert {f"{package}/py.typed" for package in ("converters", "coordinator", "edge")} <= set(files)


def test_the_version_is_the_one_of_the_wheel(wheel: Path) -> None:
    import tunefleet

    assert wheel.name.startswith(f"tunefleet-{tunefleet.__version__}-")


def test_device_and_coordinator_import_without_any_heavy_library() -> None:
    subprocess.run([sys.executable, "-c", BLOCKED_IMPORTS], check=True, cwd=ROOT)


def test_help_imports_nothing_that_only_a_command_needs() -> None:
    probe = (
        "import sys, tunefleet, typer.testing\n"
        "result = typer.testing.CliRunner().invoke(tunefleet.app, ['--help'])\n"
        "assert result.exit_code == 0, result.output\n"
        "print(sorted({'numpy', 'torch', 'mlx', 'sqlite3', 'paho', 'cryptography'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", probe], check=True, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_is_there(page: Path) -> None:
    files = [f"/{file.relative_to(ROOT)}" for room in ROOMS for file in (ROOT / room).rglob("*.py")]
    files.append("/tunefleet.py")
    text = page.read_text()
    named = set(re.findall(r"(?<![\w./<-])[\w/]+\.py\b", text)) - ELSEWHERE
    missing = [name for name in named if not any(file.endswith(f"/{name}") for file in files)]
    paths = set(re.findall(rf"(?<![\w./-])(?:{'|'.join(ROOMS)})/[\w/.-]*\w", text)) - TOPICS
    missing += [path for path in paths if not (ROOT / path).exists() and not (ROOT / f"{path}.py").exists()]
    modules = set(re.findall(rf"python -m ((?:{'|'.join(ROOMS)})\.[\w.]+)", text))
    places = {module: ROOT / module.replace(".", "/") for module in modules}
    missing += [name for name, at in places.items() if not (at.with_suffix(".py").exists() or at.is_dir())]
    assert missing == []
