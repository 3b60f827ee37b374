"""Deltas, error feedback and the names of updates."""

import numpy as np
import pytest

from converters.adapter import Factors, LoraAdapter
from converters.arithmetic import add
from converters.errors import AdapterError
from converters.masking import train_mask
from edge.protocol.codec import decode_adapter
from edge.protocol.delta import encode_delta, make_delta, update_id


def random_adapter(seed: int, rank: int = 4, modules: str = "qv", magnitude: float = 1.0) -> LoraAdapter:
    generator = np.random.default_rng(seed)
    return LoraAdapter(
        {
            f"{name}_proj": Factors(
                (magnitude * generator.standard_normal((rank, 70))).astype(np.float32),
                (magnitude * generator.standard_normal((50, rank))).astype(np.float32),
                2.0,
            )
            for name in modules
        }
    )


def largest(adapter: LoraAdapter) -> float:
    return max(max(np.abs(f.a).max(), np.abs(f.b).max()) for _, f in adapter)


def test_a_delta_applied_gives_what_was_trained():
    base = LoraAdapter({"q": Factors(np.array([[1.0, 2.0]]), np.array([[3.0]]), 2.0)})
    trained = LoraAdapter({"q": Factors(np.array([[1.5, 2.0]]), np.array([[1.0]]), 2.0)})
    delta = make_delta(trained, base)
    assert delta.modules["q"].a.tolist() == [[0.5, 0.0]]
    assert delta.modules["q"].b.tolist() == [[-2.0]]
    assert add(base, delta) == trained


def test_modules_that_were_not_trained_stay():
    base = random_adapter(0)
    part = random_adapter(1, modules="v")
    moved = add(base, make_delta(part, base))
    np.testing.assert_allclose(moved.modules["v_proj"].a, part.modules["v_proj"].a, rtol=1e-5, atol=1e-6)
    assert np.array_equal(moved.modules["q_proj"].a, base.modules["q_proj"].a)


def test_modules_that_do_not_fit_are_all_named():
    with pytest.raises(AdapterError, match=r"k_proj .* no such module; v_proj .*\(5, 70\)"):
        make_delta(random_adapter(0, rank=5, modules="kv"), random_adapter(1, modules="qv"))


@pytest.mark.parametrize("encoding", ["f32", "f16", "int8", "int4"])
def test_error_feedback_loses_nothing_over_time(encoding):
    """What arrived over 30 updates is the sum of what was trained, but for the last residual."""
    base, residual = random_adapter(0), None
    arrived = make_delta(base, base)
    meant = arrived
    for turn in range(30):
        step = random_adapter(100 + turn, magnitude=0.01)
        payload, residual = encode_delta(add(base, step), base, residual, encoding)
        meant = add(meant, make_delta(add(base, step), base))
        arrived = add(arrived, decode_adapter(payload, like=base))
    assert largest(make_delta(meant, add(arrived, residual))) < 1e-5
    assert (
        largest(residual) < 0.01
    )  # it does not grow: a block's largest entry is a few 0.01, its step a seventh


def test_f32_leaves_no_residual():
    base = random_adapter(0)
    _, residual = encode_delta(random_adapter(1), base, None, "f32")
    assert largest(residual) == 0.0


def test_a_residual_that_no_longer_fits_is_forgotten():
    base = random_adapter(0, rank=2)
    trained = random_adapter(1, rank=2)
    assert encode_delta(trained, base, random_adapter(2, rank=4), "int8") == encode_delta(
        trained, base, None, "int8"
    )


def test_only_what_the_mask_leaves_is_sent_or_left_over():
    base, trained = random_adapter(0), random_adapter(1)
    payload, residual = encode_delta(
        trained, base, random_adapter(2), "int4", mask=train_mask(base, "a", train_rank=3)
    )
    sent = decode_adapter(payload, like=base)
    for held in (sent, residual):
        for _, factors in held:
            assert factors.a[:3].any()
            assert not factors.a[3:].any()
            assert not factors.b.any()


def test_a_module_that_did_not_move_leaves_nothing_over():
    base, trained = random_adapter(0), random_adapter(1)
    trained = LoraAdapter({**trained.modules, "v_proj": base.modules["v_proj"]})
    payload, residual = encode_delta(trained, base, None, "int8")
    assert set(decode_adapter(payload, like=base).modules) == {"q_proj"}
    assert residual.modules.keys() == base.modules.keys()
    assert not residual.modules["v_proj"].a.any()


def test_an_updates_name_is_golden_and_depends_on_all_of_it():
    name = update_id("d1", 3, 0, "ab" * 32)
    assert name == "333d9584af2b740021570b753c78f02a"
    others = [
        ("d2", 3, 0, "ab" * 32),
        ("d1", 4, 0, "ab" * 32),
        ("d1", 3, 1, "ab" * 32),
        ("d1", 3, 0, "cd" * 32),
        ("d1", 3, 0, "ab" * 32, "ef" * 32),
        ("d1", 3, 0, "ab" * 32, "01" * 32),
    ]
    assert len({name, *(update_id(*other) for other in others)}) == 7
