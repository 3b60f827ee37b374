"""Versions are scored, and none waits for it."""

import asyncio

from coordinator.scoring import Quality
from edge.errors import BackendError


def test_it_ends_when_the_last_version_is_made_and_scored(fleet):
    scored = []

    def score(adapter):
        scored.append(adapter)
        return Quality(1.5, 0.25)

    async def scenario():
        async with fleet.serving(buffer_size=1, max_versions=1, score=score) as coordinator:
            async with fleet.device("x").joined() as x:
                await x.teach(seed=1)
                await x.manifest(version=1)
                while not any("stopped" in line for line in fleet.said):
                    await asyncio.sleep(0.01)
            assert len(scored) == 2
            assert coordinator.__class__
        with fleet.opened() as (_, versions):
            assert [(v.loss, v.exact) for v in versions.history()] == [(1.5, 0.25)] * 2

    asyncio.run(scenario())


def test_a_version_that_cannot_be_scored_stops_nothing(fleet):
    def score(adapter):
        raise BackendError("no memory left")

    async def scenario():
        async with fleet.serving(buffer_size=1, score=score), fleet.device("x").joined() as x:
            await x.teach(seed=1)
            await x.manifest(version=1)
        assert "version 0 is not scored: no memory left" in fleet.said

    asyncio.run(scenario())
