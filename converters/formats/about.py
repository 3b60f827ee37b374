"""What an adapter's files say beside its factors: the base model's name, and how a tool's config was set.

A conversion keeps what it does not change. PEFT's config goes whole from PEFT to PEFT, and through the files
of mlx-lm and llama.cpp under a key of our own, which they pass over; mlx-lm's stays with mlx-lm, for PEFT
would warn of keys that it does not know. Settings that choose modules are kept only while these are the same.
"""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct, structs

from converters.adapter import LoraAdapter
from converters.bases.contract import Base
from converters.bases.name import is_hub_name, name_base

CARD = "README.md"
_UNSET: tuple[object, ...] = (None, {}, [])
_LICENSE = re.compile(r"^license: *[\"']?([\w.-]+)[\"']?\s*$", re.MULTILINE)


class About(Struct, frozen=True, omit_defaults=True):
    """Facts beside the factors.

    Attributes:
        base: The base model: a name on the hub, or a path.
        peft: PEFT's config without the base.
        mlx: mlx-lm's config without the base and what it says of the factors.
        covers: Hash of the modules' names that the configs were written for.
        license: As the model card has it.
    """

    base: str | None = None
    peft: dict[str, Any] = {}
    mlx: dict[str, Any] = {}
    covers: str = ""
    license: str | None = None

    @property
    def noted(self) -> "About":
        """What goes into another tool's file: PEFT's settings that are set."""
        is_set = {key: value for key, value in self.peft.items() if key == "task_type" or value not in _UNSET}
        return About(peft=is_set, covers=self.covers) if is_set else NOTHING

    def of_base(self, base: Base | None, given: str = "") -> "About":
        """Adds the base's name: the user's, the recorded one if it is the hub's, or `base`'s own.

        Args:
            base: The base model, where it is at hand.
            given: What the user called it.
        """
        if base is None or (self.base and is_hub_name(self.base) and not is_hub_name(given)):
            return self
        return structs.replace(self, base=name_base(base, given))

    def settings(self, tool: str, adapter: LoraAdapter, chosen: tuple[str, ...]) -> Mapping[str, Any]:
        """Selects of a tool's config what holds for `adapter`.

        Args:
            tool: `peft` or `mlx`.
            adapter: What is to be written.
            chosen: Keys that choose modules.
        """
        kept: dict[str, Any] = getattr(self, tool)
        if self.covers == coverage(adapter.modules):
            return kept
        return {key: value for key, value in kept.items() if key not in chosen}


NOTHING = About()


def coverage(modules: Mapping[str, object]) -> str:
    """Hashes the modules' names."""
    return hashlib.sha256("\n".join(sorted(modules)).encode()).hexdigest()[:16]


def read_license(folder: Path) -> str | None:
    """Reads the licence in the front matter of a folder's model card."""
    try:
        text = (folder / CARD).read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    _, opened, rest = text.partition("---\n")
    found = _LICENSE.search(rest.partition("\n---")[0]) if opened and text.startswith("---\n") else None
    return found[1] if found else None
