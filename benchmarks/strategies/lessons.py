"""What the simulated fleets learn: devices' rows, the tests, the calibration set, the base and the recipe.

    dolly       the ten clients of dolly-15k, split by category: free text; next-token loss and accuracy
    clinc       CLINC150, an utterance to its intent's words: one domain per pair of devices, or a Dirichlet
                mixture of domains per device (Hsu et al., arXiv 1909.06335); exact match. Five intents of
                each of the ten domains: of all 150 a fleet learns a twelfth in 300 tasks (measured: 8 %
                right, 31 % when trained on all rows at once), and 48 rows could not tell of most of them
    household   the demo's task and model: twelve devices, each with a part of a home's rooms, appliances and
                phrasings, so that some phrasings are heard on one device alone; exact match

Rows are disjoint: nobody trains on what is tested, and the calibration set is in neither. The seed decides
which rows go where, so that all strategies of one seed see the same fleet.
"""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.assets import ASSETS, dolly_clients
from benchmarks.assets import NAME as ASSETS_NAME
from converters.errors import BaseModelError
from coordinator.demo.household import FLEET, Example, Household, held_out, own_examples
from coordinator.demo.plan import MODEL, TARGETS
from edge.protocol.messages import Recipe

NUM_CALIBRATION = 48  # of short rows; dolly has three of each client
NUM_OWN_TEST = 40  # of each device
DOLLY_CHARACTERS, DOLLY_CONTEXT = 320, 120  # short rows: what is learnt is the form, and steps are fast
INTENTS_PER_DOMAIN = 5
HOMES_SPLIT = 3  # devices that share a home of the demo
_INTENTS = Recipe(steps=4, lr=1e-2, seq_tokens=64, batch_tokens=256)
RECIPES: dict[str, Recipe] = {
    "dolly": Recipe(steps=4, lr=4e-3, seq_tokens=160, batch_tokens=256),
    "dolly-stories260K": Recipe(steps=4, lr=4e-3, seq_tokens=160, batch_tokens=256),
    "clinc": _INTENTS,
    "clinc-0.1": _INTENTS,
    "clinc-0.5": _INTENTS,
    "household": Recipe(steps=3, lr=3e-3, seq_tokens=96, batch_tokens=128),
}


class Row(NamedTuple):
    """One line of JSONL."""

    prompt: str
    completion: str


class DeviceRows(NamedTuple):
    """What lies on one device."""

    train: list[Row]
    test: list[Row]  # of the same kind, never trained on


class Lesson(NamedTuple):
    """A fleet's data, its base model and how it trains."""

    base: Path
    recipe: Recipe
    devices: list[DeviceRows]
    test: list[Row]
    calibration: list[Row]
    is_exact: bool = True  # accuracy is the share of whole answers, not of tokens
    targets: tuple[str, ...] = TARGETS
    rank: int = 8
    scale: float = 2.0


def make_lesson(name: str, seed: int, assets: Path = ASSETS) -> Lesson:
    """Returns the lesson called `name`, as `seed` splits it.

    Raises:
        BaseModelError: It needs the assets, and they are not there.
    """
    if name.partition("-")[0] in ("dolly", "clinc") and not assets.exists():
        raise BaseModelError(f"lesson {name} needs {ASSETS_NAME}, which is not there")
    return LESSONS[name](seed)


def dolly(model: str, seed: int) -> Lesson:
    """Returns ten clients; the test takes as many rows of each."""
    name = "dolly" if model == "tinystories-656K" else f"dolly-{model}"
    devices, test, calibration = [], [], []
    for index, client in enumerate(dolly_clients()):
        rows = dolly_rows(client)
        random.Random(f"dolly {index} {seed}").shuffle(rows)
        devices.append(DeviceRows(rows[70:470], rows[:NUM_OWN_TEST]))
        test += rows[40:52]
        calibration += rows[52:55]
    return Lesson(
        base=ASSETS / "models" / model,
        recipe=RECIPES[name],
        devices=devices,
        test=test,
        calibration=calibration,
        is_exact=False,
    )


def dolly_rows(rows: Sequence[Mapping[str, str]]) -> list[Row]:
    """Returns those rows that are short enough once their context is cut."""
    made = []
    for row in rows:
        context = f"\n{row['context'][:DOLLY_CONTEXT]}" if row["context"] else ""
        short = Row(f"{row['instruction']}{context}\n\n", row["response"])
        if len(short.prompt) + len(short.completion) <= DOLLY_CHARACTERS and short.completion.strip():
            made.append(short)
    return made


