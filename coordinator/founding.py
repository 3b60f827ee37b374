"""Version 0: a fresh state folder gets the adapter that changes nothing, for its base model and ranks.

A folder that is not fresh must have been made for the same base, ranks, scale and targets.
"""

from pathlib import Path

from converters.adapter import initial_adapter
from converters.base import match_targets, read_base
from converters.sketch import make_sketch
from coordinator.config import CoordinatorConfig
from coordinator.state import CoordinatorState
from coordinator.strategies.base import State
from coordinator.strategies.presets import base_faults
from coordinator.strategies.spaces import dispatch
from coordinator.versions import Version
from edge.errors import ConfigError


def tier_name(rank: int) -> str:
    """`r8`: devices that train adapters of rank 8."""
    return f"r{rank}"


def found_fleet(config: CoordinatorConfig, state: CoordinatorState, at: float) -> Version:
    """The current version; made where there is none.

    Raises:
        BaseModelError: The base model cannot be read, or is quantised and its fingerprint is not configured.
        ConfigError: The strategy cannot be used with this base.
        UnsupportedAdapter: The base has none of some target.
        StateError: The folder was made with other settings, each of which is named.
        DiskFull: There is no room.
    """
    base = read_base(Path(config.base))
    stages = config.stages_in_force
    faults = list(base_faults(stages, is_quantized=base.is_quantized))
    if faults:
        raise ConfigError.of(config.base, faults)
    carries_residual = stages.merge == "residual"
    modules = match_targets(base.modules, config.targets)
    state.journal.agree(
        {
            "base": config.fingerprint or base.fingerprint,
            "ranks": ", ".join(str(rank) for rank in config.ranks),
            "scale": repr(config.scale),
            "targets": ", ".join(sorted(config.targets)),
            "residual rows": str(config.remainder_rank if carries_residual else 0),
        }
    )
    # Where a residual is carried no sample is served: a device must not join with a quantised copy.
    if not base.is_quantized and not carries_residual:
        state.versions.keep_sketch(make_sketch(base))
    current = state.versions.current()
    if current is None:
        adapter = initial_adapter(modules, rank=config.ranks[0], scale=config.scale, seed=config.seed)
        tiers = {
            tier_name(rank): dispatch(stages, State(0, adapter), rank, None, config.remainder_rank)
            for rank in config.ranks
        }
        files = state.versions.store(State(0, adapter), tiers)
        current = state.versions.add(files, None, None, at)
    assert current is not None  # nobody else makes a version 0: the folder is locked
    return current
