"""Options that several commands of a device share, and the groups that their help stands in."""

from functools import partial
from typing import TYPE_CHECKING, Annotated, NamedTuple

from typer import Option

from edge.choices import AskedPrecision, BackendName

if TYPE_CHECKING:
    from edge.training.data.source import DataSource

DATA, ADAPTER = "Model and data", "Adapter"
MACHINE = "Speed and memory"
LEAST_TOKENS = 2  # of a row: one to predict the other from
_data, _machine = partial(Option, rich_help_panel=DATA), partial(Option, rich_help_panel=MACHINE)


BaseOption = Annotated[
    str,
    _data(
        "--base",
        "--model",
        metavar="MODEL",
        help="The base model: a Hugging Face or MLX folder, a .gguf file, or a name on the hub.",
    ),
]
DataOption = Annotated[
    str,
    _data(
        metavar="FILE",
        help="Examples: JSONL, a JSON array, CSV, Parquet, or a folder. `tunefleet data check` shows them.",
    ),
]
BackendOption = Annotated[
    BackendName,
    _machine(
        metavar="NAME",
        help="What computes: torch, mlx, llama_cpp (for .gguf files), toy, or auto, which fits the model.",
    ),
]
PrecisionOption = Annotated[
    AskedPrecision,
    _machine(
        metavar="NAME",
        help="What the model computes in: float32, bfloat16, or auto. llama_cpp computes in float32 always.",
    ),
]
AdapterOption = Annotated[
    str | None,
    _data(
        "--adapter",
        "--adapter-path",
        metavar="PATH",
        help="The adapter to use: a folder of PEFT or mlx-lm, a .gguf file, or tunefleet's own file.",
    ),
]
PromptColumn = Annotated[
    str | None, _data(metavar="NAME", help="The data's column of prompts, if not `prompt`.")
]
CompletionColumn = Annotated[
    str | None, _data(metavar="NAME", help="Its column of completions, if not `completion`.")
]
SeqTokens = Annotated[
    int,
    _machine(
        "--seq-tokens",
        "--max-seq-length",
        metavar="N",
        min=LEAST_TOKENS,
        help="The longest sequence, in tokens; longer examples are cut, and counted.",
    ),
]
BatchTokens = Annotated[
    int,
    _machine(
        metavar="N",
        min=LEAST_TOKENS,
        help="Tokens of one step, over all of its sequences.",
    ),
]


class ColumnOptions(NamedTuple):
    """What of the data is read, and trained on."""

    prompt_column: PromptColumn = None
    completion_column: CompletionColumn = None
    train_on_prompt: Annotated[
        bool,
        _data(
            "--train-on-prompt", help="Count the prompts' tokens in the loss too, not the completions' alone."
        ),
    ] = False

    def source(self, path: str) -> "DataSource":
        """Tells how the data at `path` is read."""
        from edge.training.data.source import DataSource

        return DataSource(path=path, **self._asdict())
