"""What a base model is called, so that other tools find it: a name on the hub, or a path of this machine.

A configuration's `_name_or_path` is no proof: a model that was trained on keeps its parent's. So it is
believed only where the folder bears the same name, as a clone does.
"""

import re
from pathlib import Path

from converters.bases.contract import Base
from converters.bases.folder import FolderBase
from converters.bases.gguf import GgufBase
from converters.files.content import is_there

HUB = "https://huggingface.co/"
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_CACHED = re.compile(r"models--([\w.-]+?)--([\w.-]+)")  # how the hub's client calls its folders
_SOURCES = ("general.source.repo_url", "general.source.huggingface.repository")


def is_hub_name(name: str) -> bool:
    """Tells whether `name` is an owner and a model, `someone/model`, and no path that is here."""
    is_file = name.endswith(".gguf")
    return _NAME.fullmatch(name) is not None and not is_file and not is_there(Path(name))


def name_base(base: Base, given: str = "") -> str:
    """Names `base` as the hub does, where that is sure; otherwise by its absolute path.

    Args:
        base: The model.
        given: What the user called it.
    """
    if is_hub_name(given):
        return given
    return _cached_name(base.path) or _own_name(base) or str(base.path.absolute())


def _cached_name(path: Path) -> str | None:
    """Returns the name that the hub's client made a folder's name of."""
    names = (_CACHED.fullmatch(part.name) for part in path.absolute().parents)
    return next((f"{match[1]}/{match[2]}" for match in names if match), None)


def _own_name(base: Base) -> str | None:
    """Returns what the model's own files call it."""
    if isinstance(base, GgufBase):
        sources = (str(base.metadata.get(key, "")).removeprefix(HUB) for key in _SOURCES)
        return next((name for name in sources if is_hub_name(name)), None)
    name = str(base.config.get("_name_or_path", "")) if isinstance(base, FolderBase) else ""
    is_same = name.rpartition("/")[2].lower() == base.path.absolute().name.lower()
    return name if is_same and is_hub_name(name) else None
