"""What came out of one run or of many: a table, and a plot of the time to go on."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from benchmarks.faults.audit.audit import Report
from benchmarks.faults.audit.liveness import GoneOn, summed_up


def totals(reports: Sequence[Report]) -> Counter[str]:
    """Returns the fates of all updates of all runs."""
    return sum((Counter(report.fates) for report in reports), Counter())


def table(reports: Sequence[Report]) -> str:
    """Writes what came out, for people."""
    kinds = Counter(finding.kind for report in reports for finding in report.findings)
    fates = ", ".join(f"{count:,} {name}" for name, count in totals(reports).most_common())
    seconds = sum(report.wall_s for report in reports)
    lines = [
        f"seeds        {', '.join(str(report.settings.wish.seed) for report in reports)}",
        f"faults       {_sum(reports, 'num_kills')} kills, {_sum(reports, 'num_others')} others, "
        f"{_sum(reports, 'num_cuts')} connections cut at random bytes, in {seconds / 60:.1f} min",
        f"updates      {fates}",
        f"versions     {_sum(reports, 'num_versions')}, {_sum(reports, 'num_summed')} added up again",
        f"receipts     {min((report.receipts_per_s for report in reports), default=0):.2f} to "
        f"{max((report.receipts_per_s for report in reports), default=0):.2f} a second, in the worst 10 s "
        f"{min((report.worst_receipts_per_s for report in reports), default=0):.2f}",
        f"found        {kinds['lost']} lost, {kinds['twice']} twice, {kinds['stuck']} stuck"
        + "".join(
            f", {count} {kind}" for kind, count in kinds.items() if kind not in ("lost", "twice", "stuck")
        ),
        "",
        f"{'seconds to go on, after':28}{'times':>6}{'median':>9}{'95 %':>9}{'worst':>9}",
    ]
    for name, (count, median, high, worst) in summed_up(_times(reports)).items():
        lines.append(f"{name:28}{count:6}{median:9.2f}{high:9.2f}{worst:9.2f}")
    for report in reports:
        lines += [f"seed {report.settings.wish.seed}: {f.kind}: {f.who}: {f.told}" for f in report.findings]
    return "\n".join(lines)


def plot(reports: Sequence[Report], path: Path) -> None:
    """Draws which share of targets had gone on how many seconds after their fault was over."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, kinds in _GROUPS.items():
        took = sorted(one.took_s for one in _times(reports) if one.took_s is not None and kinds(one))
        if took:
            shares = [100 * (number + 1) / len(took) for number in range(len(took))]
            axes.step(
                [max(value, 0.01) for value in took], shares, where="post", label=f"{name} ({len(took)})"
            )
    axes.set(xscale="log", xlabel="seconds after the fault was over", ylabel="% that went on", ylim=(0, 101))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


_GROUPS = {
    "devices killed": lambda one: one.kind.startswith("kill") and one.target not in ("coordinator", "broker"),
    "coordinator killed": lambda one: one.kind.startswith("kill") and one.target == "coordinator",
    "broker killed": lambda one: one.kind in ("kill", "forget") and one.target == "broker",
    "links, disks, clocks, pauses": lambda one: not one.kind.startswith(("kill", "forget")),
}


def _sum(reports: Sequence[Report], name: str) -> str:
    return f"{sum(getattr(report, name) for report in reports):,}"


def _times(reports: Sequence[Report]) -> list[GoneOn]:
    return [one for report in reports for one in report.times]
