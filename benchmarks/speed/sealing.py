"""What sealing and signatures cost, as a share of an upload's time through Mosquitto.

One process plays both ends, over two connections to a real broker. An upload is: sealed, spooled (synced),
its header signed, its chunks sent with their proofs, checked and kept in a file, the whole synced, opened,
decoded, and receipted. In the same turn the same cryptography is done once more by itself: `sealing` is seal
and opening, `proofs` the rest that wire 2 asks for (tree, proofs and their checks, hash, signatures). Shares
are of the upload's time by the clock, in which broker and disk are waited for, and of the processor time of
both ends, which other work on the machine does not change. Training, which takes seconds to minutes, is no
part of it.

Run as: python -m benchmarks.speed.sealing [--repeats 7] [--json]
"""

import argparse
import asyncio
import hashlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from msgspec import Struct

from benchmarks.measuring import Spread, as_json, spread, timed
from benchmarks.mosquitto import running_mosquitto
from converters.adapter import Factors, LoraAdapter
from edge.protocol.chunks import CHUNK_BYTES, split_chunks
from edge.protocol.codec import decode_adapter, encode_adapter
from edge.protocol.merkle import Tree, proven_chunk
from edge.protocol.messages import WINDOW, Facts, Receipt, UpdateHeader
from edge.protocol.sealing import Context, open_update, seal_update, sealing_public_key
from edge.protocol.signing import Keyring, Signer, new_key, read_signed
from edge.storage.disk import write_through
from edge.storage.parts import PartFile
from edge.transport.mqtt.transport import MqttTransport
from edge.transport.settings import MqttSettings

LAYERS = {"4.5 kB": 1, "1.2 MB": 18, "20 MB": 304}  # of rank 8 and 512 features in f16, but for the first
TARGET = 0.05
SHA = "0" * 64
FACTS = Facts(num_examples=20, num_tokens=900, num_steps=20, seconds=3.5, loss_before=2.0, loss_after=1.0)


class Ends(NamedTuple):
    """Both ends of an upload."""

    device: Signer
    coordinator: Signer
    identity: bytes
    key: str  # that updates are sealed for


class Figures(Struct, frozen=True):
    """Of one size of update; milliseconds, all but the first of processor time."""

    upload_ms: Spread  # by the clock
    upload_cpu_ms: Spread
    sealing_ms: Spread
    proofs_ms: Spread
    sealing_share: Spread  # of the upload's time by the clock, within a turn
    all_share: Spread  # of proofs, too
    sealing_cpu_share: Spread  # the same of its processor time
    all_cpu_share: Spread
    is_met: bool


class Turn(NamedTuple):
    """Seconds."""

    clock: float
    cpu: float
    sealing: float
    proofs: float


def make_delta(name: str) -> LoraAdapter:
    """Draws a delta of about a size."""
    generator, width, rank = np.random.default_rng(0), 128 if name == "4.5 kB" else 2048, 8
    draw = lambda *shape: generator.standard_normal(shape, dtype=np.float32)  # noqa: E731
    return LoraAdapter(
        {
            f"layers.{n}.q_proj": Factors(draw(rank, width), draw(width, rank), 2.0)
            for n in range(LAYERS[name])
        }
    )


def seal_and_open(ends: Ends, delta: bytes, number: int) -> bytes:
    """Seals an update and opens it; returns what is sent."""
    context = Context("home", "lamp", number, 0, SHA)
    payload = seal_update(FACTS, delta, ends.key, context)
    open_update(payload, ends.identity, context)
    return payload


def prove(ends: Ends, payload: bytes, number: int) -> None:
    """Does the rest of an upload's cryptography, at both ends."""
    chunks, topic = list(split_chunks(payload, CHUNK_BYTES)), f"t/{number}"
    tree = Tree(chunks)
    header = _header(payload, tree.root, number)
    Keyring().open(topic, read_signed(ends.device.seal(topic, header)), UpdateHeader)
    for place, chunk in enumerate(chunks):
        proven_chunk(tree.proof(place) + chunk, place, len(chunks), tree.root)
    receipt = ends.coordinator.seal(topic, Receipt(update=header.update, header=SHA, status="accepted"))
    Keyring().open(topic, read_signed(receipt), Receipt)


async def upload(
    ends: Ends, delta: LoraAdapter, number: int, folder: Path, links: tuple[MqttTransport, MqttTransport]
) -> float:
    """Takes one update from a device to its receipt; returns the seconds that it took."""
    sender, receiver = links
    topic, began = f"up/{number}", time.perf_counter()
    context = Context("home", "lamp", number, 0, SHA)
    payload = seal_update(FACTS, encode_adapter(delta, "f16"), ends.key, context)
    write_through(folder / f"{number}.spooled", payload)
    chunks = list(split_chunks(payload, CHUNK_BYTES))
    tree = Tree(chunks)
    done = asyncio.create_task(_receive(ends, delta, number, folder, receiver, len(chunks)))
    header = ends.device.seal(f"{topic}/header", _header(payload, tree.root, number))
    await sender.publish(f"{topic}/header", header)
    numbered = iter(enumerate(chunks))

    async def publish() -> None:
        for place, chunk in numbered:
            await sender.publish(f"{topic}/{place}", tree.proof(place) + chunk)

    await asyncio.gather(*(publish() for _ in range(WINDOW)))
    await done
    async for message in sender.messages():
        Keyring().open(message.topic, read_signed(message.payload), Receipt)
        return time.perf_counter() - began
    raise AssertionError  # messages never end


