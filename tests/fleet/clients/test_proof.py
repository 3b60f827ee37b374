"""Devices whose base model is quantised: they prove that it is the fleet's, once."""

import asyncio
import shutil
from pathlib import Path

import pytest

from converters.bases.read import read_base
from converters.errors import BaseModelError
from converters.proof.sample import MAX_BYTES
from edge.device.learning.proof import sample_of
from edge.device.state import DeviceState, fresh_memory
from edge.protocol.messages import Blob, Hello, Manifest
from edge.protocol.signing import Keyring, read_signed
from edge.protocol.topics import Topics
from edge.transport.memory import MemoryBroker, MemoryTransport

TOPICS = Topics("home")
pytestmark = pytest.mark.torch


@pytest.fixture
def fleet(home, make_model, make_gguf):
    """`home` on a tiny llama, with a text that devices can read in many bytes."""
    pytest.importorskip("llama_cpp", reason="needs the llama extra")
    home.base = make_model("llama")
    home.copy = lambda quant="q8_0", **model: make_gguf("llama", quant, **model)
    return home


async def hello(home) -> Hello | None:
    """The device's card, as the broker retains it."""
    found = None
    async with MemoryTransport(home.broker, "spy") as spy:
        await spy.subscribe(TOPICS.device("lamp", "hello"))
        try:
            async with asyncio.timeout(0.2):
                async for message in spy.messages():
                    found = Keyring().open(message.topic, read_signed(message.payload), Hello).record
        except TimeoutError:
            return found


def refused(home, match, **changes):
    """The client ends with that error; gives the device."""

    async def way():
        async with home.coordinator(), home.device(backend="llama_cpp", **changes) as device:
            with pytest.raises(BaseModelError, match=match):
                await device.client.run()
            assert await hello(home) is None
            return device

    return asyncio.run(way())


def test_a_quantised_copy_is_proved_once_and_trains(fleet):
    recipe = {"steps": 1, "seq_tokens": 32, "batch_tokens": 64, "attempts": 0}
    changes = {"base": str(fleet.copy()), "backend": "llama_cpp", "max_tasks": 1}

    async def way():
        async with fleet.coordinator(recipe=recipe, buffer_size=100):
            async with fleet.device(**changes) as device:
                await device.client.run()
            async with fleet.device(**changes) as again:
                await again.client.run()
            return device, again, await hello(fleet)

    device, again, card = asyncio.run(way())
    (proved,) = device.of("proved")
    assert proved.facts["num_wrong"] == 0
    assert not again.of("proved")
    assert card.base == device.state.memory.base == read_base(fleet.base).fingerprint
    assert device.of("accepted")
    assert again.of("accepted")
    assert not list((fleet.folder / "lamp").glob("sketch*"))


def test_another_model_is_one_clear_error_and_nothing_is_lost(fleet):
    device = refused(
        fleet, r"is not a copy of the fleet's base model: \d\d\.\d%", base=str(fleet.copy(seed=1))
    )
    assert device.state.memory.base is None
    assert device.state.memory.task is None

    async def way():
        async with fleet.coordinator(), fleet.device(base=str(fleet.copy()), backend="llama_cpp") as mended:
            task = asyncio.create_task(mended.client.run())
            await mended.until("proved")
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    fleet.broker = MemoryBroker()
    asyncio.run(way())


def test_what_differs_in_the_architecture_is_named(fleet, make_gguf):
    refused(fleet, "architecture is qwen2, expected llama", base=str(make_gguf("qwen2", "q8_0")))


def test_a_model_whose_file_changed_is_proved_again(fleet):
    path = Path(shutil.copy(fleet.copy(), fleet.folder / "model.gguf"))
    config = fleet.device_config(base=str(path), backend="llama_cpp")
    fingerprint = read_base(fleet.base).fingerprint
    with DeviceState(fleet.folder / "lamp", fresh_memory(config)) as state:
        assert state.memory.base is None
        state.update(base=fingerprint)
    with DeviceState(fleet.folder / "lamp", fresh_memory(config)) as state:
        assert state.memory.base == fingerprint
    shutil.copy(fleet.copy(seed=1), path)
    with DeviceState(fleet.folder / "lamp", fresh_memory(config)) as state:
        assert state.memory.base is None
    refused(fleet, "is not a copy", base=str(path))


def test_a_fingerprint_that_is_given_is_believed(fleet):
    given = read_base(fleet.base).fingerprint
    config = fleet.device_config(base=str(fleet.copy(seed=1)), fingerprint=given, backend="llama_cpp")
    with DeviceState(fleet.folder / "lamp", fresh_memory(config)) as state:
        assert state.memory.base == given
    with DeviceState(fleet.folder / "lamp", fresh_memory(fleet.device_config(base=config.base))) as state:
        assert state.memory.base is None  # it stood in the configuration, and does no longer


def test_a_gguf_in_full_precision_needs_no_sample(fleet):
    async def way():
        async with (
            fleet.coordinator(),
            fleet.device(base=str(fleet.copy("f32")), backend="llama_cpp") as device,
        ):
            task = asyncio.create_task(device.client.run())
            await device.until("downloading")
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert device.state.memory.base == read_base(fleet.base).fingerprint
            assert not device.of("proved")
            assert device.of("downloading")[0].text.startswith("version 0")

    asyncio.run(way())


def test_without_a_sample_the_fingerprint_has_to_be_given(fleet):
    """A coordinator that has only a quantised copy itself can serve none."""
    fingerprint = read_base(fleet.base).fingerprint
    copy = str(fleet.copy())

    async def way():
        async with fleet.coordinator(base=copy, fingerprint=fingerprint), fleet.device(base=copy) as device:
            with pytest.raises(BaseModelError, match=f"serves no sample.*give --fingerprint {fingerprint}"):
                await device.client.run()

    asyncio.run(way())


def test_a_sample_that_is_no_sample_is_refused_before_it_is_fetched(fleet, make_manifest):
    """Also by a coordinator that has signed it."""
    manifest: Manifest = make_manifest(sketch=Blob(sha256="0" * 64, root="1" * 64, size_bytes=MAX_BYTES + 1))
    with pytest.raises(BaseModelError, match=f"has {MAX_BYTES + 1} bytes, expected at most {MAX_BYTES}"):
        sample_of(manifest, fleet.base)


@pytest.mark.mlx
def test_what_mlx_lm_quantised_is_proved_too(fleet, tmp_path):
    mlx_lm = pytest.importorskip("mlx_lm", reason="needs the mlx extra")
    copy = tmp_path / "copy"
    mlx_lm.convert(str(fleet.base), str(copy), quantize=True, q_bits=4, q_group_size=32)

    async def way():
        async with fleet.coordinator(), fleet.device(base=str(copy), backend="mlx") as device:
            task = asyncio.create_task(device.client.run())
            proved = await device.until("proved")
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            return proved

    assert asyncio.run(way()).facts["num_wrong"] == 0
