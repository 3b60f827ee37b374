"""A device whose backend is called by a stranger is shown everywhere, and steers nothing."""

import io
import json
import logging

import pytest
from rich.console import Console

from converters.adapter import LoraAdapter, initial_adapter
from converters.formats.about import About
from converters.formats.card import Lineage, card_text
from coordinator.demo.shown.screen import device_table
from coordinator.demo.shown.views import DeviceView
from coordinator.events.records import DeviceJoined, Warned
from coordinator.observers.access import DeviceAccess
from coordinator.observers.history import Rejection, VersionStatus
from coordinator.observers.status import DeviceStatus, FleetStatus
from coordinator.observers.tables import access_view, history_view, status_view
from coordinator.observers.terminal import Terminal
from coordinator.watch.show import as_json, lines
from coordinator.watch.sighting import Sighting
from edge.commands.display import Display
from edge.commands.report import print_report
from edge.events import Event, shown

HOSTILE = "[/red]\x1b[2J\u202e\r\n12:00:00 accepted"
SHOWN = "[/red]\\x1b[2J\\u202e\\r\\n12:00:00 accepted"


class Screen(io.StringIO):
    def isatty(self):
        return True


def printed(view):
    out = io.StringIO()
    Console(file=out, width=300, force_terminal=True, highlight=False, color_system=None).print(view)
    return out.getvalue()


def is_harmless(text):
    """Nothing but line ends is left that a terminal obeys, and no line was made up."""
    told = text.rstrip("\n").split("\n")
    return all(line.isprintable() and not line.startswith("12:00:00 accepted") for line in told)


def device(**changes):
    settings = {
        "device": "lamp", "online": True, "last_seen": 0.0, "key": "0" * 64, "backend": HOSTILE,
        "accepted": 1, "rejected": 1, "merged": 1, "mean_staleness": 0.0, "weight_share": 1.0,
        "tokens_per_s": None, "step": 1, "steps": 2,
    }  # fmt: skip
    return DeviceStatus(**settings | changes)


def test_status_shows_it():
    report = FleetStatus(
        fleet=HOSTILE, base="0" * 64, version=1, made_at=0.0, loss=None, exact=None, waiting=0, accepted=1,
        rejected=1, discarded=0, refused=0, fairness=None, devices=(device(),), pace=None,
    )  # fmt: skip
    text = printed(status_view(300, report=report, now=1.0))
    assert text.count(SHOWN) == 2
    assert is_harmless(text)


def test_history_shows_it():
    version = VersionStatus(
        version=1, parent=0, made_at=0.0, kind="refused", refusal=HOSTILE, strategy="fedbuff", shares=(),
        step_norm=None, remainder_norm=None, dropped_norm=None, step_scale=0.0, loss_before=None,
        loss_after=None, loss_refused=None, loss=None, exact=None, sha256="0" * 64, kept=True, origin=None,
    )  # fmt: skip
    fault = Rejection("0" * 32, "lamp", 0, "rejected", HOSTILE, HOSTILE, 0.0)
    text = printed(history_view(300, versions=[version], rejections=[fault]))
    assert text.count(SHOWN) == 3
    assert is_harmless(text)


def test_the_list_of_devices_shows_it():
    one = DeviceAccess(HOSTILE, "0" * 64, HOSTILE, None, 0.0, 0)
    text = printed(access_view(300, devices=[one]))
    assert "[/red]\\x1b[2J\\u202e" in text
    assert is_harmless(text)


def test_watch_shows_it():
    for kind in ("hello", "unknown"):
        seen = Sighting(HOSTILE, HOSTILE, kind, HOSTILE, HOSTILE, False, None, {"backend": HOSTILE})
        assert lines(None, names_fleet=True)(seen).isprintable()
        assert as_json(seen).isprintable()
        assert json.loads(as_json(seen))["message"] == {"backend": HOSTILE}


@pytest.mark.parametrize("is_json", [True, False])
@pytest.mark.parametrize("has_bars", [True, False])
@pytest.mark.parametrize("out", [io.StringIO, Screen])
def test_events_and_logs_show_it(out, is_json, has_bars):
    stream = out()
    with shown(is_json, stream, log_level="debug", has_bars=has_bars) as show:
        tell = Terminal(show)
        tell(DeviceJoined(device=HOSTILE, backend=HOSTILE, key="0" * 64))
        tell(Warned(HOSTILE))
        show(Event("training", HOSTILE, {"done": 1, "total": 2, "of": HOSTILE}))
        logging.getLogger("edge.somewhere").warning("the broker says %s", HOSTILE)
    text = stream.getvalue()
    assert "[/red]" in text
    if is_json:
        assert all(line.isprintable() for line in text.splitlines())
        assert json.loads(text.splitlines()[2])["of"] == HOSTILE
    elif out is io.StringIO or not has_bars:
        assert is_harmless(text)
        assert text.count(SHOWN) == 5
    else:
        assert not any(steering in text for steering in ("\x1b[2J", "\u202e", "\r\n12:00:00"))


def test_the_demo_shows_it():
    view = DeviceView("lamp", HOSTILE, 1.0, (HOSTILE, 1, 2), 1)
    assert is_harmless(printed(device_table((view,))))


def test_reports_and_progress_show_it(capsys):
    print_report({"path": HOSTILE, "of": {"backend": HOSTILE}}, as_json=False)
    print_report({"path": HOSTILE}, as_json=True)
    Display().stage(HOSTILE)
    told = capsys.readouterr()
    assert "[/red]" in told.out
    assert is_harmless(told.out)
    assert is_harmless(told.err)


def test_a_card_is_not_written_by_a_name():
    adapter = LoraAdapter(dict(initial_adapter({"model.layers.0.q_proj": (4, 4)}, rank=1, scale=1.0, seed=0)))
    name = "/models/`a` | <script>alert(1)</script>\n# Title\u202e"
    text = card_text("peft", adapter, About(base=name), Lineage(facts={"Fleet": name}))
    assert "<script>" not in text.partition("```python")[0]
    assert "\n# Title" not in text
    assert "\u202e" not in text
    assert "\\|" in text
