"""`tunefleet demo`: the whole kit on this machine, in under three minutes."""

import asyncio
import logging
import shutil
import signal
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from converters.command import OUTPUT, examples
from edge.errors import ConfigError

if TYPE_CHECKING:
    from coordinator.demo.result import DemoResult

MARK = ".tunefleet-demo"  # a folder that bears it may be replaced by another run
PLAIN_WIDTH = 130  # of the table, where the output is no terminal
RUN = "The run"
Folder = Annotated[
    Path,
    typer.Option(
        "--out",
        metavar="FOLDER",
        rich_help_panel=RUN,
        help="Where data, logs, plot, page and adapters go.",
    ),
]
Seed = Annotated[
    int,
    typer.Option(
        metavar="N", min=0, rich_help_panel=RUN, help="Other sentences and another training for each N."
    ),
]
Json = Annotated[
    bool, typer.Option("--json", rich_help_panel=OUTPUT, help="Print the result as one JSON object.")
]
EXAMPLES = examples("tunefleet demo", "tunefleet demo --seed 1 --out second-demo")


def demo(out: Folder = Path("tunefleet-demo"), seed: Seed = 0, json: Json = False) -> None:
    """Broker, coordinator and four devices here: they fine-tune a small model together, over MQTT."""
    from coordinator.demo.plan import make_plan

    plan = make_plan()._replace(seed=seed)  # first: it names every library that is missing, at once
    from rich.console import Console

    from coordinator.demo.page import render_page
    from coordinator.demo.plot import draw_plot
    from coordinator.demo.result import save_result
    from coordinator.demo.run import run_demo
    from coordinator.demo.screen import Screen, result_table

    console = Console(stderr=json)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    folder = fresh_folder(out)
    # What the broker grumbles when a device leaves is for the curious.
    logging.basicConfig(filename=folder / "broker.log", level=logging.WARNING)
    with Screen(console) as screen:
        result = _interruptible(run_demo(folder, plan, screen))
    save_result(result, folder / "result.json")
    draw_plot(result, folder / "plot.png")
    page = render_page(result, (folder / "plot.png").read_bytes(), out)
    (folder / "index.html").write_text(page, "utf-8")
    if json:
        print((folder / "result.json").read_text("utf-8"))
    else:
        console.print(result_table(result))
    forms = ", ".join(form.upper() for form in result.forms)
    closing = f"{result.verdict} Page, plot, adapter ({forms}), logs and configurations: {out}/"
    console.print(closing, markup=False, highlight=False, soft_wrap=True)
    if not result.fleet_wins:
        raise typer.Exit(1)


def fresh_folder(out: Path) -> Path:
    """Makes the folder, in the place of an earlier demo's.

    Raises:
        ConfigError: It holds something else.
    """
    if out.exists():
        if not (out / MARK).is_file() and any(out.iterdir()):
            raise ConfigError(f"{out}: is not empty, and no earlier demo's; give another --out")
        shutil.rmtree(out)
    out.mkdir(parents=True)
    (out / MARK).touch()
    return out.resolve()


def _interruptible(run: "Coroutine[Any, Any, DemoResult]") -> "DemoResult":
    """Runs to the end; Ctrl-C, SIGTERM and a closed terminal end all children first."""

    async def main() -> "DemoResult":
        task = asyncio.current_task()
        assert task is not None
        for number in (signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        return await run

    try:
        return asyncio.run(main())
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.exit("tunefleet: stopped; all processes of the demo have ended")
