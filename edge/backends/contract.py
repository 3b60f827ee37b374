"""The contract of every training backend, and the records that cross it.

A backend is loaded once per worker process and keeps its base model over many tasks. It owns tokenizer,
forward and backward pass and the AdamW state; what to train on, in which order, for how long, and when to
write a checkpoint is decided by `edge.training.trainer`, alike for all. So the same base weights, adapter,
data and plan give the same losses everywhere, within rounding.

AdamW is Loshchilov & Hutter's (arXiv 1711.05101) with bias correction, betas (0.9, 0.999), eps 1e-8.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Protocol

import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from converters.adapter import LoraAdapter
from edge.choices import MAX_TOKENS
from edge.choices import Precision as Precision

Prompts = Sequence[Sequence[int]]  # token ids
Ends = Collection[int] | None  # tokens; None is the tokenizer's `eos_id`
OnToken = Callable[[int, int], object]  # index of the prompt, token
Snapshot = dict[str, NDArray[Any]]  # flat names to arrays: adapter, both AdamW moments, step counter


class Batch(NamedTuple):
    """Some examples end to end, without padding: ragged, as no width holds for all.

    Example i has `lengths[i]` tokens and begins where example i - 1 ends. Its token at position t attends to
    positions s <= t of the same example, and to nothing of another.
    """

    tokens: NDArray[np.int32]  # (tokens,)
    targets: NDArray[np.int32]  # (tokens,): the next token of the same example; any where the weight is 0
    weights: NDArray[np.float32]  # (tokens,): 0 where the target is not trained on
    lengths: NDArray[np.int64]  # (examples,): tokens of each example, at least 1; their sum is `tokens`

    @property
    def num_tokens(self) -> int:
        """Tokens of all examples."""
        return len(self.tokens)

    @property
    def num_examples(self) -> int:
        """Examples, with or without a label."""
        return len(self.lengths)

    @property
    def starts(self) -> NDArray[np.int64]:
        """Where each example begins: (examples,)."""
        return np.cumsum(self.lengths) - self.lengths

    @property
    def spans(self) -> list[slice]:
        """Where each example lies among the tokens."""
        ends = np.cumsum(self.lengths).tolist()
        return [slice(begin, end) for begin, end in pairwise([0, *ends])]

    @property
    def owners(self) -> NDArray[np.int64]:
        """The example of each token, counted from 0: (tokens,)."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    @property
    def positions(self) -> NDArray[np.int32]:
        """The place of each token in its example, counted from 0: (tokens,)."""
        return (np.arange(len(self.tokens)) - np.repeat(self.starts, self.lengths)).astype(np.int32)

    def select(self, chosen: Sequence[int] | NDArray[np.integer]) -> "Batch":
        """Returns the examples numbered `chosen`, in that order."""
        lengths = self.lengths[chosen]
        shifts = self.starts[chosen] - (np.cumsum(lengths) - lengths)
        places = np.repeat(shifts, lengths) + np.arange(int(lengths.sum()))
        return Batch(self.tokens[places], self.targets[places], self.weights[places], lengths)


