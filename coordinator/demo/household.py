"""The demo's task: a sentence to a home or a machine in, an MQTT topic and payload out.

    "Set the lamp in the bedroom to 30 percent."  ->  "bedroom/lamp/level 30"

Every device of the demo's fleet lives somewhere else: it has its own rooms, its own appliances and its own
way of asking, which is for one kind of command only. The held-out set joins the room of one device, the
appliance of a second and the phrasing of a third, so that no single device has seen any of its combinations,
nor even two of the three parts together. All of it follows from a seed.
"""

import random
from collections.abc import Iterable, Sequence
from itertools import permutations
from pathlib import Path
from typing import NamedTuple

import msgspec


class Example(NamedTuple):
    """One row of training data."""

    prompt: str  # a sentence, ending in a newline
    completion: str  # `<room>/<appliance>/<kind> <payload>`


class Phrasing(NamedTuple):
    """A way of asking, with `{room}`, `{appliance}` and `{value}` to be filled in."""

    sentence: str
    command: str  # the kind of command and its payload, the part after `<room>/<appliance>/`


class Household(NamedTuple):
    """Where a device lives, and what people say to it there."""

    device_id: str
    kind: str  # of command: what its people ask for
    rooms: tuple[str, ...]
    appliances: tuple[str, ...]
    phrasings: tuple[Phrasing, ...]


FLAT = Household(
    "flat",
    "power",
    ("bedroom", "kitchen", "bathroom", "hallway", "nursery"),
    ("lamp", "heater", "radio", "oven", "blind"),
    (
        Phrasing("Switch on the {appliance} in the {room}.", "power on"),
        Phrasing("Please switch the {room} {appliance} on.", "power on"),
        Phrasing("I need the {appliance} in the {room} running.", "power on"),
        Phrasing("Switch off the {appliance} in the {room}.", "power off"),
        Phrasing("Please switch the {room} {appliance} off.", "power off"),
        Phrasing("Nobody needs the {appliance} in the {room} now.", "power off"),
    ),
)
FARM = Household(
    "farm",
    "level",
    ("barn", "stable", "orchard", "meadow", "dairy"),
    ("pump", "fan", "sprinkler", "feeder", "gate"),
    (
        Phrasing("Set the {appliance} in the {room} to {value} percent.", "level {value}"),
        Phrasing("Put the {room} {appliance} at {value}.", "level {value}"),
        Phrasing("The {appliance} in the {room} should stand at {value} percent.", "level {value}"),
        Phrasing("{value} percent for the {appliance} in the {room}, please.", "level {value}"),
        Phrasing("Bring the {room} {appliance} to {value} percent.", "level {value}"),
    ),
)
WORKSHOP = Household(
    "workshop",
    "change",
    ("garage", "foundry", "store", "yard", "office"),
    ("drill", "saw", "press", "crane", "mixer"),
    (
        Phrasing("Turn the {appliance} in the {room} up by {value}.", "change +{value}"),
        Phrasing("The {room} {appliance} is {value} too slow.", "change +{value}"),
        Phrasing("Give the {appliance} in the {room} {value} more.", "change +{value}"),
        Phrasing("Turn the {appliance} in the {room} down by {value}.", "change -{value}"),
        Phrasing("The {room} {appliance} is {value} too fast.", "change -{value}"),
        Phrasing("Take {value} off the {appliance} in the {room}.", "change -{value}"),
    ),
)
BOAT = Household(
    "boat",
    "timer",
    ("cabin", "galley", "cockpit", "saloon", "chartroom"),
    ("winch", "horn", "radar", "freezer", "beacon"),
    (
        Phrasing("Run the {appliance} in the {room} for {value} minutes.", "timer {value}m"),
        Phrasing("Let the {room} {appliance} work for {value} minutes.", "timer {value}m"),
        Phrasing("{value} minutes of the {appliance} in the {room}.", "timer {value}m"),
        Phrasing("Run the {room} {appliance} for {value} hours.", "timer {value}h"),
        Phrasing("For {value} hours, use the {appliance} in the {room}.", "timer {value}h"),
    ),
)
FLEET = (FLAT, FARM, WORKSHOP, BOAT)


def own_examples(home: Household, count: int, seed: int) -> list[Example]:
    """Draws `count` things said to `home`, with repetition."""
    rng = random.Random(f"{home.device_id} {seed}")  # noqa: S311 - sentences, not secrets
    return [_say(home, home, home, rng) for _ in range(count)]


def held_out(count: int, seed: int, fleet: Sequence[Household] = FLEET) -> list[Example]:
    """Draws `count` different examples of parts from three households each, all triples in turn."""
    rng = random.Random(f"held out {seed}")  # noqa: S311
    triples = list(permutations(fleet, 3))
    found: dict[Example, None] = {}
    while len(found) < count:
        found[_say(*triples[len(found) % len(triples)], rng)] = None
    return list(found)


def save_examples(examples: Iterable[Example], path: Path) -> None:
    """Writes JSONL, one `{"prompt", "completion"}` a line."""
    path.write_bytes(b"".join(msgspec.json.encode(example._asdict()) + b"\n" for example in examples))


def load_examples(path: Path) -> list[Example]:
    """Reads what `save_examples` wrote."""
    rows = msgspec.json.Decoder(dict[str, str]).decode_lines(path.read_bytes())
    return [Example(**row) for row in rows]


def _say(rooms: Household, appliances: Household, phrasings: Household, rng: random.Random) -> Example:
    words = {
        "room": rng.choice(rooms.rooms),
        "appliance": rng.choice(appliances.appliances),
        "value": rng.randint(2, 98),
    }
    sentence, command = rng.choice(phrasings.phrasings)
    topic = f"{words['room']}/{words['appliance']}"
    return Example(sentence.format(**words) + "\n", f"{topic}/{command.format(**words)}")
