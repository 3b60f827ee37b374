"""Which strategy is better, when, and by how much: fleets of unlike devices, simulated in virtual time.

    main        the default strategy, FedAvg, FedBuff and AlignFed on three lessons, speeds 400 times apart
    rivals      all other strategies
    parts       the default strategy without each of its parts
    ablation    AlignFed without each of its stages, and as its paper prints it
    poison      a fifth of the devices hostile: sign-flipped, scaled by 10, label-flipped
    filters     every robust filter by itself
    spread      three laws of speed, updates up to 5 or 50 versions old, drop-outs
    models      another base model, and Dirichlet mixtures of intents

Training, encoding and strategies are the product's own, the clock is not: see `simulation.py`; what is
learnt: `lessons.py`; who takes part: `population.py`. Results are kept in the folder and not run again.

`--quick` runs short fleets of few strategies: does it all run? Without a table's name all are run.

Run as: python -m benchmarks.strategies.convergence [TABLE ...] [--seeds 5] [--jobs 2] [--quick]
        [--out FOLDER] [--json]
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from benchmarks.strategies.jobs import Job, run_jobs
from benchmarks.strategies.lineup import (
    BASELINE,
    QUICK_ENTRIES,
    SEEDS,
    TABLES,
    Entry,
    Setting,
    TableName,
    entries_of,
)
from benchmarks.strategies.plots import plot_lesson
from benchmarks.strategies.population import Trace, load_traces
from benchmarks.strategies.tables import Cell, gather, heading, poison_losses, table_of
from converters.errors import TunefleetError

DOCS = Path(__file__).parents[2] / "docs"
RIVALS = (BASELINE, "alignfed", "fedavg")


def run_table(table: TableName, options: argparse.Namespace, traces: Sequence[Trace]) -> list[str]:
    """Runs what is missing of a table, and gives it as lines of markdown."""
    entries = chosen(table, options.quick, bool(traces))
    num_seeds = 1 if options.quick else options.seeds or SEEDS[table]
    jobs = [Job(entry, seed, options.quick, tuple(traces)) for entry in entries for seed in range(num_seeds)]
    results = run_jobs(jobs, options.out, options.jobs, is_fresh=options.fresh)
    tables = gather(entries, num_seeds, results)
    how = "--quick" if options.quick else f"--seeds {num_seeds}"
    lines = [f"## {table}", "", f"`python -m benchmarks.strategies.convergence {table} {how}`"]
    for setting, cells in tables.items():
        lines += ["", f"### {heading(setting)}", "", *table_of(cells, num_seeds, RIVALS)]
    if table == "poison":
        lines += ["", "### what hostile devices cost", "", *poison_losses(tables, num_seeds)]
    if table in ("main", "models"):
        draw(tables, DOCS if options.write_docs else options.out)
    if options.json:
        rows = [
            {"entry": job.entry, "seed": job.seed, "outcome": found}
            for job, found in zip(jobs, results, strict=True)
        ]
        (options.out / f"{table}.json").write_bytes(msgspec.json.encode(rows))
    return lines


def chosen(table: TableName, is_quick: bool, has_traces: bool) -> list[Entry]:
    """Returns a table's rows; `traces` without any is left out, and a quick run shows little of each."""
    entries = [entry for entry in entries_of(table) if has_traces or entry.setting.population != "traces"]
    if not is_quick:
        return entries
    rows, settings = QUICK_ENTRIES[table]
    return [entry for entry in entries if entry.setting in settings and entry.row in rows]


def draw(tables: dict[Setting, list[Cell]], folder: Path) -> None:
    """Draws a picture for each lesson."""
    for setting, cells in tables.items():
        plot_lesson(setting.lesson, cells, folder / f"convergence-{setting.lesson}.png")


def main() -> None:
    """Runs a table, and prints it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=f"some of {', '.join(TABLES)}; none: all")
    parser.add_argument(
        "--seeds", type=int, choices=range(1, 11), metavar="1-10", help="5, or 3 of side tables"
    )
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time, one for each core")
    parser.add_argument("--quick", action="store_true", help="few strategies, short runs, one seed")
    parser.add_argument("--out", type=Path, default=Path("runs/convergence"))
    parser.add_argument("--traces", type=Path, help="folder of what `tunefleet bench device --json` printed")
    parser.add_argument("--fresh", action="store_true", help="run again what is kept already")
    parser.add_argument("--json", action="store_true", help="all outcomes as OUT/TABLE.json, too")
    parser.add_argument("--write-docs", action="store_true", help="tables and plots into docs/")
    options = parser.parse_args()
    unknown = sorted(set(options.tables) - set(TABLES))
    if unknown:
        parser.error(f"no table is called {', '.join(unknown)}; there are {', '.join(TABLES)}")
    text = []
    try:
        traces = load_traces(options.traces) if options.traces else []
        for table in options.tables or TABLES:
            text += [*run_table(table, options, traces), ""]
            print("\n".join(text[text.index(f"## {table}") :]))
    except TunefleetError as error:
        sys.exit(f"tunefleet: {error}")
    if options.write_docs:
        (DOCS / "results-tables.md").write_text("\n".join(["# Tables", "", *text]).rstrip() + "\n")


if __name__ == "__main__":
    main()
