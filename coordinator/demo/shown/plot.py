"""The demo's plots: how many unseen sentences are answered right, and the losses, against time.

Two drawings of the same: the panels side by side for a desk, one above the other for a phone. matplotlib is
imported here only, and when a plot is drawn.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from coordinator.demo.result import DemoResult
from edge.errors import MissingExtra

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT, GRID = "#1f2933", "#52606d", "#e4e7eb"
# Okabe and Ito's, told apart by colour-blind people too.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#a65fa0")
# Below it a token has 99 % of the probability, and how far below says nothing: on their own data devices
# come down to 1e-7.
FLOOR = 0.01  # nats a token


class Shape(NamedTuple):
    """How a plot is laid out."""

    size: tuple[float, float]  # inches
    rows: int
    columns: int
    points: float  # size of the letters


# On a phone the picture is some 4.5 inches of 72 points wide: a point of it is a pixel of the page.
DESK = Shape((10.0, 5.0), 1, 2, 10.5)
PHONE = Shape((4.5, 9.0), 2, 1, 12.0)
DPI = 200


def draw_plot(result: DemoResult, path: Path, shape: Shape = DESK) -> None:
    """Draws the panels and writes them as a PNG.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    draw_figure(result, shape).savefig(path)


def draw_figure(result: DemoResult, shape: Shape) -> "Figure":
    """Draws the panels.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    if not find_spec("matplotlib"):
        raise MissingExtra("matplotlib", "demo")
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with rc_context({"font.size": shape.points}):
        figure = Figure(figsize=shape.size, dpi=DPI, facecolor="white")
        figure.set_layout_engine(ConstrainedLayoutEngine(h_pad=0.15))
        FigureCanvasAgg(figure)
        panels = figure.subplots(shape.rows, shape.columns)
        for axes, draw in zip(panels, (_draw_shares, _draw_losses), strict=True):
            draw(axes, result)
            axes.spines[["top", "right"]].set_visible(False)
            axes.spines[["left", "bottom"]].set_color(FAINT)
            axes.tick_params(colors=FAINT, labelcolor=INK)
            axes.grid(axis="y", color=GRID, linewidth=0.8)
            axes.set_axisbelow(True)
            axes.set_xlim(left=0)
            axes.set_xlabel("seconds since the fleet began", color=INK)
    return figure


def device_colours(result: DemoResult) -> dict[str, str]:
    """Returns a colour for each device, the same in plot and page."""
    return {device.device_id: COLOURS[i % len(COLOURS)] for i, device in enumerate(result.devices)}


def _draw_shares(axes: "Axes", result: DemoResult) -> None:
    scored = [(point.seconds, 100 * point.exact) for point in result.versions if point.exact is not None]
    if scored:
        axes.plot(*zip(*scored, strict=True), color=INK, linewidth=2.4, label="the fleet")
    best = result.best_alone
    axes.axhline(
        100 * best.alone.exact,
        color=device_colours(result)[best.device_id],
        linewidth=2,
        linestyle="--",
        label=f"best device alone ({best.device_id})",
    )
    axes.axhline(100 * result.base.exact, color=FAINT, linewidth=2, linestyle=":", label="base model")
    axes.set_ylim(-3, 103)
    axes.set_title("Unseen sentences right, in %", loc="left", color=INK, fontweight="bold")
    _add_legend(axes, num_columns=1)


def _draw_losses(axes: "Axes", result: DemoResult) -> None:
    for device_id, colour in device_colours(result).items():
        own = [update for update in result.updates if update.device_id == device_id]
        times, losses = [update.seconds for update in own], [max(update.loss, FLOOR) for update in own]
        axes.plot(
            times,
            losses,
            "o-",
            color=colour,
            linewidth=0.9,
            markersize=3,
            alpha=0.7,
            label=f"{device_id}'s own",
        )
    scored = [(point.seconds, max(point.loss, FLOOR)) for point in result.versions if point.loss is not None]
    if scored:
        axes.plot(*zip(*scored, strict=True), color=INK, linewidth=2.4, label="unseen")
    axes.set_yscale("log")
    axes.set_ylim(bottom=FLOOR * 0.9)
    axes.yaxis.set_major_formatter(lambda loss, _: f"≤{FLOOR:g}" if loss <= FLOOR else f"{loss:g}")
    axes.yaxis.set_minor_formatter("")
    axes.set_title("Loss, in nats a token", loc="left", color=INK, fontweight="bold")
    _add_legend(axes, num_columns=2)


def _add_legend(axes: "Axes", num_columns: int) -> None:
    axes.legend(
        loc="upper left",
        bbox_to_anchor=(-0.02, -0.2),  # below the panel, where it hides nothing
        ncols=num_columns,
        frameon=False,
        labelcolor=INK,
        columnspacing=1.0,
        handlelength=1.5,
    )
