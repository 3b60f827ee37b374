"""What is asked of a worker and what it answers: the records that cross the pipe, one JSON object a line."""

import math
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from edge.choices import BATCH_TOKENS, MAX_TOKENS, SEQ_TOKENS, Precision
from edge.training.data.forms import Asking
from edge.training.data.source import DataSource
from edge.training.plan import Plan


class Record(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="kind"):
    """Root of all of them."""


class Training(Record, frozen=True, tag="train"):
    """Train an adapter.

    Attributes:
        adapter: Canonical file of the adapter to begin with.
        data: What to train on.
        plan: For how long and how.
        folder: Belongs to this order alone; checkpoints and the result are written here.
        slowdown: Every step takes this many times as long, to play a slower device; at least 1.
        valid: Scored before the first step, while training, and after the last step.
        valid_every: Steps between two scores; 0 is ten times in all.
    """

    adapter: str
    data: DataSource
    plan: Plan
    folder: str
    slowdown: float = 1.0
    valid: DataSource | None = None
    valid_every: int = 0


class Progress(Record, frozen=True, tag="progress"):
    """Where training stands after a step."""

    step: int  # steps done
    steps: int  # of the whole training; 0: bounded by time
    seconds: float  # spent training so far
    loss: float  # of this step's tokens, before the step, nats per label
    tokens_per_s: float  # useful tokens over training time, slowing down included
    memory_bytes: int  # highest resident size of the process so far
    micro_batch_tokens: int  # 0: the whole step at a time; halved when memory runs out
    num_truncated: int  # examples too long for the plan, cut


class Validation(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How well held-out data is predicted after a number of steps."""

    step: int
    seconds: float  # spent training until then
    evaluation: "Evaluation"


class Validated(Record, frozen=True, tag="validated"):
    """Held-out data was scored in the middle of training."""

    validation: Validation


class Result(Record, frozen=True, tag="result"):
    """Training that ended; `is_complete` is False when it was stopped, and can be resumed."""

    adapter: str  # canonical file, in the order's folder
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
    asking: Asking = "plain"  # how the data asks, and the adapter is to be asked
    validations: tuple[Validation, ...] = ()  # in order of steps; of 0 and of the last among them


class Scoring(Record, frozen=True, tag="score"):
    """Score data with an adapter, or without one.

    In float32 whatever is trained in, so that scores of different runs and devices can be compared: rounding
    to bfloat16 decides many an exact match. `auto` is what is trained in.
    """

    data: DataSource
    adapter: str | None = None  # canonical file
    seq_tokens: int = SEQ_TOKENS
    batch_tokens: int = BATCH_TOKENS
    precision: Precision = "float32"


class Sampling(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How completions are chosen."""

    max_tokens: Annotated[int, Meta(ge=1)] = MAX_TOKENS  # of a completion
    temperature: Annotated[float, Meta(ge=0)] = 0.0  # higher is more varied; 0 takes the most likely token
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0  # the most likely tokens that together reach it
    seed: Annotated[int, Meta(ge=0)] = 0  # of the draws; each prompt begins with it


class Generation(Record, frozen=True, tag="generate"):
    """Answer prompts with an adapter, or without one.

    Attributes:
        prompts: What is asked.
        adapter: Canonical file; None is the plain base.
        sampling: How the answers are chosen.
        asking: Each prompt is a text that is continued, or a user's turn in the chat template, or an
            instruction in Alpaca's prompt.
        system: What the system says before it, in a chat.
        is_streamed: Text is sent as it comes, too; the worker knows.
    """

    prompts: tuple[str, ...]
    adapter: str | None = None
    sampling: Sampling = Sampling()
    asking: Asking = "plain"
    system: str | None = None
    is_streamed: bool = False


class Stop(Record, frozen=True, tag="stop"):
    """Write a checkpoint and end the training under way."""


class Loaded(Record, frozen=True, tag="loaded"):
    """The first reply: the base model is there."""

    backend: str
    num_parameters: int
    max_tokens: int  # of a text
    precision: Precision
    backend_why: str  # this backend
    precision_why: str  # this precision
    has_chat_template: bool = False

    @property
    def described(self) -> str:
        """Tells people what was loaded, and why."""
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
        """Computes the perplexity; infinite where the loss is beyond a float's exponent."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    def report(self) -> dict[str, Any]:
        """Lays it out as it is printed."""
        counts = ("num_examples", "num_labels", "num_truncated", "precision")
        names = ("loss", "perplexity", "accuracy", "exact_match", *counts)
        return {name: getattr(self, name) for name in names}


class Piece(Record, frozen=True, tag="piece"):
    """Text of a completion under way; never ends in the middle of a character."""

    prompt: int  # index
    text: str


class Completion(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a prompt was answered with."""

    text: str
    num_prompt_tokens: int  # the chat template's own counted
    num_tokens: int
    # Why it ended: the model was done, it was as long as asked for, or the model's context was full.
    ended_by: Literal["end", "max_tokens", "context"]


class Completions(Record, frozen=True, tag="completions"):
    """One completion for each prompt."""

    completions: tuple[Completion, ...]


class Failed(Record, frozen=True, tag="failed"):
    """The request failed in a way that the user can mend."""

    error: str  # name of a class in `edge.errors` or `converters.errors`
    message: str
    whole: str  # with every fault, where the message sums them up


Request = Training | Scoring | Generation | Stop
Part = Progress | Validated | Piece  # of a reply that is under way
Reply = Loaded | Result | Evaluation | Completions | Failed | Part
