"""Fleets of a tiny random model: who trains when, and what becomes of it."""

import math

import numpy as np
import pytest

from benchmarks.strategies.lessons import DeviceRows, Lesson, Row
from benchmarks.strategies.population import Accident, Machine, Population
from converters.formats.canonical import load_adapter
from coordinator.config import CoordinatorConfig
from edge.errors import ConfigError
from edge.protocol.messages import Recipe

pytestmark = pytest.mark.torch
STEPS = 2


@pytest.fixture(scope="module")
def make_fleet(make_model, tmp_path_factory):
    """`make_fleet(s_per_token, **changes)` is a fleet of one device for each speed."""
    pytest.importorskip("torch", reason="needs the torch extra")
    from benchmarks.strategies.outcome import Settings
    from benchmarks.strategies.simulation import Fleet
    from benchmarks.strategies.workbench import Workbench, load_base

    base = make_model("llama")

    def make(
        s_per_token, *, num_updates=6, poison=None, accidents=None, bytes_per_s=1e12, ranks=(2,), **changes
    ):
        rows = [Row(f"{letter} is ", letter * 3) for letter in "abcdefgh"]
        recipe = Recipe(steps=STEPS, lr=1e-2, seq_tokens=32, batch_tokens=32)
        devices = [DeviceRows(rows[index:], rows[:1]) for index in range(len(s_per_token))]
        lesson = Lesson(base, recipe, devices, rows, rows[:4], is_exact=False, targets=("q_proj",), rank=2)
        bench = Workbench(lesson, load_base(base), tmp_path_factory.mktemp("fleet"))
        machines = [Machine(f"d-{i}", (speed, speed), bytes_per_s) for i, speed in enumerate(s_per_token)]
        population = Played(tuple(machines), accidents or {})
        places = {"broker": "mqtt://x", "fleet": "f", "base": str(base), "state": ""}
        settings = {"ranks": ranks, "recipe": recipe, "time_budget_s": 0.0}
        config = CoordinatorConfig(**places | settings | changes)
        hostile = (0,) if poison else ()
        return Fleet(bench, population, config, Settings(num_updates, 1, 0, poison=poison, poisoned=hostile))

    return make


class Played(Population):
    """A population with two speeds a device, so without jitter, and the accidents that it is told."""

    def __new__(cls, machines, accidents):
        self = super().__new__(cls, machines, 0.0, 0)
        self.accidents = accidents
        return self

    def accident(self, device, number):
        return self.accidents.get((device, number))


def times(outcome):
    return [point.time_s for point in outcome.points]


def task_s(fleet, speed, device=0, version=0):
    """Seconds of a task: its useful tokens by the device's seconds a token."""
    return speed * fleet.bench.num_tokens(device, fleet.plan(device, fleet.versions[version]))


def test_a_version_takes_as_long_as_the_last_device_it_waits_for(make_fleet):
    fleet = make_fleet([1.0, 3.0], buffer_size=2, num_updates=2)
    longest = max(task_s(fleet, 1.0, 0), task_s(fleet, 3.0, 1))
    assert times(fleet.run()) == pytest.approx([0.0, longest])


def test_links_take_their_bytes_both_ways(make_fleet):
    fleet = make_fleet([1.0], buffer_size=1, num_updates=1, bytes_per_s=100.0)
    compute_s = task_s(fleet, 1.0)
    last = fleet.run().points[-1]
    assert last.bytes_down > last.bytes_up > 0  # versions are float32, updates float16
    assert last.time_s == pytest.approx(compute_s + (last.bytes_down + last.bytes_up) / 100)
    assert last.compute_s == pytest.approx(compute_s)


def test_fast_devices_go_on_without_the_slow_one(make_fleet):
    outcome = make_fleet([1.0, 1.0, 1000.0], buffer_size=2, num_updates=8).run()
    assert outcome.num_merges == 4
    assert outcome.weights["d-2"] == 0.0
    assert outcome.weights["d-0"] == outcome.weights["d-1"] > 0


def test_a_round_waits_for_every_device(make_fleet):
    outcome = make_fleet([1.0, 1.0, 1000.0], strategy="fedavg", num_updates=6).run()
    assert outcome.num_merges == 2
    assert outcome.staleness_max == 0
    assert all(weight > 0 for weight in outcome.weights.values())


def test_a_device_trains_once_on_a_version(make_fleet):
    fleet = make_fleet([1.0, 50.0], buffer_size=2, num_updates=4)
    assert fleet.run().num_merges == 2  # although the fast one could have filled the buffer alone
    assert fleet.done_version == [1, 1]


def test_what_is_too_stale_on_arrival_is_rejected(make_fleet):
    outcome = make_fleet([1.0, 20.0], buffer_size=1, max_staleness=3, num_updates=30).run()
    assert outcome.rejected["too-stale"] >= 1
    assert outcome.staleness_max <= 3
    assert outcome.points[-1].num_updates == 30  # rejected ones are delivered ones, too


def test_a_time_budget_merges_what_is_there(make_fleet):
    fleet = make_fleet([1.0, 1000.0], buffer_size=2, time_budget_s=7.0, num_updates=2)
    first_s = task_s(fleet, 1.0)
    assert times(fleet.run())[1] == pytest.approx(first_s + 7.0)


