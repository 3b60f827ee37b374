"""A fleet in one process: real coordinator, real devices, one model; any strategy, also in a notebook."""

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tunefleet
from coordinator.errors import CoordinatorError, UnknownVersion
from coordinator.strategies.choice import METHODS
from coordinator.strategies.contract import Contribution
from coordinator.strategies.pipeline import Pipeline
from coordinator.strategies.stages.contract import Weight
from edge.backends.toy import make_toy_base
from edge.errors import ConfigError, DataError

ROWS = [{"prompt": f"light {n} on", "completion": f" set({n}, 1)"} for n in range(9)]
RECIPE = {"steps": 3, "lr": 1e-2, "seq_tokens": 64, "batch_tokens": 128}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_toy_base(tmp_path / "base")


def run(base: Path, versions: int = 2, **settings) -> tuple[tunefleet.LoraAdapter, list]:
    """A fleet of three devices; its adapter, and its history."""
    with tunefleet.Fleet(base, **{"buffer_size": 3, "recipe": RECIPE} | settings) as fleet:
        for number in range(3):
            fleet.add_device(ROWS[number::3])
        fleet.until(versions, timeout_s=60)
        return fleet.adapter(versions), fleet.history()[: versions + 1]


def mean(adapter: tunefleet.LoraAdapter, updates: list[Contribution]) -> tunefleet.LoraAdapter:
    deltas = [update.load_delta().modules for update in updates]
    return tunefleet.LoraAdapter(
        {
            name: tunefleet.Factors(
                old.a + np.mean([delta[name].a for delta in deltas], axis=0),
                old.b + np.mean([delta[name].b for delta in deltas], axis=0),
                old.scale,
            )
            for name, old in adapter
        }
    )


def test_a_strategy_of_ones_own_is_a_function_and_does_what_it_says(base):
    ours, made = run(base, strategy=mean)
    assert [one.strategy for one in made] == [None, "mean", "mean"]
    assert [len(one.shares) for one in made] == [0, 3, 3]
    plain = tunefleet.Stages(order=("normalise",), space="factors")
    theirs, _ = run(base, strategy=plain)
    for name, factors in ours:  # rounds of all three: both are the mean, but for the order of its sum
        np.testing.assert_allclose(factors.a, theirs.modules[name].a, atol=1e-5)
        np.testing.assert_allclose(factors.b, theirs.modules[name].b, atol=1e-5)


class Double(Weight, frozen=True, tag="double"):
    """A stage that no configuration can name."""

    def factor(self, item, pipeline):
        return 2.0


def test_a_strategy_is_a_name_a_method_or_an_object(base):
    own = Pipeline(name="mine", method=METHODS["fedbuff"], buffer_size=3)
    for strategy, name in (
        ("flora", "flora"),
        (METHODS["fedasync"], "fedbuff"),
        (tunefleet.Stages(order=("absolute", "mix"), trigger="arrival"), "fedbuff"),
        (tunefleet.Method(order=(Double(),)), "fedbuff"),
        (own, "mine"),
        (None, "fedbuff"),
    ):
        _, made = run(base, 1, strategy=strategy)
        assert made[1].strategy == name
    with pytest.raises(ConfigError, match="expected a name, a Method, an object with pace and merge, or"):
        refuse(base, strategy=7)
    with pytest.raises(ConfigError, match="strategy"):
        refuse(base, strategy="fedbest")


def test_a_fleet_learns_and_its_scores_are_those_of_evaluate(base):
    with tunefleet.Fleet(base, buffer_size=2, recipe=RECIPE) as fleet:
        assert [fleet.add_device(ROWS), fleet.add_device(ROWS, device_id="lamp")] == ["device-1", "lamp"]
        fleet.until(4, timeout_s=60)
        before, after = (fleet.evaluate(ROWS, version=number) for number in (0, 4))
        assert after.loss < before.loss
        adapter = fleet.adapter(4)
        with pytest.raises(UnknownVersion):
            fleet.adapter(1000)
    assert tunefleet.evaluate(base, ROWS, adapter=adapter).loss == pytest.approx(after.loss, rel=1e-6)
    with pytest.raises(CoordinatorError, match="not running"):
        fleet.adapter()


def test_devices_go_and_come_again_and_a_fleet_goes_on_in_its_folder(base, tmp_path):
    with tunefleet.Fleet(base, state=tmp_path / "fleet", buffer_size=1, recipe=RECIPE) as fleet:
        fleet.add_device(ROWS, device_id="lamp")
        with pytest.raises(ConfigError, match="device lamp is in the fleet already"):
            fleet.add_device(ROWS, device_id="lamp")
        fleet.until(1, timeout_s=60)
        fleet.remove_device("lamp")
        assert fleet.devices == []
        with pytest.raises(ConfigError, match="no device lamp in the fleet; there are none"):
            fleet.remove_device("lamp")
        fleet.add_device(ROWS, device_id="lamp")
        fleet.until(fleet.version + 1, timeout_s=60)
        made = fleet.version
    with tunefleet.Fleet(base, state=tmp_path / "fleet", buffer_size=1, recipe=RECIPE) as fleet:
        assert fleet.version >= made


def test_what_ends_a_device_a_strategy_or_the_coordinator_is_raised_where_one_waits(base):
    with tunefleet.Fleet(base, buffer_size=1) as fleet:
        fleet.add_device([{"promp": "x"}], device_id="lamp")
        with pytest.raises(DataError, match=r"^lamp: 1 of 1 rows cannot be used"):
            fleet.until(1, timeout_s=60)

    def broken(adapter, updates):
        raise ZeroDivisionError("my own mistake")

    with pytest.raises(ZeroDivisionError, match="my own mistake"):
        run(base, strategy=broken)
    with pytest.raises(CoordinatorError, match="strategy halve: 2 modules are not as they were"):
        run(base, strategy=halve)
    with pytest.raises(CoordinatorError, match="ended at version 1, before version 2: max_versions is 1"):
        run(base, max_versions=1)


def halve(adapter, updates):
    return tunefleet.LoraAdapter(
        {name: tunefleet.Factors(f.a[:2], f.b[:, :2], f.scale) for name, f in adapter}
    )


def test_a_version_that_nobody_makes_is_waited_for_no_longer_than_asked(base):
    told = r"no version 1 in 0.2 s: .* version 0, with 0 updates waiting and 0 devices"
    with tunefleet.Fleet(base, buffer_size=2) as fleet, pytest.raises(TimeoutError, match=told):
        fleet.until(1, timeout_s=0.2)


def refuse(*arguments, **settings) -> None:
    with tunefleet.Fleet(*arguments, **settings):
        pass


def test_faults_of_the_settings_are_told_before_anything_runs(base):
    with pytest.raises(ConfigError, match=r"buffer_size is 0, expected at least 1"):
        refuse(base, buffer_size=0)
    with pytest.raises(ConfigError, match=r"no-such-base"):
        refuse("no-such-base")


def test_it_works_below_a_running_loop(base):
    async def cell() -> int:
        return len(run(base, 1)[1])

    assert asyncio.run(cell()) == 2


SCRIPT = """
import sys, tunefleet
from pathlib import Path

with tunefleet.Fleet(sys.argv[1], buffer_size=1000) as fleet:
    for number in range(3):
        fleet.add_device([{"text": "on and on"}])
    print("running", flush=True)
    fleet.until(1)
"""


def test_ctrl_c_ends_it_in_order(base):
    command = [sys.executable, "-c", SCRIPT, base]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "running\n"
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=30)
        finally:
            process.kill()
    assert said.rstrip().endswith("KeyboardInterrupt")
    assert "ignored" not in said
