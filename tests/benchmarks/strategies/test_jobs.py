import contextlib
import os
import subprocess
import sys
import time

import pytest

from benchmarks.strategies.jobs import Job, make_config
from benchmarks.strategies.lessons import make_lesson
from benchmarks.strategies.lineup import SIZES, TABLES, Entry, Setting, entries_of
from benchmarks.strategies.population import Trace
from edge.errors import ConfigError


def job(**changes):
    settings = {"row": "fedbuff", "settings": {"strategy": "fedbuff"}, "setting": Setting("household")}
    return Job(Entry(**(settings | changes.pop("entry", {}))), **({"seed": 0, "is_quick": False} | changes))


def test_what_the_release_before_has_kept_is_found():
    entry = Entry("fedavg", {"strategy": "fedavg"}, Setting("clinc"))
    assert Job(entry, seed=0, is_quick=True).path == "clinc-fedavg-0-ab77ad5dbb10.json"


def test_every_setting_that_decides_a_result_is_in_its_name():
    others = [
        job(seed=1),
        job(is_quick=True),
        job(entry={"settings": {"strategy": "fedbuff", "server_lr": 2.0}}),
        job(entry={"setting": Setting("household", drop_out=0.1)}),
        job(entry={"setting": Setting("household", max_staleness=5)}),
    ]
    assert len({one.path for one in [job(), *others]}) == 6


def test_traces_are_in_the_name_where_they_are_replayed():
    traces = (Trace("a", "torch", "m", [1.0]),)
    assert job(traces=traces).path == job().path
    replayed = {"setting": Setting("household", "traces")}
    assert job(entry=replayed, traces=traces).path != job(entry=replayed).path


def test_a_quick_run_fills_the_buffer_twice_at_least():
    for lesson, size in SIZES.items():
        quick = job(entry={"setting": Setting(lesson)}, is_quick=True).size
        assert quick.num_updates >= 2 * quick.buffer_size
        assert quick.num_updates < size.num_updates


@pytest.mark.parametrize("table", TABLES)
def test_a_coordinator_would_start_with_the_settings_of_every_row(table, tmp_path):
    calibration = tmp_path / "calibration.jsonl"
    calibration.touch()
    lesson = make_lesson("household", 0)
    for entry in entries_of(table):
        make_config(entry, lesson, SIZES["household"], calibration)


def test_a_misspelt_stage_is_an_error_before_anything_runs(tmp_path):
    entry = job(entry={"settings": {"strategy": "fedbuff", "stages": {"order": ["krumm"]}}}).entry
    with pytest.raises(ConfigError, match="krumm"):
        make_config(entry, make_lesson("household", 0), SIZES["household"], tmp_path)


POOL = """
import multiprocessing, os, time
from concurrent.futures import ProcessPoolExecutor
from benchmarks.strategies.jobs import end_with_parent
pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=end_with_parent)
print(pool.submit(os.getpid).result(), flush=True)
time.sleep(600)
"""


def test_no_process_of_a_pool_outlives_the_one_that_was_killed():
    with subprocess.Popen([sys.executable, "-c", POOL], stdout=subprocess.PIPE, text=True) as parent:
        pid = int(parent.stdout.readline())
        parent.kill()
    with contextlib.suppress(ProcessLookupError):
        for _ in range(200):
            os.kill(pid, 0)
            time.sleep(0.05)
        pytest.fail("it is still there")
