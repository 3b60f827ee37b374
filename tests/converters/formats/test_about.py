"""What a conversion keeps beside the factors, and how a base model is called."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from converters.adapter import Factors, LoraAdapter
from converters.api import convert
from converters.bases.name import is_hub_name, name_base
from converters.bases.read import read_base
from converters.formats.about import About
from converters.formats.load import load_any, read_about
from converters.formats.save import save_as

Q, V = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj"
ADAPTER = LoraAdapter(
    {
        Q: Factors(np.ones((2, 3), np.float32), np.ones((4, 2), np.float32), 2.0),
        V: Factors(np.ones((1, 3), np.float32), np.ones((4, 1), np.float32), 4.0),
    }
)
CONFIG: dict[str, Any] = {
    "base_model_name_or_path": "owner/model-1B",
    "inference_mode": True,
    "lora_dropout": 0.05,
    "peft_version": "0.14.0",
    "revision": "0123abcd",
    "target_modules": r".*\.(q|v)_proj",
    "task_type": "SEQ_CLS",
    "lora_alpha": 2 * 2**0.5,
    "r": 2,
    "rank_pattern": {"v_proj": 1},
    "alpha_pattern": {"v_proj": 4},
    "use_rslora": True,
}


@pytest.fixture
def peft(tmp_path: Path) -> Path:
    """An adapter with settings of its own, and a card."""
    folder = tmp_path / "peft"
    save_as("peft", ADAPTER, folder)
    written = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(written | CONFIG))
    (folder / "README.md").write_text("---\nlicense: apache-2.0\ntags:\n- lora\n---\n# My adapter\n")
    return folder


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "model-1B"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "num_attention_heads": 2}))
    save_file({f"{n}.weight": np.ones((4, 3), np.float32) for n in (Q, V)}, folder / "model.safetensors")
    return folder


def config_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text())
    return found


@pytest.mark.parametrize("way", [["peft"], ["mlx", "peft"], ["gguf", "peft"], ["mlx", "gguf", "mlx", "peft"]])
def test_what_a_conversion_does_not_change_is_kept(
    peft: Path, base: Path, tmp_path: Path, way: list[str]
) -> None:
    if "gguf" in way:
        pytest.importorskip("gguf", reason="needs the llama extra")
    source = peft
    for number, form in enumerate(way):
        target = tmp_path / f"{number}.{form}"
        convert(source, target, to=form, base=base if "gguf" in way else None)  # type: ignore[arg-type]
        source = target
    kept = config_of(source)
    assert {key: kept[key] for key in CONFIG} == CONFIG
    assert load_any(source) == load_any(peft)
    assert 'license: "apache-2.0"' in (source / "README.md").read_text()


def test_how_peft_multiplies_is_written_anew_where_it_would_not_be_true(peft: Path, tmp_path: Path) -> None:
    other = LoraAdapter({name: f._replace(scale=3.0) for name, f in ADAPTER})
    save_as("peft", other, tmp_path / "other", about=read_about(peft))
    assert load_any(tmp_path / "other") == other
    assert config_of(tmp_path / "other")["task_type"] == "SEQ_CLS"


def test_settings_that_choose_modules_go_where_the_modules_change(peft: Path, tmp_path: Path) -> None:
    about = read_about(peft)
    save_as("peft", LoraAdapter({Q: ADAPTER.modules[Q]}), tmp_path / "less", about=about)
    assert config_of(tmp_path / "less")["target_modules"] == [Q]
    assert config_of(tmp_path / "less")["task_type"] == "SEQ_CLS"


def test_what_peft_could_not_multiply_is_not_believed_from_another_tools_file(tmp_path: Path) -> None:
    about = About(peft={"use_dora": True, "modules_to_save": ["lm_head"], "bias": "all", "lora_bias": True})
    save_as("peft", ADAPTER, tmp_path / "out", about=about)
    assert load_any(tmp_path / "out") == ADAPTER


def test_mlx_keeps_what_its_trainer_wrote(tmp_path: Path) -> None:
    save_as("mlx", LoraAdapter({Q: ADAPTER.modules[Q]}), tmp_path / "mlx")
    written = config_of(tmp_path / "mlx")
    written["lora_parameters"]["dropout"] = 0.1
    more = {"model": "mlx-community/model-1B-4bit", "iters": 1000, "seed": 7}
    (tmp_path / "mlx/adapter_config.json").write_text(json.dumps(written | more))
    convert(tmp_path / "mlx", tmp_path / "again", to="mlx")
    assert config_of(tmp_path / "again") == written | more
    convert(tmp_path / "mlx", tmp_path / "peft", to="peft")
    assert config_of(tmp_path / "peft")["base_model_name_or_path"] == "mlx-community/model-1B-4bit"
    assert "iters" not in config_of(tmp_path / "peft")  # PEFT warns of what it does not know


def test_a_base_that_is_given_is_named_where_nothing_was_recorded(base: Path, tmp_path: Path) -> None:
    save_as("peft", ADAPTER, tmp_path / "bare")
    assert config_of(tmp_path / "bare")["base_model_name_or_path"] is None
    report = convert(tmp_path / "bare", tmp_path / "named", to="peft", base=base)
    assert config_of(tmp_path / "named")["base_model_name_or_path"] == report.base == str(base)


def test_gguf_names_the_base_as_llama_cpp_does(peft: Path, base: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="needs the llama extra")
    from converters.errors import AdapterError
    from converters.files.gguf import open_gguf

    convert(peft, tmp_path / "x.gguf", to="gguf", base=base)
    metadata = open_gguf(tmp_path / "x.gguf", AdapterError).metadata
    assert metadata["general.base_model.count"] == 1
    assert metadata["general.base_model.0.name"] == "Model 1B"
    assert metadata["general.base_model.0.organization"] == "Owner"
    assert metadata["general.base_model.0.repo_url"] == "https://huggingface.co/owner/model-1B"
    save_as("gguf", ADAPTER, tmp_path / "y.gguf", read_base(base), about=About(base=str(base)))
    assert str(tmp_path) not in str(open_gguf(tmp_path / "y.gguf", AdapterError).metadata)


def test_a_base_is_called_by_its_hub_name_only_where_that_is_sure(base: Path, tmp_path: Path) -> None:
    def named(config: dict[str, Any], folder: Path = base, given: str = "") -> str:
        folder.mkdir(parents=True, exist_ok=True)
        save_file({f"{Q}.weight": np.ones((4, 3), np.float32)}, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
        return name_base(read_base(folder), given)

    assert named({}) == str(base)
    assert named({}, given="owner/name") == "owner/name"
    assert named({"_name_or_path": "owner/model-1B"}) == "owner/model-1B"
    assert named({"_name_or_path": "owner/parent-1B"}) == str(base)  # trained on from that one
    assert named({"_name_or_path": "/home/else/model-1B"}) == str(base)
    cached = tmp_path / "hub/models--owner--name-2/snapshots/0123"
    assert named({"_name_or_path": "x/y"}, cached) == "owner/name-2"


def test_a_relative_path_is_told_from_a_hub_name(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(base.parent.parent)
    relative = f"{base.parent.name}/{base.name}"
    assert not is_hub_name(relative)
    assert name_base(read_base(relative), relative) == str(base)
