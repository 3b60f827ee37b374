"""An adapter trained in torch computes the same in llama.cpp, on the float32 GGUF of its base.

Tolerance 2e-5: logits of up to 3 were seen to differ by at most 2e-6 (float32, another order of sums), while
the adapters move them by more than 1. Gemma's GELU is a table of float16 in llama.cpp: 2e-3 seen on logits of
up to 6, tolerance 1e-2.
"""

from pathlib import Path

import numpy as np
import pytest

from converters.bases.read import read_base
from converters.formats.gguf import load_gguf_adapter, save_gguf_adapter
from converters.formats.mlx import load_mlx, save_mlx
from converters.formats.peft import load_peft

torch = pytest.importorskip("torch", reason="needs the torch extra")
peft = pytest.importorskip("peft", reason="needs the torch extra")
transformers = pytest.importorskip("transformers", reason="needs the torch extra")
pytest.importorskip("llama_cpp", reason="needs the llama extra")

pytestmark = [
    pytest.mark.torch,
    pytest.mark.llama,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # peft 0.21
]

TOKENS = [0, *np.random.default_rng(0).integers(2, 258, 20).tolist()]
TOLERANCE = {"gemma3": 1e-2}
LAYERS = {"phi3": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]}
COMMON = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def train(base: Path, folder: Path, **settings) -> np.ndarray:
    """Writes a random adapter with PEFT and gives the logits with it."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.2)
        logits = model.eval()(torch.tensor([TOKENS])).logits[0].numpy()
    model.save_pretrained(folder, save_embedding_layers=False)
    return logits


def check(llama, path: Path, adapter: Path, expected: np.ndarray, tolerance: float = 2e-5) -> None:
    model = llama.load(path)
    found = llama.logits(model, TOKENS, adapter)
    assert np.abs(found - llama.logits(model, TOKENS)).max() > 1
    np.testing.assert_allclose(found, expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize(
    "name",
    ["llama", "llama-mha", "llama-mqa", "llama-tied", "mistral", "qwen2", "qwen3", "olmo2", "phi3", "gemma3"],
)
def test_logits_are_those_of_torch(llama, make_model, make_gguf, tmp_path: Path, name: str) -> None:
    targets = LAYERS.get(name, COMMON)
    expected = train(make_model(name), tmp_path / "peft", r=4, lora_alpha=6, target_modules=targets)
    base = read_base(make_gguf(name))
    save_gguf_adapter(load_peft(tmp_path / "peft", base.modules), tmp_path / "x.gguf", base)
    check(llama, make_gguf(name), tmp_path / "x.gguf", expected, TOLERANCE.get(name, 2e-5))


def test_an_own_head_is_carried_too(llama, make_model, make_gguf, tmp_path: Path) -> None:
    expected = train(make_model("llama"), tmp_path / "peft", r=4, lora_alpha=6, target_modules=["lm_head"])
    base = read_base(make_model("llama"))  # names and order told from the folder this time
    save_gguf_adapter(load_peft(tmp_path / "peft", base.modules), tmp_path / "x.gguf", base)
    check(llama, make_gguf("llama"), tmp_path / "x.gguf", expected)


def test_several_ranks_and_scales_compute_the_same(llama, make_model, make_gguf, tmp_path: Path) -> None:
    settings = {"rank_pattern": {"k_proj": 3, "down_proj": 8}, "alpha_pattern": {"v_proj": 24, "k_proj": 4.5}}
    expected = train(
        make_model("llama"), tmp_path / "peft", r=4, lora_alpha=6, target_modules=COMMON, **settings
    )
    base = read_base(make_gguf("llama"))
    adapter = load_peft(tmp_path / "peft", base.modules)
    save_gguf_adapter(adapter, tmp_path / "x.gguf", base)
    check(llama, make_gguf("llama"), tmp_path / "x.gguf", expected)
    assert load_gguf_adapter(tmp_path / "x.gguf", base) == adapter


def test_rank_stabilised_scales_compute_the_same(llama, make_model, make_gguf, tmp_path: Path) -> None:
    settings = {"r": 3, "lora_alpha": 5, "use_rslora": True, "target_modules": COMMON}
    expected = train(make_model("qwen2"), tmp_path / "peft", **settings)
    base = read_base(make_gguf("qwen2"))
    save_gguf_adapter(load_peft(tmp_path / "peft", base.modules), tmp_path / "x.gguf", base)
    check(llama, make_gguf("qwen2"), tmp_path / "x.gguf", expected)


def test_an_adapter_from_mlx_computes_the_same(llama, make_model, make_gguf, tmp_path: Path) -> None:
    expected = train(make_model("llama"), tmp_path / "peft", r=4, lora_alpha=6, target_modules=COMMON)
    base = read_base(make_gguf("llama"))
    save_mlx(load_peft(tmp_path / "peft", base.modules), tmp_path / "mlx", base.modules)
    save_gguf_adapter(load_mlx(tmp_path / "mlx", base.modules), tmp_path / "x.gguf", base)
    check(llama, make_gguf("llama"), tmp_path / "x.gguf", expected)


def test_llama_cpp_refuses_a_foreign_base_itself(llama, make_model, make_gguf, tmp_path: Path) -> None:
    train(make_model("llama"), tmp_path / "peft", r=4, lora_alpha=6, target_modules=COMMON)
    base = read_base(make_gguf("llama"))
    save_gguf_adapter(load_peft(tmp_path / "peft", base.modules), tmp_path / "x.gguf", base)
    model = llama.load(make_gguf("qwen2"))
    assert not llama.api.llama_adapter_lora_init(model, str(tmp_path / "x.gguf").encode())
