import json
import re
import subprocess
import sys

import pytest

from benchmarks.strategies.convergence import chosen
from benchmarks.strategies.lineup import TABLES


def convergence(*arguments):
    command = [sys.executable, "-m", "benchmarks.strategies.convergence", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.torch
def test_a_table_is_made_once_and_read_the_second_time(tmp_path):
    pytest.importorskip("torch", reason="needs the torch extra")
    arguments = ("spread", "--quick", "--jobs", "1", "--json", "--out", str(tmp_path))
    first, second = (convergence(*arguments) for _ in range(2))
    assert first.returncode == 0, first.stderr
    assert "2 runs, 2 of them to do" in first.stderr
    assert "2 runs, 0 of them to do" in second.stderr
    assert first.stdout == second.stdout
    assert re.search(r"clinc, speeds lognormal, staleness up to 50, drop-outs 20%", first.stdout)
    rows = json.loads((tmp_path / "spread.json").read_text())
    assert [row["entry"]["row"] for row in rows] == ["fedbuff", "tunefleet"]
    starts = [row["outcome"]["points"][0] for row in rows]
    assert starts[0] == starts[1]  # the same first adapter


def test_a_table_that_is_not_there_is_told_with_those_that_are():
    failed = convergence("main", "mian")
    assert failed.returncode == 2
    assert f"no table is called mian; there are {', '.join(TABLES)}" in failed.stderr


def test_a_bad_trace_ends_in_one_line(tmp_path):
    (tmp_path / "phone.json").write_text("[]")
    failed = convergence("spread", "--quick", "--traces", str(tmp_path))
    assert failed.returncode == 1
    assert failed.stderr.startswith(f"tunefleet: {tmp_path}/phone.json: is no device trace")
    assert failed.stderr.count("\n") == 1


@pytest.mark.parametrize("table", TABLES)
def test_a_quick_run_shows_something_of_every_table(table):
    entries = chosen(table, is_quick=True, has_traces=False)
    assert 0 < len(entries) < len(chosen(table, is_quick=False, has_traces=False))


def test_traces_are_left_out_where_there_are_none():
    with_some, without = (chosen("spread", False, has_traces=some) for some in (True, False))
    assert {entry.setting.population for entry in without} == {"lognormal", "400x"}
    assert {entry.setting.population for entry in with_some} == {"lognormal", "400x", "traces"}
