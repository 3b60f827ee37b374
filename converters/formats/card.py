"""The model card beside an adapter, `README.md` in the hub's form: where it came from, how to load it.

Its front matter has `base_model` only where the base's name is the hub's: the hub refuses a path. A card
that somebody else wrote stays as it is.

Source: https://huggingface.co/docs/hub/model-cards
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from msgspec import Struct

from converters.adapter import LoraAdapter
from converters.bases.contract import Base
from converters.bases.name import HUB, is_hub_name
from converters.errors import BaseModelError
from converters.files.atomic import write_atomic
from converters.formats.about import CARD, About
from converters.plain import plain, plain_json

MARK = "<!-- written by tunefleet -->"
_LIBRARIES = {"peft": "peft", "mlx": "mlx"}
_PEFT = """\
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

model = AutoPeftModelForCausalLM.from_pretrained({here})
tokenizer = AutoTokenizer.from_pretrained({base})
"""
_PEFT_ON = """\
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained({base})
model = PeftModel.from_pretrained(base, {here})
"""
_MLX = """\
from mlx_lm import load

model, tokenizer = load({base}, adapter_path={here})
"""


class Lineage(Struct, frozen=True):
    """Where an adapter came from, as its card tells it.

    Attributes:
        title: The card's.
        facts: Name to value, in the order in which they stand.
    """

    title: str = "LoRA adapter"
    facts: Mapping[str, str] = {}


def write_card(
    form: Literal["peft", "mlx"],
    adapter: LoraAdapter,
    folder: Path,
    about: About,
    lineage: Lineage,
    base: Base | None = None,
) -> None:
    """Writes `README.md` into `folder`, unless there is one that is not ours."""
    path = folder / CARD
    if not path.exists() or MARK in path.read_text("utf-8", errors="replace"):
        write_atomic(path, card_text(form, adapter, about, lineage, base).encode())


def card_text(
    form: Literal["peft", "mlx"],
    adapter: LoraAdapter,
    about: About,
    lineage: Lineage,
    base: Base | None = None,
) -> str:
    """Composes the card.

    Args:
        form: The folder's format.
        adapter: What lies in it.
        about: The base's name, and the licence where one is known.
        lineage: Where it came from.
        base: The base model, where it is at hand: for its fingerprint.
    """
    matter = "\n".join(_front_matter(form, about))
    rows = "\n".join(
        f"| {name} | {_cell(value)} |" for name, value in _facts(adapter, about, lineage, base).items()
    )
    return (
        f"---\n{matter}\n---\n{MARK}\n\n# {plain(lineage.title)}\n\n"
        f"A LoRA adapter: a small part beside a language model, and no model by itself.\n\n"
        f"| | |\n|---|---|\n{rows}\n\n"
        f"## How to load it\n\nIn this folder:\n\n```python\n{_code(form, about)}```\n"
    )


def _front_matter(form: Literal["peft", "mlx"], about: About) -> Iterator[str]:
    if about.base and is_hub_name(about.base):
        yield f"base_model: {json.dumps(about.base)}"
        yield "base_model_relation: adapter"
    yield f"library_name: {_LIBRARIES[form]}"
    if about.license:
        yield f"license: {json.dumps(about.license)}"
    if about.peft.get("task_type", "CAUSAL_LM") == "CAUSAL_LM":
        yield "pipeline_tag: text-generation"
    yield "tags:"
    yield from (f"- {tag}" for tag in ("lora", "tunefleet"))


def _facts(adapter: LoraAdapter, about: About, lineage: Lineage, base: Base | None) -> dict[str, str]:
    endings = Counter(name.rpartition(".")[2] for name in adapter.modules)
    ranks = sorted({factors.rank for _, factors in adapter})
    scales = sorted({factors.scale for _, factors in adapter})
    facts = dict(lineage.facts)
    if about.base:
        is_known = is_hub_name(about.base)
        facts["Base model"] = f"[{about.base}]({HUB}{about.base})" if is_known else _quoted(about.base)
    fingerprint = _fingerprint(base) if "Base fingerprint" not in facts else None
    if fingerprint:
        facts["Base fingerprint"] = f"`{fingerprint}`"
    return facts | {
        "Rank": ", ".join(map(str, ranks)),
        "Scale (alpha / rank)": ", ".join(f"{scale:g}" for scale in scales),
        "Layers": ", ".join(f"{count} {name}" for name, count in sorted(endings.items())),
        "Parameters": f"{adapter.num_parameters:,}",
    }


def _fingerprint(base: Base | None) -> str | None:
    """Returns the base's, where it has one: not if it is quantised, or of an unknown architecture."""
    if base is None or base.is_quantized:
        return None
    try:
        return base.fingerprint
    except BaseModelError:
        return None


def _code(form: Literal["peft", "mlx"], about: About) -> str:
    known = about.base or ""
    base = plain_json(json.dumps(known or "NAME OR FOLDER OF THE BASE MODEL", ensure_ascii=False))
    if form == "mlx":
        return _MLX.format(base=base, here='"."')
    template = _PEFT if known and not known.endswith(".gguf") else _PEFT_ON
    return template.format(base=base, here='"."')


def _quoted(text: str) -> str:
    """Writes a text as code; a backtick in it would end that."""
    told = text.replace("`", "'")
    return f"`{told}`"


def _cell(value: str) -> str:
    """Writes a value into a table's cell: whatever it holds, it neither ends the cell nor is HTML."""
    told = plain(" ".join(value.split())).replace("|", "\\|")
    return told.replace("&", "&amp;").replace("<", "&lt;")
