"""The coordinator's settings: defaults stand here and nowhere else; TOML and command line override them."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta, structs

from converters.bases.name import is_hub_name
from converters.bases.targets import ALL_LAYERS
from converters.faults import Fault
from coordinator.errors import CoordinatorError
from coordinator.limits import Limits
from coordinator.strategies.choice import own_method
from coordinator.strategies.method import Method, fleet_faults
from coordinator.strategies.privacy import privacy_faults
from coordinator.strategies.tiers import train_rank
from coordinator.strategies.written import method_lines, method_table, read_method, written_changes
from edge.choices import RANK, AskedPrecision, EncodingName, Enrolment, Sealing, Space
from edge.privacy.terms import Terms, terms_faults
from edge.protocol.messages import Id, Recipe, Sha256
from edge.settings import checked, laid_over, path_faults, read_toml, write_toml
from edge.transport.settings import BrokerConfig, MqttSettings, from_environment, tls_faults

MIB = 1 << 20
RANKS = (RANK,)  # as `SCALE` and `TARGETS` where nothing else says what they are


class CoordinatorConfig(BrokerConfig, frozen=True, kw_only=True):
    """Everything `tunefleet serve` can be told, beside how the broker is reached.

    Attributes:
        fleet: The fleet's name, one topic level.
        base: Folder of the base model, or its name on the hub; only its headers are read, unless `eval_data`
            is given or the strategy asks for `calibration_data`.
        state: Folder of this coordinator alone.
        adapter: What version 0 is: a folder of PEFT or mlx-lm, a .gguf file or tunefleet's own. Without it
            version 0 changes nothing.
        ranks: Rank tiers, the fleet's own rank first; a device takes the largest that fits it. Left open, it
            is what the state folder was founded with, or the adapter's rank, or `RANKS`.
        scale: What B @ A is multiplied by, in every tier; left open as `ranks`, with `SCALE`.
        targets: Endings of the names of the linear layers that carry LoRA; left open as `ranks`, with
            `TARGETS`.
        num_layers: Only the targets in the last so many blocks; -1 is all.
        seed: Of version 0.
        fingerprint: Of the model that a quantised `base` was made from; others are asked themselves. With a
            quantised one there is no sample for devices to prove their own by.
        strategy: How a buffer becomes a version; None is tunefleet with calibration data, fedbuff without.
        stages: Fields of `coordinator.strategies.method.Method` that are other than the strategy's own.
        calibration_data: What the guard, the cosine filter and the alignment judge by (needs the torch
            extra); a few dozen examples, none of which any device trains on or versions are scored on.
        space: What is added up: true products, or increments of the factors; None is the strategy's own.
        buffer_size: Updates that make a version; for `fedavg` without a cohort, distinct devices. None
            follows the devices online: an update of each where they are four or fewer, of a fifth where
            they are more (32 at most); in `fedavg` of all.
        time_budget_s: When the oldest update has waited this long, what is there is merged; 0 waits on. None
            is as long as that update was trained, between one and ten minutes.
        cohort: Devices that `fedavg` waits for; empty waits for any `buffer_size`.
        max_staleness: Updates that are older, counted in versions along the lineage, are rejected.
        server_lr: η, by which the merged step is multiplied.
        remainder_rank: Rank that `product` carries over of what the re-projection leaves.
        encoding: Of updates.
        chunk_bytes: Of versions.
        recipe: How devices are to train; what the strategy's stages ask for is added to it.
        privacy: How updates are made private; a device that wants more than this does no task.
        sealing: `hpke`: devices seal updates for this coordinator, and whoever else reads the broker learns
            sizes and times. `off`: anybody there may read them, to look into a fleet that goes wrong.
        enrolment: `open` pins a device's key at first sight; `closed` knows those that are listed here, were
            let in by `tunefleet device allow` or came with a token.
        devices: Device id to public key, 64 hex digits.
        devices_file: More of them, a line each; read again when it changes.
        max_update_bytes: Larger updates are rejected at their header.
        max_norm: Largest Frobenius norm of an update's increments of A and B together, whatever the fleet's.
        max_open_uploads: Updates under way at a time; the one longest without progress makes room.
        limits: What one device, one key and all together may ask for.
        keep_versions: Older versions lose their files, and can be neither exported nor rolled back to; but
            while a device holds one, its files stay until its update would be too stale.
        hold_s: A device of which nothing was heard for so long holds no version.
        max_versions: The coordinator ends when this version is made; 0 goes on for ever.
        eval_data: What every version is scored on (needs the torch extra).
        eval_every: Every how many versions.
        precision: In which versions are scored and steps are judged; `auto` is what computes fastest.
    """

    fleet: str
    base: str
    state: str
    adapter: str | None = None
    ranks: tuple[int, ...] = ()
    scale: float | None = None
    targets: tuple[str, ...] = ()
    num_layers: Annotated[int, Meta(ge=-1)] = ALL_LAYERS
    seed: int = 0
    fingerprint: Sha256 | None = None
    strategy: str | None = None
    stages: dict[str, Any] = {}  # noqa: RUF012 - each record gets its own
    calibration_data: str | None = None
    space: Space | None = None
    buffer_size: int | None = None
    time_budget_s: float | None = None
    cohort: tuple[Id, ...] = ()
    max_staleness: int = 20
    server_lr: float = 1.0
    remainder_rank: int = 32
    encoding: EncodingName = "f16"
    chunk_bytes: int = 65536
    recipe: Recipe = Recipe(steps=20)
    privacy: Terms = Terms()
    sealing: Sealing = "hpke"
    enrolment: Enrolment = "open"
    devices: dict[Id, Sha256] = {}  # noqa: RUF012
    devices_file: str | None = None
    max_update_bytes: int = 256 * MIB
    max_norm: float = 1000.0
    max_open_uploads: int = 256
    limits: Limits = Limits()
    keep_versions: int = 100
    hold_s: float = 7 * 86400.0
    max_versions: int = 0
    eval_data: str | None = None
    eval_every: int = 1
    precision: AskedPrecision = "float32"

    @property
    def strategy_in_force(self) -> str:
        """Names the strategy that is configured, or what stands in for none."""
        return self.strategy or ("tunefleet" if self.calibration_data else "fedbuff")

    @property
    def method_in_force(self) -> Method:
        """Returns the strategy's method with those stages changed that the configuration changes."""
        return read_method(own_method(self.strategy_in_force), self.stages, self.space).method

    def recipe_in_force(self, rank: int) -> Recipe:
        """Adds to the recipe what the strategy's stages ask of devices of a tier."""
        method = self.method_in_force
        return structs.replace(
            self.recipe,
            pull=self.recipe.pull or method.pull,
            trains=method.trains,
            keeps=method.keeps,
            train_rank=train_rank(method, rank),
        )


