"""Gives every decoder hostile inputs, and reports what it did not stand.

Run as: python -m benchmarks.faults.fuzz --inputs 1000000 --seed 0 [--processes 2] [--only wire/] [--json]
        [--keep FOLDER]
"""

import argparse
import hashlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from benchmarks.faults.fuzz.campaign import Outcome, run
from benchmarks.faults.fuzz.target import Finding


def keep(findings: Sequence[Finding], folder: Path) -> None:
    """Writes each finding's input into a folder, in one of its decoder's name."""
    for finding in findings:
        digest = hashlib.sha256(finding.content).hexdigest()[:12]
        path = folder / finding.target.replace("/", "_") / digest
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(finding.content)


def told(outcomes: Sequence[Outcome], seconds: float, peak_bytes: int) -> str:
    """Lays the outcome out, a line for each decoder."""
    lines = [f"{'decoder':<36}{'inputs':>12}{'a second':>10}{'slowest':>10}  findings"]
    for one in outcomes:
        found = {"foreign": one.foreign, "slow": one.slow, "memory": one.memory, "crashes": one.crashes}
        named = ", ".join(f"{count} {kind}" for kind, count in found.items() if count) or "none"
        lines.append(
            f"{one.target:<36}{one.inputs:>12,}{one.per_s:>10,.0f}{one.slowest_ms:>7,.0f} ms  {named}"
        )
    inputs = sum(one.inputs for one in outcomes)
    bad = sum(one.foreign + one.slow + one.memory + one.crashes for one in outcomes)
    slowest = max(one.slowest_ms for one in outcomes)
    return "\n".join(
        [
            *lines,
            f"{inputs:,} inputs in {seconds:,.0f} s: {bad} findings, slowest {slowest:,.0f} ms, "
            f"peak memory {peak_bytes >> 20} MiB",
        ]
    )


def main() -> None:
    """Runs a campaign; the exit status is 1 where there are findings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", default="", help="what the decoders' names begin with")
    parser.add_argument("--keep", type=Path, help="folder for the inputs that were not stood")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    began = time.monotonic()
    outcomes, findings, peak_bytes = run(
        options.inputs,
        options.seed,
        options.processes,
        options.only,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    seconds = time.monotonic() - began
    if options.keep:
        keep(findings, options.keep)
    if options.json:
        report = {"seed": options.seed, "seconds": seconds, "peak_bytes": peak_bytes, "decoders": outcomes}
        print(msgspec.json.encode(report).decode())
    else:
        print(told(outcomes, seconds, peak_bytes))
    sys.exit(bool(findings))


if __name__ == "__main__":
    main()
