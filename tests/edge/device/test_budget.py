import math

import pytest

from edge.device.budget import FILE, Budget, sum_up
from edge.errors import StateError
from edge.privacy.accounting import epsilon_of
from edge.privacy.terms import Terms, Wishes

DEVICE, EXAMPLE = Terms(unit="device", noise=2.0), Terms(unit="example", noise=8.0)
WISHES = Wishes(unit="example", epsilon=3.0)


def budget(folder, wishes=WISHES):
    return Budget(folder, wishes, clock=lambda: 1000.0)


def spend(account, version, terms=DEVICE, num_steps=4, attempt=0):
    account.spend((7, version, attempt), terms, num_steps)


def test_every_update_costs_and_a_restart_forgets_none(tmp_path):
    account = budget(tmp_path)
    for version in range(4):
        spend(account, version)
    assert account.mu == 1.0  # sqrt(4 / 2^2)
    assert budget(tmp_path).mu == 1.0
    assert budget(tmp_path).epsilon == epsilon_of(1.0, 1e-5)


def test_steps_count_for_examples_and_a_device_is_hidden_once(tmp_path):
    account = budget(tmp_path)
    spend(account, 1, EXAMPLE, num_steps=16)
    assert account.mu == 0.5  # sqrt(16) / 8
    spend(account, 2, DEVICE, num_steps=16)
    assert account.mu == pytest.approx(math.sqrt(0.5))


def test_a_task_that_is_brought_in_again_after_a_kill_costs_once(tmp_path):
    spend(budget(tmp_path), 1)
    again = budget(tmp_path)
    spend(again, 1)
    assert len(again.spendings) == 1
    spend(again, 1, attempt=1)
    assert len(again.spendings) == 2


@pytest.mark.parametrize("torn", [1, 40, -1])
def test_a_line_that_a_kill_tore_is_no_spending_and_the_next_one_stands_by_itself(tmp_path, torn):
    spend(budget(tmp_path), 1)
    line = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(line + line[:torn])
    after = budget(tmp_path)
    assert [one.version for one in after.spendings] == [1]
    spend(after, 2)
    assert [one.version for one in budget(tmp_path).spendings] == [1, 2]


@pytest.mark.parametrize("line", [b"{}\n", b"\xff\n", b"[" * 5000 + b"\n", b'{"at": 1}\n'])
def test_a_damaged_account_is_one_line_and_never_nothing_spent(tmp_path, line):
    (tmp_path / FILE).write_bytes(line)
    with pytest.raises(StateError, match=r"privacy.jsonl, line 1: is damaged"):
        budget(tmp_path)


def test_a_task_beyond_the_budget_is_refused_and_nothing_is_spent(tmp_path):
    account = budget(tmp_path)
    version = 0
    while account.refusal((7, 99, 0), DEVICE, 4) is None:
        spend(account, version)
        version += 1
    assert version > 0
    assert account.epsilon <= 3.0 < epsilon_of(math.sqrt(version + 1) / 2, 1e-5)
    reason = account.refusal((7, 99, 0), DEVICE, 4)
    assert "the budget is 3 at delta 1e-05" in reason
    assert "\n" not in reason
    # What costs less still fits, if there is room for it.
    assert account.refusal((7, 99, 0), Terms(unit="device", noise=1000.0), 4) is None


def test_a_task_that_is_paid_for_is_not_refused_after_a_restart(tmp_path):
    account = budget(tmp_path)
    version = 0
    while account.refusal((7, version, 0), DEVICE, 4) is None:
        spend(account, version)
        version += 1
    again = budget(tmp_path)
    assert again.refusal((7, version - 1, 0), DEVICE, 4) is None
    assert again.refusal((7, version - 2, 0), DEVICE, 4) is not None


def test_a_budget_needs_to_know_the_steps_of_a_task_that_hides_examples(tmp_path):
    assert "to inf" in budget(tmp_path).refusal((7, 1, 0), EXAMPLE, 0)


def test_what_went_out_without_protection_is_told_as_no_privacy_at_all(tmp_path):
    account = budget(tmp_path, Wishes())
    spend(account, 1, Terms())
    assert not (tmp_path / FILE).exists()  # nobody asked for an account
    spend(account, 2, DEVICE)
    spend(account, 3, Terms())
    assert account.epsilon == math.inf
    assert "epsilon inf" in account.told


def test_hiding_examples_does_not_hide_a_device(tmp_path):
    spend(budget(tmp_path), 1, EXAMPLE)
    assert budget(tmp_path, Wishes(unit="device")).mu == math.inf
    assert budget(tmp_path, Wishes(unit="example")).mu == 0.25


def test_an_account_is_summed_up_for_an_example_and_for_a_device(tmp_path):
    account = budget(tmp_path)
    assert sum_up(account.spendings, 1e-5)["epsilon_device"] == 0.0
    spend(account, 1, DEVICE)
    spend(account, 2, Terms(unit="device", noise=2.0, at="coordinator"))
    report = sum_up(account.spendings, 1e-5)
    assert (report["num_updates"], report["num_hiding_device"], report["num_noised_at_coordinator"]) == (
        2,
        2,
        1,
    )
    assert report["epsilon_device"] == report["epsilon_example"] == epsilon_of(math.sqrt(0.5), 1e-5)
    spend(account, 3, EXAMPLE)
    report = sum_up(account.spendings, 1e-5)
    assert report["epsilon_device"] is None
    assert report["epsilon_example"] > epsilon_of(math.sqrt(0.5), 1e-5)
