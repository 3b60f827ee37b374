"""`tunefleet demo`: the whole kit on this machine, in about three minutes."""

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from converters.command import OUTPUT, examples
from converters.plain import plain_json

if TYPE_CHECKING:
    from rich.console import Console

    from coordinator.demo.interruption import Interruption
    from coordinator.demo.plan import DemoPlan
    from coordinator.demo.result import DemoResult

RUN = "The run"
Folder = Annotated[
    Path,
    typer.Option(
        "--out",
        metavar="FOLDER",
        rich_help_panel=RUN,
        help="Where data, logs, plots, page and adapters go; where it holds a demo, beside it.",
    ),
]
Seed = Annotated[
    int,
    typer.Option(
        metavar="N", min=0, rich_help_panel=RUN, help="Other sentences and another training for each N."
    ),
]
Versions = Annotated[
    int,
    typer.Option(
        metavar="N", min=1, rich_help_panel=RUN, help="Stop at this version, if not all is learnt before."
    ),
]
Seconds = Annotated[
    float,
    typer.Option(
        metavar="S", min=1, rich_help_panel=RUN, help="Stop after so long, whatever has been learnt."
    ),
]
Json = Annotated[
    bool, typer.Option("--json", rich_help_panel=OUTPUT, help="Print the result as one JSON object.")
]
EXAMPLES = examples("tunefleet demo", "tunefleet demo --seed 1 --out second-demo")


def demo(
    out: Folder = Path("tunefleet-demo"),
    seed: Seed = 0,
    max_versions: Versions = 120,
    max_seconds: Seconds = 900,
    json: Json = False,
) -> None:
    """Shows it all: a broker, a coordinator and four devices here fine-tune a small model together."""
    from coordinator.demo.plan import make_plan

    plan = make_plan()  # first: it names every library that is missing, at once
    plan = plan._replace(seed=seed, num_versions=max_versions, fleet_seconds=max_seconds)
    present(plan, out, as_json=json)


def present(plan: "DemoPlan", out: Path, *, as_json: bool) -> None:
    """Runs the demo and shows what it came to; a signal ends it in order.

    Raises:
        typer.Exit: The fleet is not better than every device alone, or a signal came.
        ConfigError: `out` holds something else.
        CoordinatorError: As `run_demo`.
    """
    from rich.console import Console

    from coordinator.demo.folder import fresh_folder, leave
    from coordinator.demo.interruption import Interruption

    console = Console(stderr=as_json)
    with Interruption() as interruption:
        folder = fresh_folder(out)
        try:
            result = _run(plan, out, folder, console, interruption)
        except KeyboardInterrupt:
            interruption.ignore()
            print(f"tunefleet: {leave(folder, plan.forms)}", file=sys.stderr)
            raise typer.Exit(interruption.status) from None
    _show(result, folder, console, as_json=as_json)
    if not result.fleet_wins:
        raise typer.Exit(1)


def _run(
    plan: "DemoPlan", out: Path, folder: Path, console: "Console", interruption: "Interruption"
) -> "DemoResult":
    """Runs everything, from the devices' data to the page."""
    from coordinator.demo.shown.screen import open_screen

    # What the broker grumbles when a device leaves is for the curious.
    logging.basicConfig(filename=folder / "broker.log", level=logging.WARNING)
    if folder != out:
        kept = f"{out}/ is kept; this run goes to {folder}/"
        console.print(kept, markup=False, highlight=False, soft_wrap=True)
    with open_screen(console, str(folder)) as screen:
        # Imported now that something is to be seen: it takes a second.
        from coordinator.demo.result import save_result
        from coordinator.demo.run import run_demo
        from coordinator.demo.shown.page import write_page

        result = interruption.run(run_demo(folder.resolve(), plan, screen))
        screen.stage("Plots and page")
        save_result(result, folder / "result.json")
        write_page(result, folder)
    interruption.check()
    return result


def _show(result: "DemoResult", folder: Path, console: "Console", *, as_json: bool) -> None:
    import msgspec

    from coordinator.demo.shown.screen import result_table

    if as_json:
        print(plain_json(msgspec.json.encode(result).decode()))
    else:
        console.print(result_table(result))
    forms = ", ".join(form.upper() for form in result.forms)
    beside = f"the plots, the adapter ({forms}), all versions, configurations and logs lie beside it."
    console.print(result.verdict, markup=False, highlight=False)
    console.print(f"Open {folder}/index.html; {beside}", markup=False, highlight=False)
