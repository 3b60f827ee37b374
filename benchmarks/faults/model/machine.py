"""What can happen between a device and a coordinator, in any order; and what must hold after each of it.

Messages are lost, repeated, reordered, delayed past restarts, replayed and moved by strangers; either end is
killed at any point; the coordinator forgets an upload, has no room, or loses on its disk what had come.

    a verdict is about the very bytes that the device signed, and only then it drops an update
    an update counts once, and as it was spooled
    what is kept of a transfer is what was sent, whoever spoke
    no more than a window is under way
    once the network is kind, everything ends, within a few rounds
"""

import hashlib

import hypothesis.strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from benchmarks.faults.model.world import (
    CHUNK_BYTES,
    DEVICE,
    PATIENCE_S,
    RECEIPTS,
    TOPICS,
    Coordinator,
    Device,
    Message,
    Spooled,
    spooled,
)
from edge.protocol.chunks import num_chunks
from edge.protocol.messages import WINDOW, Receipt
from edge.protocol.patience import MAX_BACKOFF
from edge.protocol.signing import Signer

MOST_SPOOLED, MOST_FLYING, MOST_PAST = 3, 40, 60
ROUNDS = 30  # of a kind network, for each update and for the blob
PLACES = st.integers(0, 1 << 16)
SIZES = st.sampled_from([0, 1, 1023, 1024, 1025, 3 * CHUNK_BYTES, 5 * CHUNK_BYTES - 7])
SECONDS = st.sampled_from([0.1, 1.0, PATIENCE_S, 3 * PATIENCE_S, 100 * PATIENCE_S])
BLOB = hashlib.shake_128(b"blob").digest(20 * CHUNK_BYTES + 100)  # more than a window


