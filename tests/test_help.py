"""What a stranger reads first: `--help` of every command."""

import re
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import typer
from msgspec import structs
from typer.testing import CliRunner

import tunefleet
from coordinator.config import RANKS, CoordinatorConfig
from edge.choices import SCALE, TARGETS
from edge.device.config import DeviceConfig


def commands(group, *names):
    """The names of every command below a group."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, *names, name)
        else:
            yield *names, name


COMMANDS = sorted(commands(typer.main.get_command(tunefleet.app)))


@pytest.fixture
def helped(monkeypatch):
    """The help of a command, as a terminal of 80 columns shows it."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")

    def helped(*names):
        done = CliRunner().invoke(tunefleet.app, [*names, "--help"], catch_exceptions=False)
        assert done.exit_code == 0
        return done.output

    return helped


def parameters(*names):
    command = typer.main.get_command(tunefleet.app)
    for name in names:
        command = command.commands[name]
    return {option: param for param in command.params for option in param.opts}


def examples(text):
    lines = text[text.index("\n Examples:\n") :].replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line.startswith("   tunefleet ")]


@pytest.mark.parametrize("names", COMMANDS, ids=" ".join)
def test_every_command_has_two_examples_whose_options_exist(helped, names):
    found = examples(helped(*names))
    assert len(found) >= 2
    known = parameters(*names)
    for example in found:
        assert tuple(example[1 : 1 + len(names)]) == names
        assert {part for part in example if part.startswith("--")} <= known.keys()


@pytest.mark.parametrize("names", COMMANDS, ids=" ".join)
def test_the_help_fits_80_columns_and_all_options_are_in_named_groups(helped, names):
    text = helped(*names)
    assert max(map(len, text.splitlines())) <= 80
    assert "─ Options ─" not in text
    for param in parameters(*names).values():
        assert param.help.endswith("."), f"{param.name}: {param.help}"


OPEN = {"ranks": RANKS, "scale": SCALE, "targets": TARGETS}  # an adapter, or the state folder, goes before


@pytest.mark.parametrize(
    ("name", "kind", "inner"),
    [("serve", CoordinatorConfig, "recipe"), ("join", DeviceConfig, "data")],
)
def test_the_help_shows_the_defaults_of_the_settings(name, kind, inner):
    command = typer.main.get_command(tunefleet.app).commands[name]
    fields = {field.name: field for field in structs.fields(kind)}
    assert set(command.defaults()) <= {param.name for param in command.params}
    for param in command.params:
        place = command.places.get(param.name, param.name)
        outer, _, part = place.partition(".")
        if outer in ("config", "print_config", "as_json", "log_level"):
            continue
        field = fields[outer]  # every option has a place in the settings
        if part:
            assert outer == inner
        if field.required:
            assert param.name not in command.defaults()
            continue
        value = getattr(field.default, part) if part else OPEN.get(outer, field.default)
        shown = command.defaults()[param.name]
        assert shown == (",".join(map(str, value)) if isinstance(value, tuple) else value)


def test_defaults_are_printed(helped):
    assert "[default: 20]" in helped("serve")
    assert "[default: 64]" in helped("join")


def test_an_alias_is_told_beside_the_option(helped):
    assert "Also --model." in " ".join(helped("eval").split())
    assert "--iters" in helped("train")


def rows_from_mlx_lm(title):
    """The names in the first two columns of a table, and whether mlx-lm's works here too."""
    text = (Path(tunefleet.__file__).parent / "docs" / "from-mlx-lm.md").read_text()
    table = text.partition(f"## {title}\n")[2].partition("\n## ")[0]
    for line in table.splitlines():
        if line.startswith("| `"):
            theirs, ours, *_ = line.strip("| ").split(" | ")
            yield re.findall("--[a-z-]+", theirs), re.findall("--[a-z-]+", ours), "**" in ours


@pytest.mark.parametrize(("title", "name"), [("Training", "train"), ("Asking", "generate")])
def test_what_the_table_from_mlx_lm_names_is_there(title, name):
    known = parameters(name)
    rows = list(rows_from_mlx_lm(title))
    assert len(rows) > 8
    for theirs, ours, is_alias in rows:
        assert set(ours) <= known.keys()
        if is_alias:
            assert known[theirs[0]] is known[ours[0]]


@pytest.mark.mlx
def test_the_table_from_mlx_lm_leaves_no_flag_out():
    lora = pytest.importorskip("mlx_lm.lora", reason="needs the mlx extra")
    flags = {flag for action in lora.build_parser()._actions for flag in action.option_strings}
    told = {flag for theirs, _, _ in rows_from_mlx_lm("Training") for flag in theirs}
    assert {flag for flag in flags if flag.startswith("--")} - told == {"--help"}


def test_the_version_is_that_of_the_package():
    done = subprocess.run(
        [sys.executable, "-m", "tunefleet", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"tunefleet {version('tunefleet')}\n"