def clinc(alpha: float | None, num_devices: int, seed: int) -> Lesson:
    """Returns CLINC150 over devices.

    Args:
        alpha: Of the Dirichlet over domains that each device draws its rows by; None: device i has
            domain i mod 10.
        num_devices: 20 to 50.
        seed: Of the split.
    """
    name = "clinc" if alpha is None else f"clinc-{alpha:g}"
    folder = ASSETS / "data/clinc150"
    splits = json.loads((folder / "data_full.json").read_text())
    domains = json.loads((folder / "domains.json").read_text())
    domain_of = {
        intent: number
        for number, intents in enumerate(domains.values())
        for intent in intents[:INTENTS_PER_DOMAIN]
    }
    splits = {name: [pair for pair in pairs if pair[1] in domain_of] for name, pairs in splits.items()}
    rng = np.random.default_rng((seed, 150))
    shares = domain_shares(alpha, num_devices, len(domains), rng)
    train = deal(splits["train"], domain_of, shares, len(splits["train"]) // num_devices, rng)
    own = deal(splits["test"], domain_of, shares, NUM_OWN_TEST, rng)
    others = [splits["val"][index] for index in rng.permutation(len(splits["val"]))]
    return Lesson(
        base=ASSETS / "models/tinystories-656K",
        recipe=RECIPES[name],
        devices=[DeviceRows(*both) for both in zip(train, own, strict=True)],
        test=[intent_row(*pair) for pair in others[:300]],
        calibration=[intent_row(*pair) for pair in others[300 : 300 + NUM_CALIBRATION]],
    )


def domain_shares(
    alpha: float | None, num_devices: int, num_domains: int, rng: np.random.Generator
) -> np.ndarray:
    """Draws each domain's share of each device's rows, (devices, domains); a device's add up to 1."""
    if alpha is None:
        return np.eye(num_domains)[np.arange(num_devices) % num_domains]
    return rng.dirichlet(np.full(num_domains, alpha), num_devices)


def deal(
    pairs: Sequence[tuple[str, str]],
    domain_of: Mapping[str, int],
    shares: np.ndarray,
    each: int,
    rng: np.random.Generator,
) -> list[list[Row]]:
    """Deals `each` rows to every device by its shares; no row goes twice until its domain runs out."""
    stock: list[list[Row]] = [[] for _ in range(shares.shape[1])]
    for index in rng.permutation(len(pairs)):
        text, intent = pairs[index]
        stock[domain_of[intent]].append(intent_row(text, intent))
    taken = [0] * len(stock)
    dealt = []
    for share in shares:
        rows = []
        for domain, count in enumerate(rng.multinomial(each, share)):
            places = range(taken[domain], taken[domain] + int(count))
            rows += [stock[domain][place % len(stock[domain])] for place in places]
            taken[domain] += int(count)
        dealt.append(rows)
    return dealt


def intent_row(text: str, intent: str) -> Row:
    """Returns an utterance with its intent in words."""
    return Row(f"{text}\n", intent.replace("_", " "))


def household(seed: int) -> Lesson:
    """Returns the demo's four homes, each split over three devices."""
    parts = [part_of(home, number) for home in FLEET for number in range(HOMES_SPLIT)]
    unseen = [Row(*example) for example in held_out(200 + NUM_CALIBRATION, seed)]
    devices = [split_home(own_examples(part, 400, seed)) for part in parts]
    return Lesson(
        base=MODEL,
        recipe=RECIPES["household"],
        devices=devices,
        test=unseen[:200],
        calibration=unseen[200:],
    )


def split_home(examples: Sequence[Example]) -> DeviceRows:
    """Keeps a fifth of the different sentences for the test, 40 at most."""
    rows = [Row(*example) for example in examples]
    different = list(dict.fromkeys(rows))
    test = different[: min(NUM_OWN_TEST, len(different) // 5)]
    return DeviceRows([row for row in rows if row not in set(test)], test)


def part_of(home: Household, number: int) -> Household:
    """Returns a home with three of its five rooms and appliances, and a third of its phrasings."""
    places = [(2 * number + step) % len(home.rooms) for step in range(3)]
    return home._replace(
        device_id=f"{home.device_id}-{number}",
        rooms=tuple(home.rooms[place] for place in places),
        appliances=tuple(home.appliances[place] for place in places),
        phrasings=home.phrasings[number::HOMES_SPLIT],
    )


LESSONS: Mapping[str, Callable[[int], Lesson]] = {
    "dolly": lambda seed: dolly("tinystories-656K", seed),
    "dolly-stories260K": lambda seed: dolly("stories260K", seed),
    "clinc": lambda seed: clinc(None, 20, seed),
    "clinc-0.1": lambda seed: clinc(0.1, 30, seed),
    "clinc-0.5": lambda seed: clinc(0.5, 30, seed),
    "household": household,
}
