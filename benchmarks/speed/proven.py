"""What it costs that an update is sealed and proves itself: whole uploads with and without, in turns.

An upload lasts from the encoded delta in the spool to the verdict at the device: header, chunks of 64 KiB at
QoS 1 through Mosquitto, a file that survives a kill, its SHA-256, fsync, receipt. `proven` seals the delta,
hashes its Merkle tree, signs header and receipt, checks both, and every chunk's proof when it comes, and
opens the payload again; `plain` sends the same bytes and checks nothing but the whole. Both ends are
processes of their own.

The loopback has no cable: the seconds by the clock say what a fleet in one room would notice, on a machine
that does nothing else. What a device pays is processor time, which other programs do not change: it is stated
of both ends together, and as a share of the time that the bytes alone take at 20 and 100 Mbit/s.

Run as: python -m benchmarks.speed.proven [--repeats 7] [--size-mb 20] [--json]
"""

import argparse
import asyncio
import hashlib
import multiprocessing
import os
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from benchmarks.measuring import print_report, spread
from benchmarks.mosquitto import running_mosquitto
from converters.errors import TunefleetError
from edge.protocol.chunks import CHUNK_BYTES, num_chunks
from edge.protocol.merkle import Tree
from edge.protocol.messages import Facts, Receipt
from edge.protocol.sealing import Context, open_update, seal_update, sealing_public_key
from edge.protocol.signing import Keyring, Signer, read_signed
from edge.storage.parts import PartFile, read_tree
from edge.transport.mqtt.transport import MqttTransport
from edge.transport.settings import MqttSettings

WINDOW = 16
LINKS_MBIT = (20, 100)
TARGET = 0.05
DEVICE, COORDINATOR = bytes(range(32)), bytes(range(32, 64))
CONTEXT = Context("home", "lamp", 0, 0, "0" * 64)
FACTS = Facts(num_examples=1, num_tokens=1, num_steps=1, seconds=1.0, loss_before=1.0, loss_after=1.0)


class Turn(NamedTuple):
    """One upload, as both ends know it."""

    port: int
    name: str  # another for every upload
    is_proven: bool
    folder: Path

    def settings(self, end: str) -> MqttSettings:
        """Returns how an end reaches the broker."""
        return MqttSettings(host="127.0.0.1", port=self.port, client_id=f"{self.name}-{end}")

    def topic(self, part: object) -> str:
        """Returns the topic of a part, or of the receipt."""
        return f"{self.name}/{part}"


class Unchecked(PartFile):
    """A file that takes chunks as they are."""

    def write(self, number: int, message: bytes) -> bool:
        """Keeps a chunk, as a part file without proofs would."""
        if not self.received.lacks(number, len(message)):
            return False
        for content, offset in ((message, number * self.chunk_bytes), (b"\1", self.size_bytes + number)):
            file = os.open(self.path, os.O_WRONLY)
            os.pwrite(file, content, offset)
            os.close(file)
        self.received.take(number)
        return True


def receive(turn: Turn, pipe: Connection) -> None:
    """Plays the coordinator."""

    async def run() -> None:
        keyring, signer = Keyring(), Signer(COORDINATOR, 1)
        async with MqttTransport(turn.settings("receiver")) as transport:
            await transport.subscribe(turn.topic("+"))
            pipe.send("ready")
            part: PartFile | None = None
            async for message in transport.messages():
                if message.topic == turn.topic("header"):
                    what = message.payload
                    if turn.is_proven:
                        what = keyring.open(message.topic, read_signed(what), Receipt).record.detail.encode()
                    size, sha256, root = what.decode().split()
                    kind = PartFile if turn.is_proven else Unchecked
                    part = kind(turn.folder / "part", int(size), CHUNK_BYTES, sha256, root)
                elif part is not None and message.topic != turn.topic("receipt"):
                    part.write(int(message.topic.rpartition("/")[2]), message.payload)
                    if part.received.is_complete:
                        break
            assert part is not None
            final = turn.folder / "received"
            assert await asyncio.to_thread(part.finish, final)
            receipt = Receipt(update="0" * 32, header="0" * 64, status="accepted")
            answer = b"accepted"
            if turn.is_proven:
                open_update(final.read_bytes(), COORDINATOR, CONTEXT)
                answer = signer.seal(turn.topic("receipt"), receipt)
            await transport.publish(turn.topic("receipt"), answer)

    asyncio.run(run())
    pipe.send(time.process_time())


