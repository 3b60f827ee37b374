"""Training, scoring and generating as plain functions: what `tunefleet train`, `eval` and `generate` do.

They run the commands' own code: a process of its own loads the base model, works, and has ended when the
function returns, so a want of memory ends no notebook. Defaults are the commands', and so are the errors:
`TunefleetError` and its kinds. All of it works in a notebook too, where an event loop runs already, and which
shows each setting by its name and default: so `train` is longer than a function should be.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import msgspec

from converters.adapter import LoraAdapter
from converters.bases.read import find_base, read_base
from converters.choices import Format, Trains
from converters.formats.canonical import save_adapter
from converters.formats.load import load_any
from edge.choices import (
    BATCH_TOKENS,
    CHECKPOINT_EVERY_S,
    CLIP_NORM,
    LR,
    MAX_TOKENS,
    RANK,
    SCALE,
    SEQ_TOKENS,
    TARGETS,
    BackendName,
    Precision,
    Schedule,
)
from edge.running import run_to_end
from edge.training.data.forms import Asking
from edge.training.data.in_memory import Data, data_file
from edge.training.data.source import DataSource
from edge.training.local_run.model import Adapter, evaluate_locally, open_model
from edge.training.local_run.run import METRICS, make_run
from edge.training.local_run.train import train_locally
from edge.training.requests import Evaluation, Generation, Progress, Sampling, Scoring


class TrainResult(NamedTuple):
    """What `train` gives.

    Attributes:
        adapter: As trained: float32 factors by module.
        metrics: What `metrics.json` holds: losses of every step in nats per label, tokens_per_s, seconds, …
        path: Where the adapter was written; None where no `out` was given.
    """

    adapter: LoraAdapter
    metrics: Mapping[str, Any]
    path: Path | None


def train(
    base: str | Path,
    data: Data,
    *,
    out: str | Path | None = None,
    adapter: Adapter | None = None,
    steps: int = 0,
    epochs: int = 0,
    seconds: float = 0.0,
    lr: float = LR,
    rank: int = RANK,
    scale: float = SCALE,
    targets: str | Sequence[str] = TARGETS,
    valid: Data | None = None,
    seed: int = 0,
    backend: BackendName = "auto",
    precision: Precision = "auto",
    schedule: Schedule = "constant",
    warmup_steps: int = 0,
    weight_decay: float = 0.0,
    clip_norm: float = CLIP_NORM,
    pull: float = 0.0,
    trains: Trains = "both",
    train_rank: int = 0,
    seq_tokens: int = SEQ_TOKENS,
    batch_tokens: int = BATCH_TOKENS,
    micro_batch_tokens: int = 0,
    checkpoint_every_s: float = CHECKPOINT_EVERY_S,
    prompt_column: str | None = None,
    completion_column: str | None = None,
    train_on_prompt: bool = False,
    form: Format = "peft",
    resume: bool = False,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> TrainResult:
    """Trains a LoRA adapter on this machine.

    Ctrl-C ends the worker process first; with `out`, `resume=True` goes on from its checkpoint.

    Args:
        base: A Hugging Face or MLX folder, a .gguf file, or a hub name.
        data: A file, or rows such as `{"prompt": …, "completion": …}`.
        out: Folder for the adapter and metrics.json; None keeps nothing on the disk.
        adapter: To begin with, of any format; `rank`, `scale` and `targets` shape a new one.
        steps: Optimizer steps; or give `epochs` (1 where nothing is given) or `seconds`.
        epochs: Passes over the data.
        seconds: Time spent training.
        lr: Peak learning rate of AdamW.
        rank: Of a new adapter.
        scale: What B @ A is multiplied by: alpha / rank in PEFT.
        targets: Endings of the names of the layers that get factors, in a sequence or by comma.
        valid: Scored before and after training: `metrics["valid_before"]`, `metrics["valid_after"]`.
        seed: Of the new adapter and of the data's order.
        backend: What computes; llama_cpp takes .gguf files.
        precision: Of the forward and backward pass; factors are float32.
        schedule: The rate after the warm-up.
        warmup_steps: Steps over which the rate rises.
        weight_decay: Decoupled, as in AdamW.
        clip_norm: Bound on the gradient's l2 norm; 0 is off.
        pull: Weight of the distance to the features that training began with.
        trains: Which factors are trained.
        train_rank: Only the first rows of a and columns of b; 0 is all.
        seq_tokens: Longest packed row, in tokens.
        batch_tokens: Tokens of one step.
        micro_batch_tokens: Tokens computed at a time; 0 is the whole step.
        checkpoint_every_s: Seconds between checkpoints.
        prompt_column: Column of the prompts, if it is not `prompt`.
        completion_column: Column of the completions, if it is not `completion`.
        train_on_prompt: Prompts count in the loss too.
        form: Of the adapter in `out`.
        resume: Go on with a run in `out` that was interrupted.
        on_progress: Called as training goes on, some ten times a second at most.

    Returns:
        The adapter, its metrics, and where it was written.

    Raises:
        DataError: The data cannot be used: row or line, and why.
        BaseModelError: The base model cannot be loaded.
        TunefleetError: What else a user can mend.

    Example:
        >>> result = tunefleet.train("base", [{"prompt": "lamp: ", "completion": "on"}], steps=2)
        >>> result.metrics["num_steps"], len(result.metrics["losses"])
        (2, 2)
    """
    given = locals()  # flat, by the names of the settings; nothing else is bound yet
    held_out = data_file(valid, "valid") if valid is not None else nullcontext()
    with data_file(data) as path, held_out as scored, TemporaryDirectory(prefix="tunefleet-") as temporary:
        if isinstance(adapter, LoraAdapter):
            begin = Path(temporary) / "adapter.safetensors"
            save_adapter(adapter, begin)
            given["adapter"] = begin
        given |= {"data": path, "valid": scored, "out": out if out is not None else Path(temporary) / "out"}
        run = make_run(given)
        run_to_end(lambda: train_locally(run, on_progress, takes_signals=False))
        trained = load_any(run.adapter_path, read_base(find_base(run.base)))
        metrics = msgspec.json.decode((Path(run.out) / METRICS).read_bytes(), type=dict[str, Any])
    if out is None:
        del metrics["adapter"]  # a path that has gone
    return TrainResult(trained, metrics, run.adapter_path if out is not None else None)


def evaluate(
    base: str | Path,
    data: Data,
    *,
    adapter: Adapter | None = None,
    backend: BackendName = "auto",
    precision: Precision = "float32",
    seq_tokens: int = SEQ_TOKENS,
    batch_tokens: int = BATCH_TOKENS,
    prompt_column: str | None = None,
    completion_column: str | None = None,
    train_on_prompt: bool = False,
) -> Evaluation:
    """Scores a base model on data, with an adapter or without.

    Args:
        base: As in `train`.
        data: As in `train`.
        adapter: In memory, or the path of one of any format.
        backend: What computes.
        precision: Of the forward pass; `auto` is what is trained in here.
        seq_tokens: Longest packed row, in tokens; longer examples are cut, and counted.
        batch_tokens: Tokens computed at a time.
        prompt_column: As in `train`.
        completion_column: As in `train`.
        train_on_prompt: Prompts count in the loss too.

    Returns:
        `loss` in nats per label and its `perplexity`; `accuracy`, the share of labels that are the most
        likely token; `exact_match`, the share of examples that greedy decoding would produce exactly.

    Raises:
        TunefleetError: As `train`.

    Example:
        >>> tunefleet.evaluate("base", "data.jsonl").num_examples
        2
    """
    with data_file(data) as path:
        source = DataSource(
            path=str(path),
            prompt_column=prompt_column,
            completion_column=completion_column,
            train_on_prompt=train_on_prompt,
        )
        request = Scoring(data=source, seq_tokens=seq_tokens, batch_tokens=batch_tokens, precision=precision)
        _, evaluation = run_to_end(lambda: evaluate_locally(str(base), request, adapter, backend))
        return evaluation


def generate(
    base: str | Path,
    prompts: str | Sequence[str],
    *,
    adapter: Adapter | None = None,
    asking: Asking = "plain",
    system: str | None = None,
    max_tokens: int = MAX_TOKENS,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    backend: BackendName = "auto",
    precision: Precision = "auto",
) -> list[str]:
    """Continues prompts, or answers them.

    Args:
        base: As in `train`.
        prompts: Texts to continue; one string is one prompt.
        adapter: In memory, or the path of one of any format.
        asking: `plain` continues a prompt as it stands, as `prompt` and `completion` are trained on; `chat`
            answers it through the base's chat template, as conversations are; `alpaca` answers it as an
            instruction in Alpaca's prompt. What an adapter was trained with stands in its metrics.
        system: What the system says before it, in a chat.
        max_tokens: Most tokens of a completion.
        temperature: 0 always takes the most likely token.
        top_p: Above a temperature of 0, only the most likely tokens that together reach this probability.
        seed: Of the sampling.
        backend: What computes.
        precision: Of the forward pass.

    Returns:
        One completion for each prompt.

    Raises:
        TunefleetError: As `train`.

    Example:
        >>> len(tunefleet.generate("base", ["lamp: ", "pump: "], max_tokens=4))
        2
    """
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    sampling = Sampling(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed)

    async def ask() -> list[str]:
        async with open_model(str(base), adapter, backend, precision) as model:
            request = Generation(
                prompts=tuple(texts), adapter=model.adapter, sampling=sampling, asking=asking, system=system
            )
            return [answer.text for answer in await model.worker.generate(request)]

    return run_to_end(ask)