def read_config(path: Path | None, overrides: Mapping[str, Any]) -> CoordinatorConfig:
    """Reads the settings of a TOML file, where there is one, with `overrides` above them.

    Args:
        path: TOML with the fields of `CoordinatorConfig`; `recipe` and `devices` are tables.
        overrides: Field to value; None leaves the file's. `recipe` is merged field by field.

    Raises:
        ConfigError: Naming every fault at once.
    """
    settings = laid_over(read_toml(path) if path else {}, overrides, CoordinatorConfig)
    config = checked(CoordinatorConfig, from_environment(settings), path, check=_value_faults)
    own = own_method(config.strategy_in_force)
    return structs.replace(config, stages=written_changes(own, config.stages, config.space))


def mqtt_settings(config: CoordinatorConfig, alias: str) -> MqttSettings:
    """Tells how to reach the broker; the client id is this coordinator's own and stays the same.

    Args:
        config: Its settings.
        alias: Of its key (`Signer.alias`): nobody else can tell it, so nobody throws it out.

    Raises:
        ConfigError: The broker's URL is malformed.
    """
    return config.mqtt_settings(f"{config.fleet}-coordinator-{alias}")


def config_text(config: CoordinatorConfig) -> str:
    """Writes the TOML that `read_config` makes the same settings of; what is None is left out.

    Stages that are the strategy's own stand there as comments: so a person sees all that is in force, and
    another strategy with the same file has its own.
    """
    table = structs.asdict(config)
    tables = {name: table.pop(name) for name in ("limits", "recipe")}
    tables |= {"privacy": structs.asdict(table.pop("privacy")), "devices": table.pop("devices")}
    changed = table.pop("stages")
    in_force = method_table(config.method_in_force)
    others = method_lines({name: value for name, value in in_force.items() if name not in changed})
    own = "".join(f"# {line}\n" for line in others.splitlines())
    return (
        f"{write_toml(table)}\n[stages]\n{method_lines({name: in_force[name] for name in changed})}"
        f"# Of {config.strategy_in_force}:\n{own}\n"
        f"{write_toml(tables)}"
    )


