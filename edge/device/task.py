"""One task: how a version's recipe becomes a plan, and a trained adapter an update."""

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

from msgspec import Struct, structs

from converters.adapter import Factors, LoraAdapter
from converters.formats.canonical import load_adapter
from converters.masking import leading_rows, train_mask
from edge.errors import ConfigError
from edge.privacy.hiding import hide_device
from edge.privacy.noise import SYSTEM, Draw
from edge.privacy.terms import NO_TERMS, Terms
from edge.protocol.chunks import CHUNK_BYTES, split_chunks
from edge.protocol.delta import encode_delta, update_id
from edge.protocol.merkle import Tree
from edge.protocol.messages import Facts, Manifest, Recipe, UpdateHeader
from edge.protocol.sealing import Context, seal_update
from edge.training.plan import Plan
from edge.training.requests import Result

TaskKey = tuple[int, int, int]  # epoch, version, attempt


class Task(Struct, frozen=True, forbid_unknown_fields=True):
    """The task under way: one attempt at one version."""

    manifest: Manifest
    attempt: int

    @property
    def key(self) -> TaskKey:
        """Tells it from every other task of this device."""
        return self.manifest.epoch, self.manifest.version, self.attempt

    def yielded(self, header: UpdateHeader) -> bool:
        """Tells whether that update came of this task."""
        manifest = self.manifest
        is_same_base = header.base_sha256 in (None, manifest.sha256)
        return (header.base_version, header.attempt) == (manifest.version, self.attempt) and is_same_base


class Learnt(NamedTuple):
    """What a task comes to: the update, and what stays with the device."""

    header: UpdateHeader
    payload: bytes
    residual: LoraAdapter | None  # what the encoding left over; None where it must be forgotten
    personal: LoraAdapter | None  # whose b the device keeps for its next task, where the recipe says so


def task_seed(device_id: str, task: Task) -> int:
    """Returns the seed of the data's order: the same device, version and attempt train the same again."""
    text = f"{device_id}\n{task.manifest.version}\n{task.attempt}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def make_plan(
    recipe: Recipe,
    seed: int,
    micro_batch_tokens: int,
    checkpoint_every_s: float,
    terms: Terms = NO_TERMS,
) -> Plan:
    """Joins the coordinator's recipe and its terms of privacy with what is this device's own.

    Raises:
        ConfigError: The recipe cannot be followed.
    """
    hides_examples = terms.unit == "example"
    if recipe.keeps == "b" == recipe.trains:
        raise ConfigError(
            "recipe: keeps b and trains nothing but b, so nothing would be sent; train both, or a"
        )
    return Plan(
        steps=recipe.steps,
        seconds=0.0 if recipe.steps else recipe.seconds,
        lr=recipe.lr,
        weight_decay=recipe.weight_decay,
        clip_norm=recipe.clip_norm,
        example_clip_norm=terms.clip_norm if hides_examples else 0.0,
        example_noise=terms.noise if hides_examples else 0.0,
        pull=recipe.pull,
        trains=recipe.trains,
        train_rank=recipe.train_rank,
        seq_tokens=recipe.seq_tokens,
        batch_tokens=recipe.batch_tokens,
        micro_batch_tokens=micro_batch_tokens,
        seed=seed,
        checkpoint_every_s=checkpoint_every_s,
    )


def start_adapter(recipe: Recipe, dispatched: LoraAdapter, personal: LoraAdapter | None) -> LoraAdapter:
    """Returns what a task begins with: as dispatched, but for the b that the device has kept, if any.

    Args:
        recipe: Of the version.
        dispatched: The version's adapter.
        personal: As the device's last update gave it; modules of other shapes are forgotten.
    """
    if recipe.keeps == "none" or personal is None:
        return dispatched
    kept = {name: factors.b for name, factors in personal}
    return LoraAdapter(
        {
            name: Factors(f.a, kept[name], f.scale) if name in kept and kept[name].shape == f.b.shape else f
            for name, f in dispatched
        }
    )


def make_update(
    device_id: str,
    task: Task,
    dispatched: Path,
    result: Result,
    residual: LoraAdapter | None,
    draw: Draw = SYSTEM,
) -> Learnt:
    """Encodes trained minus dispatched, with `residual` added, as the manifest asks: hidden, and sealed.

    Of what the recipe leaves untrained, or lets the device keep, nothing is sent.

    Args:
        device_id: This device.
        task: What was trained.
        dispatched: The version's adapter as it was downloaded.
        result: Of the worker.
        residual: What the device's last encoding left over; where the terms ask for noise, of updates with
            noise alone.
        draw: Gives the noise's random bytes.

    Raises:
        AdapterError: Training diverged: the adapter is not finite.
        ProtocolError: The manifest's sealing key is none.
    """
    manifest, recipe, terms = task.manifest, task.manifest.recipe, task.manifest.privacy
    trained = load_adapter(Path(result.adapter))
    rows = leading_rows(trained, recipe.train_rank)
    began = leading_rows(load_adapter(dispatched), recipe.train_rank)
    sent = train_mask(rows, "a" if recipe.keeps == "b" else recipe.trains, 0)
    is_bare = terms.is_on and not terms.noised_here  # clipped only: what is left over would tell more
    delta, left = encode_delta(
        rows,
        began,
        None if is_bare else residual,
        manifest.encoding,
        mask=sent,
        hide=lambda bare: hide_device(bare, terms, draw, sent),
    )
    facts = told_facts(result, recipe, terms)
    payload, is_sealed = delta, manifest.seal is not None
    if manifest.seal is not None:
        context = Context(manifest.fleet, device_id, manifest.version, task.attempt, manifest.sha256)
        payload = seal_update(facts, delta, manifest.seal, context)
    header = _header(device_id, task, payload, {} if is_sealed else structs.asdict(facts))
    kept = trained if recipe.keeps == "b" else None
    return Learnt(structs.replace(header, is_sealed=is_sealed), payload, None if is_bare else left, kept)


def _header(device_id: str, task: Task, payload: bytes, facts: dict[str, Any]) -> UpdateHeader:
    manifest, sha256 = task.manifest, hashlib.sha256(payload).hexdigest()
    # A coordinator that tells no epoch is of an older tunefleet, and takes no header that names the blob.
    base_sha256 = manifest.sha256 if manifest.epoch else None
    return UpdateHeader(
        update=update_id(device_id, manifest.version, task.attempt, sha256, base_sha256),
        fleet=manifest.fleet,
        device_id=device_id,
        tier=manifest.tier,
        base_version=manifest.version,
        base=manifest.base,
        attempt=task.attempt,
        sha256=sha256,
        root=Tree(split_chunks(payload, CHUNK_BYTES)).root,
        size_bytes=len(payload),
        chunk_bytes=CHUNK_BYTES,
        encoding=manifest.encoding,
        base_sha256=base_sha256,
        **facts,
    )


def told_facts(result: Result, recipe: Recipe, terms: Terms) -> Facts:
    """Returns what the coordinator is told of a training.

    Losses and counts are exact functions of the data. Where the data is hidden they would tell what the noise
    hides: the recipe's own steps stand for all counts, an example and a token each, and no loss is told.
    """
    if terms.is_on:
        steps = max(1, recipe.steps)
        return Facts(num_examples=steps, num_tokens=steps, num_steps=steps, seconds=result.seconds)
    return Facts(**{name: getattr(result, name) for name in Facts.__struct_fields__})
