import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.strategies.accounts import open_accounts, settle
from coordinator.strategies.contract import Account, State
from coordinator.strategies.stages.credit import Credit


def weights(pipeline):
    return [item.weight for item in pipeline.items]


@pytest.mark.parametrize(("length", "owed"), [(0.0, 0.0), (0.5, 1 / 6), (1.0, 1 / 3), (2.0, 2 / 3)])
def test_every_version_owes_every_device_its_share_of_the_steps_length(
    length, owed, pipeline_of, vector, lengths
):
    state = State(3, vector(0), accounts={"of-u0": Account(4, 0.5, 0.25), "away": Account(1, 0.1, 1.0)})
    pipeline = pipeline_of(state, lengths(1, 1)).weigh([0, 0])  # u1 comes for the first time; nobody is paid
    found = {device: one.credit for device, one in settle(state, pipeline.items, length).items()}
    assert found == pytest.approx({"of-u0": 0.25 + owed, "of-u1": owed, "away": 1 + owed})


def test_a_device_that_was_paid_in_full_is_owed_nothing(pipeline_of, vector, lengths):
    state = State(3, vector(0), accounts={"of-u0": Account(4, 0.75, 0.25), "away": Account(0, 0.0, 1.0)})
    pipeline = Credit()(pipeline_of(state, lengths(1, 1)))
    assert weights(pipeline) == pytest.approx([0.25 + 1 / 3, 1 / 3])
    found = {device: one.credit for device, one in settle(state, pipeline.items, 1.0).items()}
    assert found == pytest.approx({"of-u0": 0, "of-u1": 0, "away": 4 / 3})


def test_credit_is_paid_up_to_its_cap_and_shared_by_a_devices_updates(pipeline_of, vector, contribution):
    state = State(3, vector(0), accounts={"x": Account(3, 1.4, 0.1), "y": Account(1, 0.1, 1.4)})
    buffer = [contribution(vector(1), vector(0), f"u{n}", device=d) for n, d in enumerate("xxy")]
    found = weights(Credit(1.0)(pipeline_of(state, buffer)))
    assert found == pytest.approx([0.3, 0.3, 1.0])  # (0.1 + 1/2) / 2, and 1 of the 1.9


def test_credit_of_long_steps_is_paid_in_steps_as_long(pipeline_of, vector, lengths):
    accounts = {"of-u0": Account(3, 2.8, 0.2), "of-u1": Account(3, 3.0, 0.0)}  # 3 versions of length 2
    state = State(3, vector(0), accounts=accounts)
    pipeline = Credit()(pipeline_of(state, lengths(1, 1)))
    assert weights(pipeline) == pytest.approx([0.5 + 0.2 / 2, 0.5])
    found = {device: one.credit for device, one in settle(state, pipeline.items, 2.0).items()}
    assert found == pytest.approx({"of-u0": 0, "of-u1": 0})


def test_a_device_that_had_too_much_waits_until_the_others_have_caught_up(pipeline_of, vector, contribution):
    state = State(3, vector(0), accounts={"x": Account(3, 2.2, -0.7), "y": Account(1, 0.8, 0.7)})
    buffer = [contribution(vector(1), vector(0), d, device=d) for d in "xy"]
    assert weights(Credit()(pipeline_of(state, buffer))) == pytest.approx([0.5, 1.0])


def test_a_new_device_is_owed_since_the_version_that_it_began_on(pipeline_of, vector, contribution):
    state = State(8, vector(0), accounts={"x": Account(8, 1.5, 0.5)})  # 2 in 8 versions
    buffer = [contribution(vector(1), vector(0), "u", device="y", base_version=2, staleness=6)]
    accounts = open_accounts(state, pipeline_of(state, buffer).items)
    assert accounts["y"] == Account(0, 0.0, 1.5)


def test_a_device_that_comes_every_tenth_time_weighs_as_much_as_one_that_always_comes(
    pipeline_of, vector, contribution
):
    state = State(0, vector(0), accounts={device: Account() for device in "abz"})
    for version in range(100):
        devices = "ab" + ("z" if version % 10 == 9 else "")
        buffer = [contribution(vector(1), vector(0), d, device=d) for d in devices]
        pipeline = Credit(10.0)(pipeline_of(state, buffer))
        state = state._replace(version=version + 1, accounts=settle(state, pipeline.items, 1.0))
    totals = {device: account.weight for device, account in state.accounts.items()}
    assert totals == pytest.approx({"a": 100 / 3, "b": 100 / 3, "z": 100 / 3})


@given(lengths=st.lists(st.sampled_from([0.0, 0.25, 1.0, 4.0]), min_size=5, max_size=9))
def test_what_was_had_and_what_is_owed_are_the_same_for_all_whatever_the_lengths(
    lengths, vector, contribution, pipeline_of
):
    state = State(0, vector(0))
    for number, length in enumerate(lengths):
        devices = "xyz" if number % 3 == 0 else "xy"
        buffer = [contribution(vector(1), vector(0), d, device=d) for d in devices]
        pipeline = Credit()(pipeline_of(state, buffer))
        state = state._replace(version=number + 1, accounts=settle(state, pipeline.items, length))
        totals = [account.weight + account.credit for account in state.accounts.values()]
        assert totals == pytest.approx([totals[0]] * len(totals))


def test_accounts_hold_what_was_really_added(pipeline_of, vector, lengths):
    accounts = settle(State(0, vector(0)), pipeline_of(vector(0), lengths(1, 1)).items, 0.5)
    assert accounts["of-u0"] == Account(uploads=1, weight=0.25, credit=0.0)
