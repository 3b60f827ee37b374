import math
import os

import msgspec
import numpy as np
import pytest

from converters.adapter import Factors, LoraAdapter
from edge.privacy.clipping import exact_norm
from edge.privacy.hiding import hide_device
from edge.privacy.terms import Terms, Wishes, terms_faults

DEVICE, EXAMPLE = Terms(unit="device", noise=2.0), Terms(unit="example", noise=2.0)


def test_a_device_that_wants_nothing_refuses_nothing():
    assert all(Wishes().refusal(terms) is None for terms in (Terms(), DEVICE, EXAMPLE))


@pytest.mark.parametrize(
    ("wishes", "terms", "reason"),
    [
        (Wishes(unit="example"), Terms(), "unit none, this device wants example"),
        (Wishes(unit="device"), EXAMPLE, "unit example, this device wants device"),
        (Wishes(epsilon=8.0), Terms(), "unit none, this device wants example"),
        (Wishes(unit="device", noise=3.0), DEVICE, "noise 2, this device wants 3"),
        (Wishes(unit="device"), Terms(unit="device", at="coordinator"), "noise at the coordinator"),
    ],
)
def test_less_privacy_than_a_device_wants_is_refused_in_one_line(wishes, terms, reason):
    told = wishes.refusal(terms)
    assert told is not None
    assert reason in told
    assert "\n" not in told


def test_as_much_privacy_or_more_is_taken():
    assert Wishes(unit="example").refusal(DEVICE) is None
    assert Wishes(unit="example", noise=2.0).refusal(EXAMPLE) is None
    assert Wishes(unit="device", at="coordinator").refusal(Terms(unit="device", at="coordinator")) is None


def test_an_update_costs_once_for_a_device_and_every_step_for_an_example():
    assert DEVICE.mu(num_steps=9) == 0.5
    assert EXAMPLE.mu(num_steps=16) == 2.0
    assert Terms().mu(num_steps=1) == math.inf


@pytest.mark.parametrize("field", ["clip_norm", "noise"])
@pytest.mark.parametrize("value", [math.inf, 1e300, -1.0])
def test_terms_that_no_float_could_follow_are_no_terms(field, value):
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"unit": "device", field: value}, Terms)


def test_the_largest_and_the_least_terms_can_be_followed():
    delta = LoraAdapter({"q": Factors(np.ones((2, 4), "f4"), np.ones((4, 2), "f4"), 1.0)})
    for clip_norm, noise in ((1e6, 1e6), (1e-9, 1e-9), (1e-9, 0.0)):
        hidden = hide_device(delta, Terms(unit="device", clip_norm=clip_norm, noise=noise), os.urandom)
        assert np.isfinite(exact_norm(hidden))


def test_terms_that_cannot_be_followed_are_told():
    assert list(terms_faults(DEVICE, steps=0)) == []
    assert len(list(terms_faults(Terms(unit="example", at="coordinator"), steps=0))) == 2
