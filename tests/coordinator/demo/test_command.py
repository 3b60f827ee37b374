from functools import partial

import pytest

from coordinator.demo import plan
from coordinator.demo.command import demo
from edge.errors import MissingExtra


def without(*absent):
    return lambda name: None if name in absent else name


def test_missing_libraries_are_named_at_once(monkeypatch, tmp_path):
    monkeypatch.setattr(plan, "make_plan", partial(plan.make_plan, find=without("torch", "amqtt")))
    with pytest.raises(
        MissingExtra, match=r"torch, amqtt is not installed; run: pip install 'tunefleet\[torch,broker\]'"
    ):
        demo(out=tmp_path / "demo")
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize(
    ("library", "extra", "left"),
    [
        ("mlx_lm", "mlx", ["torch", "torch", "llama_cpp q8_0", "llama_cpp q4_0"]),
        ("llama_cpp", "llama", ["torch", "mlx", "torch", "torch"]),
        ("gguf", "llama", ["torch", "mlx", "torch", "torch"]),
    ],
)
def test_torch_takes_the_place_of_a_missing_backend_and_a_note_says_so(library, extra, left):
    chosen = plan.make_plan(without(library))
    assert [member.trains_with for member in chosen.members] == left
    assert [f"pip install 'tunefleet[{extra}]'" in note for note in chosen.notes] == [True]


def test_with_torch_alone_the_demo_runs_and_names_both_extras():
    chosen = plan.make_plan(without("mlx_lm", "llama_cpp", "gguf"))
    assert {member.trains_with for member in chosen.members} == {"torch"}
    assert chosen.quants == []
    assert ["[mlx]" in note or "[llama]" in note for note in chosen.notes] == [True, True]
