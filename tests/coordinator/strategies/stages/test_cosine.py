import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from converters.adapter import Factors, LoraAdapter
from coordinator.errors import MergeError
from coordinator.strategies.contract import Account, State
from coordinator.strategies.stages.cosine import Cosine


def test_updates_against_the_descent_are_left_out(pipeline_of, vector, buffer_of, bowl):
    buffer = buffer_of((1, 0), (1, 1), (0, 2), (-1, 2), (-3, 0), (0, 0))
    calibrator = bowl(vector(5, 0))  # downhill is along (1, 0)
    pipeline = Cosine()(pipeline_of(vector(0, 0), buffer, calibrator=calibrator))
    assert [item.weight > 0 for item in pipeline.items] == [True, True, True, False, False, True]
    assert pipeline.items[3].reason == "cosine -0.45 with the calibration loss's descent"
    assert pipeline.items[4].reason == "cosine -1.00 with the calibration loss's descent"
    assert calibrator.num_gradients == 1


def test_the_cosine_floor_is_a_setting(pipeline_of, vector, buffer_of, bowl):
    pipeline = pipeline_of(vector(0, 0), buffer_of((1, 0), (1, 1)), calibrator=bowl(vector(5, 0)))
    assert [item.weight > 0 for item in Cosine(0.8)(pipeline).items] == [True, False]


def test_where_the_calibration_loss_is_least_nothing_is_opposed(pipeline_of, vector, buffer_of, bowl):
    pipeline = pipeline_of(vector(1, 1), buffer_of((-1, 0)), calibrator=bowl(vector(1, 1)))
    assert Cosine()(pipeline).items == pipeline.measure().items


def test_a_device_is_judged_by_the_mean_of_its_cosines(pipeline_of, vector, buffer_of, bowl):
    def judge(x, **account):
        state = State(1, vector(0, 0), accounts={"of-u0": Account(**account)})
        pipeline = Cosine()(pipeline_of(state, buffer_of((x, 0)), calibrator=bowl(vector(5, 0))))
        return pipeline.items[0].reason, pipeline.state.accounts["of-u0"]

    reason, account = judge(-2, cosine=0.8, num_cosines=2)  # (0.8 + 0.8 - 1) / 3
    assert (reason, account.num_cosines) == ("", 3)
    assert account.cosine == pytest.approx(0.2)
    reason, account = judge(2, cosine=-1.0, num_cosines=3)
    assert reason == "cosine -0.50 on average over 4 with the calibration loss's descent"
    assert judge(2, cosine=-1.0, num_cosines=100)[1].cosine == pytest.approx(-0.75)  # an eighth counts


def test_the_cosine_filter_asks_for_a_calibration_set(pipeline_of, vector, buffer_of):
    with pytest.raises(MergeError, match="cosine needs a calibration set; set calibration_data"):
        Cosine()(pipeline_of(vector(0, 0), buffer_of((1, 0))))


@given(seed=st.integers(0, 1000), rank=st.integers(1, 3), sign=st.sampled_from([1.0, -1.0]))
def test_in_product_the_cosine_is_that_of_dense_changes(
    seed, rank, sign, random_adapter, contribution, pipeline_of, dense_change, bowl
):
    master, base = random_adapter(3, seed), random_adapter(rank, seed + 1)
    delta = random_adapter(rank, seed + 2, names=("m",), size=0.1)
    calibrator = bowl(random_adapter(3, seed + 3))
    slope, present = calibrator.gradient(master).modules["m"], master.modules["m"]
    downhill = -1.5 * (present.b @ slope.a + slope.b @ present.a).ravel()
    change = dense_change(base, delta)
    cosine = change @ downhill / np.linalg.norm(change) / np.linalg.norm(downhill)
    settings = {"space": "product", "calibrator": calibrator}
    for floor, stays in ((cosine - 1e-3, True), (cosine + 1e-3, False)):
        pipeline = pipeline_of(master, [contribution(delta, base)], **settings)
        assert bool(Cosine(floor)(pipeline).chosen) == stays


@pytest.mark.parametrize("space", ["factors", "product"])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_sign_flipped_update_is_left_out_at_every_rank(
    space, rank, random_adapter, contribution, pipeline_of, bowl
):
    master = random_adapter(3, 1)
    calibrator = bowl(random_adapter(3, 2))
    part = {name: Factors(f.a[:rank], f.b[:, :rank], f.scale) for name, f in master}
    slope = calibrator.gradient(master)
    down, up = (
        LoraAdapter({n: Factors(by * f.a[:rank], by * f.b[:, :rank], f.scale) for n, f in slope})
        for by in (np.float32(-0.01), np.float32(0.01))
    )
    buffer = [
        contribution(down, LoraAdapter(part), "down"),
        contribution(up, LoraAdapter(part), "up"),
    ]
    pipeline = Cosine()(pipeline_of(master, buffer, space=space, calibrator=calibrator))
    assert [item.weight > 0 for item in pipeline.items] == [True, False]
