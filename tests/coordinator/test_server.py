import asyncio


def test_two_updates_become_a_version(fleet):
    async def scenario():
        async with fleet.serving() as coordinator, fleet.device("kitchen").joined() as kitchen, fleet.device("hall").joined() as hall:
            first, _ = await kitchen.teach(seed=1)
            second, _ = await hall.teach(seed=2)
            assert (first.status, second.status) == ("accepted", "accepted")
            assert (await kitchen.manifest(version=1)).parent == 0

    asyncio.run(scenario())
