import math

import pytest

from benchmarks.strategies.jobs import Failure
from benchmarks.strategies.lineup import (
    BASELINE,
    DEFAULT,
    POOLED,
    ROWS,
    TABLES,
    TUNED,
    Entry,
    Setting,
    entries_of,
)
from benchmarks.strategies.outcome import Outcome, Point
from benchmarks.strategies.plots import plot_lesson
from benchmarks.strategies.tables import (
    fairness,
    final_loss,
    gather,
    harmful_share,
    heading,
    poison_losses,
    table_of,
    targets,
    time_to,
    times_as_fast,
)

SETTING = Setting("dolly")


def outcome(losses, *, weights=None, num_harmful=0):
    points = [
        Point(
            version=number,
            time_s=10.0 * number,
            num_updates=number,
            compute_s=float(number),
            calibration_loss=1.0,
            loss=loss,
            accuracy=None if loss is None else 1 - loss / 10,
        )
        for number, loss in enumerate(losses)
    ]
    return Outcome(
        points=points, weights=weights or {"d-0": 1.0, "d-1": 1.0}, slow_loss=1.0, slow_accuracy=0.5,
        own_accuracy=0.5, cpu_s=1.0, num_merges=len(losses) - 1, num_harmful=num_harmful,
    )  # fmt: skip


def entry(row, **changes):
    return Entry(row, {}, SETTING._replace(**changes))


def test_the_final_loss_is_the_mean_of_the_last_three_scored_versions():
    assert final_loss(outcome([9.0, 5.0, None, 4.0, None, 3.0])) == 4.0


def test_version_0_is_no_final_version():
    assert final_loss(outcome([9.0, 5.0, 4.0])) == 4.5
    assert final_loss(outcome([9.0])) == 9.0


def test_the_time_to_a_target_is_interpolated():
    one = outcome([8.0, 4.0, 2.0])
    assert time_to(one, 3.0) == 15.0
    assert time_to(one, 3.0, lambda point: point.compute_s) == 1.5
    assert math.isinf(time_to(one, 1.0))


def test_a_version_that_was_not_scored_is_passed_over():
    assert time_to(outcome([8.0, None, 4.0]), 6.0) == 10.0


def test_the_target_is_four_fifths_of_the_way_to_all_rows_at_once():
    cells = gather([entry(POOLED)], 1, [outcome([6.0, 2.0, 1.0])])[SETTING]
    assert targets(cells, 1) == [pytest.approx(6.0 - 0.8 * 5.0)]


def test_without_the_reference_the_baseline_sets_the_target():
    cells = gather([entry("fedbuff")], 1, [outcome([6.0, 3.0, 4.0])])[SETTING]
    assert targets(cells, 1) == [pytest.approx(6.0 - 0.8 * 3.0)]


def test_the_demos_target_is_nineteen_twentieths_of_the_way():
    setting = Setting("household")
    cells = gather([Entry(POOLED, {}, setting)], 1, [outcome([6.0, 2.0, 1.0])])[setting]
    assert targets(cells, 1) == [pytest.approx(6.0 - 0.95 * 5.0)]


def test_speed_is_compared_at_a_loss_that_both_reach():
    slow = outcome([8.0, 7.0, 6.0, 5.0, 4.0, 4.0, 4.0])  # ends at 4, first there after 40 s
    fast = outcome([8.0, 2.0, 2.0, 2.0])  # passes 4 after 2/3 of 10 s
    assert times_as_fast(fast, slow) == pytest.approx(6.0)
    assert times_as_fast(slow, fast) == pytest.approx(1 / 6)


def test_a_fleet_that_learns_nothing_is_not_compared():
    assert math.isnan(times_as_fast(outcome([8.0, 8.0, 8.0]), outcome([8.0, 4.0, 4.0, 4.0])))


