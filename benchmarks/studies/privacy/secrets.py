"""What devices train on: sentences of their household, and codes that nobody could guess.

A code is drawn for each of eight appliances of a device; in each world half of them, drawn anew, are in its
data. So whether a code was trained on is known to us, and an attacker has to find it out.
"""

import random
from collections.abc import Sequence
from typing import NamedTuple

from coordinator.demo.household import FLEET, Example, Household, own_examples

NUM_SENTENCES, NUM_CODES = 4, 8  # of one device


class Home(NamedTuple):
    """One device's household."""

    name: str
    sentences: Sequence[Example]
    codes: Sequence[Example]  # candidates: each is in the device's data, or not


def homes(num_devices: int, seed: int) -> list[Home]:
    """Draws the households of a fleet."""
    return [_home(FLEET[number % len(FLEET)], number, seed) for number in range(num_devices)]


def members(num_devices: int, seed: int, world: int) -> list[list[bool]]:
    """Draws which codes of each device are in its data, half of them."""
    rng = random.Random(f"members {seed} {world}")
    chosen = [sorted(rng.sample(range(NUM_CODES), NUM_CODES // 2)) for _ in range(num_devices)]
    return [[number in of_device for number in range(NUM_CODES)] for of_device in chosen]


def _home(household: Household, number: int, seed: int) -> Home:
    rng = random.Random(f"codes {number} {seed}")
    places = [(room, thing) for room in household.rooms for thing in household.appliances]
    codes = [
        Example(f"The code of the {thing} in the {room}?\n", f"{rng.randrange(10**6):06d}")
        for room, thing in rng.sample(places, NUM_CODES)
    ]
    return Home(f"home-{number}", own_examples(household, NUM_SENTENCES, 100 * seed + number), codes)
