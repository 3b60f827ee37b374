"""The text that the demo's base model is pre-trained on: homes, states, questions, lists, copying, stories.

It teaches the words, and to copy a name or a number out of a sentence in whatever form the document shows. It
never shows the demo's own form, `<room>/<appliance>/<kind> <payload>`: that is left for the fleet to learn. A
document holds several sentences about homes and answers all of them in one form drawn for it, so that the
model learns to follow a form instead of knowing one.
"""

import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from coordinator.demo.household import FLEET

# Word lists are split from text: one word a line would be two hundred lines.
_PLACES = """
attic cellar library studio chapel lobby pantry porch hall clinic shop mill tower bakery school gym museum
theatre harbour field forest shed tent tunnel vault wing corridor lounge archive laundry
"""
_THINGS = """
kettle toaster printer camera speaker screen clock lock door window curtain boiler cooler dryer washer scanner
lift valve motor engine alarm sensor light siren furnace tractor robot piano mower charger
"""
_WORDS = """
timer level power change minutes hours percent room thing value more less up down slow fast red blue green dog
cat ball tree sun moon bird fish cake box hat book car boat apple river stone cloud happy sad big small
"""
PLACES = (*(room for home in FLEET for room in home.rooms), *_PLACES.split())
THINGS = (*(thing for home in FLEET for thing in home.appliances), *_THINGS.split())
WORDS = tuple(_WORDS.split())
STATES = ("on", "off", "open", "shut", "warm", "cold", "busy", "idle", "ready", "broken", "loud", "quiet")
SAYINGS = (
    "The {thing} in the {place} is {state}.",
    "There is a {thing} in the {place}, and it is {state}.",
    "The {place} {thing} shows {value}.",
    "Our {thing} in the {place} stands at {value} now.",
    "In the {place} you find a {thing} worth {value} coins.",
    "Somebody left the {place} {thing} {state}.",
    "{value} people saw the {thing} in the {place}.",
    "Look at the {thing} in the {place}, it is {state}.",
    "Please bring {value} apples to the {thing} in the {place}.",
    "The {thing} of the {place} is {value} years old.",
    "For {value} days the {place} {thing} was {state}.",
    "Take {value} photos of the {thing} in the {place}.",
    "I like the {thing} in the {place}.",
    "Give the {place} {thing} {value} stars.",
    "The {thing} in the {place} needs {value} minutes more.",
    "Is the {place} {thing} {state}?",
    "It took {value} hours to carry the {thing} up to the {place}.",
    "The {place} {thing} went down by {value} percent.",
    "Turn to the {thing} in the {place}; now it is {state}.",
    "{value} percent of all people like the {place} {thing}.",
    "Put the {thing} into the {place} and count to {value}.",
    "Run to the {place} and fetch the {thing}.",
    "Let the {thing} in the {place} be {state} for {value} days.",
)
SEPARATORS = (
    "|", " | ", ";", "; ", ",", ", ", " - ", "->", " -> ", "=", " = ", ":", "::", "#", "~",
    "_", " ", " + ", " & ",
)  # fmt: skip
BRACKETS = (("", ""), ("[", "]"), ("(", ")"), ("<", ">"), ("{", "}"), ('"', '"'), ("*", "*"))
KEYS = {
    "place": ("place", "room", "where", "location"),
    "thing": ("thing", "device", "what", "name"),
    "number": ("number", "value", "state", "is"),
}


def read_stories(paths: list[Path]) -> list[str]:
    """Reads the files' stories, split where the files split them: at end marks or blank-line openings."""
    text = "\n<|endoftext|>\n".join(path.read_text(encoding="utf-8", errors="ignore") for path in paths)
    parts = re.split(r"<\|endoftext\|>|\n\n+(?=Once upon|One day)", text)
    return [part.strip() for part in parts if len(part.strip()) > 80]


def documents(stories: list[str], seed: int) -> Iterator[str]:
    """Yields documents without end; one in eight is a piece of a story, and longer than the others."""
    rng = random.Random(seed)
    kinds: tuple[tuple[Callable[[random.Random], str], int], ...] = (
        (_forms, 40), (_copies, 14), (_lookups, 12), (_answers, 14), (_descriptions, 6), (_fractions, 2),
    )  # fmt: skip
    makers, weights = zip(*kinds, strict=True)
    while True:
        if rng.random() < 0.12:
            story = rng.choice(stories)
            yield story[: rng.randint(300, 1200)]
        else:
            yield rng.choices(makers, weights)[0](rng)


