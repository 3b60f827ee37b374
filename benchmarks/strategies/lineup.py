"""Which runs a table is made of: strategies as rows of coordinator settings, on lessons, in populations.

A row's settings are what a coordinator's TOML file would hold, `strategy` and `stages` before all. Every
strategy of `coordinator.strategies.choice` is a row of the table `main` or `rivals` by itself.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

from msgspec import Struct

from benchmarks.strategies.population import PopulationName
from benchmarks.strategies.workbench import Poison
from coordinator.strategies.choice import METHODS
from coordinator.strategies.written import method_table

TableName = Literal["main", "rivals", "parts", "ablation", "poison", "filters", "spread", "models"]
TABLES: Sequence[TableName] = get_args(TableName)
SEEDS: Mapping[TableName, int] = {name: 5 if name in ("main", "poison") else 3 for name in TABLES}
DEFAULT = "tunefleet"  # the row that others are held against
BASELINE = "fedbuff"
POOLED = "pooled"  # no fleet: one machine trains on all devices' rows for as many steps
MAIN_LESSONS = ("dolly", "clinc", "household")
# Of the other tables but `parts` and `models`: it has the most devices, and an update costs the least.
SIDE_LESSON = "clinc"
HOSTILE = 0.2  # share of the devices in `poison`
ROWS: Mapping[str, Mapping[str, Any]] = {name: {"strategy": name} for name in METHODS}
# The best of 1, 2 and 4 on a seed that is in no table.
TUNED: Mapping[str, Mapping[str, Any]] = {"fedbuff, eta 2": {"strategy": "fedbuff", "server_lr": 2.0}}
MAIN_ROWS = ("fedavg", "fedbuff", "alignfed", "alignfed-literal", DEFAULT)
TIERED = ("hetlora", "flexlora", DEFAULT)  # shown with devices of unlike ranks, too
TIERS = [8, 4, 2]  # as many devices of each
ROBUST: Mapping[str, Mapping[str, Any]] = {
    "fedbuff, clip": {"strategy": "fedbuff", "stages": {"order": ["clip", "freshness"]}},
    "fedbuff, median": {"strategy": "fedbuff", "space": "factors", "stages": {"merge": "median"}},
    "fedbuff, trimmed mean": {"strategy": "fedbuff", "space": "factors", "stages": {"merge": "trimmed-mean"}},
    "fedbuff, krum": {"strategy": "fedbuff", "stages": {"order": ["krum", "freshness"]}},
    "fedbuff, cosine": {"strategy": "fedbuff", "stages": {"order": ["cosine", "freshness"]}},
    "fedbuff, guard": {"strategy": "fedbuff", "stages": {"guard": "backtrack"}},
}


class Setting(NamedTuple):
    """What the rows of one table share."""

    lesson: str  # one of `lessons.LESSONS`
    population: PopulationName = "400x"
    drop_out: float = 0.0  # probability in each task
    max_staleness: int = 50  # versions
    poison: Poison | None = None  # what hostile devices do


class Entry(Struct, frozen=True):
    """One row of a table; a seed makes it a job."""

    row: str  # the strategy's name in the table
    settings: dict[str, Any]  # over the simulation's own `CoordinatorConfig`
    setting: Setting


class Size(NamedTuple):
    """How long the runs of a lesson are."""

    num_updates: int
    score_every: int  # updates
    buffer_size: int


# Buffers of 0.6 to 0.7 of the fleet, as AlignFed merged about 30 of 50. With one task per version, a version
# takes as long as the last device it needs: with smaller buffers the slowest of 400x had not sent two updates
# by the end.
SIZES: dict[str, Size] = {
    "dolly": Size(200, 24, 6),
    "dolly-stories260K": Size(200, 24, 6),
    "clinc": Size(280, 42, 14),
    "clinc-0.1": Size(300, 40, 20),
    "clinc-0.5": Size(300, 40, 20),
    "household": Size(154, 21, 7),
}
QUICK = 1 / 10  # of the updates
_SIDE = (Setting(SIDE_LESSON),)
# What a quick run shows of each table: rows, in settings.
QUICK_ENTRIES: Mapping[TableName, tuple[tuple[str, ...], tuple[Setting, ...]]] = {
    "main": ((POOLED, "fedavg", BASELINE, "alignfed", DEFAULT), tuple(map(Setting, MAIN_LESSONS))),
    "rivals": (("flexlora",), _SIDE),
    "parts": (("without credit",), _SIDE),
    "ablation": (("alignfed", "alignfed-literal"), _SIDE),
    "poison": ((BASELINE, DEFAULT), (*_SIDE, Setting(SIDE_LESSON, poison="sign-flipped"))),
    "filters": (("fedbuff, krum",), (Setting(SIDE_LESSON, poison="sign-flipped"),)),
    "spread": ((BASELINE, DEFAULT), (Setting(SIDE_LESSON, "lognormal", 0.2, 50),)),
    "models": ((BASELINE, DEFAULT), (Setting("dolly-stories260K"),)),
}


def entries_of(table: TableName) -> list[Entry]:
    """Returns everything that a table shows."""
    makers = (main, rivals, parts, ablation, poison, filters, spread, models)
    return dict(zip(TABLES, makers, strict=True))[table]()


def main() -> list[Entry]:
    """Compares the default, FedAvg, FedBuff and AlignFed at speeds 400 times apart, and all rows at once."""
    rows: dict[str, Mapping[str, Any]] = {POOLED: {}} | {name: ROWS[name] for name in MAIN_ROWS} | dict(TUNED)
    return [
        Entry(row, dict(settings), Setting(lesson))
        for lesson in MAIN_LESSONS
        for row, settings in rows.items()
    ]


def rivals() -> list[Entry]:
    """Compares all other strategies with the baseline and the default."""
    others = [name for name in ROWS if name not in MAIN_ROWS]
    rows = (BASELINE, DEFAULT, *others)
    return [Entry(row, dict(ROWS[row]), Setting(SIDE_LESSON)) for row in rows]


def parts() -> list[Entry]:
    """Leaves each part out of the default; gives the baseline the part that does most."""
    method = METHODS[DEFAULT]
    order = method.kinds()
    rows: dict[str, dict[str, Any]] = {DEFAULT: {}}
    for stage in order:
        left = [one for one in order if one != stage]
        rows[f"without {stage}"] = {"stages": {"order": left}}
    rows["with freshness"] = {"stages": {"order": [*order, "freshness"]}}
    rows["without guard"] = {"stages": {"guard": "none"}}
    rows["steps of 1 and less"] = {"stages": {"guard_longest": 1.0}}
    rows["in factors"] = {"space": "factors"}
    rows["without remainder"] = {"remainder_rank": 0}
    guard = {"guard": method_table(method)["guard"]}
    entries = [(row, {"strategy": DEFAULT, **settings}) for row, settings in rows.items()]
    entries.append(("fedbuff, same guard", {"strategy": BASELINE, "stages": guard}))
    return [Entry(row, settings, Setting(SIDE_LESSON)) for row, settings in entries]


def ablation() -> list[Entry]:
    """Leaves each stage out of AlignFed."""
    order = METHODS["alignfed"].kinds()
    rows: list[tuple[str, dict[str, Any]]] = [("alignfed", {"strategy": "alignfed"})]
    rows += [("alignfed-literal", {"strategy": "alignfed-literal"})]
    for stage in order:
        if stage != "normalise":  # the others build on it
            left = [one for one in order if one != stage]
            name = stage.removesuffix("-exponential")  # as docs/results.md has it
            rows.append((f"without {name}", {"strategy": "alignfed", "stages": {"order": left}}))
    rows.append(("without pull", {"strategy": "alignfed", "stages": {"pull": 0.0}}))
    rows.append(("with guard", {"strategy": "alignfed", "stages": {"guard": "backtrack"}}))
    rows.append((BASELINE, dict(ROWS[BASELINE])))
    return [Entry(row, settings, Setting(SIDE_LESSON)) for row, settings in rows]


def poison() -> list[Entry]:
    """Makes a fifth of the devices hostile; beside it stands the same fleet without that."""
    kinds: tuple[Poison | None, ...] = (None, "sign-flipped", "scaled", "label-flipped")
    return [
        Entry(row, dict(ROWS[row]), Setting(SIDE_LESSON, poison=kind))
        for kind in kinds
        for row in (BASELINE, DEFAULT)
    ]


def filters() -> list[Entry]:
    """Tries every robust filter by itself on the baseline, where a fifth of the devices is hostile."""
    rows = {BASELINE: ROWS[BASELINE], DEFAULT: ROWS[DEFAULT], **ROBUST}
    return [
        Entry(row, dict(settings), Setting(SIDE_LESSON, poison="sign-flipped"))
        for row, settings in rows.items()
    ]


def spread() -> list[Entry]:
    """Varies the population, the staleness that is let through, and drop-outs."""
    populations: tuple[PopulationName, ...] = ("lognormal", "400x", "traces")
    return [
        Entry(row, dict(ROWS[row]), Setting(SIDE_LESSON, population, drop_out, max_staleness))
        for population in populations
        for max_staleness, drop_out in ((5, 0.0), (50, 0.0), (50, 0.2))
        for row in ("fedavg", BASELINE, DEFAULT)
    ]


def models() -> list[Entry]:
    """Tries another base model, other mixtures of intents, and devices of unlike ranks."""
    lessons = ("dolly-stories260K", "clinc-0.1", "clinc-0.5")
    rows = ("fedavg", BASELINE, DEFAULT)
    tiered = [
        Entry(f"{row}, ranks {TIERS}", {**ROWS[row], "ranks": TIERS}, Setting("household")) for row in TIERED
    ]
    return [*(Entry(row, dict(ROWS[row]), Setting(lesson)) for lesson in lessons for row in rows), *tiered]
