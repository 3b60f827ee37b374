from coordinator.events.records import UpdateAccepted, UpdateRejected
from coordinator.observers.terminal import RATE, Terminal


def test_a_device_whose_updates_are_all_rejected_fills_nobodys_disk():
    shown, now = [], [0.0]
    terminal = Terminal(shown.append, lambda: now[0])
    for number in range(1000):
        terminal(UpdateRejected(f"{number:032x}", "x", 0, "too-stale", "late"))
        terminal(UpdateAccepted(f"{number:032x}", "y", 0))
    kinds = [event.kind for event in shown]
    assert (kinds.count("rejected"), kinds.count("accepted")) == (RATE.burst, 1000)
    now[0] = 1.0
    terminal(UpdateRejected("f" * 32, "x", 0, "too-stale", "late"))
    assert shown[-2].text == "900 lines of this kind were left out: rejected"
    assert shown[-2].facts == {"kind": "rejected", "left_out": 900}
    assert shown[-1].kind == "rejected"
