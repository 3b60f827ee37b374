"""Version 0: a fresh state folder gets the adapter it is to begin with, or one that changes nothing.

A folder that is not fresh must have been made for the same base, ranks, scale and targets, and from the same
adapter where one is given.
"""

from pathlib import Path

from converters.adapter import LoraAdapter, check_rank, initial_adapter
from converters.bases.contract import Modules
from converters.bases.name import name_base
from converters.bases.read import read_base
from converters.bases.targets import match_targets
from converters.proof.sample import make_sample
from coordinator.config import CoordinatorConfig
from coordinator.initial_adapter import GivenAdapter, describe, scale_fact, settle
from coordinator.ledger.records import Version
from coordinator.ledger.state import CoordinatorState
from coordinator.strategies.contract import State
from coordinator.strategies.method import base_faults
from coordinator.strategies.tiers import dispatch
from edge.errors import ConfigError, StateError
from edge.protocol.tiers import tier_name

BASE_NAME = "base name"  # in the journal: what other tools find the base by
ADAPTER = "adapter"  # in the journal: the sha256 that version 0 has, where it was given


def make_first_version(
    config: CoordinatorConfig, state: CoordinatorState, at: float, given: GivenAdapter | None = None
) -> Version:
    """Returns the current version, made where there is none.

    Args:
        config: As `settle` gives it.
        state: The state folder.
        at: Unix time in seconds.
        given: The adapter that version 0 is to be, or was.

    Raises:
        BaseModelError: The base model cannot be read, or is quantised and its fingerprint is not configured.
        ConfigError: The strategy cannot be used with this base.
        UnsupportedAdapter: The base has none of some target.
        StateError: The folder was made with other settings, each of which is named, or from another adapter.
        DiskRefused: There is no room.
    """
    base = read_base(Path(config.base))
    method = config.method_in_force
    faults = list(base_faults(method, is_quantized=base.is_quantized))
    if faults:
        raise ConfigError.of(config.base, faults)
    modules = match_targets(base.modules, config.targets)
    _check_given(state, given)
    state.journal.agree(
        {
            "base": config.fingerprint or base.fingerprint,
            "ranks": ", ".join(str(rank) for rank in config.ranks),
            "scale": scale_fact(config, given, state.journal),
            "targets": ", ".join(sorted(config.targets)),
            "residual rows": str(config.remainder_rank if method.carries_residual else 0),
        }
        | ({ADAPTER: given.master} if given else {})
    )
    state.journal.note(BASE_NAME, name_base(base, config.base))
    # Where a residual is carried no sample is served: a device must not join with a quantised copy.
    if not base.is_quantized and not method.carries_residual:
        state.versions.keep_sketch(make_sample(base))
    current = state.versions.current()
    if current is None:
        adapter = given.adapter if given else _fresh(config, modules)
        tiers = {
            tier_name(rank): dispatch(method, State(0, adapter), rank, None, config.remainder_rank)
            for rank in config.ranks
        }
        files = state.versions.store(State(0, adapter), tiers)
        current = state.versions.add(files, None, None, at, given.origin if given else None)
    assert current is not None  # nobody else makes a version 0: the folder is locked
    return current


def check_base(config: CoordinatorConfig, state: CoordinatorState) -> None:
    """Refuses a base, adapter or targets that cannot be served, before the broker is asked; writes nothing.

    Raises:
        ConfigError, BaseModelError, UnsupportedAdapter, StateError: As `make_first_version`.
        AdapterError: A new adapter's rank is higher than the smallest of its layers can hold.
    """
    settled, given = settle(config, state.journal)
    modules = match_targets(read_base(Path(config.base)).modules, settled.targets)
    _check_given(state, given)
    if given is None and state.versions.current() is None:
        check_rank(modules, settled.ranks[0])


def _fresh(config: CoordinatorConfig, modules: Modules) -> LoraAdapter:
    """Makes the adapter that changes nothing."""
    assert config.scale is not None  # of several scales are adapters alone
    return initial_adapter(modules, rank=config.ranks[0], scale=config.scale, seed=config.seed)


def _check_given(state: CoordinatorState, given: GivenAdapter | None) -> None:
    founded = state.versions.current() is not None
    if given is None:
        if not founded and state.journal.meta(ADAPTER):  # killed before version 0 was there
            raise StateError(f"{state.folder}: was to begin with an adapter; give the same --adapter again")
        return
    if founded and state.versions.version(0).master != given.master:
        origin = state.versions.version(0).origin
        other = f"the adapter {describe(origin)}" if origin else "an adapter that changes nothing"
        raise StateError(
            f"{state.folder}: began with {other}, and --adapter is another, {describe(given.origin)}; "
            "leave --adapter out to go on, or give another --state"
        )
