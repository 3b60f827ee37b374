"""A few words mean linear layers of a base model."""

import numpy as np
import pytest

from converters.adapter import Factors, LoraAdapter
from converters.bases.targets import check_fit, endings, match_targets
from converters.errors import UnsupportedAdapter

Q0, Q1, V0, BIG = (
    f"model.layers.{name}"
    for name in ("0.self_attn.q_proj", "1.self_attn.q_proj", "0.self_attn.v_proj", "1.mlp.big")
)
MODULES = {Q0: (8, 8), V0: (8, 4), BIG: (400, 300), Q1: (8, 8)}
FACTORS = Factors(np.ones((1, 3), np.float32), np.ones((4, 1), np.float32), 1.0)


def test_targets_are_endings_of_names() -> None:
    assert set(match_targets(MODULES, ["q_proj"])) == {Q0, Q1}
    assert set(match_targets(MODULES, ["0.self_attn.q_proj", "big"])) == {Q0, BIG}


def test_all_linear_is_every_layer_but_the_head() -> None:
    with_head = MODULES | {"lm_head": (8, 16)}
    assert match_targets(with_head, ["all-linear"]) == MODULES
    assert match_targets(with_head, ["all-linear", "lm_head"]) == with_head


def test_the_last_blocks_alone_can_be_chosen() -> None:
    assert set(match_targets(MODULES, ["all-linear"], 1)) == {BIG, Q1}
    assert match_targets(MODULES, ["q_proj"], 2) == match_targets(MODULES, ["q_proj"])
    with pytest.raises(UnsupportedAdapter, match="no module is called v_proj; the model has: big, q_proj"):
        match_targets(MODULES, ["v_proj"], 1)
    for number in (0, 3):
        with pytest.raises(UnsupportedAdapter, match=f"num_layers is {number}, expected 1 to 2"):
            match_targets(MODULES, ["q_proj"], number)


def test_targets_that_match_nothing_are_all_named_beside_what_there_is() -> None:
    with pytest.raises(UnsupportedAdapter, match=r"called c_attn, proj; the model has: big, q_proj, v_proj"):
        match_targets(MODULES, ["q_proj", "c_attn", "proj"])
    with pytest.raises(UnsupportedAdapter):
        match_targets(MODULES, [])


def test_names_are_shortened_where_that_means_just_them() -> None:
    assert endings([Q0, Q1], MODULES) == ["q_proj"]
    assert endings([Q0], MODULES) == [Q0]


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
