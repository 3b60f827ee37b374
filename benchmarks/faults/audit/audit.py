"""The audit of one run, from its folder alone."""

from pathlib import Path

from msgspec import Struct

from benchmarks.faults.audit.evidence import Finding, opened
from benchmarks.faults.audit.fates import check_fates, count_fates
from benchmarks.faults.audit.lineage import check_lineage, check_sums, count_sums
from benchmarks.faults.audit.liveness import (
    GoneOn,
    check_liveness,
    receipts_per_s,
    summed_up,
    times_to_go_on,
)
from benchmarks.faults.record import LABORATORY, Settings
from benchmarks.faults.schedule import KILLS


class Report(Struct, frozen=True):
    """What came out of one run."""

    settings: Settings  # the schedule among them, to do it again
    num_kills: int  # of processes that were alive
    num_others: int
    num_cuts: int  # connections cut at random bytes
    wall_s: float
    fates: dict[str, int]
    num_versions: int
    num_summed: int  # versions that were added up again
    receipts_per_s: float
    worst_receipts_per_s: float  # in 10 s
    to_go_on_s: dict[str, tuple[int, float, float, float]]  # how many, median, 95th percentile, worst
    times: list[GoneOn]
    findings: list[Finding]

    @property
    def is_sound(self) -> bool:
        """Tells whether nothing was found."""
        return not self.findings


def audit(folder: Path) -> Report:
    """Replays a run and returns what was found."""
    with opened(folder) as evidence:
        checks = (check_fates, check_lineage, check_sums, check_liveness)
        findings = [finding for check in checks for finding in check(evidence)]
        struck = [one for one in evidence.said("fault", by=LABORATORY) if one.facts["struck"]]
        num_kills = sum(one.facts["kind"] in KILLS for one in struck)
        times = times_to_go_on(evidence)
        over = next(evidence.said("over", by=LABORATORY), None)
        mean, worst = receipts_per_s(evidence)
        return Report(
            settings=evidence.settings,
            num_kills=num_kills,
            num_others=len(struck) - num_kills,
            num_cuts=over.facts["cuts"] if over else 0,
            wall_s=evidence.entries[-1].at_s,
            fates=dict(count_fates(evidence)),
            num_versions=len(evidence.versions),
            num_summed=count_sums(evidence),
            receipts_per_s=round(mean, 2),
            worst_receipts_per_s=round(worst, 2),
            to_go_on_s=summed_up(times),
            times=times,
            findings=findings,
        )
