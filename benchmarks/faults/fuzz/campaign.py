"""A campaign: so many inputs, shared out among all decoders and some processes.

An input is decided by the seed, its decoder and its number in a batch, so that a campaign can be done again.
A process writes each input into memory that it shares with its parent before it decodes it: what ends the
process (a crash in a library) or keeps it busy beyond any signal is found there.
"""

import mmap
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from msgspec import Struct

from benchmarks.faults.fuzz.decoders.every import every_target
from benchmarks.faults.fuzz.mutation import mutate
from benchmarks.faults.fuzz.target import Finding, Target, arm, attempt
from benchmarks.memory import memory_bytes

BATCH = 500
MAX_SILENT_S = 60.0  # of one process: it is stuck where no signal reaches
SHARED_BYTES = 8 << 20
MEMORY = Path("/dev/shm")


class Batch(NamedTuple):
    """Inputs for one decoder."""

    target: str
    number: int
    size: int


class Done(NamedTuple):
    """What came of a batch."""

    batch: Batch
    findings: Sequence[Finding]
    seconds: float
    slowest_s: float
    peak_bytes: int  # of the process


class Outcome(Struct, frozen=True):
    """What came of one decoder's inputs."""

    target: str
    inputs: int
    per_s: float  # in one process
    slowest_ms: float
    foreign: int
    slow: int
    memory: int
    crashes: int


def share_out(targets: Sequence[Target], inputs: int) -> list[Batch]:
    """Shares inputs out by the decoders' weights; at least one batch for each."""
    whole = sum(target.weight for target in targets)
    batches = []
    for target in targets:
        count = max(round(inputs * target.weight / whole), 1)
        starts = range(0, count, BATCH)
        batches += [Batch(target.name, n, min(BATCH, count - start)) for n, start in enumerate(starts)]
    Random(0).shuffle(batches)  # those of one decoder are not all done at the end
    return batches


def try_batch(target: Target, batch: Batch, seed: int, tell: Callable[[bytes], None]) -> Done:
    """Gives a decoder one batch of inputs; `tell` gets each before it is decoded."""
    random = Random(f"{seed} {batch.target} {batch.number}")
    findings, slowest, began = [], 0.0, time.perf_counter()
    for _ in range(batch.size):
        content = mutate(random.choice(target.seeds), target.form, random, target.seeds)
        tell(content)
        finding, seconds = attempt(target, content)
        slowest = max(slowest, seconds)
        if finding is not None:
            findings.append(finding)
    return Done(batch, findings, time.perf_counter() - began, slowest, memory_bytes(peak=True))


def run(
    inputs: int, seed: int, processes: int, only: str = "", say: Callable[[str], None] = print
) -> tuple[list[Outcome], list[Finding], int]:
    """Runs a campaign.

    Args:
        inputs: How many in all.
        seed: Decides every one of them.
        processes: That share the work.
        only: What the names of the decoders begin with.
        say: Gets a line for each new finding.

    Returns:
        What came of each decoder, each finding of another kind once, and the peak memory of a process.
    """
    with tempfile.TemporaryDirectory(
        dir=MEMORY if MEMORY.is_dir() else None, prefix="tunefleet-fuzz-"
    ) as root:
        targets = {target.name: target for target in every_target(Path(root)) if target.name.startswith(only)}
        batches = share_out(list(targets.values()), inputs)
        done, findings = [], {}
        for result in _work(targets, batches, seed, processes):
            done.append(result)
            for finding in result.findings:
                key = (finding.target, finding.kind, finding.what.partition(": ")[0])
                if key not in findings:
                    findings[key] = finding
                    say(f"{finding.target}: {finding.kind}: {finding.what}")
        outcomes = [_outcome(name, [one for one in done if one.batch.target == name]) for name in targets]
        return outcomes, list(findings.values()), max(one.peak_bytes for one in done)


class _Worker:
    """A process that decodes, and the memory in which it leaves what it decodes."""

    def __init__(self, targets: dict[str, Target], seed: int) -> None:
        self.shared = mmap.mmap(-1, SHARED_BYTES)
        self.ours, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("fork")  # decoders are made once
        self.process = context.Process(target=_serve, args=(targets, seed, theirs, self.shared), daemon=True)
        self.process.start()
        theirs.close()
        self.batch: Batch | None = None
        self.since = time.monotonic()

    def give(self, batch: Batch | None) -> None:
        self.batch, self.since = batch, time.monotonic()
        self.ours.send(batch)

    def last_input(self) -> bytes:
        size = int.from_bytes(self.shared[:8], "little")
        return self.shared[8 : 8 + size]

    def end(self) -> None:
        if self.process.is_alive():
            self.process.kill()
        self.process.join()


def _serve(targets: dict[str, Target], seed: int, pipe: Connection, shared: mmap.mmap) -> None:
    arm()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # a thousand warnings of numpy's

    def tell(content: bytes) -> None:
        cut = content[: SHARED_BYTES - 8]
        shared[: 8 + len(cut)] = len(cut).to_bytes(8, "little") + cut

    while (batch := pipe.recv()) is not None:
        pipe.send(try_batch(targets[batch.target], batch, seed, tell))


def _work(targets: dict[str, Target], batches: list[Batch], seed: int, processes: int) -> Iterator[Done]:
    left = list(reversed(batches))
    workers = [_Worker(targets, seed) for _ in range(min(processes, len(batches)))]
    for worker in workers:
        worker.give(left.pop())
    try:
        while busy := [worker for worker in workers if worker.batch is not None]:
            wait([worker.ours for worker in busy], timeout=1.0)
            for at, worker in enumerate(workers):
                result = _result(worker)
                if result is not None:
                    yield result
                    if not worker.process.is_alive():
                        workers[at] = worker = _Worker(targets, seed)
                    worker.give(left.pop() if left else None)
    finally:
        for worker in workers:
            worker.end()


def _result(worker: _Worker) -> Done | None:
    """Returns what came of a worker's batch, also where the process died of it; None while it is at it."""
    if worker.batch is None:
        return None
    try:
        if worker.ours.poll():
            done: Any = worker.ours.recv()
            return Done(*done)
    except EOFError:
        pass
    is_stuck = time.monotonic() - worker.since > MAX_SILENT_S
    if worker.process.is_alive() and not is_stuck:
        return None
    worker.end()
    kind, what = (
        ("hang", "no signal reached it") if is_stuck else ("crash", f"exit {worker.process.exitcode}")
    )
    finding = Finding(worker.batch.target, kind, what, worker.last_input())
    return Done(worker.batch, [finding], MAX_SILENT_S, MAX_SILENT_S, 0)


def _outcome(name: str, done: Sequence[Done]) -> Outcome:
    kinds = [finding.kind for one in done for finding in one.findings]
    inputs, seconds = sum(one.batch.size for one in done), sum(one.seconds for one in done)
    return Outcome(
        target=name,
        inputs=inputs,
        per_s=inputs / seconds,
        slowest_ms=1000 * max(one.slowest_s for one in done),
        foreign=kinds.count("foreign"),
        slow=kinds.count("slow"),
        memory=kinds.count("memory"),
        crashes=kinds.count("crash") + kinds.count("hang"),
    )
