import pytest

from coordinator.demo import plan
from coordinator.demo.command import demo
from edge.errors import MissingExtra


def test_missing_libraries_are_named_at_once(monkeypatch, tmp_path):
    absent = {"torch", "amqtt"}
    monkeypatch.setattr(plan, "find_spec", lambda name: None if name in absent else name)
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
def test_torch_takes_the_place_of_a_missing_backend_and_a_note_says_so(monkeypatch, library, extra, left):
    monkeypatch.setattr(plan, "find_spec", lambda name: None if name == library else name)
    chosen = plan.make_plan()
    assert [member.trains_with for member in chosen.members] == left
    assert [f"pip install 'tunefleet[{extra}]'" in note for note in chosen.notes] == [True]


def test_with_torch_alone_the_demo_runs_and_names_both_extras(monkeypatch):
    absent = {"mlx_lm", "llama_cpp", "gguf"}
    monkeypatch.setattr(plan, "find_spec", lambda name: None if name in absent else name)
    chosen = plan.make_plan()
    assert {member.trains_with for member in chosen.members} == {"torch"}
    assert chosen.quants == []
    assert ["[mlx]" in note or "[llama]" in note for note in chosen.notes] == [True, True]
