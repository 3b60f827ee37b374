import base64
import io
import struct
from pathlib import Path

import msgspec
import pytest
from msgspec import structs
from rich.console import Console

from coordinator.demo.result import DemoResult, VersionPoint, save_result
from coordinator.demo.shown.page import render_page
from coordinator.demo.shown.screen import open_screen, result_table
from coordinator.demo.shown.views import Activity, DeviceView, FleetView


def text_of(renderable, width: int) -> str:
    console = Console(width=width, height=24, file=io.StringIO())
    console.print(renderable)
    return console.file.getvalue()


def test_a_result_survives_its_file(tmp_path, recorded):
    save_result(recorded, tmp_path / "result.json")
    assert msgspec.json.decode((tmp_path / "result.json").read_bytes(), type=DemoResult) == recorded


def test_the_fleet_wins_only_above_the_best_device(recorded_with):
    assert recorded_with(0.24).fleet_wins
    assert not recorded_with(0.23).fleet_wins
    assert "does not beat every device alone: 23.0% of 240" in recorded_with(0.23).verdict
    assert "23.0% for the best device by itself (boat)" in recorded_with(0.75).verdict


def test_the_table_says_what_each_device_has_on_its_own_weights(recorded):
    shown = text_of(result_table(recorded), width=80)
    row = next(line for line in shown.splitlines() if "workshop" in line)
    for cell in ("llama_cpp q8_0", "1.0", "20%", "0.0%", "22.0%", "74.5%"):
        assert cell in row
    assert "…" not in shown


@pytest.mark.parametrize(("shape", "size"), [("DESK", (2000, 1000)), ("PHONE", (900, 1800))])
def test_a_plot_has_the_size_of_its_window(tmp_path, recorded, shape, size):
    pytest.importorskip("matplotlib", reason="needs the demo extra")
    from coordinator.demo.shown import plot

    plot.draw_plot(recorded, tmp_path / "plot.png", getattr(plot, shape))
    content = (tmp_path / "plot.png").read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", content[16:24]) == size


def test_each_panel_has_one_axis_and_losses_stop_at_the_floor(recorded):
    pytest.importorskip("matplotlib", reason="needs the demo extra")
    from coordinator.demo.shown.plot import FLOOR, PHONE, draw_figure

    tiny = [structs.replace(update, loss=1e-7) for update in recorded.updates]
    figure = draw_figure(structs.replace(recorded, updates=tiny), PHONE)
    shares, losses = figure.axes
    assert [line.get_label() for line in shares.lines] == [
        "the fleet",
        "best device alone (boat)",
        "base model",
    ]
    assert min(min(line.get_ydata()) for line in losses.lines) == FLOOR
    assert losses.get_ylim()[0] > FLOOR / 2
    assert losses.yaxis.get_major_formatter()(FLOOR) == "≤0.01"


def test_the_page_stands_by_itself(recorded):
    page = render_page(recorded, b"picture", b"narrow one", Path("here"))
    assert '<img alt="Share of unseen' in page
    assert f'src="data:image/png;base64,{base64.b64encode(b"picture").decode()}"' in page
    assert "http" not in page
    assert "23% alone, 75% together" in page
    assert "Is &lt;it&gt; &amp; on?" in page
    assert "MLX is not installed" in page
    assert "here/adapter-peft" in page
    assert "here/adapter.gguf    # for llama.cpp" in page
    assert "adapter-mlx" not in page
    assert "$" not in page


def test_the_page_is_made_for_phones_as_well(recorded):
    page = render_page(recorded, b"picture", b"narrow one", Path("here"))
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in page
    narrow = base64.b64encode(b"narrow one").decode()
    assert f'<source media="(max-width: 640px)" srcset="data:image/png;base64,{narrow}">' in page


def test_without_a_terminal_everything_is_a_line(view):
    console = Console(file=io.StringIO(), width=60)
    with open_screen(console, "here") as screen:
        screen.stage("fleet")
        for _ in range(3):
            screen.fleet(view)
        screen.stage("scores", total=1)
        screen.step("base: 0.0%")
    assert console.file.getvalue().splitlines() == [
        "The demo's folder is here/",
        "fleet",
        "  version 3: 75% of unseen sentences right, loss 1.00",
        "scores",
        "  base: 0.0%",
    ]


@pytest.fixture
def view():
    devices = [
        DeviceView(name, "llama_cpp q8_0", 1.5, Activity("waits for a version after 12 or so", 17, 20), 1234)
        for name in ("flat", "farm", "workshop", "boat")
    ]
    versions = [VersionPoint(version=n, seconds=6.0 * n, loss=4.0 / (1 + n), exact=n / 4) for n in range(4)]
    return FleetView(tuple(devices), versions, most=80, most_s=700.0)


def test_on_a_terminal_the_picture_fits_80_columns_and_24_rows(view):
    console = Console(file=io.StringIO(), width=80, height=24, force_terminal=True)
    screen = open_screen(console, "a-folder-of-a-name-that-is-rather-long-for-a-terminal-of-eighty-columns-2")
    for stage in ("models", "fleet", "scores", "page"):
        screen.stage(stage, total=12)
        for number in range(12):
            screen.step(f"{number} of the things that happen, told in a line that is longer than a terminal")
        rows = text_of(screen.draw(), width=80).splitlines()
        assert len(rows) <= 20
        assert max(map(len, rows)) <= 80
        assert len(rows[-1].rstrip("\n")) < 60  # room for the terminal's ^C
    screen.fleet(view)
    rows = text_of(screen.draw(), width=80).splitlines()
    assert len(rows) <= 20
    boat = next(row for row in rows if "boat" in row)
    for cell in ("llama_cpp q8_0", "1.5 x", "waits for a version after", "17/20", "1234"):
        assert cell in boat
    (bar,) = (row for row in rows if "at most 7" in row)
    assert "version 3 of at most 80, at most 7:42 left" in bar


def test_the_time_left_follows_the_latest_pace_and_ends_with_the_limit(view):
    assert view.left_s == pytest.approx(77 * 6.0)
    assert view._replace(most_s=9.5).left_s == 9.5
    assert view._replace(versions=view.versions[:3]).left_s is None