def send(turn: Turn, pipe: Connection) -> None:
    """Plays the device; tells how long it took, and how long its own sealing and hashing."""

    async def run() -> None:
        path = turn.folder / "spooled"
        signer, keyring = Signer(DEVICE, 1), Keyring()
        delta = path.read_bytes()
        async with MqttTransport(turn.settings("sender")) as transport:
            await transport.subscribe(turn.topic("receipt"))
            began = time.monotonic()
            tree: Tree | None = None
            if turn.is_proven:
                payload = seal_update(FACTS, delta, sealing_public_key(COORDINATOR), CONTEXT)
                path.write_bytes(payload)
                tree = read_tree(path, len(payload), CHUNK_BYTES)
            else:
                payload = delta
                path.write_bytes(payload)
            sha256, root = hashlib.sha256(payload).hexdigest(), tree.root if tree else "0" * 64
            header = f"{len(payload)} {sha256} {root}"
            content = header.encode()
            if turn.is_proven:
                told = Receipt(update="0" * 32, header="0" * 64, status="missing", detail=header)
                content = signer.seal(turn.topic("header"), told)
            await transport.publish(turn.topic("header"), content)
            numbers = iter(range(num_chunks(len(payload), CHUNK_BYTES)))
            with path.open("rb") as file:

                async def publish() -> None:
                    for number in numbers:
                        file.seek(number * CHUNK_BYTES)
                        chunk = file.read(CHUNK_BYTES)
                        proof = tree.proof(number) if tree else b""
                        await transport.publish(turn.topic(number), proof + chunk)

                await asyncio.gather(*(publish() for _ in range(WINDOW)))
            answer = await anext(transport.messages())
            if turn.is_proven:
                keyring.open(answer.topic, read_signed(answer.payload), Receipt)
            pipe.send(time.monotonic() - began)

    asyncio.run(run())
    pipe.send(time.process_time())


class Cost(NamedTuple):
    """What an upload takes."""

    seconds: float  # by the clock, from the spool to the verdict
    cpu_s: float  # of both processes, their start included


def upload(turn: Turn) -> Cost:
    """Uploads once."""
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    receiver = spawn.Process(target=receive, args=(turn, there))
    receiver.start()
    assert here.recv() == "ready"
    sender_here, sender_there = spawn.Pipe()
    sender = spawn.Process(target=send, args=(turn, sender_there))
    sender.start()
    seconds, cpu_s = float(sender_here.recv()), float(sender_here.recv()) + float(here.recv())
    sender.join()
    receiver.join()
    return Cost(seconds, cpu_s)


async def measure(repeats: int, size_bytes: int) -> dict[str, object]:
    """Measures both in turn; shares are taken within a turn."""
    turns = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        delta = os.urandom(size_bytes)
        async with running_mosquitto(folder) as broker:
            for number in range(repeats + 1):
                costs = {}
                for is_proven in (True, False) if number % 2 else (False, True):
                    (folder / "spooled").write_bytes(delta)
                    turn = Turn(broker.port, f"turn-{number}-{is_proven}", is_proven, folder)
                    costs[is_proven] = upload(turn)
                turns.append(costs)
    del turns[0]  # it warmed caches and bytecode
    extra = [turn[True].cpu_s - turn[False].cpu_s for turn in turns]
    longer = [1 - turn[False].seconds / turn[True].seconds for turn in turns]
    link = {mbit: size_bytes * 8 / mbit / 1e6 for mbit in LINKS_MBIT}
    shares = {mbit: spread([one / (alone + one) for one in extra]) for mbit, alone in link.items()}
    return {
        "size_mb": size_bytes / 1e6,
        "proven_s": spread([turn[True].seconds for turn in turns]),
        "plain_s": spread([turn[False].seconds for turn in turns]),
        "share_on_loopback": spread(longer),
        "extra_cpu_s": spread(extra),
        **{f"share_at_{mbit}_mbit": share for mbit, share in shares.items()},
        "target": TARGET,
        "is_met": {mbit: share.median < TARGET for mbit, share in shares.items()},
    }


def main() -> None:
    """Measures what is asked for, and prints it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--repeats", type=int, default=7, help="pairs of uploads")
    parser.add_argument("--size-mb", type=float, default=20.0, help="of the encoded delta")
    options = parser.parse_args()
    try:
        report = asyncio.run(measure(options.repeats, int(options.size_mb * 1e6)))
    except TunefleetError as error:
        sys.exit(f"proven: {error}")
    print_report(report, options.json)


if __name__ == "__main__":
    main()
