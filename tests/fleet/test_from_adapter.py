"""A fleet that goes on from an adapter that PEFT made: real processes, Mosquitto, and PEFT at both ends."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the torch extra")
peft = pytest.importorskip("peft", reason="needs the torch extra")
transformers = pytest.importorskip("transformers", reason="needs the torch extra")

pytestmark = [
    pytest.mark.broker,
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # peft 0.21
]
BASE = Path(__file__).parents[2] / "coordinator/demo/model"
TOKENS = torch.tensor([[5, 40, 7, 300, 11, 2]])


@pytest.fixture
def given(programs):
    """A random adapter, saved by PEFT itself: two ranks, one by a pattern."""
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_pretrained(BASE, dtype="float32")
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=r".*layers\.[12]\.self_attn\.(q|o)_proj",
        rank_pattern={"o_proj": 2}, alpha_pattern={"o_proj": 4},
    )  # fmt: skip
    adapted = peft.get_peft_model(model, config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    adapted.save_pretrained(programs.folder / "given")
    return logits(adapted)


def logits(model):
    with torch.no_grad():
        return model.eval()(TOKENS).logits


def exported(programs, version):
    """The logits of a version, by PEFT with nothing but the exported folder."""
    out = programs.folder / f"version{version}"
    programs.report("export", "--out", str(out), "--version", str(version))
    return logits(peft.AutoPeftModelForCausalLM.from_pretrained(out, dtype="float32"))


def end(process):
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 0


def refused(programs, *flags):
    process = programs.start("refused", "serve", *programs.common, *flags)
    assert process.wait(timeout=60) == 1
    told = programs.log("refused").splitlines()[-1]
    (programs.folder / "refused.log").unlink()
    return told


def test_a_fleet_goes_on_from_an_adapter_of_peft_and_gives_it_back(programs, given):
    serving = programs.serve("--adapter", "given", "--steps", "2", "--max-versions", "1")
    programs.until_logged("coordinator", "version 0 is the adapter given/adapter_model.safetensors (PEFT")
    programs.join("lamp")
    assert serving.wait(timeout=120) == 0

    first, second = json.loads(programs.report("history", "--json"))["versions"]
    assert (first["origin"]["format"], first["origin"]["name"]) == ("peft", "given/adapter_model.safetensors")
    assert second["origin"] is None
    assert [share["device"] for share in second["shares"]] == ["lamp"]
    np.testing.assert_array_equal(exported(programs, 0), given)
    taught = exported(programs, 1)
    assert not torch.equal(taught, given)
    assert (taught - given).abs().max() < 1  # a step on from the adapter, not from nothing

    config = json.loads((programs.folder / "version1/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(BASE)
    assert config["target_modules"] == r".*layers\.[12]\.self_attn\.(q|o)_proj"
    card = (programs.folder / "version1/README.md").read_text()
    assert "1 device, 1 update |" in card
    assert "lamp" not in card


def test_a_restart_goes_on_with_the_adapter_and_takes_no_other(programs, given):
    serving = programs.serve("--adapter", "given", "--json")
    programs.until_logged("coordinator", '"event":"serving"')
    end(serving)
    again = programs.start("again", "serve", *programs.common, "--state", "coordinator", "--json")
    programs.until_logged("again", '"event":"serving"')
    end(again)
    weights = programs.folder / "given/adapter_model.safetensors"
    command = ["convert", "given", "copy", "--to", "mlx", "--base", str(BASE)]
    subprocess.run([sys.executable, "-m", "tunefleet", *command], cwd=programs.folder, check=True)
    copy = programs.start(
        "copy", "serve", *programs.common, "--state", "coordinator", "--adapter", "copy", "--json"
    )
    programs.until_logged("copy", '"event":"serving"')  # the same to the last bit
    end(copy)

    from safetensors.numpy import load_file, save_file

    moved = {name: values + np.float32(0.1) for name, values in load_file(weights).items()}
    save_file(moved, weights, {"format": "pt"})
    told = refused(programs, "--state", "coordinator", "--adapter", "given")
    assert "began with the adapter given/adapter_model.safetensors (PEFT" in told
    assert "leave --adapter out to go on, or give another --state" in told


def test_what_contradicts_the_adapter_is_one_line(programs, given):
    told = refused(programs, "--state", "s", "--adapter", "given", "--rank", "8", "--scale", "16")
    assert "the adapter has rank 4, and --rank is 8" in told
    assert "the adapter has scale 2, and --scale is 16" in told
    told = refused(programs, "--state", "s", "--adapter", "nowhere")
    assert "adapter is 'nowhere', which does not exist" in told
