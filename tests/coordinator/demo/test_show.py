import base64
import io
import struct
from pathlib import Path

import pytest
from rich.console import Console

from coordinator.demo.page import render_page
from coordinator.demo.result import load_result, save_result
from coordinator.demo.screen import Screen, result_table


def text_of(renderable) -> str:
    console = Console(width=160, file=io.StringIO())
    console.print(renderable)
    return console.file.getvalue()


def test_a_result_survives_its_file(tmp_path, recorded):
    save_result(recorded, tmp_path / "result.json")
    assert load_result(tmp_path / "result.json") == recorded


def test_the_fleet_wins_only_above_the_best_device(recorded_with):
    assert recorded_with(0.24).fleet_wins
    assert not recorded_with(0.23).fleet_wins
    assert "does not beat every device alone: 23.0% of 240" in recorded_with(0.23).verdict
    assert "23.0% for the best device by itself (boat)" in recorded_with(0.75).verdict


def test_the_table_says_what_each_device_has_on_its_own_weights(recorded):
    shown = text_of(result_table(recorded))
    row = next(line for line in shown.splitlines() if "workshop" in line)
    for cell in ("llama_cpp q8_0", "3 x", "1.00", "20%", "0.0%", "22.0%", "74.5%"):
        assert cell in row


def test_the_plot_is_a_picture_of_a_page_s_width(tmp_path, recorded):
    pytest.importorskip("matplotlib", reason="needs the demo extra")
    from coordinator.demo.plot import draw_plot

    draw_plot(recorded, tmp_path / "plot.png")
    content = (tmp_path / "plot.png").read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", content[16:24]) == (1800, 1350)


def test_the_page_stands_by_itself(recorded):
    page = render_page(recorded, b"picture", Path("here"))
    assert base64.b64encode(b"picture").decode() in page
    assert "http" not in page
    assert "23% alone, 75% together" in page
    assert "Is &lt;it&gt; &amp; on?" in page
    assert "MLX is not installed" in page
    assert "here/adapter-peft" in page
    assert "here/adapter.gguf    # for llama.cpp" in page
    assert "adapter-mlx" not in page
    assert "$" not in page


def test_without_a_terminal_stages_are_plain_lines():
    console = Console(file=io.StringIO(), width=100)
    with Screen(console) as screen:
        screen.stage("fleet", total=2)
        screen.step("version 1")
    assert console.file.getvalue() == "fleet\n  version 1\n"
