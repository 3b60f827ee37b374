import numpy as np
import pytest

from converters.adapter import Factors, LoraAdapter
from converters.bases.fit import check_fit
from converters.errors import UnsupportedAdapter

FACTORS = Factors(np.ones((1, 3), np.float32), np.ones((4, 1), np.float32), 1.0)


def test_all_modules_that_do_not_fit_are_named_at_once():
    adapter = LoraAdapter(dict.fromkeys(("gone", "there", "wide"), FACTORS))
    with pytest.raises(UnsupportedAdapter) as caught:
        check_fit(adapter, {"there": (3, 4), "wide": (4, 3)}, "adapter does not fit the toy base")
    assert str(caught.value) == (
        "adapter does not fit the toy base: the base model has no linear layer gone; "
        "wide is for (3, 4) features (in, out), the base model has (4, 3)"
    )


def test_an_adapter_may_leave_modules_out():
    check_fit(LoraAdapter({"there": FACTORS}), {"there": (3, 4), "other": (1, 1)})
