import numpy as np
import pytest

from coordinator.strategies.choice import METHODS
from coordinator.strategies.contract import State
from coordinator.strategies.tiers import dispatch, train_rank, with_remainder


def test_the_fleets_own_rank_gets_the_master_itself(random_adapter):
    master = random_adapter(3, 1)
    for name in ("fedbuff", "fedavg"):
        assert dispatch(METHODS[name], State(1, master), 3, master, 32) is master


def test_adapter_and_remainder_are_one_adapter_of_constant_rank(random_adapter, dense):
    own, rest = random_adapter(2, 1), random_adapter(1, 2)
    joined = with_remainder(own, rest, 4)
    assert {f.rank for _, f in joined} == {6}
    for name in ("m", "n"):
        assert dense(joined, name) == pytest.approx(dense(own, name) + dense(rest, name), abs=1e-5)
    assert np.array_equal(joined.modules["m"].a[:2], own.modules["m"].a)
    assert {f.rank for _, f in with_remainder(own, None, 4)} == {6}


def test_a_remainder_of_another_scale_is_added_at_its_own_size(adapter, dense):
    joined = with_remainder(adapter([[1]], [[1]], scale=2.0), adapter([[1]], [[3]], scale=5.0), 1)
    assert dense(joined) == pytest.approx(2.0 + 15.0)


def test_only_a_residual_leaves_rows_untrained():
    assert train_rank(METHODS["fedex-lora"], 8) == 8
    assert train_rank(METHODS["fedbuff"], 8) == 0
