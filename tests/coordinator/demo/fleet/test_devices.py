import json

from coordinator.demo.fleet.devices import Events
from coordinator.demo.shown.views import Activity


def line(kind, text="", **facts):
    return json.dumps({"event": kind, "time": 1.0, "text": text, **facts}) + "\n"


def test_a_device_that_has_said_nothing_starts(tmp_path):
    assert Events(tmp_path / "flat.out").now() == Activity("starts")


def test_the_last_event_tells_what_it_does(tmp_path):
    path = tmp_path / "flat.out"
    events = Events(path)
    for written, expected in (
        (line("joined", "fleet demo as flat"), Activity("has joined")),
        (line("waiting", "for a version after 3"), Activity("waits for a version after 3")),
        (line("downloading", "version 4, 1 of 3 chunks", done=1, total=3), Activity("fetches version 4")),
        (line("downloading", "version 4, 3 of 3 chunks", done=3, total=3), Activity("loads its model")),
        (line("training", "on version 4", version=4, done=2, total=5), Activity("trains on version 4", 2, 5)),
        (line("spooled") + line("accepted"), Activity("sends its update")),
        ("a library's own words\n" + line("stopped"), Activity("has stopped")),
    ):
        with path.open("a") as log:
            log.write(written)
        assert events.now() == expected


def test_half_a_line_waits_for_its_other_half(tmp_path):
    path = tmp_path / "flat.out"
    events = Events(path)
    whole = line("waiting", "for a version after 3")
    path.write_text(whole[:20])
    assert events.now() == Activity("starts")
    path.write_text(whole)
    assert events.now() == Activity("waits for a version after 3")
