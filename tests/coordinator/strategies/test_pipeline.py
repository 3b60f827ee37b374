import copy
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from converters.adapter import Factors, LoraAdapter
from coordinator.errors import MergeError
from coordinator.strategies.choice import METHODS
from coordinator.strategies.contract import Account, Contribution, State
from coordinator.strategies.pipeline import Pipeline
from coordinator.strategies.written import Stages, read_stages


def strategy_of(*order, calibrator=None, buffer_size=2, **stages):
    method = read_stages(Stages(order=order, **stages)).method
    return Pipeline("mine", method, buffer_size, calibrator=calibrator)


def frozen(adapter):
    """A deep copy to compare with later."""
    return LoraAdapter({name: Factors(f.a.copy(), f.b.copy(), f.scale) for name, f in adapter})


def test_an_empty_buffer_is_an_error(vector):
    with pytest.raises(MergeError, match="mine: the buffer is empty, expected at least one update"):
        strategy_of().merge(State(0, vector(0)), [])


def test_weights_that_are_all_zero_are_an_error(vector, contribution):
    buffer = [contribution(vector(1), vector(0), num_examples=0)] * 2
    with pytest.raises(MergeError, match="weights of all 2 updates are zero, expected one above zero"):
        strategy_of("examples", "normalise").merge(State(0, vector(0)), buffer)


def test_weights_that_are_zero_for_another_reason_than_a_filters_cut_are_an_error(vector, contribution):
    state = State(0, vector(0), norms=(1.0,) * 8)
    with pytest.raises(MergeError, match="weights of all 1 updates are zero"):
        strategy_of("clip", "examples").merge(state, [contribution(vector(9), vector(0), num_examples=0)])


@pytest.mark.parametrize(("order", "merge"), [((), "sum"), ((), "median"), (("product-norm",), "sum")])
def test_a_number_beyond_numbers_is_an_error_that_names_the_module(order, merge, vector, contribution):
    huge = vector(3e38)
    strategy = strategy_of(*order, merge=merge)
    expected = r"mine: merging 1 updates: adapter is malformed: m: has entries that are not finite"
    with np.errstate(over="ignore"), pytest.raises(MergeError, match=expected):
        strategy.merge(State(0, huge), [contribution(huge, huge)])


def test_an_update_that_a_filter_left_out_is_in_the_report_and_not_in_the_sum(vector, contribution, bowl):
    buffer = [contribution(vector(4), vector(0), "good"), contribution(vector(-9), vector(0), "bad")]
    state, report = strategy_of("cosine", calibrator=bowl(vector(5))).merge(State(0, vector(0)), buffer)
    assert state.adapter == vector(2)  # its share of the buffer stays the half
    good, bad = report.shares
    assert (good.weight, good.norm, good.reason) == (0.5, 4, "")
    assert (bad.weight, bad.norm) == (0, 0)
    assert bad.reason == "cosine -1.00 with the calibration loss's descent"
    assert state.accounts["of-bad"] == Account(uploads=1, weight=0.0, credit=0.5, cosine=-1.0, num_cosines=1)


def test_when_every_update_is_left_out_the_adapter_stays_and_the_version_goes_on(vector, contribution, bowl):
    known = State(6, vector(1), moments={"momentum": vector(3)})
    strategy = strategy_of(
        "clip", "cosine", calibrator=bowl(vector(5)), guard="backtrack", optimizer="fedavgm"
    )
    state, report = strategy.merge(known, [contribution(vector(-1), vector(1))])
    assert (state.version, state.adapter, state.moments) == (7, vector(1), known.moments)
    assert (report.step_scale, report.step_norm, report.loss_before) == (0, 0, None)
    assert state.norms == (1,)


@pytest.fixture
def counted():
    """`counted(delta, base, reads, name)`: an update; whenever its payload is read, `reads` grows."""

    def make(delta, base, reads, name="u"):
        def load():
            reads.append(name)
            return delta

        return Contribution(name, f"of-{name}", 0, 0, 1, load, lambda: base)

    return make


def test_an_update_is_not_read_again_once_it_is_left_out(vector, counted, contribution, bowl):
    reads = []
    strategy = strategy_of("cosine", "clip", "inverse-norm", "normalise", calibrator=bowl(vector(5)))
    strategy = replace(strategy, held_bytes=0)
    strategy.merge(
        State(0, vector(0)), [counted(vector(-9), vector(0), reads), contribution(vector(4), vector(0))]
    )
    assert len(reads) == 2  # for its norm and its angle


@pytest.fixture
def buffer_of_three(random_adapter, counted):
    """`buffer_of_three(reads)`: a state, and three updates that each tell when they are read."""

    def make(reads):
        master = random_adapter(2, 1)
        return State(0, master), [
            counted(random_adapter(2, seed), master, reads, f"u{seed}") for seed in (2, 3, 4)
        ]

    return make


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("rise", [-1.0, 1.0])  # of the calibration loss: steps are taken at once, or refused
def test_every_update_is_read_once_whatever_stages_and_guard_ask(
    name, rise, buffer_of_three, strategy, bowl, random_adapter
):
    class Steady(bowl):
        num_losses = 0

        def loss(self, adapter):
            self.num_losses += 1
            return self.num_losses * rise

    reads = []
    merging = strategy(name, {}, calibrator=Steady(random_adapter(2, 1, size=9.0)))
    _, report = merging.merge(*buffer_of_three(reads))
    assert sorted(reads) == ["u2", "u3", "u4"]
    assert name != "tunefleet" or report.step_scale == (4.0 if rise < 0 else 0.0)


