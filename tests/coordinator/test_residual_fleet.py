"""A fleet whose devices compute with a residual that they do not train (FedEx-LoRA), on the whole server."""

import asyncio
from contextlib import AsyncExitStack

import numpy as np
import pytest
from typer.testing import CliRunner

from converters.adapter import Factors, LoraAdapter
from converters.formats.load import load_any
from coordinator.commands.cli import app
from edge.errors import ConfigError

RANK = 4


def moved(adapter, seed):
    """Increments of the rows that `train_rank` names; no others are sent."""
    rng = np.random.default_rng(seed)
    return LoraAdapter(
        {
            name: Factors(
                0.1 * rng.standard_normal((RANK, f.a.shape[1])),
                0.1 * rng.standard_normal((f.b.shape[0], RANK)),
                f.scale,
            )
            for name, f in adapter
        }
    )


def product(adapter, name):
    f = adapter.modules[name]
    return f.scale * f.b.astype(np.float64) @ f.a.astype(np.float64)


def test_devices_are_sent_the_exact_mean_and_so_is_who_exports_it(fleet, tmp_path):
    async def scenario():
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(
                fleet.serving(strategy="fedex-lora", ranks=(RANK,), remainder_rank=8)
            )
            devices = [await stack.enter_async_context(fleet.device(f"d{n}").joined()) for n in range(2)]
            first = await devices[0].manifest(0)
            base = await devices[0].download(first)
            deltas = [(await one.learn(lambda it, s=n: moved(it, s)))[1] for n, one in enumerate(devices)]
            return first, base, deltas, await devices[0].download(await devices[0].manifest(1))

    first, base, deltas, made = asyncio.run(scenario())
    assert (first.rank, first.recipe.train_rank, first.sketch) == (RANK, RANK, None)
    assert {f.rank for _, f in base} == {f.rank for _, f in made} == {RANK + 8}
    for name, f in base:
        own = Factors(f.a[:RANK], f.b[:, :RANK], f.scale)  # the residual is zero in version 0
        trained = [
            LoraAdapter({name: Factors(own.a + d.modules[name].a, own.b + d.modules[name].b, f.scale)})
            for d in deltas
        ]
        mean = sum(product(one, name) for one in trained) / 2
        assert product(made, name) == pytest.approx(mean, abs=1e-6)
    out = tmp_path / "exported"
    CliRunner().invoke(
        app, ["export", "--state", str(fleet.folder), "--out", str(out)], catch_exceptions=False
    )
    exported = load_any(out)
    for name, _ in made:
        assert product(exported, name) == pytest.approx(product(made, name), abs=1e-6)


def test_a_fleet_of_two_ranks_is_refused_with_what_to_do(fleet):
    with pytest.raises(ConfigError, match="give one rank, or take flora, flexlora or hetlora"):
        fleet.config(strategy="fedex-lora")
