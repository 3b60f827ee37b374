"""The command `tunefleet generate`: asks a base model, with an adapter or without."""

import asyncio
import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer
from typer import Argument, Option

from converters.command import OUTPUT, examples
from converters.plain import harmless, plain_json
from edge.choices import MAX_TOKENS
from edge.commands.options import AdapterOption, BackendOption, BaseOption, PrecisionOption

if TYPE_CHECKING:
    from edge.training.data.forms import Asking
    from edge.training.requests import Completion, Generation, Loaded
    from edge.training.worker.supervisor import Worker

EXAMPLES = examples(
    "tunefleet generate --base Qwen/Qwen3-0.6B --adapter adapter 'What is MQTT?'",
    "tunefleet generate --base model.gguf --max-tokens 400 < letter.txt",
)
ASKING, SAMPLING = "How to ask", "Sampling"
_how = partial(Option, rich_help_panel=ASKING)
_draws = partial(Option, rich_help_panel=SAMPLING)
STDIN = "-"
NOTES = {
    "plain": "with the prompt as it stands; --chat asks through the chat template",
    "alpaca": "with Alpaca's prompt around the instruction; --raw asks with the prompt as it stands",
}


Prompts = Annotated[
    list[str] | None,
    Argument(
        metavar="PROMPT",
        show_default=False,
        help="What to ask, each for itself; without one, or with -, it is read from standard input.",
    ),
]
AnswersAsJson = Annotated[
    bool,
    Option(
        "--json",
        rich_help_panel=OUTPUT,
        help="Print an object a prompt: prompt, completion, num_prompt_tokens, num_tokens, and ended_by, "
        "which is end, max_tokens or context.",
    ),
]


class ChatOptions(NamedTuple):
    """Whether a prompt is a turn of a chat."""

    raw: Annotated[
        bool | None,
        _how(
            "--raw/--chat",
            "--ignore-chat-template",
            help="Ask with the prompt as it stands, or as a turn of a chat, through the model's chat "
            "template. Without either as the adapter was trained (its metrics.json tells), and else as a "
            "chat where the model has a template. Conversations are trained on as a chat, Alpaca's rows in "
            "Alpaca's prompt, `prompt` and `completion`, and `text`, as they stand.",
        ),
    ] = None
    system: Annotated[
        str | None,
        _how(
            "--system",
            "--system-prompt",
            metavar="TEXT",
            help="What the system says before the prompt, in a chat.",
        ),
    ] = None


class SamplingOptions(NamedTuple):
    """How the tokens of an answer are chosen."""

    max_tokens: Annotated[
        int,
        _draws(
            metavar="N",
            min=1,
            help="The most tokens of an answer; prompt and answer together fit the model's context.",
        ),
    ] = MAX_TOKENS
    temperature: Annotated[
        float,
        _draws(
            "--temperature",
            "--temp",
            metavar="X",
            min=0,
            help="Higher is more varied; 0 always takes the most likely token.",
        ),
    ] = 0.0
    top_p: Annotated[
        float,
        _draws(
            metavar="X",
            min=0,
            max=1,
            help="Draw only from the most likely tokens that together have this probability.",
        ),
    ] = 1.0
    seed: Annotated[
        int,
        _draws(
            metavar="N",
            min=0,
            help="Of the draws: the same seed gives the same answer again, on the same backend.",
        ),
    ] = 0