async def _receive(
    ends: Ends, delta: LoraAdapter, number: int, folder: Path, receiver: MqttTransport, count: int
) -> None:
    part, header, left = None, None, count
    async for message in receiver.messages():
        name = message.topic.rpartition("/")[2]
        if name == "header":
            header = Keyring().open(message.topic, read_signed(message.payload), UpdateHeader).record
            sizes = header.size_bytes, header.chunk_bytes, header.sha256, header.root
            part = PartFile(folder / f"{number}.part", *sizes)
            continue
        assert part is not None
        left -= part.write(int(name), message.payload)
        if left == 0:
            break
    assert part is not None
    assert header is not None
    final = folder / f"{number}.received"
    part.finish(final)
    context = Context("home", "lamp", number, 0, SHA)
    decode_adapter(open_update(final.read_bytes(), ends.identity, context).delta, like=delta)
    topic = f"receipt/{number}"
    receipt = Receipt(update=header.update, header=SHA, status="accepted")
    await receiver.publish(topic, ends.coordinator.seal(topic, receipt))


def _header(payload: bytes, root: str, number: int) -> UpdateHeader:
    return UpdateHeader(
        update="0" * 32, fleet="home", device_id="lamp", tier="r8", base_version=number, base=SHA, attempt=0,
        sha256=hashlib.sha256(payload).hexdigest(), root=root, size_bytes=len(payload),
        chunk_bytes=CHUNK_BYTES, encoding="f16", base_sha256=SHA, is_sealed=True,
    )  # fmt: skip


async def measure(repeats: int) -> dict[str, Figures]:
    """Measures all sizes in turns; the first turn warms up."""
    identity, device = new_key(), new_key()
    ends = Ends(Signer(device, 1), Signer(identity, 1), identity, sealing_public_key(identity))
    deltas = {name: make_delta(name) for name in LAYERS}
    turns: dict[str, list[Turn]] = {name: [] for name in LAYERS}
    with tempfile.TemporaryDirectory() as folder:
        async with running_mosquitto(Path(folder)) as broker:
            dial: Callable[[str], MqttTransport] = lambda name: MqttTransport(  # noqa: E731
                MqttSettings(host="127.0.0.1", port=broker.port, client_id=name)
            )
            async with dial("sender") as sender, dial("receiver") as receiver:
                await sender.subscribe("receipt/+")
                await receiver.subscribe("up/+/+")
                for number in range((repeats + 1) * len(LAYERS)):
                    name = list(LAYERS)[number % len(LAYERS)]
                    cpu = time.process_time()
                    took = await upload(ends, deltas[name], number, Path(folder), (sender, receiver))
                    encoded, cpu = encode_adapter(deltas[name], "f16"), time.process_time() - cpu
                    payload, sealing = timed(seal_and_open, ends, encoded, number)
                    _, proofs = timed(prove, ends, payload, number)
                    turns[name].append(Turn(took, cpu, sealing.cpu_seconds, proofs.cpu_seconds))
                    for path in Path(folder).glob(f"{number}.*"):
                        path.unlink()
    return {name: _figures(of_size[1:]) for name, of_size in turns.items()}


def _figures(turns: list[Turn]) -> Figures:
    shares = [
        spread([of(one) / whole(one) for one in turns])
        for whole in (lambda one: one.clock, lambda one: one.cpu)
        for of in (lambda one: one.sealing, lambda one: one.sealing + one.proofs)
    ]
    columns = (spread([1e3 * seconds for seconds in column]) for column in zip(*turns, strict=True))
    return Figures(*columns, *shares, shares[1].median < TARGET)


def main() -> None:
    """Measures, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    report = asyncio.run(measure(options.repeats))
    if options.json:
        print(as_json(report))
        return
    for name, one in report.items():
        print(
            f"{name:7} upload {one.upload_ms.shown()} ms, processor {one.upload_cpu_ms.shown()} ms; sealing "
            f"{one.sealing_ms.shown()} ms, {one.sealing_share.shown('.1%')} of the time and "
            f"{one.sealing_cpu_share.shown('.1%')} of the processor's; with proofs and signatures "
            f"{one.all_share.shown('.1%')} and {one.all_cpu_share.shown('.1%')}"
        )


if __name__ == "__main__":
    main()
