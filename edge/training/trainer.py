"""The training loop, alike for every backend: order, learning rate, progress, checkpoints, stopping.

Invariant: adapter, data and plan decide the result. How often a run was stopped, killed and resumed, or split
into micro-batches, does not (the split only by rounding).
"""

import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np

from converters.adapter import LoraAdapter
from converters.formats.canonical import save_adapter
from converters.masking import train_mask
from edge.backends.contract import Batch, TrainableModel
from edge.errors import BackendError, OutOfMemory, StateError
from edge.privacy.noise import SYSTEM, Draw
from edge.storage.disk import room_for
from edge.training.checkpoint import (
    FILE,
    Checkpoint,
    Tally,
    load_checkpoint,
    save_checkpoint,
    training_digest,
)
from edge.training.data.dataset import Dataset
from edge.training.packing import iterate_batches, pack_epoch, row_lengths, split_batch
from edge.training.plan import Plan, lr_at
from edge.training.private_steps import PrivateSteps, one_by_one
from edge.training.requests import Progress, Result, Validation
from edge.training.validation import Validator

ADAPTER = "adapter.safetensors"


def train(
    model: TrainableModel,
    dataset: Dataset,
    plan: Plan,
    adapter: LoraAdapter,
    folder: Path,
    *,
    validator: Validator | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
    slowdown: float = 1.0,
    draw: Draw = SYSTEM,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], object] = time.sleep,
) -> Result:
    """Trains `adapter` on `dataset`, from the folder's checkpoint where there is one.

    Args:
        model: Its adapter and optimizer are replaced.
        dataset: Loaded for the plan's `seq_tokens`.
        plan: Bound, rates and sizes.
        adapter: What to begin with.
        folder: Exists, and belongs to this training alone.
        validator: Scores held-out data before the first step, while training, and after the last step.
        on_progress: Called after every step.
        should_stop: Asked after every step; True writes a checkpoint and ends.
        slowdown: Every step is made to take this many times as long.
        draw: Gives the random bytes of the noise, where the plan asks for some.
        clock: Seconds.
        sleep: Waits for a number of seconds; may return early when training is to stop.

    Raises:
        UnsupportedAdapter: The adapter does not fit the base.
        UnsupportedRecipe: This backend cannot follow the plan.
        OutOfMemory: Not even one example at a time fits.
        BackendError: The loss is no longer finite.
        StateError: The folder's checkpoint is damaged, of another training, or in another precision.
        DiskRefused: No room for a checkpoint; the last one is still there.
    """
    run = _Run(model, dataset, plan, adapter, folder, validator, draw)
    run.validate()
    began = saved = clock()
    for batch in run.batches():
        run.step(batch)
        if slowdown > 1:  # sleeping for no time still gives the processor away, a millisecond when it is busy
            sleep((slowdown - 1) * (clock() - began))
        run.count(batch, clock() - began)
        on_progress(run.progress())
        is_stopped = should_stop()
        if run.is_complete or not is_stopped:  # what a stop leaves out, the next run begins with
            run.validate()
        if is_stopped:
            break
        if clock() - saved >= plan.checkpoint_every_s:
            run.save()
            saved = clock()
        began = clock()
    return run.finish()


