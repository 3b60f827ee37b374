"""Converted adapters compute the same in PEFT and in mlx-lm as the originals, with the libraries themselves.

Tolerance 1e-4: logits of both libraries were seen to differ by at most 4e-5 on values of up to 19 (float32,
another order of sums), while the adapters move them by more than 1.
"""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converters.adapter import LoraAdapter, initial_adapter
from converters.bases.read import read_base
from converters.bases.targets import match_targets
from converters.errors import UnsupportedAdapter
from converters.formats.mlx import load_mlx, save_mlx
from converters.formats.peft import load_peft, save_peft

torch = pytest.importorskip("torch", reason="needs the torch extra")
peft = pytest.importorskip("peft", reason="needs the torch extra")
transformers = pytest.importorskip("transformers", reason="needs the torch extra")
mlx_lm = pytest.importorskip("mlx_lm", reason="needs the mlx extra")
mx = pytest.importorskip("mlx.core", reason="needs the mlx extra")

pytestmark = [
    pytest.mark.torch,
    pytest.mark.mlx,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # peft 0.21
]

ASSETS = Path(os.environ.get("TUNEFLEET_ASSETS", Path(__file__).parents[4] / "shared" / "assets"))
STORIES = ASSETS / "models" / "stories260K"
TOKENS = [[1, 17, 42, 99, 3, 200, 77, 5]]
TOLERANCE = 1e-4
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]

assets = [
    pytest.mark.assets,
    pytest.mark.skipif(not STORIES.exists(), reason=f"{STORIES} is missing; set TUNEFLEET_ASSETS"),
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random LLaMA with grouped queries, saved by transformers."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=256,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        initializer_range=0.2,
        dtype="float32",
    )
    folder = tmp_path_factory.mktemp("tiny")
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(params=["tiny", pytest.param("stories", marks=assets)])
def base(request: pytest.FixtureRequest) -> Path:
    return STORIES if request.param == "stories" else request.getfixturevalue("tiny")


def torch_logits(base: Path, adapter: Path | None = None) -> np.ndarray:
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype="float32")
    if adapter is not None:
        model = peft.PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        return model.eval()(torch.tensor(TOKENS)).logits.numpy()


def mlx_logits(base: Path, adapter: Path | None = None) -> np.ndarray:
    if (base / "tokenizer.json").exists():
        model, _ = mlx_lm.load(str(base), adapter_path=None if adapter is None else str(adapter))
    else:  # the same steps as mlx_lm.load, which insists on a tokenizer
        model, _ = mlx_lm.utils.load_model(base)
        if adapter is not None:
            model = mlx_lm.utils.load_adapters(model, str(adapter))
    model.eval()
    return np.array(model(mx.array(TOKENS)))


def save_with_peft(base: Path, folder: Path, **settings: Any) -> Path:
    """A random adapter, saved by PEFT itself."""
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype="float32")
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **settings))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(folder)
    return folder


def save_with_mlx(base: Path, folder: Path, num_layers: int, parameters: dict[str, Any]) -> Path:
    """A random adapter, saved by the functions that mlx_lm.lora saves with."""
    from mlx.utils import tree_flatten
    from mlx_lm.tuner.utils import linear_to_lora_layers

    mx.random.seed(0)
    model, _ = mlx_lm.utils.load_model(base)
    model.freeze()
    linear_to_lora_layers(model, num_layers, parameters)
    trained = dict(tree_flatten(model.trainable_parameters()))
    for name, values in trained.items():
        if name.endswith("lora_b"):
            trained[name] = mx.random.normal(values.shape) * 0.3
    folder.mkdir()
    mx.save_safetensors(str(folder / "adapters.safetensors"), trained)
    arguments = {"fine_tune_type": "lora", "num_layers": num_layers, "lora_parameters": parameters, "seed": 0}
    mlx_lm.utils.save_config(arguments, folder / "adapter_config.json")
    return folder


def assert_same(ours: np.ndarray, theirs: np.ndarray, plain: np.ndarray) -> None:
    np.testing.assert_allclose(ours, theirs, atol=TOLERANCE)
    assert abs(theirs - plain).max() > 1  # the adapter does something


PEFT_SETTINGS: list[dict[str, Any]] = [
    {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]},
    {"r": 6, "lora_alpha": 5, "use_rslora": True, "target_modules": "all-linear"},
    {"r": 4, "lora_alpha": 8, "target_modules": ATTENTION, "layers_to_transform": [0]},
    {  # alpha / r is a power of two of the others: 4/4, 8/2, 4/8
        "r": 4,
        "lora_alpha": 4,
        "target_modules": ATTENTION,
        "rank_pattern": {"k_proj": 2, "layers.1.self_attn.v_proj": 8},
        "alpha_pattern": {"k_proj": 8},
    },
]


