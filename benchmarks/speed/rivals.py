"""What the training backends are measured against: Hugging Face Trainer + PEFT, and mlx-lm's own loop.

Each as its documentation shows it, on examples that were tokenized before; `training.py` runs them.
"""

import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from converters.adapter import LoraAdapter, initial_adapter
from converters.bases.read import read_base
from converters.bases.targets import match_targets
from edge.training.data.dataset import load_dataset
from edge.training.data.source import DataSource
from edge.training.packing import Example

RANK, SCALE, LR = 8, 2.0, 1e-3
BATCH, SEQ_TOKENS = 8, 511  # inputs; an example has one token more, 512
WARM_STEPS = 2


class Work(msgspec.Struct, frozen=True):
    """What every contestant does."""

    base: str
    data: str
    num_steps: int  # timed


class Timing(msgspec.Struct, frozen=True):
    """One run of one contestant."""

    name: str
    tokens_per_s: float
    tokens_per_cpu_s: float  # processor seconds of all threads
    losses: list[float]  # of all steps, in order


def read_examples(work: Work) -> list[Example]:
    """Reads the examples, of at most 512 tokens each, in the file's order."""
    from transformers import AutoTokenizer

    from edge.backends.transformers import HubTokenizer

    tokenizer = HubTokenizer(AutoTokenizer.from_pretrained(work.base))
    return list(load_dataset(DataSource(path=work.data), tokenizer, seq_tokens=SEQ_TOKENS).examples)


def first_adapter(work: Work) -> LoraAdapter:
    """Returns the adapter that everyone starts with."""
    return first_adapter_of(read_base(work.base).modules)


def first_adapter_of(modules: Any) -> LoraAdapter:
    """Returns a new adapter of rank 8 on q and v."""
    return initial_adapter(match_targets(modules, ["q_proj", "v_proj"]), rank=RANK, scale=SCALE, seed=0)


class Clock:
    """Wall and processor seconds at the end of every step."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.processor: list[float] = []

    def tick(self) -> None:
        """Notes that a step is done."""
        self.wall.append(time.perf_counter())
        self.processor.append(time.process_time())


def timing(
    name: str, examples: Sequence[Example], clock: Clock, losses: list[float], warm: int = WARM_STEPS
) -> Timing:
    """Returns the useful tokens of the timed steps over their seconds."""
    tokens = sum(len(example.tokens) for example in examples[BATCH * warm : BATCH * len(clock.wall)])
    wall, processor = (times[-1] - times[warm - 1] for times in (clock.wall, clock.processor))
    return Timing(name, tokens / wall, tokens / processor, losses)


def run_trainer(work: Work) -> list[Timing]:
    """Runs Hugging Face Trainer and PEFT as their documentation shows them, in float32 and in bfloat16."""
    return [
        _run_trainer("Trainer + PEFT, float32", work, bf16=False),
        _run_trainer("Trainer + PEFT, bf16=True", work, bf16=True),
    ]


def _run_trainer(name: str, work: Work, *, bf16: bool) -> Timing:
    import peft
    import transformers

    class Watch(transformers.TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            clock.tick()

    examples = read_examples(work)
    base = transformers.AutoModelForCausalLM.from_pretrained(work.base, dtype="float32")
    config = peft.LoraConfig(r=RANK, lora_alpha=RANK * SCALE, target_modules=["q_proj", "v_proj"])
    model = peft.get_peft_model(base, config)
    import torch

    for module, factors in first_adapter(work):  # B is zero already
        layer = model.base_model.model.get_submodule(module)
        layer.lora_A.default.weight.data = torch.from_numpy(factors.a.copy())
    tokenizer = transformers.AutoTokenizer.from_pretrained(work.base)
    tokenizer.pad_token = tokenizer.eos_token
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=BATCH,
            max_steps=work.num_steps + WARM_STEPS,
            learning_rate=LR,
            lr_scheduler_type="constant",
            train_sampling_strategy="sequential",  # the rows are shuffled already
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            bf16=bf16,
        )
        trainer = transformers.Trainer(
            model=model,
            args=arguments,
            train_dataset=[
                {"input_ids": e.tokens.tolist(), "labels": np.where(e.labels, e.tokens, -100).tolist()}
                for e in examples
            ],
            data_collator=transformers.DataCollatorForSeq2Seq(tokenizer, padding=True),
            callbacks=[Watch()],
        )
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return timing(name, examples, clock, losses)


def run_mlx_lm(work: Work) -> list[Timing]:
    """Runs what `mlx_lm.lora` runs once it has read its options; of two epochs the first compiles."""
    import edge.backends.mlx.model as _openblas  # the rival gets OpenBLAS, too  # noqa: F401, I001
    import mlx.core as mx
    import mlx.optimizers
    from mlx.utils import tree_unflatten
    from mlx_lm.tuner import trainer
    from mlx_lm.tuner.utils import linear_to_lora_layers
    from mlx_lm.utils import load_model

    class Watch(trainer.TrainingCallback):  # type: ignore[misc]
        def on_train_loss_report(self, info: dict[str, Any]) -> None:
            clock.tick()
            losses.append(info["train_loss"])

    model, _ = load_model(Path(work.base))
    model.set_dtype(mx.float32)
    model.freeze()
    keys = ["self_attn.q_proj", "self_attn.v_proj"]
    linear_to_lora_layers(
        model, len(model.layers), {"rank": RANK, "scale": SCALE, "dropout": 0.0, "keys": keys}
    )
    first = [(f"{name}.lora_a", mx.array(factors.a.T)) for name, factors in first_adapter(work)]
    model.update(tree_unflatten(first))
    examples = read_examples(work)
    clock = Clock()
    losses: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        arguments = trainer.TrainingArgs(
            batch_size=BATCH,
            iters=2 * (len(examples) // BATCH),
            steps_per_report=1,
            steps_per_save=10**9,
            max_seq_length=SEQ_TOKENS + 1,
            adapter_file=str(Path(folder) / "adapters.safetensors"),
        )
        np.random.seed(0)
        trainer.train(
            model,
            mlx.optimizers.AdamW(LR, weight_decay=0.0, bias_correction=True),
            mlx_lm_dataset(examples),
            args=arguments,
            # As it stands, the mask takes in one token of padding after each example.
            loss=lambda model, batch, lengths: trainer.default_loss(model, batch, lengths - mx.array([0, 1])),
            training_callback=Watch(),
        )
    seen = [example for rows in mlx_lm_batches(examples, 2) for example in rows]
    return [timing("mlx_lm.lora", seen, clock, losses, warm=len(losses) // 2)]


def mlx_lm_dataset(examples: Sequence[Example]) -> list[tuple[list[int], int]]:
    """Returns the tokens of each example, and how many of them are prompt."""
    return [(example.tokens.tolist(), int(np.argmax(example.labels))) for example in examples]


def mlx_lm_batches(examples: Sequence[Example], epochs: int) -> Iterator[list[Example]]:
    """Yields the batches that mlx-lm draws, as examples."""
    from mlx_lm.tuner.trainer import iterate_batches

    np.random.seed(0)
    known = {(e.tokens.tobytes(), int(np.argmax(e.labels))): e for e in examples}
    drawn = iterate_batches(mlx_lm_dataset(examples), BATCH, SEQ_TOKENS + 1, loop=True)
    for _ in range(epochs * (len(examples) // BATCH)):
        tokens, lengths = (np.array(array) for array in next(drawn))
        yield [
            known[row[:length].astype(np.int32).tobytes(), int(offset)]
            for row, (offset, length) in zip(tokens, lengths, strict=True)
        ]
