"""Strategies that ask something of devices: real clients, real worker processes, the real coordinator."""

import asyncio
from contextlib import AsyncExitStack

import numpy as np
import pytest

from coordinator.ledger.state import open_ledger


def history(home):
    folder = home.folder / "coordinator"
    with open_ledger(folder) as (_, versions):
        found = versions.history()
        return (
            found,
            [versions.load(one.master) for one in found],
            [versions.load(one.tiers["r4"]) for one in found],
        )


def learn(home, tasks=2, **settings):
    """Two devices make so many versions."""

    async def way():
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(
                home.coordinator(buffer_size=2, max_versions=tasks, encoding="f32", **settings)
            )
            for name in ("lamp", "lock"):
                await stack.enter_async_context(home.running(name))
            async with asyncio.timeout(60):
                while not any("stopped" in line for line in home.said):
                    await asyncio.sleep(0.05)

    asyncio.run(way())
    return history(home)


def moved(before, after, factor):
    return any(
        not np.array_equal(getattr(f, factor), getattr(after.modules[name], factor)) for name, f in before
    )


@pytest.mark.parametrize(("strategy", "trained", "kept"), [("ffa-lora", "b", "a"), ("fedsa-lora", "a", "b")])
def test_only_what_the_strategy_shares_is_merged(home, strategy, trained, kept):
    found, masters, _ = learn(home, strategy=strategy, tasks=3)
    assert [one.version for one in found] == [0, 1, 2, 3]
    assert moved(masters[0], masters[3], trained)
    assert not moved(masters[0], masters[3], kept)


def test_a_refused_step_is_a_version_that_devices_go_on_from(home):
    class Strict:
        """Every other adapter is worse."""

        def __init__(self):
            self.times = 0

        def loss(self, adapter):
            self.times += 1
            return 1.0 if self.times == 1 or self.times % 2 == 0 else 2.0

    stages = {"guard": "backtrack", "guard_tries": 1}  # asked at the start, then before and after each step
    judge = {"calibration_data": str(home.data), "calibrator": Strict(), "strategy": "fedbuff"}
    found, masters, _ = learn(home, stages=stages, tasks=3, **judge)
    assert [one.report.step_scale for one in found[1:]] == [0.0] * 3
    assert masters == [masters[0]] * 4
    assert sum("refused by the guard" in line for line in home.said) == 3


def test_the_residual_of_fedex_lora_is_computed_with_and_not_trained(home):
    found, masters, tiers = learn(home, strategy="fedex-lora", remainder_rank=8, tasks=3)
    assert [one.max_rank for one in tiers] == [4 + 8] * 4
    assert [one.max_rank for one in masters] == [4] * 4
    assert found[-1].remainder is not None
    last = tiers[-1].modules["model.layers.0.self_attn.q_proj"]
    assert last.b[:, 4:].any()
    assert moved(masters[1], masters[2], "a")
