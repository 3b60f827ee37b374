"""From outcomes to tables: what each strategy came to, and its paired differences to a rival.

Final loss and accuracy are means over a run's last three scored versions; all runs have the same number of
tasks. The target of "to target" is a loss: a share of the way (four fifths; 19 twentieths for `household`)
from the base model's to that of training on all rows at once, seed by seed; where that was not run, to the
baseline's best. "Times FedAvg" compares virtual time to one loss that both reach, the higher of both finals.
"""

import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import attrgetter
from typing import NamedTuple

from benchmarks.paired import Difference, paired_difference
from benchmarks.strategies.jobs import Failure
from benchmarks.strategies.lineup import BASELINE, POOLED, Entry, Setting
from benchmarks.strategies.outcome import Outcome, Point
from coordinator.observers.status import jain_index

NUM_FINAL = 3  # scored versions
TARGET_SHARES = {"household": 0.95}  # its loss falls fast, its exact answers come late
TARGET_SHARE = 0.8
NEVER = math.inf
SYNCHRONOUS = "fedavg"


class Cell(NamedTuple):
    """One row of a table in one setting: all seeds."""

    entry: Entry
    outcomes: list[Outcome]  # by seed
    failure: str = ""  # why there are none


class Column(NamedTuple):
    """A measure as the tables print it."""

    title: str
    of: Callable[[Outcome, float], float]  # an outcome and its seed's target
    form: str
    is_compared: bool = False  # with an interval to the rival
    is_of_fleets: bool = True  # without a meaning for training on all rows at once


def scored(outcome: Outcome) -> list[Point]:
    """Returns the points that were scored on the test rows."""
    return [point for point in outcome.points if point.loss is not None]


def last_scored(outcome: Outcome) -> list[Point]:
    """Returns what final values are means of; never version 0, however short the run."""
    points = scored(outcome)
    return (points[1:] or points)[-NUM_FINAL:]


def final_loss(outcome: Outcome) -> float:
    """Returns the final loss, nats a label."""
    return statistics.fmean(point.loss or 0.0 for point in last_scored(outcome))


def final_accuracy(outcome: Outcome) -> float:
    """Returns the final accuracy, as the lesson counts it."""
    return statistics.fmean(point.accuracy or 0.0 for point in last_scored(outcome))


def time_to(outcome: Outcome, target: float, of: Callable[[Point], float] = lambda p: p.time_s) -> float:
    """Returns virtual seconds, or what `of` reads, until the test loss is at `target`; interpolates."""
    if math.isnan(target):
        return math.nan
    points = scored(outcome)
    for before, after in itertools.pairwise(points):
        low, high = after.loss or 0.0, before.loss or 0.0
        if low <= target < high:
            return of(before) + (high - target) / (high - low) * (of(after) - of(before))
    return NEVER


def times_as_fast(outcome: Outcome, synchronous: Outcome) -> float:
    """Compares virtual times to a loss that both reach, the synchronous fleet's over the other's."""
    target = max(final_loss(outcome), final_loss(synchronous))
    own = time_to(outcome, target)
    return time_to(synchronous, target) / own if 0 < own < NEVER else math.nan


def fairness(outcome: Outcome) -> float:
    """Returns Jain's index of the devices' weight shares; devices that never had any count as zero."""
    return (jain_index(list(outcome.weights.values())) or 0.0) if outcome.weights else math.nan


def harmful_share(outcome: Outcome) -> float:
    """Returns the share of merges after which the calibration loss was higher."""
    return outcome.num_harmful / outcome.num_merges if outcome.num_merges else math.nan


COLUMNS: Sequence[Column] = (
    Column("loss", lambda outcome, _: final_loss(outcome), ".4f", is_compared=True, is_of_fleets=False),
    Column(
        "accuracy", lambda outcome, _: final_accuracy(outcome), ".1%", is_compared=True, is_of_fleets=False
    ),
    Column("slowest quarter", lambda outcome, _: outcome.slow_accuracy, ".1%", is_compared=True),
    Column("virtual s to target", time_to, ".0f"),
    Column("MB to target", partial(time_to, of=attrgetter("megabytes")), ".1f"),
    Column("device s to target", partial(time_to, of=attrgetter("compute_s")), ".0f"),
    Column("Jain", lambda outcome, _: fairness(outcome), ".2f"),
    Column("harmful", lambda outcome, _: harmful_share(outcome), ".0%"),
    Column("rejected", lambda outcome, _: sum(outcome.rejected.values()), ".1f"),
    Column("merge ms", lambda outcome, _: 1000 * outcome.merge_s, ".0f"),
)


def gather(
    entries: Sequence[Entry], num_seeds: int, results: Sequence[Outcome | Failure]
) -> dict[Setting, list[Cell]]:
    """Sorts cells by what they share: lesson, population, drop-outs, staleness, poison."""
    tables: dict[Setting, list[Cell]] = {}
    for number, entry in enumerate(entries):
        found = results[number * num_seeds : (number + 1) * num_seeds]
        failures = [one.message for one in found if isinstance(one, Failure)]
        outcomes = [one for one in found if isinstance(one, Outcome)]
        cell = Cell(entry, [] if failures else outcomes, failures[0] if failures else "")
        tables.setdefault(entry.setting, []).append(cell)
    return tables


