"""Commands of a device; heavy imports happen inside the command that needs them."""

import typer

from converters.command import FLEET, LOCAL, Command, unfold
from edge.commands import bench, data, enroll, evaluate, generate, join, privacy, train

app = typer.Typer()
app.command(cls=join.JoinCommand, epilog=join.EXAMPLES, rich_help_panel=FLEET)(unfold(join.join))
app.command(cls=Command, epilog=enroll.EXAMPLES, rich_help_panel=FLEET)(unfold(enroll.enroll))
app.command(cls=Command, epilog=privacy.EXAMPLES, rich_help_panel=FLEET)(privacy.privacy)
app.command(cls=Command, epilog=generate.EXAMPLES, rich_help_panel=LOCAL)(unfold(generate.generate))
app.add_typer(data.app, rich_help_panel=LOCAL)
app.add_typer(bench.app, rich_help_panel=LOCAL)
app.command(cls=Command, epilog=train.EXAMPLES, rich_help_panel=LOCAL)(unfold(train.train))
app.command("eval", cls=Command, epilog=evaluate.EXAMPLES, rich_help_panel=LOCAL)(unfold(evaluate.evaluate))
