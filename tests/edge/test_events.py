import io
import json

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
