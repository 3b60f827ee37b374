"""How one adapter is trained: for how long, at which rate, on how many tokens at a time.

A plan is one record, so that a checkpoint can tell whether it belongs to it (`edge.training.checkpoint`).
"""

import math
from collections.abc import Iterator

from msgspec import Struct, structs

from converters.choices import Trains
from edge.choices import BATCH_TOKENS, CHECKPOINT_EVERY_S, CLIP_NORM, LR, SEQ_TOKENS, Schedule
from edge.errors import ConfigError

MOST = 2**53  # of a whole number; JSON holds no larger one


class Plan(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A bound (exactly one of `steps`, `seconds`, `epochs`), a learning rate and the size of a step.

    Attributes:
        steps: Optimizer steps; 0 where another bound holds.
        seconds: Time spent training, slowing down included, resumed runs added up.
        epochs: Passes over the data.
        lr: Peak learning rate of AdamW.
        schedule: After the warm-up: constant, or falling to 0 at the bound.
        warmup_steps: Steps over which the rate rises linearly.
        weight_decay: Decoupled, as in AdamW.
        clip_norm: Bound on the gradient's global l2 norm; 0 is off.
        example_clip_norm: Bound on the norm of every example's own gradient, for its privacy; 0 is off. It
            takes the place of `clip_norm`.
        example_noise: Standard deviation of the noise on their sum, over that bound.
        pull: Weight of the distance to the features of the adapter that training began with; 0 is off.
        trains: Which factors.
        train_rank: Only the first rows of a and columns of b are trained; 0 is all.
        seq_tokens: Longest packed row, and so the longest example.
        batch_tokens: Tokens of one optimizer step, padding included.
        micro_batch_tokens: Tokens computed at a time; 0 is the whole step.
        seed: Of the data's order; 0 is a seed.
        checkpoint_every_s: Seconds between full checkpoints; 0 writes one after every step.

    Raises:
        ConfigError: On building, naming all faults at once.
    """

    steps: int = 0
    seconds: float = 0.0
    epochs: int = 0
    lr: float = LR
    schedule: Schedule = "constant"
    warmup_steps: int = 0
    weight_decay: float = 0.0
    clip_norm: float = CLIP_NORM
    example_clip_norm: float = 0.0
    example_noise: float = 0.0
    pull: float = 0.0
    trains: Trains = "both"
    train_rank: int = 0
    seq_tokens: int = SEQ_TOKENS
    batch_tokens: int = BATCH_TOKENS
    micro_batch_tokens: int = 0
    seed: int = 0
    checkpoint_every_s: float = CHECKPOINT_EVERY_S

    def __post_init__(self) -> None:
        faults = list(_faults(self))
        if faults:
            raise ConfigError.of("plan", faults)


def lr_at(plan: Plan, step: int, progress: float) -> float:
    """Computes the learning rate of `step`, counted from 0.

    Args:
        plan: Peak rate, warm-up and schedule.
        step: The step about to be taken.
        progress: What is done of the bound, 0 to 1: steps of all steps, or seconds of all seconds.
    """
    warmup = min(1.0, (step + 1) / (plan.warmup_steps + 1))
    left = 1.0 - min(1.0, max(0.0, progress))
    decay = {"constant": 1.0, "linear": left, "cosine": 0.5 * (1.0 - math.cos(math.pi * left))}
    return plan.lr * warmup * decay[plan.schedule]


def _faults(plan: Plan) -> Iterator[str]:
    bounds = {name: getattr(plan, name) for name in ("steps", "seconds", "epochs")}
    if sum(value > 0 for value in bounds.values()) != 1 or min(bounds.values()) < 0:
        given = ", ".join(f"{name} {value}" for name, value in bounds.items())
        yield f"exactly one of steps, seconds, epochs must be above 0; they are {given}"
    names = ("lr", "seconds", "weight_decay", "clip_norm", "pull", "checkpoint_every_s")
    for name in (*names, "example_clip_norm", "example_noise"):
        value = getattr(plan, name)
        if not (math.isfinite(value) and value >= 0):
            yield f"{name} is {value}, expected a finite number of at least 0"
    if plan.example_clip_norm and plan.pull:
        yield "pull draws examples together, and example_clip_norm keeps them apart: set one of them to 0"
    for name in ("warmup_steps", "train_rank", "micro_batch_tokens", "seed"):
        if getattr(plan, name) < 0:
            yield f"{name} is {getattr(plan, name)}, expected at least 0"
    for name in structs.asdict(plan):
        value = getattr(plan, name)
        if isinstance(value, int) and value > MOST:
            yield f"{name} is {value}, expected at most {MOST}"
    if plan.seq_tokens < 2:
        yield f"seq_tokens is {plan.seq_tokens}, expected at least 2"
    if plan.batch_tokens < plan.seq_tokens:
        yield f"batch_tokens is {plan.batch_tokens}, expected at least seq_tokens, {plan.seq_tokens}"
