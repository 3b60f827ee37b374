"""Options that stand in a record are the command's own."""

from typing import Annotated, NamedTuple

import typer
from typer.testing import CliRunner

from converters.command import Command, unfold


class Oven(NamedTuple):
    heat: Annotated[int, typer.Option(min=0, rich_help_panel="Oven", help="Degrees.")]
    fan: Annotated[bool, typer.Option("--fan", rich_help_panel="Oven", help="Turn the fan.")] = False


def run(*args):
    app = typer.Typer()

    @app.command(cls=Command)
    @unfold
    def bake(
        context: typer.Context,
        dish: Annotated[str, typer.Argument(help="What.")],
        oven: Oven,
        times: Annotated[int, typer.Option(help="How often.")] = 1,
    ) -> None:
        """Bakes."""
        print(dish, oven, times, sorted(context.params))

    return CliRunner().invoke(app, args)


def test_the_fields_of_a_record_are_options_in_their_order_and_reach_the_command_together():
    done = run("bread", "--heat", "200", "--fan", "--times", "2")
    assert done.output == "bread Oven(heat=200, fan=True) 2 ['dish', 'fan', 'heat', 'times']\n"
    text = run("--help").output
    assert text.index("--heat") < text.index("--fan")
    assert "Bakes." in text
    assert "[required]" in text


def test_a_field_without_a_default_has_to_be_given_and_bounds_hold():
    assert "Missing option '--heat'" in run("bread").output
    assert run("bread", "--heat", "-1").exit_code == 2
    assert run("bread", "--heat", "1").output.startswith("bread Oven(heat=1, fan=False) 1")
