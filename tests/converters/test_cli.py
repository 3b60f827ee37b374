"""`tunefleet convert`: what a user sees."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

from converters.adapter import Factors, LoraAdapter
from converters.errors import AdapterError, BaseModelError, UnsupportedAdapter
from converters.formats.canonical import save_adapter
from converters.formats.detect import detect_format
from converters.formats.load import load_any
from converters.formats.save import save_as
from tunefleet import app

ADAPTER = LoraAdapter(
    {
        "model.layers.0.self_attn.q_proj": Factors(
            np.ones((2, 3), np.float32), np.ones((4, 2), np.float32), 2.0
        )
    }
)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    save_adapter(ADAPTER, tmp_path / "adapter.safetensors")
    return tmp_path / "adapter.safetensors"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    config = {"model_type": "llama", "num_attention_heads": 2}
    (folder / "config.json").write_text(json.dumps(config))
    weights = {"model.layers.0.self_attn.q_proj.weight": np.ones((4, 3), np.float32)}
    save_file(weights, folder / "model.safetensors")
    return folder


def convert(*arguments: str | Path) -> str:
    done = CliRunner().invoke(app, ["convert", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_an_adapter_goes_through_every_format_and_comes_back(
    source: Path, base: Path, tmp_path: Path
) -> None:
    convert(source, tmp_path / "peft", "--to", "peft", "--base", base)
    convert(tmp_path / "peft", tmp_path / "mlx", "--to", "mlx", "--base", base)
    convert(tmp_path / "mlx", tmp_path / "again", "--to", "peft")
    assert [detect_format(tmp_path / name) for name in ("peft", "mlx", "again")] == ["peft", "mlx", "peft"]
    assert load_any(tmp_path / "again") == ADAPTER


def test_gguf_is_a_file_like_any_other_format(source: Path, base: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="needs the llama extra")
    report = convert(source, tmp_path / "x.gguf", "--to", "gguf", "--base", base, "--json")
    assert json.loads(report)["to"] == detect_format(tmp_path / "x.gguf") == "gguf"
    for form in ("peft", "mlx"):
        report = convert(tmp_path / "x.gguf", tmp_path / form, "--to", form, "--base", base, "--json")
        assert json.loads(report)["from"] == "gguf"
        assert load_any(tmp_path / form) == ADAPTER


def test_gguf_needs_a_base_and_a_new_file(source: Path, base: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="needs the llama extra")
    with pytest.raises(
        BaseModelError, match=r"x\.gguf: a GGUF adapter has .*give the base model.* with --base"
    ):
        convert(source, tmp_path / "x.gguf", "--to", "gguf")
    convert(source, tmp_path / "x.gguf", "--to", "gguf", "--base", base)
    with pytest.raises(BaseModelError, match="give the base model"):
        convert(tmp_path / "x.gguf", tmp_path / "peft", "--to", "peft")
    with pytest.raises(AdapterError, match=r"x\.gguf: is there already; give a file that is new"):
        convert(source, tmp_path / "x.gguf", "--to", "gguf", "--base", base)


def test_the_report_is_one_line_or_json(source: Path, tmp_path: Path) -> None:
    assert "1 modules, rank 2, 14 parameters" in convert(source, tmp_path / "a", "--to", "mlx")
    report = json.loads(convert(source, tmp_path / "b", "--to", "mlx", "--json"))
    assert report == {
        "from": "canonical",
        "to": "mlx",
        "path": str(tmp_path / "b"),
        "base": None,
        "modules": 1,
        "rank": 2,
        "parameters": 14,
        "scales": [2.0],
    }


def test_a_foreign_base_is_refused_and_nothing_is_written(source: Path, base: Path, tmp_path: Path) -> None:
    weights = {"model.layers.0.self_attn.q_proj.weight": np.ones((8, 8), np.float32)}
    save_file(weights, base / "model.safetensors")
    with pytest.raises(UnsupportedAdapter, match=r"the base model has \(8, 8\)"):
        convert(source, tmp_path / "new", "--to", "peft", "--base", base)
    assert not (tmp_path / "new").exists()


def test_a_folder_that_holds_something_is_left_alone(source: Path, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="is not empty"):
        convert(source, tmp_path, "--to", "peft")


@pytest.mark.parametrize(
    ("config", "reason"), [(None, "holds no adapter_config"), ("{", "is not JSON"), ("{}", "has neither")]
)
def test_what_is_no_adapter_is_named(tmp_path: Path, config: str | None, reason: str) -> None:
    if config is not None:
        (tmp_path / "adapter_config.json").write_text(config)
    with pytest.raises(AdapterError, match=reason):
        detect_format(tmp_path)


def test_a_source_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="no such file or folder"):
        convert(tmp_path / "nowhere", tmp_path / "new", "--to", "mlx")


def test_saving_by_name_is_what_the_coordinator_exports_with(tmp_path: Path) -> None:
    for form in ("peft", "mlx"):
        save_as(form, ADAPTER, tmp_path / form)
        assert load_any(tmp_path / form) == ADAPTER


def test_an_error_of_many_faults_is_short_and_whole_with_v(tmp_path: Path) -> None:
    weights = {}
    for name in (f"base_model.model.model.layers.{n}.self_attn.q_proj" for n in range(14)):
        weights[f"{name}.lora_A.weight"] = np.ones((2, 3), np.float32)
        weights[f"{name}.lora_B.weight"] = np.ones((4, 2), np.float32)
        weights[f"{name}.lora_magnitude_vector"] = np.ones(4, np.float32)
    save_file(weights, tmp_path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "use_dora": True}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))

    def told(*flags: str) -> str:
        command = [sys.executable, "-m", "tunefleet", *flags, "convert", ".", "new", "--to", "mlx"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
        return done.stderr.strip()

    assert told() == (
        "tunefleet: .: use_dora is set (DoRA); 14 modules: lora_magnitude_vector (DoRA) is not supported, "
        "e.g. model.layers.0.self_attn.q_proj; `tunefleet -v …` lists all"
    )
    assert len(told().encode()) <= 300
    assert told("-v").count("lora_magnitude_vector") == told("--verbose").count("lora_magnitude_vector") == 14
