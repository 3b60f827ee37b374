"""The blocks of docs/python.md and the examples of the docstrings, run as they stand there on a toy base."""

import doctest
import json
import re
from pathlib import Path

import pytest

import tunefleet
from edge.backends.toy import make_toy_base

PAGE = Path(__file__).parents[1] / "docs/python.md"
EXAMPLES = ("train", "evaluate", "generate", "load_adapter", "save_adapter", "convert", "Fleet")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The working folder: a base and data as the examples name them."""
    monkeypatch.chdir(tmp_path)
    make_toy_base(tmp_path / "base")
    rows = [{"prompt": "lamp: ", "completion": "on"}, {"prompt": "pump: ", "completion": "off"}]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_the_pages_blocks_run_one_after_the_other(place, capsys):
    namespace: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S):
        exec(compile(block, PAGE, "exec"), namespace)
    said = capsys.readouterr().out
    assert re.search(r'^data: 1 of 1 rows cannot be used: 1 lacks "completion" \(line 1\)$', said, re.M), said
    assert (place / "for-mlx/adapter_config.json").exists()


def test_every_docstrings_example_is_true(place):
    tunefleet.train("base", [{"text": "on and on"}], steps=1, out="adapter")
    for name in EXAMPLES:
        found = doctest.DocTestFinder().find(getattr(tunefleet, name), name, globs={"tunefleet": tunefleet})
        examples = [one for one in found if one.examples]
        assert examples, name
        for one in examples:
            assert doctest.DocTestRunner().run(one).failed == 0, name
