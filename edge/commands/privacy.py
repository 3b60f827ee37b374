"""The command `tunefleet privacy`: what a device has told about its data so far, as epsilon."""

from pathlib import Path
from typing import Annotated

from typer import Option

from converters.command import AsJson, examples
from edge.commands.report import print_report

EXAMPLES = examples(
    "tunefleet privacy --state laptop",
    "tunefleet privacy --state laptop --delta 1e-6 --json",
)
MACHINE, BOUND = "This device", "Bound"


def privacy(
    state: Annotated[
        Path,
        Option(metavar="FOLDER", rich_help_panel=MACHINE, help="The device's --state folder."),
    ],
    delta: Annotated[
        float,
        Option(metavar="D", rich_help_panel=BOUND, help="At which delta epsilon is told; between 0 and 1."),
    ] = 1e-5,
    as_json: AsJson = False,
) -> None:
    """Tells what the updates of a device have cost in privacy, also while it runs."""
    from edge.device.budget import FILE, read_spendings, sum_up
    from edge.errors import ConfigError, StateError

    if not 0 < delta < 1:
        raise ConfigError(f"--delta is {delta:g}, expected a number between 0 and 1, such as 1e-5")
    if not state.is_dir():
        raise StateError(f"{state}: is no folder; give the --state folder that `tunefleet join` has")
    print_report(sum_up(read_spendings(state / FILE), delta), as_json)
