"""Goodput of an upload through Mosquitto, against a bare paho loop with the same chunks; a client's memory.

Ours reads an encoded delta of 20 MB from a file, as the spool keeps it, publishes it by `MqttTransport` in
chunks of 64 KiB, each with its proof, and ends when the receiver has checked every chunk and has it in a file
that survives a kill (`PartFile`); hashing and fsync afterwards are stated apart. Two bare paho loops send the
same chunks at QoS 1 within the same window: `file` from a file into a file, as any upload must, and `memory`,
whose subscriber only counts. All ends are processes of their own; the ways take turns (A B C A B C …) through
one broker, and the clock runs from before the first chunk to the last.

On a machine that does other things too, the order of wake-ups decides; `chrt -r 1 python -m …` as root helps.

Run as: python -m benchmarks.speed.upload [--json] [--repeats 7]
        python -m benchmarks.speed.upload --memory [--json]
"""

import argparse
import asyncio
import hashlib
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import numpy as np
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion

from benchmarks.measuring import last_line, print_report, run_module, spread
from benchmarks.mosquitto import running_mosquitto
from converters.adapter import Factors, LoraAdapter
from converters.errors import TunefleetError
from edge.protocol.chunks import CHUNK_BYTES, num_chunks
from edge.protocol.codec import encode_adapter
from edge.storage.parts import PartFile, read_tree
from edge.transport.mqtt.transport import MqttTransport
from edge.transport.settings import MqttSettings

WINDOW = 16
TARGET = 0.8
MAX_MEMORY_MB = 60


class Upload(NamedTuple):
    """What both ends know."""

    port: int
    topic: str  # another for every upload: sessions of earlier ones are still there
    path: Path  # of the payload
    size_bytes: int
    sha256: str
    root: str

    @property
    def num_chunks(self) -> int:
        """Of the payload."""
        return num_chunks(self.size_bytes, CHUNK_BYTES)


def make_delta() -> bytes:
    """Draws a delta of 20 MB: rank 8 on q and v of 76 layers of 2048 features, float32."""
    generator = np.random.default_rng(0)
    modules = {}
    for layer in range(76):
        for kind in "qv":
            a = generator.standard_normal((8, 2048), dtype=np.float32)
            b = generator.standard_normal((2048, 8), dtype=np.float32)
            modules[f"model.layers.{layer}.self_attn.{kind}_proj"] = Factors(a, b, 2.0)
    return encode_adapter(LoraAdapter(modules), "f32")


def receive_ours(upload: Upload, pipe: Connection) -> None:
    """Plays the coordinator: writes chunks into a file, and checks its hash."""

    async def receive() -> None:
        settings = MqttSettings(host="127.0.0.1", port=upload.port, client_id=f"{upload.topic}-receiver")
        async with MqttTransport(settings) as transport:
            await transport.subscribe(f"{upload.topic}/+")
            pipe.send("ready")
            sizes = (upload.size_bytes, CHUNK_BYTES)
            part = PartFile(upload.path.with_suffix(".part"), *sizes, upload.sha256, upload.root)
            async for message in transport.messages():
                part.write(int(message.topic.rpartition("/")[2]), message.payload)
                if part.received.is_complete:
                    break
            pipe.send(time.monotonic())
            part.finish(upload.path.with_suffix(".received"))
            pipe.send(time.monotonic())

    asyncio.run(receive())


def send_ours(upload: Upload, pipe: Connection) -> None:
    """Plays the device: sends chunks of the spool's file, as many at a time as the window holds."""

    async def send() -> None:
        settings = MqttSettings(host="127.0.0.1", port=upload.port, client_id=f"{upload.topic}-sender")
        async with MqttTransport(settings) as transport:
            numbers = iter(range(upload.num_chunks))
            with upload.path.open("rb") as file:
                pipe.send(time.monotonic())
                tree = read_tree(upload.path, upload.size_bytes, CHUNK_BYTES)

                async def publish() -> None:
                    for number in numbers:
                        file.seek(number * CHUNK_BYTES)
                        chunk = tree.proof(number) + file.read(CHUNK_BYTES)
                        await transport.publish(f"{upload.topic}/{number}", chunk)

                await asyncio.gather(*(publish() for _ in range(WINDOW)))

    asyncio.run(send())


def receive_memory(upload: Upload, pipe: Connection) -> None:
    """Counts the chunks."""
    _receive_bare(upload, pipe, lambda number, chunk: None)


def receive_file(upload: Upload, pipe: Connection) -> None:
    """Writes the chunks to their places."""
    with upload.path.with_suffix(".bare").open("wb", buffering=0) as file:

        def keep(number: int, chunk: bytes | bytearray) -> None:
            file.seek(number * CHUNK_BYTES)
            file.write(chunk)

        _receive_bare(upload, pipe, keep)


