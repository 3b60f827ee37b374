import numpy as np
import pytest

from converters.adapter import Factors, LoraAdapter
from converters.arithmetic import (
    add,
    combine,
    dot,
    map_entries,
    multiply,
    norm,
    select,
    square,
    subtract,
    zeros_like,
)


def factors(a, b, scale=2.0):
    return Factors(np.array(a, np.float32), np.array(b, np.float32), scale)


WIDE = LoraAdapter({"m": factors([[1, 2], [3, 4]], [[5, 6]]), "n": factors([[1]], [[2]], 0.5)})
NARROW = LoraAdapter({"m": factors([[10, 20]], [[30]]), "elsewhere": factors([[1]], [[1]])})


def test_a_sum_adds_the_leading_rows_and_keeps_what_the_second_lacks():
    expected = LoraAdapter({"m": factors([[11, 22], [3, 4]], [[35, 6]]), "n": WIDE.modules["n"]})
    assert add(WIDE, NARROW) == expected


def test_a_difference_of_a_lower_rank_takes_the_leading_rows_of_the_second():
    assert subtract(NARROW, WIDE) == LoraAdapter(
        {"m": factors([[9, 18]], [[25]]), "elsewhere": NARROW.modules["elsewhere"]}
    )


def test_subtracting_undoes_adding_and_leaves_the_operands_alone():
    before = multiply(WIDE, 1)
    assert subtract(add(WIDE, NARROW), NARROW) == WIDE == before


def test_a_multiple_changes_entries_and_not_scales():
    assert multiply(WIDE, -0.5) == LoraAdapter(
        {"m": factors([[-0.5, -1], [-1.5, -2]], [[-2.5, -3]]), "n": factors([[-0.5]], [[-1]], 0.5)}
    )


def test_a_combination_has_the_shapes_of_its_model():
    whole = select(WIDE, {"m"})
    found = combine(iter([(2.0, whole), (-1.0, select(NARROW, {"m"}))]), like=WIDE)
    assert found == LoraAdapter(
        {"m": factors([[-8, -16], [6, 8]], [[-20, 12]]), "n": factors([[0]], [[0]], 0.5)}
    )
    assert combine([], like=WIDE) == zeros_like(WIDE)


def test_an_inner_product_is_over_what_both_have():
    assert dot(WIDE, NARROW) == dot(NARROW, WIDE) == 10 + 40 + 150


def test_the_norm_is_that_of_all_entries_together():
    assert norm(WIDE) == pytest.approx(np.sqrt(1 + 4 + 9 + 16 + 25 + 36 + 1 + 4), rel=1e-15)
    assert square(WIDE.modules["m"].b) == 61
    assert norm(LoraAdapter({})) == 0


def test_a_map_takes_a_and_b_of_every_module_from_each_adapter():
    assert map_entries(np.maximum, WIDE, multiply(WIDE, -1)) == WIDE


def test_modules_are_selected_by_name():
    assert select(WIDE, ["n", "unknown"]) == LoraAdapter({"n": WIDE.modules["n"]})
