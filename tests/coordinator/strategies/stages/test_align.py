"""By hand where features are the adapter's own entries, and on the toy model where they are not."""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from converters.adapter import Factors, LoraAdapter, initial_adapter
from converters.bases.read import read_base
from converters.bases.targets import match_targets
from coordinator.calibration import Calibration
from coordinator.errors import MergeError
from coordinator.strategies.stages.align import Align, Misfit, carry_over, fit_maps
from coordinator.strategies.stages.centre import Centre, CentreLiteral
from edge.backends.toy import make_toy_base


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A calibration set of two short texts on the toy model, and a way to draw its adapters."""
    folder = tmp_path_factory.mktemp("toy")
    base = make_toy_base(folder / "base", dim=8)
    rows = [{"prompt": "lamp", "completion": "on"}, {"text": "the door"}]
    (folder / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    modules = match_targets(read_base(base).modules, ["q_proj", "o_proj"])

    def draw(seed, size=0.3, rank=2):
        random = np.random.default_rng(seed)
        like = initial_adapter(modules, rank=rank, scale=1.0, seed=0)
        numbers = lambda matrix: (size * random.standard_normal(matrix.shape)).astype(np.float32)  # noqa: E731
        return LoraAdapter({name: Factors(numbers(f.a), numbers(f.b), f.scale) for name, f in like})

    return Calibration(base, folder / "d.jsonl", seq_tokens=32, batch_tokens=64), draw


def plus(x, y):
    return LoraAdapter(
        {name: Factors(f.a + y.modules[name].a, f.b + y.modules[name].b, f.scale) for name, f in x}
    )


def deltas(pipeline):
    return [item.load_delta() for item in pipeline.items]


def rotation(angle):
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def test_a_step_is_as_long_as_the_features_say_and_the_same_for_all_of_a_group(
    vector, bowl, contribution, pipeline_of
):
    # The present version is 3 away, the group's mean is 2 long: R_A is 1.5.
    base, present = vector(10, 0), vector(13, 0)
    buffer = [contribution(vector(length, 0), base, staleness=1) for length in (1, 3)]
    aligned = Align()(pipeline_of(present, buffer, calibrator=bowl(present)))
    for found, expected in zip(deltas(aligned), (1.5, 4.5), strict=True):
        assert found.modules["m"].a == pytest.approx(np.array([[expected, 0]]), rel=1e-5)
        assert not found.modules["m"].b.any()


def test_a_known_rotation_of_coordinates_is_found_again(random_adapter, bowl, vector):
    turn_a, turn_b = rotation(0.4), rotation(-0.7)
    base, update = random_adapter(2, 0, names=("m",)), random_adapter(2, 1, names=("m",))
    f = update.modules["m"]
    turned = LoraAdapter(
        {"m": Factors((turn_a @ f.a).astype(np.float32), (f.b @ turn_b).astype(np.float32), f.scale)}
    )
    calibrator = bowl(base)
    misfit = Misfit(base, update, calibrator.features(plus(base, turned)), calibrator)
    maps = misfit.maps(fit_maps(misfit, 12))["m"]
    assert maps.a == pytest.approx(turn_a, abs=1e-3)
    assert maps.b == pytest.approx(turn_b, abs=1e-3)


def test_every_group_has_maps_of_its_own_and_the_fresh_one_none(vector, bowl, contribution, pipeline_of):
    present = vector(4, 0)
    buffer = [
        contribution(vector(1, 0), vector(2, 0), staleness=2, base_version=1),
        contribution(vector(1, 0), vector(3, 0), staleness=1, base_version=2),
        contribution(vector(1, 0), present, base_version=3),
    ]
    before = pipeline_of(present, buffer, calibrator=bowl(present))
    aligned = Align()(before)
    assert [delta.modules["m"].a[0, 0] for delta in deltas(aligned)] == pytest.approx([2, 1, 1], rel=1e-5)
    assert aligned.items[2] is before.items[2]


def test_a_buffer_without_old_updates_asks_the_calibration_set_for_nothing(vector, contribution, pipeline_of):
    pipeline = pipeline_of(vector(1, 0), [contribution(vector(1, 0), vector(1, 0))], calibrator=object())
    assert Align()(pipeline) is pipeline


def test_the_identity_stays_where_nothing_is_nearer(vector, bowl, contribution, pipeline_of):
    # No multiple of (1, 0) is nearer to (1, 5).
    present = vector(1, 5)
    pipeline = pipeline_of(
        present, [contribution(vector(1, 0), vector(0, 0), staleness=1)], calibrator=bowl(present)
    )
    assert deltas(Align()(pipeline)) == [vector(1, 0)]


def test_a_slope_that_leads_away_is_not_followed(vector, bowl):
    class Wrong(bowl):
        def pull_back(self, adapter, cotangent):
            return super().pull_back(adapter, -cotangent)

    present = vector(5, 0)
    misfit = Misfit(vector(0, 0), vector(1, 0), Wrong(present).features(present), Wrong(present))
    assert not fit_maps(misfit, 3).any()


def test_features_that_are_no_numbers_leave_the_identity(vector, bowl):
    class Broken(bowl):
        def features(self, adapter):
            return super().features(adapter) * (np.nan if adapter.modules["m"].a[0, 0] > 1 else 1)

    present = vector(5, 0)
    misfit = Misfit(vector(0, 0), vector(1, 0), bowl(present).features(present), Broken(present))
    assert not fit_maps(misfit, 1).any()


def test_without_the_mean_there_is_nothing_to_fit_and_with_it_deviations_stay(
    vector, bowl, contribution, pipeline_of
):
    present = vector(3, 0)
    buffer = [contribution(vector(length, 0), vector(0, 0), staleness=1) for length in (1, 3)]
    pipeline = pipeline_of(present, buffer, calibrator=bowl(present))
    literal = Align()(CentreLiteral()(pipeline))
    assert deltas(literal) == [vector(-1, 0), vector(1, 0)]
    centred = Align()(Centre()(pipeline))
    assert [item.load_deviation() for item in centred.items] == [vector(-1, 0), vector(1, 0)]
    assert [delta.modules["m"].a[0, 0] for delta in deltas(centred)] == pytest.approx([1.5, 4.5], rel=1e-5)


def test_an_update_that_a_filter_left_out_has_no_part_in_the_fit(vector, bowl, contribution, pipeline_of):
    present = vector(2, 0)
    buffer = [contribution(vector(length, 0), vector(0, 0), staleness=1) for length in (1, 99)]
    pipeline = pipeline_of(present, buffer, calibrator=bowl(present))
    left_out = pipeline.items[1]._replace(weight=0.0, reason="far")
    aligned = Align()(pipeline._replace(items=(pipeline.items[0], left_out)))
    assert deltas(aligned)[0].modules["m"].a[0, 0] == pytest.approx(2, rel=1e-5)
    assert aligned.items[1] is left_out


def test_a_module_that_was_not_trained_stays_as_the_old_version_has_it(
    random_adapter, bowl, contribution, pipeline_of
):
    base, update = random_adapter(2, 0), random_adapter(2, 1, names=("m",))
    present = random_adapter(2, 2)
    pipeline = pipeline_of(present, [contribution(update, base, staleness=1)], calibrator=bowl(present))
    assert list(deltas(Align()(pipeline))[0].modules) == ["m"]


def test_without_a_calibration_set_it_says_what_to_do(vector, contribution, pipeline_of):
    pipeline = pipeline_of(vector(1, 0), [contribution(vector(1, 0), vector(0, 0), staleness=1)])
    with pytest.raises(MergeError, match="align needs a calibration set"):
        Align()(pipeline)


def test_the_descent_is_the_slope_of_the_model_s_own_features(toy):
    calibration, draw = toy
    misfit = Misfit(draw(0), draw(1), calibration.features(draw(2)), calibration)
    random = np.random.default_rng(3)
    vector, direction = (0.3 * random.standard_normal(misfit.identity.shape) for _ in range(2))

    def square(at):
        return np.square(misfit.residual(at)).sum()

    slope = (square(vector + 1e-3 * direction) - square(vector - 1e-3 * direction)) / 2e-3
    descent = misfit.descent(vector, misfit.residual(vector))
    assert -2 * np.vdot(descent, direction) == pytest.approx(slope, rel=1e-2)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 1000), rank=st.integers(1, 3), size=st.sampled_from([0.01, 0.3, 3.0]))
def test_features_of_any_rank_never_end_farther_from_the_present_ones(toy, seed, rank, size):
    calibration, draw = toy
    misfit = Misfit(
        draw(seed, rank=rank), draw(seed + 1, size, rank), calibration.features(draw(seed + 2)), calibration
    )
    squares = [np.square(misfit.residual(fit_maps(misfit, steps))).sum() for steps in range(4)]
    assert squares == sorted(squares, reverse=True)
    assert squares[1] < squares[0] or size > 1  # so far off, features are far from linear in the maps


def test_the_same_buffer_is_aligned_alike_and_left_as_it_was(toy, contribution, pipeline_of):
    calibration, draw = toy
    buffer = [contribution(draw(seed), draw(9), staleness=1) for seed in range(2)]
    pipeline = pipeline_of(draw(8), buffer, calibrator=calibration)
    align = Align(steps=2)
    first, second = deltas(align(pipeline)), deltas(align(pipeline))
    assert first == second
    assert first != deltas(pipeline)
    assert deltas(pipeline) == [draw(0), draw(1)]


def test_carrying_over_is_a_product_with_the_maps(random_adapter):
    update = random_adapter(2, 0)
    calibrator = None
    misfit = Misfit(update, update, np.zeros((1, 1), np.float32), calibrator)
    vector = np.arange(16.0)
    carried = carry_over(update, misfit.maps(vector))
    maps = np.arange(16.0).reshape(4, 2, 2) + np.eye(2)
    for place, (name, f) in enumerate(update):
        assert carried.modules[name].a == pytest.approx(maps[2 * place] @ f.a, rel=1e-5)
        assert carried.modules[name].b == pytest.approx(f.b @ maps[2 * place + 1], rel=1e-5)
