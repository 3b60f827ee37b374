"""The demo's plot: loss against time above, versions and staleness against time below.

matplotlib is imported here only, and when a plot is drawn.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from coordinator.demo.result import DemoResult
from edge.errors import MissingExtra

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, FAINT, GRID = "#1f2933", "#7b8794", "#e4e7eb"
COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#a65fa0",
)  # Okabe and Ito's, told apart by colour-blind people too


def draw_plot(result: DemoResult, path: Path) -> None:
    """Draws a PNG of 1800 x 1350 pixels.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    if not find_spec("matplotlib"):
        raise MissingExtra("matplotlib", "demo")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6.75), dpi=200, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    losses, versions = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    _draw_losses(losses, result)
    _draw_versions(versions, result)
    for axes in (losses, versions):
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(FAINT)
        axes.tick_params(colors=FAINT, labelcolor=INK)
        axes.grid(axis="y", color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
    figure.legend(loc="outside upper center", ncols=5, frameon=False, fontsize=9, labelcolor=INK)
    figure.savefig(path)


def device_colours(result: DemoResult) -> dict[str, str]:
    """A colour for each device, the same in plot and page."""
    return {device.device_id: COLOURS[i % len(COLOURS)] for i, device in enumerate(result.devices)}


def _draw_losses(axes: "Axes", result: DemoResult) -> None:
    for device_id, colour in device_colours(result).items():
        own = [update for update in result.updates if update.device_id == device_id]
        times, losses = [update.seconds for update in own], [update.loss for update in own]
        axes.plot(
            times,
            losses,
            "o-",
            color=colour,
            linewidth=0.9,
            markersize=4,
            alpha=0.75,
            label=f"{device_id}'s data",
        )
    scored = [(v.seconds, v.loss) for v in result.versions if v.loss is not None]
    if scored:
        axes.plot(
            *zip(*scored, strict=True),
            color=INK, linewidth=2.6, marker="D", markersize=4, label="unseen sentences",
        )  # fmt: skip
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    axes.set_ylabel("loss (nats a token)", color=INK)
    axes.set_title(
        "Loss against time",
        loc="left",
        color=INK,
        fontweight="bold",
    )


def _draw_versions(axes: "Axes", result: DemoResult) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.step(
        [version.seconds for version in result.versions],
        [version.version for version in result.versions],
        where="post", color=INK, linewidth=2.2,
    )  # fmt: skip
    axes.set_ylabel("version", color=INK)
    axes.set_xlabel("seconds since the fleet began", color=INK)
    axes.set_title("Versions, and how stale each update was", loc="left", color=INK, fontweight="bold")
    axes.set_ylim(0, max(version.version for version in result.versions) + 1)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    staleness = axes.twinx()
    for device_id, colour in device_colours(result).items():
        own = [update for update in result.updates if update.device_id == device_id]
        staleness.scatter(
            [u.seconds for u in own], [u.staleness for u in own], s=26, color=colour, alpha=0.8, linewidths=0
        )
    top = max((update.staleness for update in result.updates), default=0)
    staleness.set_ylim(-0.3, max(4, top + 1))
    staleness.yaxis.set_major_locator(MaxNLocator(integer=True))
    staleness.set_ylabel("staleness (dots, versions)", color=INK)
    staleness.spines[["top", "left", "right", "bottom"]].set_visible(False)
    staleness.tick_params(colors=FAINT, labelcolor=INK)
