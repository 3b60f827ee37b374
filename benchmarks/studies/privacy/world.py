"""One fleet in one process, under terms of privacy: devices in turns at one model, versions in lockstep.

An update goes the product's way: the trainer's steps, clipping, noise, encoding, and the coordinator's
strategy. Left out is what changes no number: MQTT, signatures, seals, the journal.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from msgspec import Struct

from benchmarks.played import make_offer, plan_of, received
from benchmarks.studies.privacy.secrets import Home
from converters.adapter import LoraAdapter, initial_adapter
from converters.arithmetic import add
from converters.bases.targets import match_targets
from converters.choices import Trains
from converters.formats.canonical import save_adapter
from coordinator.demo.household import Example, save_examples
from coordinator.strategies.choice import METHODS
from coordinator.strategies.contract import State
from coordinator.strategies.pipeline import Pipeline
from coordinator.strategies.written import read_method
from edge.backends.contract import TrainableModel
from edge.device.task import make_update
from edge.privacy.terms import Terms
from edge.protocol.codec import decode_adapter
from edge.protocol.messages import Recipe
from edge.training.data.dataset import load_dataset
from edge.training.data.source import DataSource
from edge.training.packing import build_batch
from edge.training.trainer import train

VERSIONS, STEPS = 4, 8
SHARED: Trains = "b"  # half the entries, and so a root of a half of the noise (FFA-LoRA)
RECIPE = Recipe(steps=STEPS, lr=0.03, seq_tokens=128, batch_tokens=4096, trains=SHARED)
RANK, SCALE, TARGETS = 2, 4.0, ("q_proj", "v_proj")


class Seen(Struct, frozen=True):
    """What one world came to."""

    loss_before: float  # on held-out sentences, nats per label
    loss: float
    by_version: list[float]  # of each candidate: how much the fleet's training lowered its loss
    by_update: list[float]  # the same, of its device's first update alone: what a coordinator sees
    is_member: list[bool]


class Data(NamedTuple):
    """Examples as a model reads them."""

    folder: Path
    model: TrainableModel

    def losses(self, adapter: LoraAdapter, examples: Sequence[Example]) -> np.ndarray:
        """Returns each example's loss, nats per label."""
        self.model.set_adapter(adapter)
        dataset = load_dataset(self._file(examples), self.model.tokenizer, seq_tokens=RECIPE.seq_tokens)
        scores = [self.model.score(build_batch([one])) for one in dataset.examples]
        return np.array([score.loss_sum / score.weight_sum for score in scores])

    def _file(self, examples: Sequence[Example]) -> DataSource:
        path = self.folder / "examples.jsonl"
        save_examples(examples, path)
        return DataSource(path=str(path))


def first_adapter(model: TrainableModel, seed: int) -> LoraAdapter:
    """Returns version 0 of a seed's fleets."""
    modules = match_targets(model.card.modules, TARGETS)
    return initial_adapter(modules, rank=RANK, scale=SCALE, seed=seed)


def num_entries(adapter: LoraAdapter) -> int:
    """Counts the entries that are trained, and so get noise."""
    return sum(factors.b.size for _, factors in adapter)


def run_world(
    model: TrainableModel,
    terms: Terms,
    fleet: Sequence[Home],
    is_in: Sequence[Sequence[bool]],
    held_out: Sequence[Example],
    adapter: LoraAdapter,
) -> Seen:
    """Trains a fleet, and looks at what it tells of every candidate.

    Args:
        model: The base.
        terms: Of privacy.
        fleet: Its households.
        is_in: Of each device's codes, whether it is in the device's data.
        held_out: Sentences that no device has.
        adapter: Version 0.
    """
    with tempfile.TemporaryDirectory(prefix="privacy-") as name:
        data = Data(Path(name), model)
        codes = [code for home in fleet for code in home.codes]
        before, unseen = data.losses(adapter, codes), data.losses(adapter, held_out)
        final, firsts = _train(data, terms, fleet, is_in, adapter)
        lowered = [
            data.losses(adapter, home.codes) - data.losses(add(adapter, first), home.codes)
            for home, first in zip(fleet, firsts, strict=True)
        ]
        return Seen(
            loss_before=float(unseen.mean()),
            loss=float(data.losses(final, held_out).mean()),
            by_version=(before - data.losses(final, codes)).tolist(),
            by_update=np.concatenate(lowered).tolist(),
            is_member=[one for of_device in is_in for one in of_device],
        )


def _train(
    data: Data,
    terms: Terms,
    fleet: Sequence[Home],
    is_in: Sequence[Sequence[bool]],
    adapter: LoraAdapter,
) -> tuple[LoraAdapter, list[LoraAdapter]]:
    """Returns the last version, and every device's first update as it was received."""
    method = read_method(METHODS["fedbuff"], {"shared": SHARED}, "factors").method
    strategy = Pipeline("fedbuff", method, len(fleet), terms=terms)
    state, path, residuals, firsts = State(0, adapter), data.folder / "version", {}, []
    for version in range(VERSIONS):
        save_adapter(state.adapter, path)
        task = make_offer(
            version, path, rank=RANK, base="0" * 64, space="factors", recipe=RECIPE, privacy=terms
        )
        buffer = []
        for home, own in zip(fleet, is_in, strict=True):
            folder = data.folder / f"{home.name}-{version}"
            folder.mkdir()
            trained = [*home.sentences, *(code for code, one in zip(home.codes, own, strict=True) if one)]
            save_examples(trained, folder / "data.jsonl")
            source = DataSource(path=str(folder / "data.jsonl"))
            dataset = load_dataset(source, data.model.tokenizer, seq_tokens=RECIPE.seq_tokens)
            result = train(data.model, dataset, plan_of(home.name, task), state.adapter, folder)
            update = make_update(home.name, task, path, result, residuals.get(home.name))
            residuals[home.name] = update.residual
            buffer.append(received(update, state.adapter, 0, staleness=0))
            if version == 0:
                firsts.append(decode_adapter(update.payload, like=state.adapter))
        state, _ = strategy.merge(state, buffer)
    return state.adapter, firsts
