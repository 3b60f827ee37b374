import io
import json
import logging

import pytest

from edge.events import Event, shown


class Terminal(io.StringIO):
    def isatty(self):
        return True


def step(done):
    return Event("training", f"on version 0, step {done} of 3", {"done": done, "total": 3})


def show_all(out, as_json=False):
    with shown(as_json, out) as show:
        show(Event("joined", "fleet home as lamp", {}))
        for done in (1, 2, 3):
            show(step(done))
        show(Event("accepted", "update [bold]1[/] on version 0", {"base_version": 0}))
    return out.getvalue()


def test_json_is_one_object_a_line_and_every_event():
    lines = [json.loads(line) for line in show_all(io.StringIO(), as_json=True).splitlines()]
    assert [line["event"] for line in lines] == ["joined", "training", "training", "training", "accepted"]
    assert lines[-1]["base_version"] == 0
    assert lines[1]["text"] == "on version 0, step 1 of 3"


def test_plain_lines_do_not_repeat_progress_at_every_step():
    lines = show_all(io.StringIO()).splitlines()
    assert [line.split(" ", 1)[1] for line in lines] == [
        "joined: fleet home as lamp",
        "training: on version 0, step 1 of 3",
        "accepted: update [bold]1[/] on version 0",
    ]


def test_a_terminal_gets_a_bar_and_its_lines_as_they_are():
    assert "accepted: update [bold]1[/] on version 0" in show_all(Terminal())
    out = Terminal()
    with shown(False, out) as show:
        show(step(2))
    assert "step 2 of 3" in out.getvalue()


def test_a_task_bounded_by_time_has_a_bar_without_an_end():
    out = Terminal()
    with shown(False, out) as show:
        show(Event("training", "on version 0, step 5 of ?", {"done": 5, "total": 0}))
    assert "step 5 of ?" in out.getvalue()


@pytest.mark.parametrize(
    ("level", "kinds"),
    [
        ("debug", ["debug", "accepted", "rejected", "warning"]),
        ("info", ["accepted", "rejected", "warning"]),
        ("warning", ["rejected", "warning"]),
        ("error", []),
    ],
)
def test_what_matters_less_than_the_level_is_left_out(level, kinds):
    out = io.StringIO()
    with shown(True, out, log_level=level) as show:
        logging.getLogger("edge.transport.mqtt.transport").debug("%d bytes", 3)
        show(Event("accepted", "a", {}))
        show(Event("rejected", "b", {}))
        logging.getLogger("coordinator.server").warning("attempt %d", 1)
    assert [json.loads(line)["event"] for line in out.getvalue().splitlines()] == kinds


def test_a_line_tells_its_level_and_a_log_record_where_it_is_from():
    out = io.StringIO()
    with shown(True, out) as show:
        show(Event("accepted", "a", {"device": "lamp"}))
        logging.getLogger("edge.transport.mqtt.transport").warning("attempt %d", 1)
    first, second = map(json.loads, out.getvalue().splitlines())
    assert (first["level"], first["device"], first["text"]) == ("info", "lamp", "a")
    assert (second["level"], second["logger"], second["text"]) == (
        "warning",
        "edge.transport.mqtt.transport",
        "attempt 1",
    )


def test_logging_is_as_before_when_nothing_is_shown_any_more():
    logger = logging.getLogger("edge")
    before = (logger.level, logger.propagate, list(logger.handlers))
    with shown(True, io.StringIO(), log_level="debug"):
        assert logger.level == logging.DEBUG
    assert (logger.level, logger.propagate, list(logger.handlers)) == before


def test_a_coordinator_on_a_terminal_has_lines_without_a_bar():
    out = Terminal()
    with shown(False, out, has_bars=False) as show:
        show(Event("accepted", "update 1 of lamp accepted", {}))
    assert out.getvalue()[8:] == " update 1 of lamp accepted\n"


def test_a_traceback_is_told_line_by_line():
    out = io.StringIO()
    log = logging.getLogger("edge.somewhere")
    with shown(False, out, log_level="debug"):
        try:
            raise KeyError("lost")
        except KeyError as error:
            log.debug("it broke", exc_info=error)
    lines = out.getvalue().splitlines()
    assert "debug: it broke" in lines[0]
    assert "debug: KeyError: 'lost'" in lines[-1]
