"""Messages of many faults: whole while they are short, counted by kind when they are not."""

import pytest

from converters.errors import AdapterError
from converters.faults import HINT, MAX_BYTES, Fault, sum_up, tell

DORA = "modules: lora_magnitude_vector (DoRA) is not supported"
MANY = [
    Fault(f"layers.{n}.q_proj: lora_magnitude_vector (DoRA) is not supported", DORA, f"layers.{n}.q_proj")
    for n in range(14)
]


def test_few_faults_are_told_in_full() -> None:
    assert sum_up("a.toml", ["x is 1", "y is 2"], "mend it") == "a.toml: x is 1; y is 2; mend it"


def test_many_of_a_kind_are_counted_and_one_is_shown() -> None:
    told = sum_up("adapter", ["use_dora is set (DoRA)", *MANY])
    assert told == f"adapter: use_dora is set (DoRA); 14 {DORA}, e.g. layers.0.q_proj{HINT}"
    assert len(told.encode()) <= MAX_BYTES


def test_kinds_for_which_there_is_no_room_are_counted() -> None:
    told = sum_up("adapter", [f"setting{n} is wrong" for n in range(100)], "mend them")
    assert len(told.encode()) <= MAX_BYTES
    assert told.startswith("adapter: setting0 is wrong; ")
    shown = told.count(" is wrong")
    assert f"; and {100 - shown} more; mend them{HINT}" in told


def test_bytes_are_counted_and_not_letters() -> None:
    letters = ["ж" * 100, "ж" * 100]
    assert sum_up("", letters) == f"{'ж' * 100}; and 1 more{HINT}"


def test_one_long_fault_is_told_by_its_short_form() -> None:
    long = Fault("x unknown; expected some of " + ", ".join(f"name{n}" for n in range(60)), brief="x unknown")
    assert sum_up("a.toml", [long]) == f"a.toml: x unknown{HINT}"
    assert sum_up("a.toml", [Fault(long.text)]) == f"a.toml: {long.text}"  # nothing is cut blindly


def test_an_error_knows_all_that_its_message_leaves_out() -> None:
    with pytest.raises(AdapterError) as raised:
        raise AdapterError.of("adapter", MANY, "save it again")
    assert len(str(raised.value).encode()) <= MAX_BYTES
    assert raised.value.whole == tell("adapter", MANY, "save it again")
    assert all(fault.text in raised.value.whole for fault in MANY)
    assert AdapterError("one").whole == "one"
