"""What a fleet begins with: an adapter that somebody trained, and what it settles of the configuration.

Ranks, scale and targets that are not configured are the adapter's; without one, those that the state folder
was founded with, and in a fresh folder the defaults. What is configured and contradicts the adapter is
refused: version 0 is the adapter to the last bit.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from msgspec import structs

from converters.adapter import LoraAdapter
from converters.bases.contract import Base
from converters.bases.read import read_base
from converters.bases.targets import ALL_LAYERS, endings, match_targets
from converters.files.content import is_file
from converters.formats.canonical import dump_adapter
from converters.formats.detect import TOOLS, detect_format, weights_file
from converters.formats.load import load_any, read_about
from coordinator.config import RANKS, CoordinatorConfig
from coordinator.ledger.contract import Facts
from coordinator.ledger.records import Origin
from coordinator.ledger.sqlite import FILE
from coordinator.ledger.state import open_ledger
from edge.choices import SCALE, TARGETS
from edge.errors import ConfigError


class Named(Protocol):
    """An adapter's file."""

    @property
    def format(self) -> str:
        """Of the adapter: peft, mlx, gguf or canonical."""

    @property
    def name(self) -> str:
        """Of the file."""

    @property
    def sha256(self) -> str:
        """Of the file."""


class GivenAdapter(NamedTuple):
    """An adapter to begin with."""

    adapter: LoraAdapter
    origin: Origin

    @property
    def master(self) -> str:
        """The sha256 that version 0's file has, whatever the format it came in."""
        return hashlib.sha256(dump_adapter(self.adapter)).hexdigest()


def read_given(path: Path, base: Base) -> GivenAdapter:
    """Reads the adapter at `path` and checks that it fits `base`.

    Raises:
        AdapterError: It is none, is damaged, or is multiplied by nothing.
        UnsupportedAdapter: It is more than LoRA on linear layers of this base; everything is named at once.
    """
    adapter = load_any(path, base)
    file = weights_file(path)
    with file.open("rb") as content:
        sha256 = hashlib.file_digest(content, "sha256").hexdigest()
    name = file.name if file == path else f"{path.absolute().name}/{file.name}"
    return GivenAdapter(adapter, Origin(detect_format(path), name, sha256, read_about(path)))


def settle(
    config: CoordinatorConfig, journal: Facts | None = None
) -> tuple[CoordinatorConfig, GivenAdapter | None]:
    """Fills in ranks, scale and targets, and reads the adapter to begin with.

    Args:
        config: What is configured.
        journal: The state folder's, where there is one.

    Raises:
        ConfigError: What is configured contradicts the adapter; both are named, everything at once.
        BaseModelError, AdapterError, UnsupportedAdapter: As `read_base` and `read_given`.
    """
    if config.adapter is None:
        return _narrowed(_filled(config, journal, (RANKS, SCALE, TARGETS))), None
    base = read_base(Path(config.base))
    given = read_given(Path(config.adapter), base)
    faults = list(_contradictions(config, given.adapter, base))
    if faults:
        raise ConfigError.of(config.adapter, faults)
    scales, names = _scales(given.adapter), list(given.adapter.modules)
    own = (given.adapter.max_rank,), scales[0] if len(scales) == 1 else None, endings(names, base.modules)
    return _filled(config, journal, own), given


def settle_folder(config: CoordinatorConfig) -> CoordinatorConfig:
    """Settles a configuration beside a coordinator, or before there is one: what `--print-config` shows."""
    folder = Path(config.state)
    if not is_file(folder / FILE):
        return settle(config)[0]
    with open_ledger(folder) as (journal, _):
        return settle(config, journal)[0]


def scale_fact(config: CoordinatorConfig, given: GivenAdapter | None, journal: Facts) -> str:
    """Returns what the journal remembers of the scale: several where the adapter has several."""
    if given is not None:
        return ", ".join(map(repr, _scales(given.adapter)))
    return repr(config.scale) if config.scale is not None else journal.meta("scale") or ""


