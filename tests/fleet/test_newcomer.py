"""The README's own commands, as they stand there, on a wheel in an empty environment, with foreign data.

One device with every default, then three: each must come to a version that beats the base model on sentences
that no device has seen. Nothing of this checkout is on the path.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
import venv
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from importlib.metadata import Distribution, distribution, distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
ASSETS = Path(os.environ.get("TUNEFLEET_ASSETS", ROOT.parent / "shared/assets"))
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
DOMAINS = ("banking", "travel", "kitchen_and_dining")  # one a device

pytestmark = [
    pytest.mark.broker,
    pytest.mark.torch,
    pytest.mark.assets,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(not ASSETS.is_dir(), reason=f"{ASSETS} is missing"),
]


@pytest.fixture
def newcomer(wheel: Path, make_once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    """The command of an environment with the wheel and what its extra `torch` asks for, and nothing else.

    What it asks for is linked from the environment of the tests, as pip would unpack torch for a minute;
    test_phone.py has pip install another extra.
    """

    def install(folder: Path) -> None:
        venv.create(folder, symlinks=True)
        pip = [sys.executable, "-m", "pip", "--python", folder / "bin/python", "install", "--no-deps", wheel]
        subprocess.run(pip, check=True, capture_output=True)
        site = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
        (own,) = distributions(path=[str(site)], name="tunefleet")
        for needed in asked_for(own, "torch"):
            link(needed, site)

    return make_once("newcomer", install) / "bin/tunefleet"


def asked_for(package: Distribution, *extras: str) -> set[str]:
    """Names of all distributions that a distribution needs with some extras, directly or not."""
    seen, todo = set(), [(package, extras)]
    while todo:
        package, extras = todo.pop()
        for one in map(Requirement, package.requires or ()):
            wanted = (canonicalize_name(one.name), *sorted(one.extras))
            cases = [{"extra": extra} for extra in extras or [""]]
            is_needed = not one.marker or any(map(one.marker.evaluate, cases))
            if is_needed and wanted not in seen:
                seen.add(wanted)
                todo.append((distribution(one.name), one.extras))
    return {name for name, *_ in seen}


def link(name: str, site: Path) -> None:
    """Puts the files of an installed distribution into another environment, without its programs."""
    for file in distribution(name).files or ():
        if ".." in file.parts:
            continue
        place = site / file
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            place.hardlink_to(file.locate())
        except OSError:  # another disk
            shutil.copy2(file.locate(), place)


@pytest.fixture
def office(tmp_path: Path) -> Path:
    """An empty folder with what a newcomer brings: one data file a device, and a test file for nobody."""
    source = ASSETS / "data/clinc150"
    splits = json.loads((source / "data_full.json").read_text())
    domains = json.loads((source / "domains.json").read_text())
    for name, domain in zip(("laptop", "server", "board"), DOMAINS, strict=True):
        write_rows(tmp_path / f"{name}.jsonl", splits["train"], domains[domain])
    unseen = [intent for domain in DOMAINS for intent in domains[domain]]
    write_rows(tmp_path / "unseen.jsonl", splits["test"], unseen, every=9)
    return tmp_path


@pytest.mark.parametrize("devices", [("laptop",), ("laptop", "server", "board")], ids=["one", "three"])
def test_the_fleet_of_the_readme_beats_its_base_model(
    newcomer: Path, office: Path, mosquitto: int, devices: tuple[str, ...]
) -> None:
    base = ASSETS / "models/tinystories-656K"
    commands = readme_commands(newcomer, {"HOST": f"127.0.0.1:{mosquitto}", "PATH": str(base)})
    with ExitStack() as fleet:
        fleet.enter_context(running(office, commands["serve"], office / "serve.log"))
        for name in devices:
            join = [
                word.replace("laptop", name).replace("FILE", f"{name}.jsonl") for word in commands["join"]
            ]
            fleet.enter_context(running(office, join))
        wait_until_told(office / "serve.log", "version 4: ")
        versions = json.loads(run(office, [*commands["history"], "--json"]))["versions"]
    trained_by = {share["device"] for version in versions for share in version["shares"]}
    assert trained_by == set(devices)
    run(office, commands["export"])
    score = [str(newcomer), "eval", "--base", str(base), "--data", "unseen.jsonl", "--json"]
    before, after = (json.loads(run(office, score + more)) for more in ([], ["--adapter", "adapter"]))
    assert after["loss"] < 0.8 * before["loss"]


def write_rows(path: Path, rows: Sequence[Sequence[str]], intents: Sequence[str], every: int = 1) -> None:
    """Sentences with these intents, as prompts and completions."""
    chosen = [(text, intent) for text, intent in rows if intent in intents][::every]
    lines = [json.dumps({"prompt": f"{text} -> ", "completion": intent}) for text, intent in chosen]
    path.write_text("\n".join(lines) + "\n")


def readme_commands(command: Path, values: dict[str, str]) -> dict[str, list[str]]:
    """Every `tunefleet …` of the README by its subcommand, with capitals filled in that `values` knows."""
    text = re.sub(r"\b(HOST|PATH)\b", lambda match: values[match[1]], (ROOT / "README.md").read_text())
    found = [
        shlex.split(line, comments=True)[1:] for line in re.findall(r"tunefleet [a-z]+ +--[^`\n]*", text)
    ]
    return {words[0]: [str(command), *words] for words in found}


def wait_until_told(log: Path, words: str) -> None:
    """Asking `history` again and again would take as much of the machine as the training."""
    deadline = time.monotonic() + 600
    while words not in log.read_text():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)


@contextmanager
def running(folder: Path, command: list[str], log: Path | None = None) -> Iterator[None]:
    """The command in the background; ended as Ctrl-C does, which it must obey in order."""
    with (
        log.open("w") if log else nullcontext() as out,
        subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, stdout=out, stderr=out) as process,
    ):
        try:
            yield
            assert process.poll() is None, f"{command} ended by itself"
            process.terminate()
            assert process.wait(timeout=60) == 0
        finally:
            process.kill()


def run(folder: Path, command: list[str]) -> str:
    """Output of the command, which must succeed."""
    done = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