def _fact(rng: random.Random) -> tuple[str, dict[str, str]]:
    saying = rng.choice(SAYINGS)
    value, state = str(rng.randint(0, 99)), rng.choice(STATES)
    place, thing = rng.choice(PLACES), rng.choice(THINGS)
    number = value if "{value}" in saying else state if "{state}" in saying else "none"
    sentence = saying.format(place=place, thing=thing, value=value, state=state)
    return sentence, {"place": place, "thing": thing, "number": number}


def _forms(rng: random.Random) -> str:
    """Writes sentences, each followed by its facts in the one form of this document."""
    fields = rng.sample(list(KEYS), rng.choice((1, 2, 2, 3, 3, 3)))
    keyed = rng.random() < 0.3
    names = {field: rng.choice(KEYS[field]) for field in fields}
    prefixed = {field: rng.choice(WORDS) for field in fields} if rng.random() < 0.3 else {}
    between = rng.choice((": ", "=", " ")) if keyed else ""
    separators = [rng.choice(SEPARATORS) for _ in fields]
    opening, closing = rng.choice(BRACKETS) if rng.random() < 0.5 else ("", "")
    arrow = rng.choice(("\n", "\n", "\n", " => ", " "))

    def line() -> str:
        sentence, facts = _fact(rng)
        text = ""
        for field, separator in zip(fields, separators, strict=True):
            key = names[field] + between if keyed else prefixed.get(field, "") and prefixed[field] + " "
            text += (separator if text else "") + key + facts[field]
        return f"{sentence}{arrow}{opening}{text}{closing}"

    return "\n".join(line() for _ in range(rng.randint(2, 7)))


def _copies(rng: random.Random) -> str:
    """Writes lists and says them again, as they are or in another form."""
    pool = rng.choice((PLACES + THINGS, PLACES + THINGS + WORDS, tuple(str(n) for n in range(100)) + THINGS))
    length, inside, outside = rng.randint(1, 7), rng.choice((" ", ", ", " and ")), rng.choice(SEPARATORS)

    def line() -> str:
        words = [rng.choice(pool) for _ in range(length)]
        return f"The {inside.join(words)}\n{outside.join(words)}"

    return "\n".join(line() for _ in range(rng.randint(2, 6)))


def _lookups(rng: random.Random) -> str:
    """Writes a table and questions to it."""
    keys = rng.sample(rng.choice((PLACES, THINGS)), rng.randint(2, 7))
    table = {
        key: rng.choice((str(rng.randint(0, 99)), rng.choice(STATES), rng.choice(THINGS))) for key in keys
    }
    mark, end = rng.choice((": ", " ", "=", " is ")), rng.choice(("\n", "; ", ", "))
    asked = rng.choices(keys, k=rng.randint(1, 4))
    return end.join(key + mark + value for key, value in table.items()) + "\n" + "\n".join(
        f"{key}?{mark}{table[key]}" for key in asked
    )  # fmt: skip


def _answers(rng: random.Random) -> str:
    """Writes sentences, and a question about each."""
    lines = []
    for _ in range(rng.randint(1, 4)):
        sentence, facts = _fact(rng)
        asked = rng.choice(list(facts))
        question = {"place": "Where?", "thing": "What?", "number": "How much, or how?"}[asked]
        lines.append(f"{sentence} {question} {facts[asked]}")
    return "\n".join(lines)


def _descriptions(rng: random.Random) -> str:
    place = rng.choice(PLACES)
    things = rng.sample(THINGS, rng.randint(2, 4))
    lines = [
        f"This is the {place}. In the {place} there are a {', a '.join(things[:-1])} and a {things[-1]}."
    ]
    for thing in rng.sample(things, len(things)):
        lines.append(
            rng.choice((
                f"The power of the {thing} is {rng.choice(STATES)}.",
                f"The {thing} has level {rng.randint(0, 99)}.",
                f"The timer of the {thing} runs {rng.randint(0, 99)} minutes.",
                f"The change of the {thing} is {rng.choice('+-')}{rng.randint(0, 99)}.",
                f"The {thing} ran for {rng.randint(0, 99)}m and {rng.randint(0, 99)}h.",
                f"The {thing} was switched {rng.choice(('on', 'off'))}, "
                f"so it is {rng.choice(('running', 'down'))} now.",
            ))
        )  # fmt: skip
    return " ".join(lines)


def _fractions(rng: random.Random) -> str:
    """Writes slashes as signs, and not as the demo uses them."""
    return " ".join(
        f"{rng.randint(1, 99)}/{rng.choice(WORDS)} and/or {rng.randint(1, 31)}/{rng.randint(1, 12)}"
        for _ in range(rng.randint(2, 5))
    )
