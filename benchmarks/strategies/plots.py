"""A picture for each lesson: test loss and accuracy against virtual time, bytes and the devices' compute."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.strategies.lineup import BASELINE, DEFAULT, POOLED
from benchmarks.strategies.outcome import Point
from benchmarks.strategies.tables import Cell, scored

if TYPE_CHECKING:
    from matplotlib.axes import Axes

AXES: Mapping[str, Callable[[Point], float]] = {
    "virtual seconds": lambda point: point.time_s,
    "MB up and down": lambda point: point.megabytes,
    "device seconds of compute": lambda point: point.compute_s,
}
LINEAR_S = 10.0  # up to here time is drawn to a linear scale, beyond to a logarithmic one
MAIN = {DEFAULT: "black", BASELINE: "tab:orange", "fedavg": "tab:blue"}
OTHERS = {"alignfed": "tab:red", "alignfed-literal": "tab:pink", "fedbuff, eta 2": "tab:green"}
NUM_GRID = 60  # places along an axis where seeds are averaged
PIXELS, DPI = (1200, 860), 100
MEASURES: Mapping[str, Callable[[Point], float]] = {
    "test loss (nats a token)": lambda point: point.loss or 0.0,
    "accuracy": lambda point: point.accuracy or 0.0,
}


def plot_lesson(lesson: str, cells: Sequence[Cell], path: Path) -> None:
    """Draws all strategies of a lesson; each line is the mean over seeds, as far as all seeds go.

    Raises:
        ImportError: The demo extra, which brings matplotlib, is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # a heavy library, when it is asked for
    from matplotlib.figure import Figure

    figure = Figure(figsize=(PIXELS[0] / DPI, PIXELS[1] / DPI), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(MEASURES), len(AXES), sharey="row", sharex="col")
    fleets = [cell for cell in cells if cell.outcomes and cell.entry.row != POOLED]
    pooled = [one for cell in cells if cell.entry.row == POOLED for one in cell.outcomes]
    for row, (title, measure) in zip(panels, MEASURES.items(), strict=True):
        row[0].set_ylabel(title)
        for axes, read in zip(row, AXES.values(), strict=True):
            for number, cell in enumerate(fleets):
                _draw(axes, cell, read, measure, number)
            if pooled:
                ends = [measure(min(scored(one), key=lambda point: point.loss or 0.0)) for one in pooled]
                axes.axhline(
                    float(np.mean(ends)), color="0.5", linestyle=":", linewidth=1.2, label="all rows at once"
                )
            axes.set_xlim(left=0)
            axes.grid(color="0.92")
            axes.spines[["top", "right"]].set_visible(False)
    for axes, label in zip(panels[-1], AXES, strict=True):
        axes.set_xlabel(label)
    for axes in (panels[0][0], panels[0][2]):  # time and compute: a round takes the slowest device's
        axes.set_xscale("symlog", linthresh=LINEAR_S)
    figure.suptitle(f"{lesson}: against time, traffic and compute", x=0.01, ha="left", fontweight="bold")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    figure.savefig(path)


def _draw(
    axes: "Axes", cell: Cell, read: Callable[[Point], float], measure: Callable[[Point], float], number: int
) -> None:
    import matplotlib

    courses = [
        ([read(point) for point in points], [measure(point) for point in points])
        for points in map(scored, cell.outcomes)
    ]
    grid = _grid(min(places[-1] for places, _ in courses))
    mean = np.mean([np.interp(grid, *course) for course in courses], axis=0)
    colour = (MAIN | OTHERS).get(cell.entry.row, matplotlib.colormaps["tab20"](number % 20))
    is_main = cell.entry.row in MAIN
    axes.plot(
        grid, mean, "-" if is_main else "--", color=colour, label=cell.entry.row,
        linewidth=2.4 if is_main else 1.2, zorder=3 if is_main else 2,
    )  # fmt: skip


def _grid(end: float) -> "np.ndarray":
    """Returns places from 0 to `end`, on a logarithmic axis as dense at its beginning as at its end."""
    return np.concatenate([[0.0], end * np.geomspace(1e-3, 1.0, NUM_GRID)])
