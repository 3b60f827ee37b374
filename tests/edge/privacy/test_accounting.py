"""The closed form against Google's accountant, and where nothing else reaches."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.privacy.accounting import compose, delta_of, epsilon_of, mu_of, noise_for

MUS = st.floats(1e-3, 40)


@pytest.fixture
def google():
    return pytest.importorskip("dp_accounting", reason="needs the dev extra")


@pytest.mark.parametrize("noise", [0.3, 0.8, 1.0, 4.0, 30.0])
@pytest.mark.parametrize("delta", [1e-2, 1e-5, 1e-9, 1e-12])
def test_one_gaussian_costs_what_googles_accountant_says(google, noise, delta):
    assert epsilon_of(mu_of(noise), delta) == pytest.approx(
        google.get_epsilon_gaussian(noise, delta), rel=1e-6
    )


@pytest.mark.parametrize(("noise", "times"), [(1.0, 2), (2.0, 20), (5.0, 400), (0.7, 7)])
def test_many_gaussians_cost_what_googles_loss_distributions_say(google, noise, times):
    accountant = google.pld.PLDAccountant()
    accountant.compose(google.GaussianDpEvent(noise), times)
    ours = epsilon_of(mu_of(noise, times), 1e-5)
    assert ours == pytest.approx(accountant.get_epsilon(1e-5), rel=1e-3)
    # Loss distributions are rounded up, so theirs may be a little more and never less.
    assert ours <= accountant.get_epsilon(1e-5) * (1 + 1e-9)


def test_unlike_gaussians_compose_as_googles_renyi_accountant_bounds_them(google):
    accountant = google.rdp.RdpAccountant()
    noises = [0.9, 2.0, 2.0, 7.0]
    for noise in noises:
        accountant.compose(google.GaussianDpEvent(noise))
    ours = epsilon_of(compose(mu_of(noise) for noise in noises), 1e-6)
    bound = accountant.get_epsilon(1e-6)
    assert 0.85 * bound < ours < bound


@given(mu=MUS, log_delta=st.floats(-690, -1))
def test_epsilon_and_delta_are_each_others_inverse(mu, log_delta):
    delta = math.exp(log_delta)
    epsilon = epsilon_of(mu, delta)
    assert delta_of(mu, epsilon) <= delta * (1 + 1e-6)
    if epsilon > 0:
        assert math.log(delta_of(mu, epsilon)) == pytest.approx(log_delta, abs=1e-6)


@given(mu=MUS, epsilon=st.floats(0, 200))
def test_delta_falls_with_epsilon_and_rises_with_mu(mu, epsilon):
    delta = delta_of(mu, epsilon)
    assert 0 <= delta <= 1
    assert delta_of(mu, epsilon + 1) <= delta <= delta_of(mu * 1.5, epsilon) * (1 + 1e-9)


def test_known_values_hold():
    # mu = 1: delta(1) = Phi(-0.5) - e Phi(-1.5) = 0.308538 - 2.718282 * 0.066807
    assert delta_of(1.0, 1.0) == pytest.approx(0.126937, abs=1e-6)
    assert mu_of(2.0, 16) == 2.0
    assert compose([3.0, 4.0]) == 5.0


def test_no_noise_is_no_privacy_and_nothing_sent_is_all_of_it():
    assert epsilon_of(mu_of(0.0), 1e-5) == math.inf
    assert delta_of(math.inf, 100.0) == 1.0
    assert epsilon_of(mu_of(0.0, times=0), 1e-5) == 0.0
    assert delta_of(0.0, 0.0) == 0.0


def test_the_noise_for_a_budget_costs_that_budget():
    noise = noise_for(8.0, 1e-5, times=50)
    assert epsilon_of(mu_of(noise, 50), 1e-5) == pytest.approx(8.0, rel=1e-6)
    assert epsilon_of(mu_of(noise, 50), 1e-5) <= 8.0