def describe(origin: Named) -> str:
    """Tells an origin in words."""
    return f"{origin.name} ({TOOLS[origin.format]}, sha256 {origin.sha256[:16]}…)"


def coverage_line(adapter: LoraAdapter) -> str:
    """Tells in words what of the base model an adapter covers."""
    endings = Counter(name.rpartition(".")[2] for name in adapter.modules)
    layers = ", ".join(f"{count} {name}" for name, count in sorted(endings.items()))
    ranks = ", ".join(str(rank) for rank in sorted({factors.rank for _, factors in adapter}))
    scales = ", ".join(f"{scale:g}" for scale in _scales(adapter))
    return f"rank {ranks}, scale {scales}, {layers}"


def _filled(
    config: CoordinatorConfig,
    journal: Facts | None,
    own: tuple[tuple[int, ...], float | None, Sequence[str]],
) -> CoordinatorConfig:
    """Fills in what is open: as the folder was made, and in a fresh one with `own`."""
    ranks, scale, targets = (journal.meta(key) if journal else None for key in ("ranks", "scale", "targets"))
    scales = [float(number) for number in scale.split(", ")] if scale else []
    founded = scales[0] if len(scales) == 1 else None
    return structs.replace(
        config,
        ranks=config.ranks or (tuple(int(rank) for rank in ranks.split(", ")) if ranks else own[0]),
        scale=config.scale if config.scale is not None else founded if scales else own[1],
        targets=config.targets or tuple(targets.split(", ") if targets else own[2]),
    )


def _narrowed(config: CoordinatorConfig) -> CoordinatorConfig:
    """Names the targets in the last blocks, where only those are wanted."""
    if config.num_layers == ALL_LAYERS:
        return config
    modules = read_base(Path(config.base)).modules
    chosen = match_targets(modules, config.targets, config.num_layers)
    return structs.replace(config, targets=tuple(endings(list(chosen), modules)), num_layers=ALL_LAYERS)


def _scales(adapter: LoraAdapter) -> list[float]:
    return sorted({factors.scale for _, factors in adapter})


def _contradictions(config: CoordinatorConfig, adapter: LoraAdapter, base: Base) -> Iterator[str]:
    ranks, scales = sorted({factors.rank for _, factors in adapter}), _scales(adapter)
    method = config.method_in_force
    if config.ranks and config.ranks[0] != adapter.max_rank:
        yield (
            f"the adapter has rank {adapter.max_rank}, and --rank is {', '.join(map(str, config.ranks))}: "
            f"leave it out, or give {adapter.max_rank} first"
        )
    if len(config.ranks) > 1 and method.space == "factors":
        yield (
            f"--rank is {', '.join(map(str, config.ranks))}, and in the space factors smaller tiers hold the "
            "first rows of an adapter, not its leading directions: give one rank, or --space product"
        )
    if config.num_layers != ALL_LAYERS:
        yield f"the adapter covers its own layers, and --num-layers is {config.num_layers}: leave it out"
    if config.scale is not None and scales != [config.scale]:
        yield (
            f"the adapter has scale {', '.join(f'{scale:g}' for scale in scales)}, and --scale is "
            f"{config.scale:g}: leave it out"
        )
    if scales[0] <= 0:
        yield f"the adapter has scale {scales[0]:g}, expected more than 0: nobody could train it"
    if config.targets:
        chosen, covered = set(match_targets(base.modules, config.targets)), set(adapter.modules)
        if chosen != covered:
            yield (
                f"the adapter covers {len(covered)} layers ({_some(covered)}), and --targets names "
                f"{len(chosen)} ({_some(chosen)}): leave it out"
            )
    if method.carries_residual and len(ranks) > 1:
        yield (
            f"the adapter has ranks {', '.join(map(str, ranks))}, and strategy fedex-lora puts its residual "
            "behind one rank: take another strategy"
        )


def _some(names: set[str]) -> str:
    """Returns the endings of names."""
    return ", ".join(sorted({name.rpartition(".")[2] for name in names}))
