"""A strategy and a stage of another package, built and installed as docs/your-own-strategy.md says."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from coordinator.config import read_config
from coordinator.errors import CoordinatorError
from coordinator.strategies.choice import choose_strategy
from coordinator.strategies.contract import State
from coordinator.strategies.outside import find_stage
from coordinator.strategies.stages.weights import Freshness, Normalise
from edge.backends.toy import make_toy_base
from edge.errors import ConfigError

PAGE = Path(__file__).parents[3] / "docs/your-own-strategy.md"
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE.read_text("utf-8"), re.S)
MODULE, PROJECT, _, SETTINGS = (text for _, text in BLOCKS)
FUNCTION = """

def still(adapter, updates):
    return adapter
"""
MORE = 'stays = "rooted:still"\nlost = "rooted:NOWHERE"\nmislabelled = "rooted:PowerOfExamples"\n'


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the installed package, with a function, and two entry points that are no good."""
    source, site = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    (source / "rooted.py").write_text(MODULE + FUNCTION)
    (source / "pyproject.toml").write_text(PROJECT.replace("\n\n[build-system]", f"\n{MORE}\n[build-system]"))
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, "--no-build-isolation", "--target", site, source], check=True)
    return site


@pytest.fixture
def beside(site, monkeypatch):
    """The package stands beside tunefleet in this process."""
    monkeypatch.syspath_prepend(str(site))
    yield
    sys.modules.pop("rooted", None)


@pytest.fixture
def places(tmp_path):
    return {"broker": "mqtt://h", "fleet": "home", "base": str(tmp_path), "state": str(tmp_path / "state")}


def run(site, *words):
    """What a process prints that has the package beside tunefleet."""
    path = os.pathsep.join([str(site), *sys.path])
    return subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        check=False,
    )


def test_a_strategy_of_another_package_is_named_on_the_command_line(site, tmp_path):
    base = make_toy_base(tmp_path / "base")
    words = ["--broker", "mqtt://h", "--fleet", "home", "--base", base, "--state", tmp_path / "state"]
    done = run(site, "-m", "tunefleet", "serve", *words, "--strategy", "rooted", "--print-config")
    settings = tomllib.loads(done.stdout.replace("# Of rooted:\n", "").replace("\n# ", "\n"))
    assert settings["strategy"] == "rooted"
    assert settings["stages"]["order"] == [{"kind": "power-of-examples", "power": 0.5}, {"kind": "normalise"}]


def test_it_merges_by_the_root_of_the_examples(beside, places, random_adapter, update):
    strategy = choose_strategy(read_config(None, places | {"strategy": "rooted"}))
    master = random_adapter(2, 1)
    sent = [update(random_adapter(2, n), master, name=f"u{n}", num_examples=n * n) for n in (1, 3)]
    _, report = strategy.merge(State(0, master), sent)
    assert report.strategy == "rooted"
    assert [share.weight for share in report.shares] == pytest.approx([1 / 4, 3 / 4])


def test_a_function_is_a_strategy_by_the_name_of_its_entry_point(beside, places, random_adapter, update):
    strategy = choose_strategy(read_config(None, places | {"strategy": "stays"}))
    master = random_adapter(2, 1)
    state, report = strategy.merge(State(0, master), [update(random_adapter(2, 2), master)])
    assert (state.version, state.adapter, report.strategy) == (1, master, "stays")


def test_its_stage_stands_in_the_row_of_another_strategy(beside, places, tmp_path):
    (tmp_path / "c.toml").write_text(SETTINGS)
    config = read_config(tmp_path / "c.toml", places)
    stage, *others = config.method_in_force.order
    assert (stage.kind, stage.power, others) == ("power-of-examples", 0.25, [Freshness(), Normalise()])
    assert config.stages["order"][0] == {"kind": "power-of-examples", "power": 0.25}


def test_neither_help_nor_another_strategy_imports_its_module(site, tmp_path):
    base = make_toy_base(tmp_path / "base")
    words = ["--broker", "mqtt://h", "--fleet", "home", "--base", base, "--state", tmp_path / "state"]
    printed = {name: ["serve", *words, "--strategy", name, "--print-config"] for name in ("fedavg", "rooted")}
    for asked, is_imported in (
        (["serve", "--help"], False),
        (printed["fedavg"], False),
        (printed["rooted"], True),
    ):
        done = run(site, "-v", "-m", "tunefleet", *asked)
        assert done.returncode == 0
        assert bool(re.search(r"^import 'rooted'", done.stderr, re.M)) is is_imported


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"strategy": "lost"}, "lost: cannot be imported from rooted, rooted:NOWHERE: "),
        ({"strategy": "power-of-examples"}, "strategy is 'power-of-examples', expected one of fedavg,"),
        (
            {"strategy": "rotted"},
            "of those installed beside it, lost, mislabelled, power-of-examples, rooted",
        ),
        ({"stages": {"order": ["mislabelled"]}}, "PowerOfExamples has the tag 'power-of-examples', expected"),
        (
            {"stages": {"order": [{"kind": "power-of-examples", "power": "two"}]}},
            "stages.power-of-examples.power is 'two': Expected `float`, got `str`",
        ),
        ({"stages": {"order": ["unheard-of"]}}, "stages.order has 'unheard-of', expected some of absolute,"),
    ],
)
def test_what_is_wrong_with_it_is_told_at_the_start(beside, places, changes, part):
    with pytest.raises(ConfigError) as caught:
        read_config(None, places | changes)
    assert part in caught.value.whole


def test_without_the_package_its_names_are_unknown(places):
    with pytest.raises(ConfigError, match="strategy is 'rooted', expected one of fedavg"):
        read_config(None, places | {"strategy": "rooted"})
    assert find_stage("power-of-examples") is None


def test_two_packages_with_one_name_are_told(site, tmp_path, monkeypatch, beside):
    other = tmp_path / "other-1.0.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (other / "entry_points.txt").write_text("[tunefleet.strategies]\npower-of-examples = other:Other\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(CoordinatorError, match="bring a strategy or stage of this name; keep one of them"):
        find_stage("power-of-examples")
