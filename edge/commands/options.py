"""Options that several commands of a device share, and the groups that their help stands in."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

from typer import Option

from converters.command import OUTPUT

DATA, ADAPTER = "Model and data", "Adapter"
MACHINE = "Speed and memory"
LEAST_TOKENS = 2  # of a row: one to predict the other from


class Backend(StrEnum):
    """Backends that train; `auto` chooses by machine and base model."""

    auto = "auto"
    torch = "torch"
    mlx = "mlx"
    llama_cpp = "llama_cpp"
    toy = "toy"


class Precision(StrEnum):
    """Of the forward and backward pass; factors are always float32."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"


class Schedule(StrEnum):
    """How the learning rate goes on after the warm-up."""

    constant = "constant"
    linear = "linear"
    cosine = "cosine"


class Trained(StrEnum):
    """Which factors are trained; the other stays as it is."""

    both = "both"
    a = "a"
    b = "b"


class Form(StrEnum):
    """Formats that an adapter is written in."""

    peft = "peft"
    mlx = "mlx"
    gguf = "gguf"


BaseOption = Annotated[
    str,
    Option(
        "--base",
        "--model",
        metavar="MODEL",
        rich_help_panel=DATA,
        help="The base model: a Hugging Face or MLX folder, a .gguf file, or a name on the hub.",
    ),
]
DataOption = Annotated[
    Path,
    Option(
        metavar="FILE",
        rich_help_panel=DATA,
        help="Examples: JSONL, a JSON array, CSV, Parquet, or a folder. `tunefleet data check` shows them.",
    ),
]
BackendOption = Annotated[
    Backend,
    Option(
        metavar="NAME",
        rich_help_panel=MACHINE,
        help="What computes: torch, mlx, llama_cpp (for .gguf files), toy, or auto, which fits the model.",
    ),
]
PrecisionOption = Annotated[
    Precision,
    Option(
        metavar="NAME",
        rich_help_panel=MACHINE,
        help="What the model computes in: float32, bfloat16, or auto. llama_cpp computes in float32 always.",
    ),
]
AdapterOption = Annotated[
    Path | None,
    Option(
        "--adapter",
        "--adapter-path",
        metavar="PATH",
        rich_help_panel=DATA,
        help="The adapter to use: a folder of PEFT or mlx-lm, a .gguf file, or tunefleet's own file.",
    ),
]
PromptColumn = Annotated[
    str | None,
    Option(metavar="NAME", rich_help_panel=DATA, help="The data's column of prompts, if not `prompt`."),
]
CompletionColumn = Annotated[
    str | None,
    Option(metavar="NAME", rich_help_panel=DATA, help="Its column of completions, if not `completion`."),
]
TrainOnPrompt = Annotated[
    bool,
    Option(
        "--train-on-prompt",
        rich_help_panel=DATA,
        help="Count the prompts' tokens in the loss too, not the completions' alone.",
    ),
]
SeqTokens = Annotated[
    int,
    Option(
        "--seq-tokens",
        "--max-seq-length",
        metavar="N",
        min=LEAST_TOKENS,
        rich_help_panel=MACHINE,
        help="The longest sequence, in tokens; longer examples are cut, and counted.",
    ),
]
BatchTokens = Annotated[
    int,
    Option(
        metavar="N",
        min=LEAST_TOKENS,
        rich_help_panel=MACHINE,
        help="Tokens of one step, over all of its sequences.",
    ),
]
AsJson = Annotated[
    bool, Option("--json", rich_help_panel=OUTPUT, help="Print the report as one line of JSON.")
]
