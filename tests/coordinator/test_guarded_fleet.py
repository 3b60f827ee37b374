"""Fleets whose steps are judged on a calibration set: the toy base, real gradients, the whole server."""

import asyncio
import json
from contextlib import AsyncExitStack

import numpy as np
import pytest
from typer.testing import CliRunner

from converters.adapter import Factors, LoraAdapter
from coordinator.calibration import Calibration
from coordinator.commands.cli import app
from coordinator.merging.merger import check_calibration
from coordinator.serve import open_data
from edge.backends.toy import make_toy_base
from edge.errors import ConfigError, DataError
from edge.protocol.codec import encode_adapter
from edge.transport.memory import MemoryBroker

ROWS = [{"prompt": f"light {n} on", "completion": f" set({n}, 1)"} for n in range(8)]


def times(adapter, factor):
    return LoraAdapter(
        {n: Factors(np.float32(factor) * f.a, np.float32(factor) * f.b, f.scale) for n, f in adapter}
    )


@pytest.fixture
def calibrator(fleet, tmp_path):
    fleet.base = make_toy_base(tmp_path / "toy")
    data = tmp_path / "calibration.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    fleet.calibration = str(data)
    return Calibration(fleet.base, data, seq_tokens=64, batch_tokens=256)


def report(fleet, command):
    result = CliRunner().invoke(
        app, [command, "--state", str(fleet.folder), "--json"], catch_exceptions=False
    )
    return json.loads(result.output)


def grow(fleet, calibrator, factors, version=0, **changes):
    """Devices make one version; each sends so many times a step along the gradient."""
    fleet.broker = MemoryBroker()  # retains no version of an earlier coordinator, which nobody serves yet

    async def scenario():
        settings = {"calibrator": calibrator, "calibration_data": fleet.calibration, "ranks": (4,)}
        settings |= {"targets": ("q_proj", "v_proj"), "buffer_size": len(factors), "strategy": "fedbuff"}
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(fleet.serving(**settings | changes))
            for number, factor in enumerate(factors):
                device = await stack.enter_async_context(fleet.device(f"d{number + 2 * version}").joined())
                before = await device.manifest(version)
                await device.learn(
                    lambda adapter, by=factor: times(calibrator.gradient(adapter), by), version
                )
            return before.sha256, (await device.manifest(version + 1)).sha256

    return asyncio.run(scenario())


@pytest.mark.parametrize(("strategy", "scale"), [("alignfed", 1.0), ("tunefleet", 4.0)])
def test_a_poisoned_update_is_left_out_and_the_journal_says_why(fleet, calibrator, strategy, scale):
    order = ["group", "cosine", "normalise"]
    before, after = grow(
        fleet, calibrator, (-1.0, -1.0, 1.0), strategy=strategy, stages={"order": order, "guard": "backtrack"}
    )
    assert before != after
    made = report(fleet, "history")["versions"][1]
    assert (made["kind"], made["strategy"], made["step_scale"]) == ("merge", strategy, scale)
    assert made["loss_after"] < made["loss_before"]
    *honest, poisoned = made["shares"]
    assert [share["weight"] for share in honest] == [0.5 * scale] * 2
    assert poisoned["weight"] == 0
    assert "cosine -1.0" in poisoned["reason"]
    assert any(line.startswith("update ") and "of d2: cosine -1.0" in line for line in fleet.said)
    status = report(fleet, "status")
    assert status["fairness"] == pytest.approx(2 / 3)  # weights x, x, 0: (2x)^2 / (3 * 2x^2)


def test_a_step_that_makes_it_worse_is_refused_and_the_fleet_goes_on_with_the_same_adapter(fleet, calibrator):
    before, after = grow(
        fleet, calibrator, (5.0, 5.0), stages={"guard": "backtrack", "guard_tries": 2}, space="factors"
    )
    assert before == after
    made = report(fleet, "history")["versions"][1]
    assert (made["kind"], made["step_scale"], made["step_norm"]) == ("refused", 0.0, 0.0)
    assert made["loss_refused"] > made["loss_before"] == made["loss_after"]
    told = f"calibration loss {made['loss_before']:.4f} → {made['loss_refused']:.4f}"
    assert made["refusal"] == f"refused by the guard: {told}"
    line = (
        f"version 1: 2 updates of d0, d1, staleness up to 0, {made['refusal']}; the adapter stays as it was"
    )
    assert line in fleet.said
    assert report(fleet, "status")["fairness"] is None
    shown = CliRunner().invoke(app, ["history", "--state", str(fleet.folder)], env={"COLUMNS": "200"}).output
    assert "refused by the guard" in shown


