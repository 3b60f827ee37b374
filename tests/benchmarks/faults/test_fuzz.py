"""Decoders under some hostile inputs, the same each time; millions: `python -m benchmarks.faults.fuzz`."""

from pathlib import Path
from random import Random

import numpy as np
import pytest

from benchmarks.faults.fuzz.campaign import Batch, run, share_out, try_batch
from benchmarks.faults.fuzz.decoders.every import every_target
from benchmarks.faults.fuzz.mutation import mutate
from benchmarks.faults.fuzz.target import Target, arm, attempt
from converters.errors import AdapterError

SEED, FAST, SLOW = 11, 150, 25  # inputs for each decoder: of bytes, and of files
ROOMS = ("access", "wire", "adapter", "base", "tokenizer", "data", "state", "ledger", "settings", "path")
CORPUS = Path(__file__).parent / "corpus"


@pytest.fixture(scope="module")
def targets(tmp_path_factory):
    arm()
    return every_target(tmp_path_factory.mktemp("fuzz"))


@pytest.fixture(autouse=True)
def numbers_of_any_size():
    with np.errstate(all="ignore"):
        yield


def test_valid_inputs_are_decoded(targets):
    for target in targets:
        if target.name.startswith("path/") or target.name == "ledger/rows":
            continue  # what is there is none of what is looked for
        for content in target.seeds:
            target.decode(content)


@pytest.mark.parametrize("room", ROOMS)
def test_hostile_inputs_are_refused_by_our_own_errors(targets, room):
    chosen = [target for target in targets if target.name.startswith(f"{room}/")]
    assert chosen
    for target in chosen:
        size = FAST if room == "wire" else SLOW
        done = try_batch(target, Batch(target.name, 0, size), SEED, lambda content: None)
        assert [(finding.kind, finding.what) for finding in done.findings] == []


def test_what_was_found_once_is_refused_by_our_own_errors(targets):
    known = {target.name.replace("/", "_"): target for target in targets}
    files = [path for path in CORPUS.rglob("*") if path.is_file()]
    assert files
    for path in files:
        finding, _ = attempt(known[path.parent.name], path.read_bytes())
        assert finding is None, (path, finding.what)


def test_inputs_are_decided_by_the_seed(targets):
    (target,) = [target for target in targets if target.name == "state/lock/state.json"]

    def some(seed):
        told = []
        try_batch(target, Batch(target.name, 3, 50), seed, told.append)
        return told

    assert some(1) == some(1)
    assert some(1) != some(2)


def test_a_foreign_exception_a_wait_and_an_error_of_ours_are_told_apart():
    arm()

    def decode(content):
        if content == b"ours":
            raise AdapterError("no")
        if content == b"foreign":
            raise KeyError("no")

    target = Target("t", "bytes", [b""], decode)
    assert attempt(target, b"ours")[0] is None
    finding, _ = attempt(target, b"foreign")
    assert finding.kind == "foreign"
    assert "KeyError" in finding.what


def test_mutations_reach_inside_of_what_they_change():
    random, content = Random(0), b'{"a": {"b": [1, 2, "x"]}, "c": true}'
    made = {mutate(content, "json", random, [content]) for _ in range(500)}
    assert len(made) > 300
    assert any(b'"c": true' not in one and one.startswith(b'{"a":{"b":') for one in made)
    assert any(one.count(b"[") > 1000 for one in made)


def test_a_campaign_gives_every_decoder_its_share(targets):
    batches = share_out(targets, 10_000)
    assert {batch.target for batch in batches} == {target.name for target in targets}
    assert abs(sum(batch.size for batch in batches) - 10_000) < len(targets)


def test_a_campaign_in_processes_reports_each_decoder():
    outcomes, findings, peak_bytes = run(60, SEED, 2, only="settings/", say=lambda line: None)
    assert [one.target for one in outcomes] == [
        "settings/device.toml",
        "settings/coordinator.toml",
        "settings/url",
        "settings/password",
    ]
    assert findings == []
    assert peak_bytes > 0