def _receive_bare(upload: Upload, pipe: Connection, keep: Callable[[int, bytes | bytearray], None]) -> None:
    client = Client(CallbackAPIVersion.VERSION2, f"{upload.topic}-receiver")
    left = [upload.num_chunks]

    def received(_client: object, _userdata: object, message: MQTTMessage) -> None:
        keep(int(message.topic.rpartition("/")[2]), message.payload)
        left[0] -= 1
        if not left[0]:
            pipe.send(time.monotonic())
            client.disconnect()

    client.on_message = received
    client.on_connect = lambda *_: client.subscribe(f"{upload.topic}/+", qos=1)  # type: ignore[assignment]
    client.on_subscribe = lambda *_: pipe.send("ready")
    client.connect("127.0.0.1", upload.port)
    client.loop_forever()


def send_memory(upload: Upload, pipe: Connection) -> None:
    """Publishes chunks from memory."""
    data = upload.path.read_bytes()
    chunks = [data[start : start + CHUNK_BYTES] for start in range(0, len(data), CHUNK_BYTES)]
    _send_bare(upload, pipe, iter(chunks))


def send_file(upload: Upload, pipe: Connection) -> None:
    """Publishes chunks as they are read."""
    with upload.path.open("rb", buffering=0) as file:
        _send_bare(upload, pipe, iter(lambda: file.read(CHUNK_BYTES), b""))


def _send_bare(upload: Upload, pipe: Connection, chunks: Iterator[bytes]) -> None:
    """Queues everything; paho's network thread sends it within the window."""
    client = Client(CallbackAPIVersion.VERSION2, f"{upload.topic}-sender")
    client.max_inflight_messages_set(WINDOW)
    client.connect("127.0.0.1", upload.port)
    client.loop_start()
    while not client.is_connected():
        time.sleep(0.01)
    pipe.send(time.monotonic())
    published = [client.publish(f"{upload.topic}/{n}", chunk, qos=1) for n, chunk in enumerate(chunks)]
    for info in published:
        info.wait_for_publish()
    client.disconnect()
    client.loop_stop()


WAYS = {
    "ours": (receive_ours, send_ours),
    "file": (receive_file, send_file),
    "memory": (receive_memory, send_memory),
}


def run_once(way: str, upload: Upload) -> tuple[float, float]:
    """Returns MB/s from the first chunk sent to the last received, and the receiver's seconds after it."""
    receive, send = WAYS[way]
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    receiver = spawn.Process(target=receive, args=(upload, there))
    receiver.start()
    assert here.recv() == "ready"
    sender_here, sender_there = spawn.Pipe()
    sender = spawn.Process(target=send, args=(upload, sender_there))
    sender.start()
    start, end = sender_here.recv(), here.recv()
    finished = here.recv() if way == "ours" else end
    sender.join()
    receiver.join()
    return upload.size_bytes / (end - start) / 1e6, finished - end


async def measure_goodput(repeats: int) -> dict[str, object]:
    """Measures all ways in turn; ratios are taken within a turn."""
    payload = make_delta()
    sha256 = hashlib.sha256(payload).hexdigest()
    turns = []
    with tempfile.TemporaryDirectory() as name:
        async with running_mosquitto(Path(name)) as broker:
            path = Path(name) / "spooled"
            path.write_bytes(payload)
            for turn in range(repeats + 1):
                root = read_tree(path, len(payload), CHUNK_BYTES).root
                what = (path, len(payload), sha256, root)
                turns.append(
                    {way: run_once(way, Upload(broker.port, f"{way}-{turn}", *what)) for way in WAYS}
                )
    del turns[0]  # it warmed caches and bytecode
    speeds = {way: [turn[way][0] for turn in turns] for way in WAYS}
    ratios = {way: spread([turn["ours"][0] / turn[way][0] for turn in turns]) for way in ("file", "memory")}
    return {
        "size_mb": len(payload) / 1e6,
        **{f"{way}_mb_per_s": spread(values) for way, values in speeds.items()},
        **{f"ratio_to_{way}": ratio for way, ratio in ratios.items()},
        "hash_and_fsync_ms": spread([1e3 * turn["ours"][1] for turn in turns]),
        "target": TARGET,
        "is_met": {way: ratio.median >= TARGET for way, ratio in ratios.items()},
    }


def measure_memory() -> dict[str, object]:
    """Returns the resident MB of a process that has imported what a client imports."""
    megabytes = float(last_line(run_module("benchmarks.speed.client_memory")))
    return {"resident_mb": megabytes, "target": MAX_MEMORY_MB, "is_met": megabytes < MAX_MEMORY_MB}


def main() -> None:
    """Measures what is asked for, and prints it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--memory", action="store_true", help="measure a client's memory instead")
    parser.add_argument("--repeats", type=int, default=7, help="pairs of uploads")
    options = parser.parse_args()
    try:
        report = measure_memory() if options.memory else asyncio.run(measure_goodput(options.repeats))
    except TunefleetError as error:
        sys.exit(f"upload: {error}")
    print_report(report, options.json)


if __name__ == "__main__":
    main()