def generate(
    base: BaseOption,
    prompts: Prompts = None,
    adapter: AdapterOption = None,
    *,
    how: ChatOptions,
    draws: SamplingOptions,
    backend: BackendOption = "auto",
    precision: PrecisionOption = "auto",
    as_json: AnswersAsJson = False,
) -> None:
    """Answers prompts, with an adapter or without; the text appears as it is generated."""
    from edge.commands.display import Display
    from edge.errors import ConfigError
    from edge.training.local_run.model import open_model
    from edge.training.requests import Generation, Sampling

    if how.raw and how.system is not None:
        raise ConfigError("--system is a turn of a chat; leave it out, or --raw")
    if draws.top_p == 0:
        raise ConfigError("--top-p is 0, which leaves no token; expected more, at most 1")
    sampling = Sampling(**draws._asdict())
    texts = _texts(prompts or [])

    async def answer() -> None:
        async with open_model(base, adapter, backend, precision) as model:
            with Display() as display:
                display.stage(f"loading {base}")
                loaded = await model.worker.load()
            asking = _asking(loaded, adapter, how)
            for text in texts:
                request = Generation(
                    prompts=(text,),
                    adapter=model.adapter,
                    sampling=sampling,
                    asking=asking,
                    system=how.system,
                )
                await (_print_json if as_json else _print_text)(model.worker, request)

    asyncio.run(answer())


def _texts(prompts: list[str]) -> list[str]:
    """Collects the prompts; what comes from standard input loses its last line break, as in a shell."""
    if prompts.count(STDIN) > 1:
        from edge.errors import ConfigError

        raise ConfigError("- stands for standard input, which can be read only once")
    return [_read() if prompt == STDIN else prompt for prompt in prompts or [STDIN]]


def _read() -> str:
    if sys.stdin.isatty():
        typer.echo("reading the prompt; Ctrl-D on a line of its own ends it", err=True)
    from edge.errors import DataError

    try:
        text = sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise DataError(f"standard input is not UTF-8 text: byte {error.start + 1} is wrong") from error
    if not text.strip():
        raise DataError("standard input is empty; give a PROMPT, or write one to it")
    return text.removesuffix("\n").removesuffix("\r")


def _asking(loaded: "Loaded", adapter: str | None, how: ChatOptions) -> "Asking":
    """Decides how to ask: as told, as the adapter was trained, or through the chat template there is."""
    from edge.errors import ConfigError
    from edge.training.local_run.run import trained_asking

    wants_chat = how.raw is False or how.system is not None
    if wants_chat and not loaded.has_chat_template:
        option = "--chat" if how.raw is False else "--system"
        raise ConfigError(f"{option} needs a chat template, and the base model has none; leave it out")
    if wants_chat or how.raw:
        return "plain" if how.raw else "chat"
    trained = trained_asking(Path(adapter)) if adapter else None
    if trained == "alpaca" or (trained == "plain" and loaded.has_chat_template):
        typer.echo(f"note: asked as the adapter was trained, {NOTES[trained]}", err=True)
    return trained or ("chat" if loaded.has_chat_template else "plain")


async def _print_json(worker: "Worker", request: "Generation") -> None:
    (found,) = await worker.generate(request)
    report = {
        "prompt": request.prompts[0],
        "completion": found.text,
        "num_prompt_tokens": found.num_prompt_tokens,
        "num_tokens": found.num_tokens,
        "ended_by": found.ended_by,
    }
    typer.echo(plain_json(json.dumps(report, ensure_ascii=False)))


async def _print_text(worker: "Worker", request: "Generation") -> None:
    is_terminal = sys.stdout.isatty()

    def show(_: int, text: str) -> None:
        typer.echo(harmless(text) if is_terminal else text, nl=False)

    (found,) = await worker.generate(request, show)
    if not found.text.endswith("\n"):
        typer.echo()
    _tell_end(found, request.sampling.max_tokens)


def _tell_end(found: "Completion", max_tokens: int) -> None:
    """Says why an answer has ended that the model had not finished."""
    if found.ended_by == "context":
        typer.echo(
            f"note: ended after {found.num_tokens} of --max-tokens {max_tokens}, for the model's context is "
            f"full: the prompt has {found.num_prompt_tokens} tokens",
            err=True,
        )
    elif found.ended_by == "max_tokens":
        typer.echo(f"note: ended by --max-tokens {max_tokens}", err=True)
