import pytest
from hypothesis import given
from hypothesis import strategies as st

from converters.adapter import Factors, LoraAdapter
from converters.arithmetic import combine
from coordinator.strategies.contract import State
from coordinator.strategies.merges.factors import add_increments
from coordinator.strategies.stages.absolute import Absolute
from coordinator.strategies.stages.centre import Centre, CentreLiteral


@pytest.fixture(scope="module")
def grouped(pipeline_of, vector, contribution):
    """`grouped((version, x), …)` is a buffer of one-number updates in groups."""

    def make(*updates):
        buffer = [contribution(vector(x), vector(0), base_version=version) for version, x in updates]
        return pipeline_of(vector(0), buffer)

    return make


def number(adapter):
    return adapter.modules["m"].a[0, 0]


def deltas(pipeline):
    return [number(item.load_delta()) for item in pipeline.items]


def test_updates_of_one_version_and_one_rank_are_a_group(pipeline_of, random_adapter, contribution):
    buffer = [
        contribution(random_adapter(rank, 1), random_adapter(rank, 2), base_version=version)
        for version, rank in ((3, 2), (3, 2), (3, 1), (2, 2))
    ]
    pipeline = pipeline_of(random_adapter(2, 3), buffer)
    assert pipeline.groups() == {(3, 2): [0, 1], (3, 1): [2], (2, 2): [3]}


def test_as_printed_two_fresh_devices_that_found_the_same_cancel(grouped):
    assert deltas(CentreLiteral()(grouped((5, 3), (5, 3)))) == [0, 0]


def test_as_printed_a_group_of_one_becomes_nothing(grouped):
    assert deltas(CentreLiteral()(grouped((5, 1), (5, 3), (4, 7)))) == [-1, 1, 0]


def test_centring_keeps_the_mean_and_tells_the_deviation(grouped):
    pipeline = Centre()(grouped((5, 1), (5, 3), (4, 7)))
    assert deltas(pipeline) == [1, 3, 7]
    assert [number(item.load_deviation()) for item in pipeline.items] == [-1, 1, 0]


def test_what_was_left_out_has_no_part_in_the_mean(grouped):
    pipeline = grouped((5, 1), (5, 3), (5, 500))
    pipeline = pipeline._replace(items=(*pipeline.items[:2], pipeline.items[2]._replace(weight=0.0)))
    assert deltas(CentreLiteral()(pipeline)) == [-1, 1, 500]


@given(seed=st.integers(0, 1000), ranks=st.lists(st.integers(1, 3), min_size=1, max_size=5))
def test_a_groups_deviations_add_up_to_nothing(seed, ranks, pipeline_of, random_adapter, contribution):
    buffer = [
        contribution(random_adapter(rank, seed + n), random_adapter(rank, seed))
        for n, rank in enumerate(ranks)
    ]
    pipeline = CentreLiteral()(pipeline_of(random_adapter(3, seed), buffer))
    for places in pipeline.groups().values():
        like = pipeline.items[places[0]].load_base()
        total = combine([(1.0, pipeline.items[place].load_delta()) for place in places], like)
        assert all(abs(x).max() < 1e-5 for _, f in total for x in (f.a, f.b))


@given(seed=st.integers(0, 1000))
def test_an_absolute_update_of_weight_one_makes_the_devices_adapter_the_next(
    seed, pipeline_of, random_adapter, contribution
):
    base, delta = random_adapter(2, seed), random_adapter(2, seed + 1)
    pipeline = Absolute()(pipeline_of(random_adapter(2, seed + 2), [contribution(delta, base)]))
    merged = add_increments(pipeline.state, pipeline.items, [1.0]).at(1.0).adapter
    for name, f in merged:
        assert f.a == pytest.approx(base.modules[name].a + delta.modules[name].a, abs=1e-5)
        assert f.b == pytest.approx(base.modules[name].b + delta.modules[name].b, abs=1e-5)


def test_stages_leave_state_and_updates_as_they_are(random_adapter, contribution, pipeline_of):
    base, delta = random_adapter(2, 1), random_adapter(2, 2)
    copies = [
        LoraAdapter({n: Factors(f.a.copy(), f.b.copy(), f.scale) for n, f in one}) for one in (base, delta)
    ]
    state = State(0, base)
    for stage in (Absolute(), Centre(), CentreLiteral()):
        pipeline = stage(pipeline_of(state, [contribution(delta, base)] * 2))
        first, again = pipeline.items[0].load_delta(), pipeline.items[0].load_delta()
        assert first == again
    assert [base, delta] == copies