def test_what_is_carried_outlives_a_restart(fleet, calibrator):
    stages = {"guard": "backtrack", "optimizer": "fedavgm", "order": ["clip", "credit"]}
    for version in (0, 1):
        grow(fleet, calibrator, (-1.0, -0.5), version, stages=stages, space="factors")
    with fleet.opened() as (_, versions):
        first, second = (versions.state(versions.version(n), versions.accounts()) for n in (1, 2))
    assert (len(first.norms), len(second.norms)) == (2, 4)
    assert second.norms[:2] == first.norms
    assert first.moments.keys() == second.moments.keys() != set()
    assert {name: one.uploads for name, one in second.accounts.items()} == {
        "d0": 1,
        "d1": 1,
        "d2": 1,
        "d3": 1,
    }


def test_data_are_loaded_at_the_start_and_only_where_something_asks_for_them(fleet, calibrator, tmp_path):
    def opened(**changes):
        settings = {"calibration_data": fleet.calibration, "strategy": "fedbuff"}
        return open_data(fleet.config(**settings | changes))

    assert opened() == (None, None)
    score, judge = opened(stages={"guard": "backtrack"}, eval_data=fleet.calibration)
    assert score is judge is not None
    (tmp_path / "bad.jsonl").write_text("nothing\n")
    with pytest.raises(DataError, match=r"bad\.jsonl"):
        open_data(fleet.config(calibration_data=str(tmp_path / "bad.jsonl"), strategy="alignfed"))


def test_a_calibration_set_that_no_step_could_be_judged_by_is_told_at_the_start(fleet, calibrator):
    class Blind:
        def loss(self, adapter):
            return float("nan")

    settings = {"strategy": "fedbuff", "stages": {"guard": "backtrack"}}
    config = fleet.config(calibration_data=fleet.calibration, **settings)
    with pytest.raises(ConfigError, match=r"calibration\.jsonl: the current version's loss on it is nan"):
        check_calibration(config, Blind(), LoraAdapter({}))
    with pytest.raises(
        ConfigError, match="strategy fedbuff asks for a calibration set; set calibration_data"
    ):
        check_calibration(config, None, LoraAdapter({}))
    assert check_calibration(fleet.config(), None, LoraAdapter({})) is None


@pytest.mark.parametrize("strategy", ["alignfed", "tunefleet"])
def test_all_stages_of_a_strategy_take_a_slow_devices_update_and_no_version_is_worse(
    fleet, calibrator, strategy
):
    async def scenario():
        settings = {"calibrator": calibrator, "calibration_data": fleet.calibration, "ranks": (4,)}
        settings |= {"buffer_size": 2, "strategy": strategy, "stages": {"guard": "backtrack"}}
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(fleet.serving(**settings))
            x, y, slow = [await stack.enter_async_context(fleet.device(name).joined()) for name in "xyz"]

            def train(adapter):
                return times(calibrator.gradient(adapter), -0.25)  # four of which do not overshoot

            first = await slow.manifest()
            late = encode_adapter(train(await slow.download(first)), "f32")
            for device in (x, y):
                await device.learn(train)
            await x.manifest(1)
            await slow.upload(slow.header(first, late), late)
            await x.learn(train, version=1)
            await x.manifest(2)

    asyncio.run(scenario())
    _, second, third = report(fleet, "history")["versions"]
    for made in (second, third):
        assert made["kind"] == "merge"
        assert made["loss_after"] <= made["loss_before"]
    assert {share["device"]: share["staleness"] for share in third["shares"]} == {"x": 0, "z": 1}
    assert all(share["weight"] > 0 for share in third["shares"])
