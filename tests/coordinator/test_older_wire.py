"""Devices of wire version 1 at a coordinator of version 2: told so, on both ends."""

import asyncio

from edge.transport.memory import MemoryTransport

OLD = "tunefleet/v1/home"


def test_a_device_of_the_first_wire_is_told_of_once_and_finds_a_notice(fleet):
    async def way():
        async with MemoryTransport(fleet.broker, "old") as old:
            await old.publish(f"{OLD}/version/r4", b"an old manifest", retain=True)
            await old.publish(f"{OLD}/device/lamp/hello", b"whatever it says", retain=True)
            async with fleet.serving():
                for topic in ("device/lamp/hello", "device/NO NAME/hello", f"device/{'x' * 9000}/hello"):
                    await old.publish(f"{OLD}/{topic}", b"again")
                await asyncio.sleep(0.2)
                await old.subscribe(f"{OLD}/version/r4")
                message = await anext(old.messages())
                await asyncio.sleep(0.1)
        assert message.payload == (
            b'{"this fleet speaks wire version 2: update tunefleet on this device":true}'
        )
        told = [line for line in fleet.said if "lamp speaks" in line]
        assert told == ["lamp speaks wire version 1: update tunefleet there"]
        assert all(len(line) < 600 for line in fleet.said)

    asyncio.run(way())