def test_a_picture_is_drawn_1200_pixels_wide(tmp_path):
    pytest.importorskip("matplotlib", reason="needs the demo extra")
    entries = [entry(POOLED), entry("fedavg"), entry("tunefleet")]
    cells = gather(entries, 1, [outcome([6.0, 4.0, 3.0])] * 3)[SETTING]
    plot_lesson("dolly", cells, tmp_path / "dolly.png")
    head = (tmp_path / "dolly.png").read_bytes()[:24]
    assert head[1:4] == b"PNG"
    assert int.from_bytes(head[16:20], "big") == 1200


@pytest.mark.parametrize(
    ("weights", "share"),
    [([1, 1, 1, 1], 1.0), ([1, 0, 0, 0], 0.25), ([3, 1], 16 / 20), ([0, 0], 0.0)],
)
def test_jains_index_counts_who_has_a_share(weights, share):
    devices = {f"d-{number}": float(weight) for number, weight in enumerate(weights)}
    assert fairness(outcome([1.0], weights=devices)) == pytest.approx(share)


def test_harmful_merges_are_a_share():
    assert harmful_share(outcome([3.0, 2.0, 1.0, 0.5, 0.4], num_harmful=1)) == 0.25


def test_results_stand_in_the_order_of_entries_and_seeds():
    entries = [entry("a"), entry("b")]
    found = gather(entries, 2, [outcome([4.0]), outcome([3.0]), outcome([2.0]), outcome([1.0])])[SETTING]
    assert [[final_loss(one) for one in cell.outcomes] for cell in found] == [[4.0, 3.0], [2.0, 1.0]]


def test_a_strategy_that_refuses_says_why_in_its_row():
    entries = [entry("fedbuff"), entry("fedex-lora")]
    cells = gather(entries, 1, [outcome([4.0, 3.0]), Failure("a quantised base")])[SETTING]
    assert "| fedex-lora | not run: a quantised base |" in table_of(cells, 1, ["fedbuff"])[-1]


def test_differences_are_paired_and_bold_where_zero_is_excluded():
    pytest.importorskip("scipy", reason="needs the bench extra")
    results = [outcome([4.0 + seed]) for seed in range(3)] + [outcome([3.0 + seed]) for seed in range(3)]
    cells = gather([entry("fedbuff"), entry("tunefleet")], 3, results)[SETTING]
    line = table_of(cells, 3, ["fedbuff"])[-1]
    assert line.startswith("| tunefleet | **-1.0000** [-1.0000, -1.0000] [-1.0000, -1.0000] |")


def test_times_that_some_seeds_never_reach_are_counted():
    results = [outcome([8.0, 1.0]), outcome([8.0, 7.0, 7.0, 7.0])]
    cells = gather([entry(POOLED), entry("slow")], 2, [results[0], results[0], *results])[SETTING]
    assert "(1/2)" in next(line for line in table_of(cells, 2, []) if line.startswith("| slow"))


def test_poison_is_set_against_what_the_baseline_loses():
    entries = [entry(row, poison=kind) for kind in (None, "scaled") for row in ("fedbuff", "tunefleet")]
    results = [outcome([loss]) for loss in (2.0, 2.0, 4.0, 2.2)]
    lines = poison_losses(gather(entries, 1, results), 1)
    assert lines[-2:] == [
        "| dolly | scaled | fedbuff | +2.0000 | 1.00 |",
        "| dolly | scaled | tunefleet | +0.2000 | 0.10 |",
    ]


def test_a_heading_names_what_the_rows_share():
    setting = Setting("clinc", drop_out=0.2, max_staleness=5, poison="scaled")
    said = heading(setting)
    assert said == "clinc, speeds 400x, staleness up to 5, drop-outs 20%, a fifth scaled"


def test_every_preset_is_in_the_main_table_or_among_the_rivals():
    main, rivals = ({one.row for one in entries_of(table)} for table in ("main", "rivals"))
    assert main | rivals == {POOLED, *TUNED, *ROWS}
    assert main & rivals == {BASELINE, DEFAULT}


@pytest.mark.parametrize("table", TABLES)
def test_no_row_of_a_table_stands_twice(table):
    keys = [(one.row, one.setting) for one in entries_of(table)]
    assert len(keys) == len(set(keys))
