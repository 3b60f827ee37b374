"""Which of the manifests that it hears a device follows."""

from coordinator.older_wire import NOTICE
from edge.device.inbox import Inbox
from edge.device.wakeups import Wakeups
from edge.protocol.messages import Receipt, Recipe
from edge.protocol.signing import Signer, new_key, public_key
from edge.protocol.tiers import tier_rank
from edge.protocol.topics import Topics
from edge.transport.base import Message

TOPICS = Topics("home")


class Ears:
    """An inbox, and whom it listens to."""

    def __init__(self, make_manifest, seen=(0, -1), key="known"):
        self.key = new_key()
        self.signers = {}
        self.warnings = []
        self.wakeups = Wakeups()
        self.inbox = Inbox(
            "home",
            "lamp",
            public_key(self.key) if key else None,
            wakeups=self.wakeups,
            on_chunk=lambda *_: None,
            on_receipt=lambda _: None,
            on_access=lambda _: None,
            warn=self.warnings.append,
            seen=seen,
        )
        self._make = make_manifest

    def hear(self, epoch, version, tier="r4", **changes):
        manifest = self._make(epoch=epoch, version=version, tier=tier, rank=tier_rank(tier), **changes)
        signer = self.signers.setdefault(epoch, Signer(self.key, epoch))
        topic = TOPICS.version(tier)
        self.inbox.receive(Message(topic, signer.seal(topic, manifest)))

    def chosen(self):
        manifest = self.inbox.choose(64)
        return manifest and (manifest.epoch, manifest.version, manifest.tier)


def test_only_a_later_epoch_may_lower_the_version(make_manifest):
    ears = Ears(make_manifest)
    ears.hear(1, 70)
    ears.hear(1, 72)
    ears.hear(1, 71)
    assert ears.chosen() == (1, 72, "r4")
    ears.hear(2, 57)
    assert ears.chosen() == (2, 57, "r4")
    ears.hear(1, 73)
    assert ears.chosen() == (2, 57, "r4")
    ears.hear(2, 56)
    ears.hear(0, 99)
    assert ears.chosen() == (2, 57, "r4")
    assert len(ears.warnings) == 2
    ears.hear(2, 58)
    assert ears.chosen() == (2, 58, "r4")


def test_a_turn_of_the_epoch_tells_from_which_version(make_manifest):
    ears = Ears(make_manifest)
    ears.hear(1, 70)
    ears.wakeups.epoch_turned.clear()
    ears.hear(1, 72)
    ears.hear(2, 57)
    ears.hear(3, 56)  # before anybody has noticed that it turned
    assert (ears.inbox.left, ears.inbox.seen) == (72, (3, 56))


def test_a_later_epoch_takes_the_tiers_of_the_earlier_with_it(make_manifest):
    ears = Ears(make_manifest)
    for tier in ("r8", "r4"):
        ears.hear(1, 72, tier)
    ears.hear(2, 57, "r4")
    assert ears.chosen() == (2, 57, "r4")
    ears.hear(2, 57, "r8")
    assert ears.chosen() == (2, 57, "r8")


def test_what_was_seen_counts_over_a_restart(make_manifest):
    ears = Ears(make_manifest, seen=(2, 57))
    ears.hear(1, 90)
    ears.hear(2, 56)
    assert ears.chosen() is None
    ears.hear(2, 57)
    assert ears.chosen() == (2, 57, "r4")


def test_nothing_is_taken_twice_or_late_and_nothing_unsigned_takes_a_tier_away(make_manifest):
    ears = Ears(make_manifest)
    topic = TOPICS.version("r4")
    signer = Signer(ears.key, 1)
    first, second = (signer.seal(topic, make_manifest(version=version, epoch=1)) for version in (3, 3))
    for payload in (second, second, b""):
        ears.inbox.receive(Message(topic, payload))
    assert (ears.chosen(), ears.warnings) == ((1, 3, "r4"), [])
    ears.inbox.receive(Message(topic, first))
    assert "Manifest 1 of its epoch came after 2" in ears.warnings[0]


def test_only_a_manifest_tells_who_coordinates(make_manifest):
    ears = Ears(make_manifest, key=None)
    topic, signer = TOPICS.device("lamp", "receipt"), Signer(new_key(), 2**50)
    receipt = Receipt(update="0" * 32, header="0" * 64, status="accepted")
    ears.inbox.receive(Message(topic, signer.seal(topic, receipt)))
    assert ears.inbox.coordinator_key is None
    ears.hear(1, 3)
    assert ears.inbox.coordinator_key == public_key(ears.key)


def test_a_fleet_of_the_first_wire_is_told_of_in_one_line(make_manifest):
    ears = Ears(make_manifest)
    for _ in range(3):
        ears.inbox.receive(Message("tunefleet/v1/home/version/r4", b'{"body":{"fleet":"home"},"key":""}'))
    assert ears.warnings == ["fleet home speaks wire version 1: update tunefleet on its coordinator"]


def test_what_the_first_wire_has_left_in_a_fleet_of_the_second_is_not_told(make_manifest):
    ears = Ears(make_manifest)
    ears.inbox.receive(Message("tunefleet/v1/home/version/r4", NOTICE))
    ears.hear(1, 3)
    ears.inbox.receive(Message("tunefleet/v1/home/version/r8", b'{"body":{"fleet":"home"},"key":""}'))
    assert ears.warnings == []


def test_a_coordinator_that_tells_no_epoch_is_followed_as_ever(make_manifest):
    ears = Ears(make_manifest)
    ears.hear(0, 3, recipe=Recipe(steps=1))
    ears.hear(0, 2)
    assert ears.chosen() == (0, 3, "r4")
    assert ears.warnings == []
