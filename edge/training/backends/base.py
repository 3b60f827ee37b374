"""The contract of every training backend, and the records that cross it.

A backend is loaded once per worker process and keeps its base model over many tasks. It owns tokenizer,
forward and backward pass and the AdamW state; what to train on, in which order, for how long, and when to
write a checkpoint is decided by `edge.training.trainer`, alike for all. So the same base weights, adapter,
data and plan give the same losses everywhere, within rounding.

AdamW is Loshchilov & Hutter's (arXiv 1711.05101) with bias correction, betas (0.9, 0.999), eps 1e-8.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from converters.adapter import LoraAdapter

Precision = Literal["auto", "float32", "bfloat16"]
Snapshot = dict[str, NDArray[Any]]  # flat names to arrays: adapter, both AdamW moments, step counter


class Batch(NamedTuple):
    """Packed token rows; several examples may share a row, none sees another.

    All are of shape (rows, width). Position t of a row attends to positions s <= t of the same segment.
    """

    tokens: NDArray[np.int32]
    targets: NDArray[np.int32]  # the next token of the same example; anything where the weight is 0
    weights: NDArray[np.float32]  # 0 where the target is not trained on
    segments: NDArray[np.int32]  # 1, 2, … within a row; 0 is padding
    positions: NDArray[np.int32]  # counted from 0 within each segment

    @property
    def num_tokens(self) -> int:
        """Useful tokens: all but padding."""
        return int(np.count_nonzero(self.segments))


class ModelCard(NamedTuple):
    """What a loaded base model is."""

    backend: str
    modules: Mapping[str, tuple[int, int]]  # linear layers that can carry LoRA: name to (in, out) features
    max_tokens: int  # context length
    vocab_size: int
    num_parameters: int


class Score(NamedTuple):
    """Sums over a batch, to be added up over batches."""

    loss_sum: float  # weighted cross entropy, nats
    weight_sum: float
    num_correct: int  # labelled positions whose target is the most likely token
    num_labels: int
    num_exact: int  # examples all of whose labels are correct: greedy decoding would produce them exactly
    num_examples: int  # examples with at least one label


class Tokenizer(Protocol):
    """The base model's own tokenizer."""

    bos_id: int | None
    eos_id: int | None

    def encode(self, text: str) -> list[int]:
        """Token ids of `text` as it stands: no special tokens are added."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of `tokens`, special tokens left out."""
        ...

    def render(self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool) -> str:
        """The chat template's text for `messages`.

        Raises:
            DataError: If the base model has no chat template.
        """
        ...


class Model(Protocol):
    """A loaded base model with at most one adapter; see `TrainableModel` for training."""

    @property
    def card(self) -> ModelCard:
        """What the base model is."""
        ...

    @property
    def tokenizer(self) -> Tokenizer:
        """The base model's own."""
        ...

    def set_adapter(self, adapter: LoraAdapter) -> None:
        """Replaces the adapter; forgets the optimizer. An adapter without modules is the plain base.

        Raises:
            UnsupportedAdapter: Naming all modules that the base lacks, or whose shapes differ, at once.
        """
        ...

    def adapter(self) -> LoraAdapter:
        """The adapter as it is now, float32."""
        ...

    def score(self, batch: Batch) -> Score:
        """Forward only, with the adapter."""
        ...

    def features(self, batch: Batch) -> NDArray[np.float32]:
        """Hidden states before the head, averaged over each example's tokens: (examples, hidden size).

        Examples are in order of row and segment.
        """
        ...

    def generate(
        self, prompts: Sequence[Sequence[int]], *, max_tokens: int, temperature: float = 0.0, seed: int = 0
    ) -> list[list[int]]:
        """Completions without their prompts; ends at the end-of-sequence token, which is left out.

        Temperature 0 is greedy.
        """
        ...


class TrainableModel(Model, Protocol):
    """A model whose adapter can be trained."""

    def begin(self, *, weight_decay: float, clip_norm: float) -> None:
        """Starts training: fresh AdamW state. `clip_norm` bounds the gradient's global l2 norm; 0 is off."""
        ...

    def step(self, batches: Sequence[Batch], lr: float) -> float:
        """One AdamW step on micro-batches taken together, whatever the split.

        Returns:
            The loss before the step: weighted cross entropy over all labels of all micro-batches, in nats.

        Raises:
            OutOfMemory: The step did not fit; the adapter is unchanged where the library can tell.
        """
        ...

    def snapshot(self) -> Snapshot:
        """Copies of everything that `step` changes."""
        ...

    def restore(self, snapshot: Snapshot) -> None:
        """Continues exactly where `snapshot` was taken; `set_adapter` and `begin` were called as then."""
        ...


class Loader(Protocol):
    """The one function each backend's file exports as `load`."""

    def __call__(self, base: Path, *, precision: Precision, seed: int) -> TrainableModel:
        """Loads a base model from a local folder or file.

        Raises:
            MissingExtra: The backend's library is not installed.
            BaseModelError: `base` is not a model that this backend can train, and why.
        """
        ...
