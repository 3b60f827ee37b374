from pathlib import Path

import pytest

import tunefleet
from converters.adapter import initial_adapter
from converters.errors import AdapterError, BaseModelError

SHAPES = {
    f"model.layers.{layer}.self_attn.{name}": (16, 12) for layer in (0, 1) for name in ("q_proj", "v_proj")
}


@pytest.fixture
def adapter() -> tunefleet.LoraAdapter:
    return initial_adapter(SHAPES, rank=4, scale=2.0, seed=0)


def test_what_is_saved_in_a_form_is_loaded_again_to_the_last_bit(adapter, tmp_path: Path) -> None:
    for form in ("peft", "mlx"):
        tunefleet.save_adapter(adapter, tmp_path / form, form=form)
        assert tunefleet.load_adapter(str(tmp_path / form)) == adapter


def test_a_conversion_tells_both_formats(adapter, tmp_path: Path) -> None:
    tunefleet.save_adapter(adapter, tmp_path / "peft")
    done = tunefleet.convert(tmp_path / "peft", tmp_path / "mlx", to="mlx")
    assert (done.source, done.form, done.adapter) == ("peft", "mlx", adapter)
    assert tunefleet.load_adapter(tmp_path / "mlx") == adapter


def test_nothing_is_overwritten_and_gguf_asks_for_its_base(adapter, tmp_path: Path) -> None:
    tunefleet.save_adapter(adapter, tmp_path / "peft")
    with pytest.raises(AdapterError, match="is not empty"):
        tunefleet.save_adapter(adapter, tmp_path / "peft")
    with pytest.raises(BaseModelError):
        tunefleet.save_adapter(adapter, tmp_path / "adapter.gguf", form="gguf")
    with pytest.raises(tunefleet.TunefleetError, match="no such file or folder"):
        tunefleet.load_adapter(tmp_path / "none")