class Protocol(RuleBasedStateMachine):
    """One device, one coordinator, and strangers."""

    num_steps = 0  # of all machines of this process, for who reports

    def __init__(self) -> None:
        super().__init__()
        keys = [hashlib.sha256(name.encode()).digest() for name in (DEVICE, "coordinator", "stranger")]
        names = [Signer(key, 0).key for key in keys]
        self.device = Device(keys[0], names[1], BLOB)
        self.coordinator = Coordinator(keys[1], names[0], BLOB)
        self.stranger = Signer(keys[2], 1 << 40)
        self.known: dict[str, Spooled] = {}  # every update that ever was, by its id
        self.up: list[Message] = []
        self.down: list[Message] = []
        self.past: list[Message] = []  # what was ever on the wire, the latest of it
        self.now = 0.0
        self.lost_on_disk: set[str] = set()

    # The two ends.

    @precondition(lambda self: len(self.device.spool) < MOST_SPOOLED)
    @rule(size=SIZES)
    def spool(self, size: int) -> None:
        """The device has trained."""
        attempt = len(self.known)
        entry = spooled(hashlib.shake_128(f"{attempt}".encode()).digest(size), attempt)
        self.known[entry.header.update] = entry
        self.device.spool.append(entry)

    @rule(count=st.integers(1, 8), window=st.sampled_from([0, 1, 4, WINDOW, 100]))
    def device_sends(self, count: int, window: int) -> None:
        """The device sends parts of its update, as many as its broker takes."""
        for _ in range(count):
            message = self.device.send(self.now, window)
            if message is None:
                return
            self._onto(self.up, message)

    @precondition(lambda self: self.device.flying)
    @rule(place=PLACES)
    def device_hears_its_broker(self, place: int) -> None:
        """One of the parts under way is acknowledged."""
        self.device.acknowledge(place % len(self.device.flying), self.now)

    @rule()
    def device_asks(self) -> None:
        """The device asks for more of its blob, if it is time to."""
        if message := self.device.ask(self.now):
            self._onto(self.up, message)

    @rule(count=st.integers(1, 20))
    def coordinator_sends(self, count: int) -> None:
        """The coordinator sends chunks of the blob."""
        for _ in range(count):
            message = self.coordinator.send_chunk(WINDOW)
            if message is None:
                return
            self._onto(self.down, message)

    @precondition(lambda self: self.coordinator.flying)
    @rule(place=PLACES, count=st.integers(1, WINDOW))
    def coordinator_hears_its_broker(self, place: int, count: int) -> None:
        """Some of the chunks under way are acknowledged."""
        for _ in range(min(count, len(self.coordinator.flying))):
            self.coordinator.acknowledge(place % len(self.coordinator.flying))

    # The network.

    @precondition(lambda self: self.up)
    @rule(place=PLACES, stays=st.booleans())
    def deliver_up(self, place: int, stays: bool) -> None:
        """Any message arrives; it may arrive again."""
        self._hear_up(self._taken(self.up, place, stays))

    @precondition(lambda self: self.down)
    @rule(place=PLACES, stays=st.booleans())
    def deliver_down(self, place: int, stays: bool) -> None:
        """Any message arrives; it may arrive again."""
        self.device.hear(self._taken(self.down, place, stays), self.now)

    @precondition(lambda self: self.up)
    @rule(place=PLACES)
    def lose_up(self, place: int) -> None:
        """A message never arrives, though the broker had it."""
        self._taken(self.up, place, False)

    @precondition(lambda self: self.down)
    @rule(place=PLACES)
    def lose_down(self, place: int) -> None:
        """A message never arrives."""
        self._taken(self.down, place, False)

    @rule(count=st.integers(1, 6))
    def the_wire_works(self, count: int) -> None:
        """Some parts are sent, arrive and are acknowledged: else few walks would come to a verdict."""
        for _ in range(count):
            if message := self.device.send(self.now, WINDOW):
                self._onto(self.up, message)
            if self.device.flying:
                self.device.acknowledge(0, self.now)
            if self.up:
                self._hear_up(self.up.pop(0))
            if self.down:
                self.device.hear(self.down.pop(0), self.now)

    @rule(seconds=SECONDS)
    def time_passes(self, seconds: float) -> None:
        """Nothing happens for a while."""
        self.now += seconds

    # Accidents.

    @rule()
    def device_is_killed(self) -> None:
        """The device comes again with its spool and what it has received."""
        self.device.begin()

    @rule()
    def coordinator_is_killed(self) -> None:
        """The coordinator comes again with its journal and what it has received."""
        self.coordinator.begin()

    @precondition(lambda self: self.coordinator.open)
    @rule(place=PLACES)
    def coordinator_evicts(self, place: int) -> None:
        """An upload under way makes room for another."""
        names = list(self.coordinator.open)
        del self.coordinator.open[names[place % len(names)]]

    @rule(is_busy=st.booleans())
    def coordinator_is_busy(self, is_busy: bool) -> None:
        """There is no room for further uploads, or there is again."""
        self.coordinator.is_busy = is_busy

    @precondition(lambda self: any(any(one.received.present) for one in self.coordinator.open.values()))
    @rule(place=PLACES)
    def coordinator_loses_a_chunk_on_its_disk(self, place: int) -> None:
        """After a power cut a chunk is marked as here, and is not."""
        begun = [one for one in self.coordinator.open.values() if any(one.received.present) and one.content]
        if begun:
            upload = begun[place % len(begun)]
            here = [number for number, present in enumerate(upload.received.present) if present]
            upload.content[here[place % len(here)] * CHUNK_BYTES] ^= 1
            self.lost_on_disk.add(upload.header.update)

    # Strangers.

    @precondition(lambda self: self.past)
    @rule(place=PLACES)
    def stranger_sends_again(self, place: int) -> None:
        """Somebody sends what was on the wire before, to either end."""
        self._to_both(self.past[place % len(self.past)])

    @precondition(lambda self: self.past)
    @rule(place=PLACES, other=PLACES)
    def stranger_moves(self, place: int, other: int) -> None:
        """Somebody sends what was on the wire before, under the topic of something else."""
        one, two = self.past[place % len(self.past)], self.past[other % len(self.past)]
        self._to_both(Message(two.topic, one.payload))

    @precondition(lambda self: self.past)
    @rule(place=PLACES, at=PLACES)
    def stranger_damages(self, place: int, at: int) -> None:
        """Somebody sends what was on the wire before, with one bit turned."""
        topic, payload = self.past[place % len(self.past)]
        if payload:
            damaged = bytearray(payload)
            damaged[at % len(payload)] ^= 1 << (at % 8)
            self._to_both(Message(topic, bytes(damaged)))

    @precondition(lambda self: self.known)
    @rule(place=PLACES, number=st.integers(0, 30), junk=st.binary(max_size=40))
    def stranger_sends_junk(self, place: int, number: int, junk: bytes) -> None:
        """Somebody sends a chunk of an update that is none, of one under way where there is one."""
        updates = list(self.coordinator.open or self.known)
        update = updates[place % len(updates)]
        total = num_chunks(len(self.known[update].payload), CHUNK_BYTES)
        self._to_both(Message(TOPICS.up(DEVICE, update, number % (total + 1)), junk * 60))
        self._to_both(Message(TOPICS.up(DEVICE, update, "header"), junk))

    @precondition(lambda self: self.known)
    @rule(place=PLACES, status=st.sampled_from(["accepted", "rejected", "missing", "busy"]))
    def stranger_signs(self, place: int, status: str) -> None:
        """Somebody signs a header and a verdict with a key of his own, as late as he likes."""
        entry = self.known[list(self.known)[place % len(self.known)]]
        topic = TOPICS.up(DEVICE, entry.header.update, "header")
        receipt = Receipt(update=entry.header.update, header=entry.digest, status=status)
        self._to_both(Message(topic, self.stranger.seal(topic, entry.header)))
        self._to_both(Message(RECEIPTS, self.stranger.seal(RECEIPTS, receipt)))

    @precondition(lambda self: self.device.spool)
    @rule(status=st.sampled_from(["accepted", "rejected"]), digit=st.sampled_from("0123456789abcdef"))
    def coordinator_speaks_of_other_bytes(self, status: str, digit: str) -> None:
        """The coordinator gives a verdict on the same update's id and another header."""
        receipt = Receipt(update=self.device.spool[0].header.update, header=digit * 64, status=status)
        self._onto(self.down, Message(RECEIPTS, self.coordinator.signer.seal(RECEIPTS, receipt)))

    # What must hold.

    @invariant()
    def every_update_counts_once_and_as_it_was_spooled(self) -> None:
        """The journal's bytes are the spool's."""
        type(self).num_steps += 1
        counted = self.coordinator.counted
        assert len({update for update, _ in counted}) == len(counted)
        for update, payload in counted[-3:]:
            assert payload == self.known[update].payload

    @invariant()
    def a_device_drops_nothing_without_a_verdict_on_its_bytes(self) -> None:
        """What left the spool stands in the journal, with the same outcome."""
        assert len(self.known) == len(self.device.spool) + len(self.device.dropped)
        for digest, receipt in list(self.device.dropped.items())[-3:]:
            verdict = self.coordinator.journal[receipt.update]
            assert (verdict.header, verdict.status) == (digest, receipt.status)

    @invariant()
    def what_is_kept_is_what_was_sent(self) -> None:
        """No junk is ever kept, on either side."""
        for update, upload in self.coordinator.open.items():
            if update not in self.lost_on_disk:
                _check_kept(upload.content, self.known[update].payload, upload.received.present)
        _check_kept(self.device.kept, BLOB, self.device.received.present)

    @invariant()
    def no_more_than_a_window_is_under_way(self) -> None:
        """A broker is never given more than its window."""
        assert len(self.device.flying) <= WINDOW
        assert len(self.coordinator.flying) <= WINDOW

    def teardown(self) -> None:
        """Has the network be kind, and everything end."""
        self.coordinator.is_busy = False
        for _ in range(ROUNDS * (len(self.device.spool) + 1)):
            if not self.device.spool and self.device.received.is_complete:
                break
            self._kind_round()
        assert not self.device.spool, "an update never got its verdict"
        assert self.device.received.is_complete, "a download never ended"
        assert bytes(self.device.kept) == BLOB
        self.every_update_counts_once_and_as_it_was_spooled()
        assert {update for update, _ in self.coordinator.counted} == {
            update for update, entry in self.known.items() if entry.header.attempt % 5 != 4
        }

    def _kind_round(self) -> None:
        """Everything that can be sent is, arrives once, and is acknowledged; then time passes."""
        message: Message | None = None
        while self.device.flying or (message := self.device.send(self.now, WINDOW)):
            if message:
                self.up.append(message)
            while self.device.flying:
                self.device.acknowledge(0, self.now)
            message = None
        if message := self.device.ask(self.now):
            self.up.append(message)
        while self.up:
            self._hear_up(self.up.pop(0))
        while self.coordinator.flying:
            self.coordinator.acknowledge(0)
        while message := self.coordinator.send_chunk(WINDOW):
            self.down.append(message)
            self.coordinator.acknowledge(0)
        while self.down:
            self.device.hear(self.down.pop(0), self.now)
        self.now += MAX_BACKOFF * PATIENCE_S

    def _hear_up(self, message: Message) -> None:
        for answer in self.coordinator.hear(message):
            self._onto(self.down, answer)

    def _to_both(self, message: Message) -> None:
        self._hear_up(message)
        self.device.hear(message, self.now)

    def _onto(self, wire: list[Message], message: Message) -> None:
        """Puts a message on the wire; where too many fly, the oldest is lost."""
        wire.append(message)
        del wire[:-MOST_FLYING]
        self.past.append(message)
        del self.past[:-MOST_PAST]

    @staticmethod
    def _taken(wire: list[Message], place: int, stays: bool) -> Message:
        return wire[place % len(wire)] if stays else wire.pop(place % len(wire))


def _check_kept(content: bytearray, payload: bytes, present: bytearray) -> None:
    for number, is_here in enumerate(present):
        if is_here:
            at = slice(number * CHUNK_BYTES, (number + 1) * CHUNK_BYTES)
            assert content[at] == payload[at]
