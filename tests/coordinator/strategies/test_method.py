import numpy as np
import pytest

from coordinator.strategies.choice import METHODS
from coordinator.strategies.contract import State
from coordinator.strategies.method import base_faults, fleet_faults, method_faults

SERVED_WITHOUT_CALIBRATION = sorted(name for name, method in METHODS.items() if not method.needs_calibration)


@pytest.mark.parametrize("name", METHODS)
def test_a_papers_method_has_no_fault_of_its_own(name):
    assert list(method_faults(METHODS[name])) == []


@pytest.mark.parametrize("name", SERVED_WITHOUT_CALIBRATION)
def test_the_same_buffer_gives_the_same_version_and_nothing_given_changes(
    name, random_adapter, update, strategy
):
    master = random_adapter(2, 1)
    copies = {key: (f.a.copy(), f.b.copy()) for key, f in master}
    buffer = [
        update(random_adapter(2, 3), master, name="x", num_examples=2),
        update(random_adapter(2, 4), random_adapter(2, 5), name="y", staleness=2),
    ]
    if METHODS[name].trigger == "arrival":
        buffer = buffer[1:]
    first, second = (strategy(name).merge(State(9, master), buffer) for _ in range(2))
    assert first == second
    assert first[0].version == 10
    assert first[1].strategy == name
    for key, f in master:
        assert np.array_equal(f.a, copies[key][0])
        assert np.array_equal(f.b, copies[key][1])


def test_strategies_of_one_rank_are_refused_to_a_fleet_of_two():
    for name in ("fedex-lora", "lora-fair"):
        (fault,) = fleet_faults(METHODS[name], (8, 4), 32)
        assert fault.startswith("ranks is [8, 4], and stages.merge")
        assert list(fleet_faults(METHODS[name], (8,), 32)) == []
    assert list(fleet_faults(METHODS["hetlora"], (8, 4), 0)) == []


def test_a_residual_needs_rows_to_be_carried_in():
    (fault,) = fleet_faults(METHODS["fedex-lora"], (8,), 0)
    assert fault.startswith("remainder_rank is 0")
    assert "give at least 1" in fault


def test_fedex_lora_is_refused_on_a_quantised_base():
    (fault,) = base_faults(METHODS["fedex-lora"], is_quantized=True)
    assert "fedex-lora" in fault
    assert "full precision" in fault
    assert list(base_faults(METHODS["fedex-lora"], is_quantized=False)) == []
    assert list(base_faults(METHODS["flora"], is_quantized=True)) == []
