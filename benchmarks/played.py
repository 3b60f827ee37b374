"""What benchmarks play of the wire: tasks that nobody announced, and updates that nobody sent."""

from pathlib import Path

from converters.adapter import LoraAdapter
from converters.masking import leading_rows
from coordinator.strategies.contract import Contribution
from edge.device.task import Learnt, Task, make_plan, task_seed
from edge.privacy.terms import NO_TERMS, Terms
from edge.protocol.chunks import CHUNK_BYTES
from edge.protocol.codec import decode_adapter
from edge.protocol.messages import EncodingName, Manifest, Recipe, Space
from edge.protocol.tiers import tier_name
from edge.training.plan import Plan

NO_CHECKPOINT_S = 1e9


def make_offer(
    version: int,
    path: Path,
    *,
    rank: int,
    base: str,
    space: Space,
    recipe: Recipe,
    encoding: EncodingName = "f16",
    privacy: Terms = NO_TERMS,
) -> Task:
    """Returns the task that devices of a tier would be offered: to train on the version in a file."""
    manifest = Manifest(
        fleet="played",
        tier=tier_name(rank),
        version=version,
        parent=version - 1 if version else None,
        sha256="0" * 64,  # nobody downloads it
        root="0" * 64,
        size_bytes=path.stat().st_size,
        chunk_bytes=CHUNK_BYTES,
        encoding=encoding,
        base=base,
        rank=rank,
        space=space,
        recipe=recipe,
        privacy=privacy,
    )
    return Task(manifest, attempt=1)


def plan_of(name: str, task: Task) -> Plan:
    """Returns how a device trains: its name and the version decide the order of its data."""
    seed = task_seed(name, task)
    return make_plan(task.manifest.recipe, seed, 0, NO_CHECKPOINT_S, task.manifest.privacy)


def received(update: Learnt, dispatched: LoraAdapter, train_rank: int, staleness: int) -> Contribution:
    """Returns an update as a strategy takes it; rows behind `train_rank` were not sent."""
    like = leading_rows(dispatched, train_rank)
    return Contribution(
        update=update.header.update,
        device=update.header.device_id,
        base_version=update.header.base_version,
        staleness=staleness,
        num_examples=update.header.num_examples,
        load_delta=lambda: decode_adapter(update.payload, like=like),
        load_base=lambda: dispatched,
    )
