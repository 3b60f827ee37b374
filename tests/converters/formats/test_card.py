"""The model card: the hub's own parser reads it, and its code runs as it stands there."""

import re
from pathlib import Path

import numpy as np
import pytest

from converters.adapter import Factors, LoraAdapter, initial_adapter
from converters.bases.name import name_base
from converters.bases.read import read_base
from converters.bases.targets import match_targets
from converters.formats.about import About
from converters.formats.card import Lineage, card_text
from converters.formats.save import save_as

HERE = Path(__file__).parents[3]
DEMO = HERE / "coordinator/demo/model"
TOKENS = [[5, 40, 7, 300, 11, 2]]


def demo_adapter(seed: int = 0) -> LoraAdapter:
    """An adapter that moves every logit."""
    targets = match_targets(read_base(DEMO).modules, ["q_proj", "v_proj"])
    rng = np.random.default_rng(seed)
    return LoraAdapter(
        {
            name: f._replace(b=rng.normal(0, 0.3, f.b.shape).astype(np.float32))
            for name, f in initial_adapter(targets, rank=4, scale=2.0, seed=seed)
        }
    )


def code_of(folder: Path) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    return str(code)


def run_card(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """What the card's code leaves behind when it runs in its folder."""
    monkeypatch.chdir(folder)
    scope: dict[str, object] = {}
    exec(compile(code_of(folder), str(folder / "README.md"), "exec"), scope)
    return scope


@pytest.mark.torch
def test_the_hubs_own_parser_reads_the_card(tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub", reason="needs the torch extra")
    about = About(base="owner/model-1B", license="mit")
    lineage = Lineage("Fleet home, version 3", {"Strategy": "fedbuff | ours", "Contributors": "4 devices"})
    save_as("peft", demo_adapter(), tmp_path / "peft", read_base(DEMO), about=about, lineage=lineage)
    card = hub.ModelCard.load(tmp_path / "peft/README.md")
    assert card.data.base_model == "owner/model-1B"
    assert card.data.library_name == "peft"
    assert card.data.license == "mit"
    assert card.data.pipeline_tag == "text-generation"
    assert card.data.tags == ["lora", "tunefleet"]
    for part in (
        "Fleet home, version 3",
        "fedbuff \\| ours",
        "4 devices",
        read_base(DEMO).fingerprint,
        "4 q_proj",
    ):
        assert part in card.text


@pytest.mark.torch
def test_a_path_is_no_base_model_to_the_hub(tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub", reason="needs the torch extra")
    text = card_text("peft", demo_adapter(), About(base='/home/me/model: "odd"'), Lineage())
    card = hub.ModelCard(text)
    assert card.data.base_model is None
    assert "/home/me/model" in card.text


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft 0.21
def test_the_code_on_a_peft_card_loads_the_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch", reason="needs the torch extra")
    peft = pytest.importorskip("peft", reason="needs the torch extra")
    transformers = pytest.importorskip("transformers", reason="needs the torch extra")
    base, adapter = read_base(DEMO), demo_adapter()
    save_as("peft", adapter, tmp_path / "named", base, about=About(base=name_base(base)))
    save_as("peft", adapter, tmp_path / "bare", base)
    plain = transformers.AutoModelForCausalLM.from_pretrained(DEMO)
    expected = peft.PeftModel.from_pretrained(plain, tmp_path / "bare")
    with torch.no_grad():
        model = run_card(tmp_path / "named", monkeypatch)["model"]
        ours, theirs = (one.eval()(torch.tensor(TOKENS)).logits for one in (model, expected))
        with expected.disable_adapter():
            untouched = expected(torch.tensor(TOKENS)).logits
    assert torch.equal(ours, theirs)
    assert (ours - untouched).abs().max() > 0.1
    with pytest.raises(OSError, match="NAME OR FOLDER"):
        run_card(tmp_path / "bare", monkeypatch)


@pytest.mark.mlx
def test_the_code_on_an_mlx_card_loads_the_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mx = pytest.importorskip("mlx.core", reason="needs the mlx extra")
    mlx_lm = pytest.importorskip("mlx_lm", reason="needs the mlx extra")
    base, adapter = read_base(DEMO), demo_adapter()
    save_as("mlx", adapter, tmp_path / "mlx", base, about=About(base=name_base(base)))
    model = run_card(tmp_path / "mlx", monkeypatch)["model"]
    plain, _ = mlx_lm.load(str(DEMO))
    moved = np.array(model(mx.array(TOKENS))) - np.array(plain(mx.array(TOKENS)))  # type: ignore[operator]
    assert abs(moved).max() > 0.1


def test_a_card_of_somebody_else_stays(tmp_path: Path) -> None:
    small = LoraAdapter({"m": Factors(np.ones((1, 2), np.float32), np.ones((3, 1), np.float32), 1.0)})
    (tmp_path / "README.md").write_text("# My project\n")
    save_as("peft", small, tmp_path)
    assert (tmp_path / "README.md").read_text() == "# My project\n"
    (tmp_path / "README.md").unlink()
    save_as("peft", small, tmp_path, lineage=Lineage("First"))
    save_as("peft", small, tmp_path, lineage=Lineage("Second"))
    assert "# Second" in (tmp_path / "README.md").read_text()