def test_what_does_not_fit_into_memory_is_read_again_and_merged_alike(
    buffer_of_three, strategy, bowl, random_adapter
):
    found = []
    size = 4 * random_adapter(2, 2).num_parameters
    for held_bytes, num_reads in ((3 * size, 3), (size, 7), (0, 9)):  # clip, cosine and the merge read
        reads = []
        merging = strategy("tunefleet", {}, calibrator=bowl(random_adapter(2, 1)))
        found.append(replace(merging, held_bytes=held_bytes).merge(*buffer_of_three(reads)))
        assert len(reads) == num_reads
    assert found[0] == found[1] == found[2]


def test_where_only_the_merge_reads_nothing_is_held(vector, strategy):
    alive, most = 0, 0

    class Held(LoraAdapter):
        def __del__(self):
            nonlocal alive
            alive -= 1

    def load():
        nonlocal alive, most
        alive += 1
        most = max(most, alive)
        return Held(vector(1).modules)

    buffer = [Contribution(str(n), "d", 0, 0, 1, load, lambda: vector(0)) for n in range(8)]
    strategy("fedavg").merge(State(0, vector(0)), buffer)
    assert most <= 2  # the next is read before the last name for the previous one is gone


def test_the_order_of_stages_is_the_configurations(vector, contribution):
    buffer = [
        contribution(vector(1), vector(0), "x", staleness=3),
        contribution(vector(1), vector(0), "y"),
    ]
    for order, expected in (
        (("freshness", "normalise"), [1 / 3, 2 / 3]),
        (("normalise", "freshness"), [0.25, 0.5]),
    ):
        _, report = strategy_of(*order).merge(State(0, vector(0)), buffer)
        assert [share.weight for share in report.shares] == pytest.approx(expected)


@given(
    seed=st.integers(0, 1000),
    space=st.sampled_from(["factors", "product"]),
    order=st.permutations(["clip", "cosine", "krum", "freshness", "fairness", "credit", "inverse-norm"]),
    optimizer=st.sampled_from(["none", "fedavgm"]),
)
def test_the_same_state_and_buffer_give_the_same_version_and_stay_as_they_are(
    seed, space, order, optimizer, random_adapter, contribution, bowl
):
    master = random_adapter(3, seed)
    accounts = {"x": Account(2, 0.5, 0.3), "away": Account(1, 0.1, 0.9)}
    state = State(4, master, accounts=accounts, norms=(1.0, 2.0))
    updates = [
        (random_adapter(1 + n % 3, seed + n), random_adapter(1 + n % 3, seed + 9 + n)) for n in range(6)
    ]
    buffer = [
        contribution(delta, base, f"u{n}", device="xyz"[n % 3], staleness=n, base_version=4 - n)
        for n, (delta, base) in enumerate(updates)
    ]
    before = [frozen(one) for pair in updates for one in pair] + [frozen(master)]
    accounts_before = copy.deepcopy(accounts)
    strategy = strategy_of(
        "group",
        "centre",
        *order,
        "normalise",
        space=space,
        optimizer=optimizer,
        guard="backtrack",
        guard_longest=2.0,
        cosine_floor=-1.0,
        calibrator=bowl(random_adapter(3, seed + 99)),
    )
    (first, report), (again, same_report) = (strategy.merge(state, buffer) for _ in range(2))
    assert (first, report) == (again, same_report)
    assert [one for pair in updates for one in pair] + [master] == before
    assert (accounts, state.norms) == (accounts_before, (1.0, 2.0))
    assert report.loss_after <= report.loss_before


def distance_of(fleet, strategy, target, hostile, seed):
    """From `target`, squared: the mean over the versions 11 to 30 of a fleet of ten.

    Devices go a third of the way, each a little astray, and two of them `hostile` times that. So the mean
    tells both how fast a fleet comes near and how near it stays; where it is at one moment is mostly noise.
    """
    rng = np.random.default_rng(seed)
    state = State(0, LoraAdapter({name: Factors(0 * f.a, 0 * f.b, f.scale) for name, f in target}))
    distances = []
    for _ in range(30):
        buffer = []
        for device in rng.choice(10, 5, replace=False):
            increments = {}
            for name, f in target:
                here = state.adapter.modules[name]
                a, b = (
                    (goal - now) / 3 + 0.02 * rng.standard_normal(goal.shape)
                    for goal, now in ((f.a, here.a), (f.b, here.b))
                )
                by = hostile if device < 2 else 1.0
                increments[name] = Factors((by * a).astype(np.float32), (by * b).astype(np.float32), f.scale)
            delta, base = LoraAdapter(increments), state.adapter
            buffer.append(fleet(delta, base, f"u{device}", device=f"d{device}"))
        state, _ = strategy.merge(state, buffer)
        distances.append(
            sum(
                float(np.square(x - y).sum())
                for name, f in target
                for x, y in zip(f[:2], state.adapter.modules[name][:2], strict=True)
            )
        )
    return np.mean(distances[10:])


@pytest.mark.parametrize("hostile", [-1.0, -10.0, 10.0])
def test_a_poisoned_fifth_of_the_fleet_harms_tunefleet_a_tenth_of_what_it_harms_fedbuff(
    hostile, random_adapter, contribution, strategy, bowl
):
    target = random_adapter(2, 5)

    def harm(one):
        poisoned, honest = (
            np.mean([distance_of(contribution, one, target, by, seed) for seed in range(3)])
            for by in (hostile, 1.0)
        )
        return poisoned - honest

    ours = strategy("tunefleet", {"space": "factors"}, calibrator=bowl(target))
    assert harm(ours) <= 0.1 * harm(strategy("fedbuff", {"space": "factors"}))
