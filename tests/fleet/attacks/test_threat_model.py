"""docs/threat-model.md and the tests name each other: no attack without a test, and the other way round."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
ROW = re.compile(r"^\| (\d+) \|.*\| `(tests/[\w/.]+)::(\w+)` \|$", re.MULTILINE)


def rows():
    return ROW.findall((ROOT / "docs/threat-model.md").read_text("utf-8"))


def _named(path):
    tree = ast.parse(path.read_text("utf-8"))
    return {
        node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def test_attacks_are_numbered_without_a_gap():
    assert [int(number) for number, _, _ in rows()] == list(range(1, len(rows()) + 1))
    assert len(rows()) >= 50


def test_every_attack_names_a_test_that_there_is():
    missing = [f"{path}::{name}" for _, path, name in rows() if name not in _named(ROOT / path)]
    assert missing == []


def test_every_attack_that_is_tried_here_has_its_number():
    named = {(Path(path).name, name) for _, path, name in rows() if path.startswith("tests/fleet/attacks/")}
    here = {(path.name, name) for path in Path(__file__).parent.glob("test_*.py") for name in _named(path)}
    assert here - {(name, one) for name, one in here if name == Path(__file__).name} == named