def targets(cells: Sequence[Cell], num_seeds: int) -> list[float]:
    """Returns each seed's target loss; nan where neither the reference nor the baseline ran."""
    by_row = {cell.entry.row: cell.outcomes for cell in cells}
    reference = by_row.get(POOLED) or by_row.get(BASELINE)
    if not reference:
        return [math.nan] * num_seeds
    share = TARGET_SHARES.get(cells[0].entry.setting.lesson, TARGET_SHARE)
    return [base + share * (best_loss(one) - base) for one in reference for base in [first_loss(one)]]


def first_loss(outcome: Outcome) -> float:
    """Returns the loss of the base model."""
    return scored(outcome)[0].loss or 0.0


def best_loss(outcome: Outcome) -> float:
    """Returns the lowest loss of all scored versions."""
    return min(point.loss or 0.0 for point in scored(outcome))


def table_of(cells: Sequence[Cell], num_seeds: int, rivals: Sequence[str]) -> list[str]:
    """Writes a markdown table: means over seeds, and the differences to each rival with their intervals."""
    goals = targets(cells, num_seeds)
    synchronous = next((cell.outcomes for cell in cells if cell.entry.row == SYNCHRONOUS), [])
    titles = ["strategy", *(column.title for column in COLUMNS), "times FedAvg"]
    lines = ["| " + " | ".join(titles) + " |", "|---" + "|---:" * (len(titles) - 1) + "|"]
    for cell in cells:
        if cell.failure:
            lines.append(f"| {cell.entry.row} | not run: {cell.failure} |" + " |" * len(COLUMNS))
            continue
        values = [[column.of(*pair) for pair in zip(cell.outcomes, goals, strict=True)] for column in COLUMNS]
        is_pooled = cell.entry.row == POOLED
        shown = [
            "" if is_pooled and column.is_of_fleets else _shown(of_seeds, column)
            for of_seeds, column in zip(values, COLUMNS, strict=True)
        ]
        pairs = zip(cell.outcomes, synchronous, strict=True) if synchronous else ()
        ratio = statistics.median([times_as_fast(*pair) for pair in pairs]) if synchronous else math.nan
        shown.append("" if math.isnan(ratio) or is_pooled else f"{ratio:.1f}")
        lines.append("| " + " | ".join([cell.entry.row, *shown]) + " |")
    for rival in rivals:
        lines += ["", *_differences(cells, rival)] if num_seeds > 1 else []
    return lines


def _differences(cells: Sequence[Cell], rival: str) -> list[str]:
    theirs = next((cell.outcomes for cell in cells if cell.entry.row == rival and cell.outcomes), None)
    others = [cell for cell in cells if cell.entry.row not in (rival, POOLED) and cell.outcomes]
    if not theirs or not others:
        return []
    columns = [column for column in COLUMNS if column.is_compared]
    lines = [
        f"Minus {rival}, paired by seed: mean [Student's 95 %] [bootstrap 95 %]; bold: both exclude zero.",
        "",
        "| strategy | " + " | ".join(column.title for column in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for cell in others:
        found = [
            paired_difference(
                [column.of(one, 0.0) for one in cell.outcomes], [column.of(one, 0.0) for one in theirs]
            )
            for column in columns
        ]
        shown = [_difference(one, column.form) for one, column in zip(found, columns, strict=True)]
        lines.append("| " + " | ".join([cell.entry.row, *shown]) + " |")
    return lines


def _difference(one: Difference, form: str) -> str:
    mean = format(one.mean, f"+{form}")
    pairs = [
        f"[{format(each.low, '+' + form)}, {format(each.high, '+' + form)}]"
        for each in (one.student, one.bootstrap)
    ]
    return f"{f'**{mean}**' if one.is_significant else mean} {' '.join(pairs)}"


def _shown(of_seeds: Sequence[float], column: Column) -> str:
    """Writes the mean; of times the median, as a seed that never got there must not hide the others."""
    if math.isinf(max(of_seeds)):
        median = statistics.median(of_seeds)
        reached = sum(not math.isinf(value) for value in of_seeds)
        shown = "never" if math.isinf(median) else format(median, column.form)
        return f"{shown} ({reached}/{len(of_seeds)})" if reached else "never"
    mean = statistics.fmean(of_seeds)
    return "" if math.isnan(mean) else format(mean, column.form)


def heading(setting: Setting) -> str:
    """Says in words what a table's rows share."""
    parts = [setting.lesson, f"speeds {setting.population}", f"staleness up to {setting.max_staleness}"]
    parts += [f"drop-outs {setting.drop_out:.0%}"] if setting.drop_out else []
    parts += [f"a fifth {setting.poison}"] if setting.poison else []
    return ", ".join(parts)


def poison_losses(tables: Mapping[Setting, Sequence[Cell]], num_seeds: int) -> list[str]:
    """Writes what hostile devices cost each strategy, in nats of final loss, and beside the baseline."""
    clean = {
        (setting.lesson, cell.entry.row): cell.outcomes
        for setting, cells in tables.items()
        if setting.poison is None
        for cell in cells
    }
    lines = [
        f"| task | hostile devices | strategy | loss added | share of what {BASELINE} loses |",
        "|---|---|---|---:|---:|",
    ]
    for setting, cells in tables.items():
        if setting.poison is None:
            continue
        added = {
            cell.entry.row: statistics.fmean(
                final_loss(bad) - final_loss(good)
                for bad, good in zip(cell.outcomes, clean[setting.lesson, cell.entry.row], strict=True)
            )
            for cell in cells
            if cell.outcomes
        }
        for row, value in added.items():
            share = f"{value / added[BASELINE]:.2f}" if added.get(BASELINE, 0.0) > 0 else ""
            lines.append(f"| {setting.lesson} | {setting.poison} | {row} | {value:+.4f} | {share} |")
    return lines
