import re

import pytest
from rich.console import Console

from coordinator.events.pace import FleetPace
from coordinator.observers.history import VersionStatus
from coordinator.observers.status import DeviceStatus, FleetStatus, is_under_way
from coordinator.observers.tables import history_view, status_view
from coordinator.strategies.contract import Share
from edge.protocol.messages import Telemetry

LONG = "raspberry-pi-4-in-the-kitchen-by-the-window"
DAY = 86400.0


def device(name="lamp", **changes):
    settings = {
        "device": name,
        "online": True,
        "last_seen": 0.0,
        "key": "0" * 64,
        "backend": "llama_cpp",
        "accepted": 1234,
        "rejected": 56,
        "merged": 1200,
        "mean_staleness": 12.25,
        "weight_share": 1.0,
        "tokens_per_s": 12345.6,
        "step": 12,
        "steps": 20,
        "astray": None,
    }
    return DeviceStatus(**settings | changes)


def status(*devices, **changes):
    settings = {
        "fleet": "home",
        "base": "0" * 64,
        "version": 1234,
        "made_at": 1.8e9,
        "loss": 1.25,
        "exact": 0.5,
        "waiting": 1,
        "accepted": 2,
        "rejected": 3,
        "discarded": 4,
        "refused": 5,
        "fairness": 0.5,
        "devices": devices,
        "pace": FleetPace(1, 4, 1, 1, 40.0, 0.0),
    }
    return FleetStatus(**settings | changes)


def share(device, weight=0.5, staleness=0):
    return Share("ab" * 16, device, 0, staleness, 10, weight, 1.0)


def version(number, *shares, **changes):
    settings = dict.fromkeys(VersionStatus.__struct_fields__)
    settings |= {
        "version": number,
        "parent": number - 1 if number else None,
        "made_at": 1.8e9,
        "kind": "merge",
        "refusal": "",
        "shares": shares,
        "step_norm": 1.2345678,
        "step_scale": 0.125,
        "remainder_norm": 1.2345678,
        "loss_before": 1.2345,
        "loss_after": 1.2345,
        "loss": 1.2345,
        "exact": 0.996,
    }
    return VersionStatus(**settings | changes)


def lines(view, width=80):
    console = Console(width=width, highlight=False)
    with console.capture() as captured:
        console.print(view)
    return [line.rstrip() for line in captured.get().splitlines()]


def status_lines(report, width=80, now=0.0):
    return lines(status_view(width, report=report, now=now), width)


@pytest.mark.parametrize("name", ["lamp", LONG, "x" * 64])
@pytest.mark.parametrize("width", [80, 200])
def test_a_devices_id_is_whole_and_on_one_line(name, width):
    told = status_lines(status(device(name), device("fan", online=False)), width)
    assert [line for line in told if line.split()[:1] == [name]] != []
    assert max(map(len, told)) <= width
    made = history_view(width, versions=[version(1, share(name), share("fan"))], rejections=[])
    assert any(f"{name} 0.50" in line for line in lines(made, width))


def test_an_id_that_is_wider_than_the_terminal_is_folded_and_not_cut():
    told = status_lines(status(device("abcdefgh" * 8)), width=40)
    assert "abcdefgh" * 8 in "".join(told)


def test_80_columns_have_room_for_nearly_all_that_is_known_of_a_device():
    told = status_lines(status(device("laptop-of-ann")))
    assert told[5].split() == ["device", "seen", "accepted", "task", "weight", "tok/s", "backend", "stale"]
    assert told[6].split() == (
        ["laptop-of-ann", "online", "1234", "of", "1290", "12/20", "100.0%", "12,346", "llama_cpp", "12.25"]
    )


def test_what_the_fleet_waits_for_is_told():
    assert "1 of 4 updates, 1 device online, merging in 40 s" in status_lines(status())
    assert "1 of 4 updates, 1 device online, merging in 10 s" in status_lines(status(), now=30.0)


def test_a_fleet_that_nobody_serves_is_told():
    assert any("no coordinator is running here" in line for line in status_lines(status(pace=None)))


def test_a_fleet_without_devices_has_no_empty_table():
    told = status_lines(status())
    assert told[-1] == "no device has joined yet"
    assert not any("accepted  " in line for line in told)


def test_a_column_in_which_nothing_stands_is_left_out():
    idle = device(step=None, steps=None, tokens_per_s=None, mean_staleness=None)
    told = status_lines(status(idle))[5].split()
    assert told == ["device", "seen", "accepted", "weight", "backend"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(5, "5 s ago"), (300, "5 min ago"), (3 * 3600, "3 h ago"), (400 * DAY, "400 d ago")],
)
def test_a_device_that_is_away_is_told_with_how_long(seconds, text):
    away = device(online=False, last_seen=1e9 - seconds)
    assert text in status_lines(status(away), now=1e9)[6]


def test_a_device_of_which_only_a_card_is_known_was_never_seen():
    assert "never" in status_lines(status(device(online=False)), now=1e9)[6]


def test_dates_have_years():
    assert re.search(r"made \d{4}-\d\d-\d\d \d\d:\d\d:\d\d", status_lines(status())[0])
    told = lines(history_view(80, versions=[version(0)], rejections=[]))
    assert re.search(r"\d{4}-\d\d-\d\d", told[1])


def test_contributors_are_parted_between_names_only():
    names = [f"device-{number}" for number in range(9)]
    told = lines(history_view(80, versions=[version(1, *map(share, names))], rejections=[]))
    assert max(map(len, told)) <= 80
    assert re.findall(r"device-\d 0.50", " ".join(told)) == [f"{name} 0.50" for name in names]


def test_staleness_is_told_where_there_is_some():
    made = [version(1, share("x"), share("y", 0.25, 3))]
    told = lines(history_view(120, versions=made, rejections=[]), 120)
    assert any(line.endswith("x 0.50, y 0.25 (τ 3)") for line in told)


def test_a_parent_is_told_only_where_it_is_not_the_version_before():
    plain = lines(history_view(80, versions=[version(0), version(1)], rejections=[]))
    assert "parent" not in plain[0]
    back = lines(history_view(80, versions=[version(1), version(2, parent=0)], rejections=[]))
    assert "parent" in back[0]


def progress(step, steps):
    return Telemetry(base_version=0, step=step, steps=steps, loss=1.0, tokens_per_s=1.0, memory_bytes=1)


def test_a_finished_task_is_not_under_way():
    assert is_under_way(progress(19, 20))
    assert is_under_way(progress(1000, 0))
    assert not is_under_way(progress(20, 20))
    assert not is_under_way(None)
