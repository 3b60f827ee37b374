"""What a type checker sees of `import tunefleet`: from the wheel, and from an editable install."""

import ast
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

import tunefleet

pytestmark = pytest.mark.timeout(600)

ROOT = Path(__file__).parents[1]
STUB = ROOT / "coordinator/tunefleet.pyi"
SCRIPT = """
from collections.abc import Sequence

import tunefleet
from coordinator.strategies.contract import Contribution

result = tunefleet.train("base", [{"text": "on"}], steps=2)
reveal_type(result.adapter)
reveal_type(tunefleet.evaluate("base", "data.jsonl", adapter=result.adapter).loss)
reveal_type(tunefleet.generate("base", "lamp"))
reveal_type(tunefleet.__version__)


def first(adapter: tunefleet.LoraAdapter, updates: Sequence[Contribution]) -> tunefleet.LoraAdapter:
    return updates[0].load_base()


with tunefleet.Fleet("base", strategy=first) as fleet:
    reveal_type(fleet.adapter())
    fleet.until("three")
try:
    tunefleet.save_adapter(result.adapter, "out", form="onnx")
except tunefleet.TunefleetError as error:
    reveal_type(error)
"""
SEEN = (
    '8: note: Revealed type is "converters.adapter.LoraAdapter"',
    '9: note: Revealed type is "float"',
    '10: note: Revealed type is "list[str]"',
    '11: note: Revealed type is "str"',
    '19: note: Revealed type is "converters.adapter.LoraAdapter"',
    '20: error: Argument 1 to "until" of "Fleet" has incompatible type "str"; expected "int"',
    '22: error: Argument "form" to "save_adapter" has incompatible type "Literal[\'onnx\']"',
    '24: note: Revealed type is "converters.errors.TunefleetError"',
)


@pytest.fixture
def cache(make_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """mypy's, so that numpy is read once."""
    read = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--config-file=",
        "-c",
        "import msgspec, numpy",
        "--cache-dir",
    ]
    return make_once("types", lambda folder: subprocess.run([*read, folder], check=True, capture_output=True))


def test_the_stub_names_what_the_module_finds() -> None:
    stub = ast.parse(STUB.read_text())
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    assert {alias.name: node.module for node in imports for alias in node.names} == tunefleet._HOMES


def test_every_name_is_documented_and_no_other_is_there() -> None:
    for name in tunefleet.__all__:
        assert name == "__version__" or getattr(tunefleet, name).__doc__, name
    assert dir(tunefleet) == sorted(tunefleet.__all__)
    with pytest.raises(AttributeError, match=r"no attribute 'trian'; it has .*train"):
        tunefleet.trian  # noqa: B018


def test_a_script_is_checked_against_the_wheel(tmp_path: Path, wheel: Path, cache: Path) -> None:
    assert_checked(tmp_path, wheel, cache)


def test_a_script_is_checked_against_an_editable_install(tmp_path: Path, cache: Path) -> None:
    pytest.importorskip("editables", reason="needs the dev extra")
    build = "import sys, hatchling.build; hatchling.build.build_editable(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, tmp_path], cwd=ROOT, check=True, capture_output=True)
    assert_checked(tmp_path, next(tmp_path.glob("*.whl")), cache)


def assert_checked(folder: Path, wheel: Path, cache: Path) -> None:
    """mypy sees the types of a script in an environment with `wheel` and what it depends on."""
    venv.create(folder / "venv", with_pip=False)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder / "venv")}))
    zipfile.ZipFile(wheel).extractall(site)
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    script = folder / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "mypy", "--strict", "--python-executable", folder / "venv/bin/python"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [*command, "--config-file=", "--cache-dir", cache, script],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    told = [line.removeprefix("script.py:") for line in done.stdout.splitlines()[:-1]]
    found = [any(line.startswith(seen) for line in told) for seen in SEEN]
    assert all(found), done.stdout + done.stderr
    assert len(told) == len(SEEN), done.stdout
