import pytest

from coordinator.config import read_config
from coordinator.strategies.choice import METHODS, choose_strategy
from coordinator.strategies.contract import State, Waiting
from coordinator.strategies.pipeline import Pipeline


@pytest.fixture
def config_of(tmp_path):
    def make(**settings):
        places = {"broker": "mqtt://localhost", "fleet": "home", "base": str(tmp_path), "state": "s"}
        if METHODS[settings["strategy"]].needs_calibration:
            (tmp_path / "few.jsonl").write_text("{}")
            places["calibration_data"] = str(tmp_path / "few.jsonl")
        return read_config(None, places | settings)

    return make


@pytest.mark.parametrize("name", METHODS)
def test_every_strategy_can_be_chosen_by_its_name(config_of, name):
    strategy = choose_strategy(config_of(strategy=name))
    assert isinstance(strategy, Pipeline)
    assert (strategy.name, strategy.method) == (name, METHODS[name])


def test_a_configuration_changes_stages_and_numbers(config_of, adapter, update):
    config = config_of(
        strategy="fedbuff",
        stages={"order": ["examples", "normalise"], "trigger": "round"},
        space="factors",
        buffer_size=3,
        time_budget_s=5.0,
        server_lr=0.5,
        cohort=("x", "y"),
    )
    strategy = choose_strategy(config)
    assert strategy.pace([Waiting("x", 0, 0.0)], 9).take == 0
    assert strategy.pace([Waiting("x", 0, 0.0), Waiting("y", 0, 0.0)], 9).take == 2
    assert strategy.pace([Waiting("x", 0, 6.0)], 9).take == 1
    master = adapter([[0, 0]], [[0]])
    sent = [
        update(adapter([[8, 0]], [[0]]), master, name="x", num_examples=1),
        update(adapter([[0, 8]], [[0]]), master, name="y", num_examples=3),
    ]
    state, _ = strategy.merge(State(0, master), sent)
    assert state.adapter.modules["m"].a.tolist() == [[1, 3]]  # 0.5 * (8 / 4, 24 / 4)