class Sampling(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How completions are chosen.

    Attributes:
        max_tokens: The most tokens of a completion.
        temperature: Higher is more varied; 0 always takes the most likely token.
        top_p: Above a temperature of 0, only the most likely tokens that together reach this probability.
        seed: Of the drawing; each call begins with it.
    """

    max_tokens: Annotated[int, Meta(ge=1)] = MAX_TOKENS
    temperature: Annotated[float, Meta(ge=0)] = 0.0
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    seed: Annotated[int, Meta(ge=0)] = 0


class ModelCard(NamedTuple):
    """What a loaded base model is."""

    backend: str
    modules: Mapping[str, tuple[int, int]]  # linear layers that can carry LoRA: name to (in, out) features
    max_tokens: int  # context length
    vocab_size: int
    num_parameters: int
    precision: Precision = "float32"  # of the forward and backward pass; never auto
    why: str = ""  # this precision, where the backend chose it


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

    @property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end a text: `eos_id`, and others that the model's files name."""
        ...

    @property
    def has_chat_template(self) -> bool:
        """Whether `render` knows how."""
        ...

    def encode(self, text: str) -> list[int]:
        """Returns the token ids of `text` as it stands: no special tokens are added."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """Returns the text of `tokens`, special tokens left out."""
        ...

    def piece(self, token: int) -> str:
        """Returns one token as it stands in a text, special tokens by their names."""
        ...

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool,
    ) -> str:
        """Renders `messages` by the chat template.

        Args:
            messages: Turns with a role, mostly a content, and whatever else the template reads of them.
            tools: JSON schemas of the functions that the assistant may call.
            add_generation_prompt: The text goes on to where the assistant's next turn begins.

        Raises:
            DataError: The base model has no chat template, or its template does not take these messages.
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
        """Returns the adapter as it is now, float32."""
        ...

    def score(self, batch: Batch) -> Score:
        """Computes the sums over a batch, with the adapter."""
        ...

    def features(self, batch: Batch) -> NDArray[np.float32]:
        """Averages hidden states before the head over each example's tokens: (examples, hidden size)."""
        ...

    def generate(
        self, prompts: Prompts, sampling: Sampling, ends: Ends = None, on_token: OnToken = lambda *_: None
    ) -> list[list[int]]:
        """Returns completions without their prompts; none makes a text longer than the context.

        Args:
            prompts: At least one token each.
            sampling: How tokens are chosen; the same gives the same again, on the same backend.
            ends: Tokens any of which ends a completion, and is left out; None is the tokenizer's `eos_id`.
            on_token: Called with the prompt's index and each token of its completion, as it comes.
        """
        ...


class TrainableModel(Model, Protocol):
    """A model whose adapter can be trained."""

    def begin(
        self, *, weight_decay: float, clip_norm: float, pull: float = 0.0, mask: LoraAdapter | None = None
    ) -> None:
        """Starts training: fresh AdamW state.

        Args:
            weight_decay: Decoupled, as in AdamW.
            clip_norm: Bound on the gradient's global l2 norm; 0 is off.
            pull: AlignFed's lambda (arXiv 2606.08197, Eq. 2-3). A step minimises the loss plus `pull` times
                the mean over its examples of |f - g|^2, the squared l2 norm: f is the example's `features`,
                g the same with the adapter as it is now, held fixed, also after `restore`. 0 costs nothing.
            mask: An adapter of the same modules and shapes, of 0 and 1; None is 1 everywhere. Where it is 0,
                no step changes the entry: neither its gradient nor weight decay, and its gradient does not
                count in the norm that is clipped.

        Raises:
            UnsupportedRecipe: `pull` is above 0, and the base model's features cannot be differentiated here.
            BackendError: The mask does not fit the adapter.
        """
        ...

    def step(self, batches: Sequence[Batch], lr: float) -> float:
        """Takes one AdamW step on micro-batches together, whatever the split.

        Returns:
            The loss before the step: weighted cross entropy over all labels of all micro-batches, in nats.
            What `pull` adds to it is minimised too, and left out here.

        Raises:
            OutOfMemory: The step did not fit; the adapter is unchanged where the library can tell.
        """
        ...

    def descend(self, gradient: LoraAdapter, lr: float) -> None:
        """Takes one AdamW step along a gradient that was made elsewhere, as `step` would along its own.

        Args:
            gradient: In the adapter's modules and shapes; clipped and masked as `begin` said.
            lr: Learning rate.
        """
        ...

    def gradient(self, batches: Sequence[Batch]) -> tuple[float, LoraAdapter]:
        """Computes the loss that `step` would return, and its gradient with respect to every a and b.

        Nothing is trained, and the optimizer is left as it is; neither `pull` nor `mask` takes part.

        Returns:
            The loss, and its gradient in the adapter's shapes, with the adapter's scales.

        Raises:
            OutOfMemory: It did not fit.
            AdapterError: The gradient is not finite.
        """
        ...

    def pull_back(self, batch: Batch, cotangent: NDArray[np.float32]) -> LoraAdapter:
        """Computes the gradient of the inner product of `cotangent` with `features`, for every a and b.

        Nothing is trained, and the optimizer is left as it is.

        Args:
            batch: As `features` takes it.
            cotangent: Of the shape of its features, (examples, hidden size).

        Returns:
            The gradient in the adapter's shapes, with the adapter's scales.

        Raises:
            OutOfMemory: It did not fit.
            UnsupportedRecipe: The base model's features cannot be differentiated here.
            AdapterError: The gradient is not finite.
        """
        ...

    def snapshot(self) -> Snapshot:
        """Copies everything that `step` changes."""
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
            BackendError: It does not compute in that precision.
            BaseModelError: `base` is not a model that this backend can train, and why.
            OutOfMemory: The model does not fit.
        """
        ...