@pytest.mark.parametrize("settings", PEFT_SETTINGS)
def test_an_adapter_of_peft_gives_the_same_logits_in_mlx_lm(
    base: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    source = save_with_peft(base, tmp_path / "peft", **settings)
    save_mlx(load_peft(source, read_base(base).modules), tmp_path / "mlx", read_base(base).modules)
    assert_same(mlx_logits(base, tmp_path / "mlx"), torch_logits(base, source), torch_logits(base))


@pytest.mark.parametrize("settings", PEFT_SETTINGS)
def test_an_adapter_of_peft_comes_back_over_mlx_in_the_same_bytes(
    tiny: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    source = save_with_peft(tiny, tmp_path / "peft", **settings)
    modules = read_base(tiny).modules
    save_mlx(load_peft(source, modules), tmp_path / "mlx", modules)
    save_peft(load_mlx(tmp_path / "mlx", modules), tmp_path / "back", modules)
    weights = "adapter_model.safetensors"
    assert (tmp_path / "back" / weights).read_bytes() == (source / weights).read_bytes()
    np.testing.assert_array_equal(torch_logits(tiny, tmp_path / "back"), torch_logits(tiny, source))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"use_dora": True}, "DoRA.*lora_magnitude_vector"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save.*lm_head\.weight"),
        ({"trainable_token_indices": [1]}, "trained tokens.*trainable_tokens_delta"),
        ({"init_lora_weights": "pissa"}, "pissa"),
    ],
)
def test_what_peft_saves_beyond_lora_is_refused(
    tiny: Path, tmp_path: Path, settings: dict[str, Any], reason: str
) -> None:
    source = save_with_peft(tiny, tmp_path / "peft", r=4, target_modules=["q_proj"], **settings)
    with pytest.raises(UnsupportedAdapter, match=reason):
        load_peft(source, read_base(tiny).modules)


@pytest.mark.parametrize(
    ("num_layers", "parameters"),
    [
        (2, {"rank": 4, "scale": 20.0, "dropout": 0.0, "keys": ["self_attn.q_proj", "self_attn.v_proj"]}),
        (1, {"rank": 3, "scale": 7.3, "dropout": 0.1, "keys": ["mlp.down_proj"]}),
        (3, {"rank": 2, "scale": 10.0, "dropout": 0.0}),
    ],
)
def test_an_adapter_of_mlx_lm_gives_the_same_logits_in_peft(
    base: Path, tmp_path: Path, num_layers: int, parameters: dict[str, Any]
) -> None:
    source = save_with_mlx(base, tmp_path / "mlx", num_layers, parameters)
    save_peft(load_mlx(source, read_base(base).modules), tmp_path / "peft", read_base(base).modules)
    assert_same(torch_logits(base, tmp_path / "peft"), mlx_logits(base, source), mlx_logits(base))


def trained_at_random(adapter: LoraAdapter) -> LoraAdapter:
    rng = np.random.default_rng(0)
    return LoraAdapter(
        {name: f._replace(b=rng.normal(0, 0.3, f.b.shape).astype(np.float32)) for name, f in adapter}
    )


def test_any_partial_coverage_computes_the_same_in_both(tiny: Path, tmp_path: Path) -> None:
    modules = read_base(tiny).modules
    chosen = match_targets(modules, ["0.self_attn.q_proj", "2.mlp.up_proj", "lm_head"])
    adapter = trained_at_random(initial_adapter(chosen, rank=3, scale=1.7, seed=0))
    save_peft(adapter, tmp_path / "peft")
    save_mlx(adapter, tmp_path / "mlx")
    assert_same(mlx_logits(tiny, tmp_path / "mlx"), torch_logits(tiny, tmp_path / "peft"), torch_logits(tiny))


@pytest.fixture
def stories(tmp_path: Path) -> Path:
    """stories260K as transformers saves it now: bfloat16, in shards, with the config of version 5."""
    folder = tmp_path / "stories"
    model = transformers.AutoModelForCausalLM.from_pretrained(STORIES, dtype="bfloat16")
    model.save_pretrained(folder, max_shard_size="200KB")
    for file in STORIES.glob("*token*"):
        shutil.copy(file, folder)
    return folder


@pytest.mark.assets
@pytest.mark.skipif(not STORIES.exists(), reason=f"{STORIES} is missing; set TUNEFLEET_ASSETS")
class TestFoldersOfMlxLm:
    def test_a_converted_folder_has_the_same_fingerprint_and_modules(self, tmp_path: Path) -> None:
        mlx_lm.convert(str(STORIES), str(tmp_path / "mlx"))
        ours, theirs = read_base(STORIES), read_base(tmp_path / "mlx")
        assert theirs.fingerprint == ours.fingerprint
        assert theirs.modules == ours.modules

    def test_so_has_one_from_bfloat16_shards(self, stories: Path, tmp_path: Path) -> None:
        assert len(list(stories.glob("model-*.safetensors"))) > 1
        mlx_lm.convert(str(stories), str(tmp_path / "mlx"))
        assert read_base(tmp_path / "mlx").fingerprint == read_base(stories).fingerprint
        assert read_base(stories).fingerprint != read_base(STORIES).fingerprint  # the values were rounded

    def test_saving_again_without_rounding_keeps_the_fingerprint(self, stories: Path, tmp_path: Path) -> None:
        model = transformers.AutoModelForCausalLM.from_pretrained(stories, dtype="float32")
        model.save_pretrained(tmp_path / "float32")
        assert read_base(tmp_path / "float32").fingerprint == read_base(stories).fingerprint

    @pytest.mark.parametrize("bits", [4, 8])
    def test_a_quantised_folder_has_the_same_modules_and_takes_adapters(
        self, tmp_path: Path, bits: int
    ) -> None:
        folder = tmp_path / "mlx"
        mlx_lm.convert(str(STORIES), str(folder), quantize=True, q_bits=bits, q_group_size=32)
        base = read_base(folder)
        assert base.is_quantized
        assert base.modules == read_base(STORIES).modules
        chosen = match_targets(base.modules, ATTENTION)
        adapter = trained_at_random(initial_adapter(chosen, rank=4, scale=2.0, seed=0))
        save_mlx(adapter, tmp_path / "adapter", base.modules)
        assert abs(mlx_logits(folder, tmp_path / "adapter") - mlx_logits(folder)).max() > 1