def _value_faults(config: CoordinatorConfig) -> Iterator[Fault | str]:
    try:
        own = own_method(config.strategy_in_force)
        yield from read_method(own, config.stages, config.space).faults or _strategy_faults(config)
    except CoordinatorError as error:
        yield str(error)
    for name, least in (
        ("buffer_size", 1),
        ("time_budget_s", 0),
        ("max_staleness", 0),
        ("remainder_rank", 0),
        ("max_update_bytes", 1),
        ("max_open_uploads", 1),
        ("max_versions", 0),
        ("keep_versions", 1),
        ("hold_s", 0),
        ("eval_every", 1),
    ):
        value = getattr(config, name)
        if value is not None and not value >= least:
            yield f"{name} is {value}, expected at least {least}"
    if min(config.ranks, default=1) < 1 or list(config.ranks) != sorted(set(config.ranks), reverse=True):
        yield f"ranks is {list(config.ranks)}, expected falling numbers from 1, the fleet's rank first"
    if not _is_id(config.fleet):
        yield f"fleet is {config.fleet!r}, expected 1 to 64 of a-z, 0-9 and -, no - at either end"
    for name in ("scale", "server_lr"):
        value = getattr(config, name)
        if value is not None and not 0 < value < math.inf:
            yield f"{name} is {value}, expected more than 0"
    if not config.max_norm > 0:
        yield f"max_norm is {config.max_norm}, expected more than 0"
    if not 1024 <= config.chunk_bytes <= MIB:
        yield f"chunk_bytes is {config.chunk_bytes}, expected 1024 to {MIB}"
    if config.recipe.steps == 0 and config.recipe.seconds == 0:
        yield "recipe.steps and recipe.seconds are both 0, expected one of them"
    yield from terms_faults(config.privacy, steps=config.recipe.steps)
    for name, value in structs.asdict(config.recipe).items():
        if isinstance(value, float) and not math.isfinite(value):
            yield f"recipe.{name} is {value}, expected a finite number"
    settings = structs.asdict(config)
    if not is_hub_name(config.base):
        yield from path_faults(settings, "base")
    yield from path_faults(settings, "adapter", "eval_data", "calibration_data", "devices_file")
    yield from tls_faults(settings)


def _strategy_faults(config: CoordinatorConfig) -> Iterator[str]:
    """Finds what keeps the strategy from serving this fleet."""
    method = config.method_in_force
    yield from fleet_faults(method, config.ranks, config.remainder_rank)
    yield from privacy_faults(config.privacy, method, pull=config.recipe.pull or method.pull)
    plain = Recipe(steps=1)
    given = {name: getattr(config.recipe, name) for name in ("trains", "keeps", "train_rank")}
    changed = [f"{name} {value!r}" for name, value in given.items() if value != getattr(plain, name)]
    if changed:
        yield f"recipe has {' and '.join(changed)}, which the strategy says: see --strategy and [stages]"
    if method.needs and config.calibration_data is None:
        yield (
            f"strategy {config.strategy_in_force} has no calibration data for {' and '.join(method.needs)}; "
            "set calibration_data (--calibration FILE), or take them out in [stages]"
        )


def _is_id(name: str) -> bool:
    try:
        msgspec.convert(name, Id)
    except msgspec.ValidationError:
        return False
    return True