class _Run:
    """One run of a training: the model, and what has been done."""

    def __init__(
        self,
        model: TrainableModel,
        dataset: Dataset,
        plan: Plan,
        adapter: LoraAdapter,
        folder: Path,
        validator: Validator | None,
        draw: Draw,
    ) -> None:
        self.model, self.dataset, self.plan, self.folder = model, dataset, plan, folder
        self.validator = validator
        self.validations: list[Validation] = []
        self.identity = training_digest(adapter, dataset.digest, plan, model.card)
        self.num_steps = plan.steps or (plan.epochs and self._num_epoch_steps())
        self.tally = Tally(micro_batch_tokens=plan.micro_batch_tokens)
        self.losses: list[float] = []
        model.set_adapter(adapter)
        mask = train_mask(adapter, plan.trains, plan.train_rank)
        clip_norm = 0.0 if plan.example_clip_norm else plan.clip_norm
        model.begin(weight_decay=plan.weight_decay, clip_norm=clip_norm, pull=plan.pull, mask=mask)
        self.private = PrivateSteps(model, plan, mask, draw) if plan.example_clip_norm else None
        found = load_checkpoint(folder, self.identity)
        if found:
            self._resume(found)

    @property
    def is_complete(self) -> bool:
        """Tells whether the plan's bound is reached."""
        if self.num_steps:
            return self.tally.num_steps >= self.num_steps
        return self.tally.num_steps > 0 and self.tally.seconds >= self.plan.seconds

    def batches(self) -> Iterator[Batch]:
        """Yields the batches that are still to be trained on."""
        sizes = {"seq_tokens": self.plan.seq_tokens, "batch_tokens": self.plan.batch_tokens}
        start = self.tally.num_steps
        endless = iterate_batches(self.dataset.examples, seed=self.plan.seed, start=start, **sizes)
        while not self.is_complete:
            yield next(endless)

    def step(self, batch: Batch) -> None:
        """Takes one optimizer step, on smaller and smaller parts until they fit."""
        tally = self.tally
        done = tally.num_steps / self.num_steps if self.num_steps else tally.seconds / self.plan.seconds
        lr = lr_at(self.plan, tally.num_steps, done)
        while True:
            parts = one_by_one(batch) if self.private else split_batch(batch, self.tally.micro_batch_tokens)
            try:
                loss = self.private.step(parts, lr) if self.private else self.model.step(parts, lr)
                break
            except OutOfMemory as error:
                self._halve(parts, error)
        if not np.isfinite(loss):
            raise BackendError(
                f"loss is {loss} at step {tally.num_steps}; a lower lr than {self.plan.lr} may help"
            )
        self.losses.append(loss)

    def count(self, batch: Batch, seconds: float) -> None:
        """Adds a step that was taken to the tally."""
        self.tally = msgspec.structs.replace(
            self.tally,
            num_steps=self.tally.num_steps + 1,
            seconds=self.tally.seconds + seconds,
            num_examples=self.tally.num_examples + batch.num_examples,
            num_tokens=self.tally.num_tokens + batch.num_tokens,
        )

    def progress(self) -> Progress:
        """Tells where the run stands."""
        tally = self.tally
        return Progress(
            step=tally.num_steps,
            steps=self.num_steps,
            seconds=tally.seconds,
            loss=self.losses[-1],
            tokens_per_s=tally.num_tokens / max(tally.seconds, 1e-9),
            memory_bytes=_peak_memory_bytes(),
            micro_batch_tokens=tally.micro_batch_tokens,
            num_truncated=self.dataset.num_truncated,
        )

    def validate(self) -> None:
        """Scores held-out data, where it is time to."""
        step, seconds = self.tally.num_steps, self.tally.seconds
        if self.validator and self.validator.is_due(
            self.validations, step, seconds, self.num_steps, is_complete=self.is_complete
        ):
            size = self.tally.micro_batch_tokens
            self.validations.append(self.validator.score(self.model, step, seconds, size))

    def save(self) -> None:
        """Writes a checkpoint."""
        checkpoint = Checkpoint(
            self.tally,
            self.losses,
            self.model.snapshot(),
            self.model.card.precision,
            tuple(self.validations),
            self.validator.dataset.digest if self.validator else "",
        )
        save_checkpoint(checkpoint, self.folder, self.identity)

    def finish(self) -> Result:
        """Writes a checkpoint and the adapter as it is now."""
        self.save()
        path = self.folder / ADAPTER
        with room_for(ADAPTER, self.folder):
            save_adapter(self.model.adapter(), path)
        return Result(
            adapter=str(path),
            num_examples=self.tally.num_examples,
            num_tokens=self.tally.num_tokens,
            num_truncated=self.dataset.num_truncated,
            num_steps=self.tally.num_steps,
            seconds=self.tally.seconds,
            loss_before=self.losses[0],
            loss_after=self.losses[-1],
            losses=tuple(self.losses),
            micro_batch_tokens=self.tally.micro_batch_tokens,
            is_complete=self.is_complete,
            precision=self.model.card.precision,
            asking=self.dataset.asking,
            validations=tuple(self.validations),
        )

    def _num_epoch_steps(self) -> int:
        plan, lengths = self.plan, row_lengths(self.dataset.examples)
        sizes = {"seq_tokens": plan.seq_tokens, "batch_tokens": plan.batch_tokens}
        epochs = range(plan.epochs)
        return sum(len(pack_epoch(lengths, seed=plan.seed, epoch=epoch, **sizes)) for epoch in epochs)

    def _resume(self, found: Checkpoint) -> None:
        own = self.model.card.precision
        if found.precision not in (None, own):
            raise StateError(
                f"{self.folder / FILE}: was trained in {found.precision}, and this run is in {own}; "
                f"resume with precision {found.precision} or auto, or remove the file to begin anew"
            )
        asked, used = self.plan.micro_batch_tokens, found.tally.micro_batch_tokens
        smaller = min(asked, used) if asked and used else asked or used
        self.tally = msgspec.structs.replace(found.tally, micro_batch_tokens=smaller)
        self.losses = found.losses
        if self.validator and self.validator.dataset.digest == found.valid:
            self.validations = list(found.validations)
        self.model.restore(found.model)

    def _halve(self, parts: Sequence[Batch], error: OutOfMemory) -> None:
        largest = max(parts, key=lambda part: part.num_tokens)
        if largest.num_examples == 1:
            raise OutOfMemory(
                f"{error}; one example of {largest.num_tokens} tokens is the smallest part of a step: "
                f"lower seq_tokens, {self.plan.seq_tokens}"
            ) from error
        half = (self.tally.micro_batch_tokens or self.plan.batch_tokens) // 2
        self.tally = msgspec.structs.replace(self.tally, micro_batch_tokens=half)


def _peak_memory_bytes() -> int:
    status = Path("/proc/self/status")
    if sys.platform == "darwin" or not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS
    # Linux's ru_maxrss begins with the peak of the process that started this one.
    peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return 1024 * int(peak.split()[1])
