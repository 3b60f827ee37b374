"""What is asked of a worker and what it answers: the records that cross the pipe, one JSON object a line."""

import math

from msgspec import Struct

from edge.training.backends.base import Precision
from edge.training.dataset import DataSource
from edge.training.plan import Plan


class Record(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="kind"):
    """Root of all of them."""


class Task(Record, frozen=True, tag="train"):
    """Train an adapter.

    Attributes:
        adapter: Canonical file of the adapter to begin with.
        data: What to train on.
        plan: For how long and how.
        folder: Belongs to this task alone; checkpoints and the result are written here.
        slowdown: Every step takes this many times as long, to play a slower device; at least 1.
    """

    adapter: str
    data: DataSource
    plan: Plan
    folder: str
    slowdown: float = 1.0


class Progress(Record, frozen=True, tag="progress"):
    """Where training stands after a step."""

    step: int  # steps done
    steps: int  # of the whole task; 0: bounded by time
    seconds: float  # spent training so far
    loss: float  # of this step's tokens, before the step, nats per label
    tokens_per_s: float  # useful tokens over training time, slowing down included
    memory_bytes: int  # highest resident size of the process so far
    micro_batch_tokens: int  # 0: the whole step at a time; halved when memory runs out
    num_truncated: int  # examples too long for the plan, cut


class Result(Record, frozen=True, tag="result"):
    """A task that ended; `is_complete` is False when it was stopped, and can be resumed."""

    adapter: str  # canonical file, in the task's folder
    num_examples: int  # trained on, repetitions counted
    num_tokens: int  # useful ones, repetitions counted
    num_truncated: int  # examples of the data that were too long for the plan, and cut
    num_steps: int
    seconds: float  # spent training, resumed runs added up
    loss_before: float  # of the first step
    loss_after: float  # of the last step
    losses: tuple[float, ...]  # of every step
    micro_batch_tokens: int
    is_complete: bool
    precision: Precision = "float32"  # trained in; a resumed run keeps what it began in


class Scoring(Record, frozen=True, tag="score"):
    """Score data with an adapter, or without one."""

    adapter: str | None
    data: DataSource
    seq_tokens: int
    batch_tokens: int
    precision: Precision = "float32"  # auto: what is trained in


class Generation(Record, frozen=True, tag="generate"):
    """Continue prompts with an adapter, or without one."""

    prompts: tuple[str, ...]
    adapter: str | None
    max_tokens: int
    temperature: float
    seed: int


class Stop(Record, frozen=True, tag="stop"):
    """Write a checkpoint and end the task under way."""


class Loaded(Record, frozen=True, tag="loaded"):
    """The first reply: the base model is there."""

    backend: str
    num_parameters: int
    max_tokens: int
    precision: Precision
    backend_why: str  # this backend
    precision_why: str  # this precision

    @property
    def described(self) -> str:
        """For people."""
        reasons = [why for why in (self.backend_why, self.precision_why) if why not in ("", "as asked")]
        return f"{self.backend} in {self.precision}" + (f" ({'; '.join(reasons)})" if reasons else "")


class Evaluation(Record, frozen=True, tag="evaluation"):
    """How well data is predicted, given what stands before each token."""

    loss: float  # nats per label
    accuracy: float  # share of labels that are the most likely token
    exact_match: float  # share of examples that greedy decoding would produce exactly
    num_labels: int
    num_examples: int
    num_truncated: int
    precision: Precision  # of the forward pass

    @property
    def perplexity(self) -> float:
        """Infinite where the loss is beyond a float's exponent."""
        return math.exp(self.loss) if self.loss < 700 else math.inf


class Texts(Record, frozen=True, tag="texts"):
    """Completions, one for each prompt."""

    texts: tuple[str, ...]


class Failed(Record, frozen=True, tag="failed"):
    """The request failed in a way that the user can mend."""

    error: str  # name of a class in `edge.errors` or `converters.errors`
    message: str
    whole: str  # with every fault, where the message sums them up


Request = Task | Scoring | Generation | Stop
Reply = Loaded | Progress | Result | Evaluation | Texts | Failed