def test_a_device_that_fell_asleep_goes_on(make_fleet):
    accidents = {(0, 0): Accident(at=0.5, away=3.0, is_lost=False)}
    fleet = make_fleet([1.0], buffer_size=1, num_updates=1, accidents=accidents)
    compute_s = task_s(fleet, 1.0)
    outcome = fleet.run()
    assert times(outcome)[-1] == pytest.approx(4 * compute_s)
    assert outcome.points[-1].compute_s == pytest.approx(compute_s)


def test_a_device_that_was_off_begins_anew_on_the_current_version(make_fleet):
    accidents = {(0, 0): Accident(at=0.25, away=10.0, is_lost=True)}
    fleet = make_fleet([1.0, 1.0], buffer_size=1, num_updates=12, accidents=accidents)
    lost_s = 0.25 * task_s(fleet, 1.0)
    outcome = fleet.run()
    assert outcome.num_lost == 1
    assert outcome.staleness_max <= 1  # it did not come back with an update on version 0
    others_s = outcome.points[-1].compute_s - lost_s
    assert others_s > 0


def test_the_same_seed_gives_the_same_run(make_fleet):
    first, again = (make_fleet([1.0, 2.0, 5.0], buffer_size=2).run() for _ in range(2))
    assert first.points == again.points
    assert first.weights == again.weights


def test_training_lowers_the_loss(make_fleet):
    points = make_fleet([1.0, 2.0], buffer_size=2, num_updates=12).run().points
    assert points[-1].loss < points[0].loss - 0.05


def test_versions_that_nobody_holds_leave_no_files(make_fleet):
    fleet = make_fleet([1.0, 1000.0], buffer_size=1, num_updates=5)
    fleet.run()
    left = sorted(path.name for path in fleet.bench.folder.glob("version-*"))
    assert left == ["version-0-2", "version-5-2"]  # the slow device still trains on version 0


def test_a_sign_flipped_update_is_the_negative_of_an_honest_one(make_fleet):
    settings = {"buffer_size": 1, "num_updates": 1, "space": "factors"}
    fleets = [make_fleet([1.0], poison=kind, **settings) for kind in (None, "sign-flipped")]
    starts = [fleet.state.adapter for fleet in fleets]
    for fleet in fleets:
        fleet.run()
    honest, hostile = (
        factors.b - start.modules[name].b
        for fleet, start in zip(fleets, starts, strict=True)
        for name, factors in list(fleet.state.adapter)[:1]
    )
    assert np.abs(honest).max() > 0
    assert hostile == pytest.approx(-honest, abs=1e-5)


def test_a_scaled_update_is_ten_times_an_honest_one(make_fleet, tmp_path):
    from benchmarks.strategies.workbench import poison
    from converters.adapter import initial_adapter
    from converters.formats.canonical import save_adapter
    from edge.training.requests import Result

    start, trained = (initial_adapter({"m": (4, 3)}, rank=2, scale=1.0, seed=seed) for seed in (0, 1))
    paths = [tmp_path / name for name in ("start", "trained")]
    for adapter, path in zip((start, trained), paths, strict=True):
        save_adapter(adapter, path)
    numbers = dict.fromkeys(("num_examples", "num_tokens", "num_truncated", "num_steps"), 1)
    result = Result(
        adapter=str(paths[1]), seconds=1.0, loss_before=1.0, loss_after=1.0, losses=(1.0,),
        micro_batch_tokens=0, is_complete=True, **numbers,
    )  # fmt: skip
    poison("scaled", paths[0], result)
    moved = load_adapter(paths[1]).modules["m"].a - start.modules["m"].a
    assert moved == pytest.approx(10 * (trained.modules["m"].a - start.modules["m"].a), rel=1e-5)


def test_flipped_labels_are_the_same_words_at_other_prompts():
    from benchmarks.strategies.workbench import shuffled

    rows = [Row(str(number), f"answer {number}") for number in range(5)]
    wrong = shuffled(rows)
    assert sorted(row.completion for row in wrong) == sorted(row.completion for row in rows)
    assert all(row.completion != f"answer {row.prompt}" for row in wrong)


def test_devices_that_keep_a_factor_answer_with_their_own(make_fleet):
    fleet = make_fleet([1.0, 1.0], strategy="fedsa-lora", buffer_size=2, num_updates=8)
    points = fleet.run().points
    assert set(fleet.personal) == {0, 1}
    assert all(not factors.b.any() for _, factors in fleet.state.adapter)
    assert points[-1].loss < points[0].loss
    assert math.isclose(points[-1].calibration_loss, points[0].calibration_loss, rel_tol=1e-6)


def test_devices_of_unlike_ranks_download_and_send_their_own(make_fleet):
    fleet = make_fleet([1.0, 1.0], strategy="hetlora", ranks=(2, 1), buffer_size=2, num_updates=4)
    last = fleet.run().points[-1]
    shapes = {rank: adapter.max_rank for rank, adapter in fleet.current.adapters.items()}
    assert shapes == {2: 2, 1: 1}
    assert fleet.residuals[0].max_rank == 2
    assert fleet.residuals[1].max_rank == 1
    assert last.loss < fleet.points[0].loss


def test_a_fleet_that_can_never_fill_its_buffer_says_so(make_fleet):
    with pytest.raises(ConfigError, match=r"stands still after 2 of 6 updates.*lower buffer_size, 3"):
        make_fleet([1.0, 1.0], buffer_size=3).run()
