"""Messages of a fleet `home`, tiny random models as folders and GGUF files, llama.cpp itself, a broker."""

import ctypes
import fcntl
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from edge.protocol.chunks import split_chunks
from edge.protocol.delta import update_id
from edge.protocol.merkle import Tree
from edge.protocol.messages import Manifest, Recipe, UpdateHeader

if "PYTEST_XDIST_WORKER" in os.environ:  # a process a core: more threads would only fight
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# As behind a shell's `&`; what is started here would inherit it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: its idle threads would spin beside others

settings.register_profile(  # a machine may be busy
    "tunefleet", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("tunefleet")

SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
    "tie_word_embeddings": False,
}
GEMMA = {
    "head_dim": 32,
    "query_pre_attn_scalar": 32,
    "sliding_window": 16,
    "layer_types": ["sliding_attention", "full_attention"],
    "tie_word_embeddings": True,
}
MODELS = {  # name to the configuration's class and what differs from SHAPE
    "llama": ("LlamaConfig", {}),
    "llama-mha": ("LlamaConfig", {"num_key_value_heads": 4}),
    "llama-mqa": ("LlamaConfig", {"num_key_value_heads": 1, "rope_theta": 5e5}),
    "llama-tied": ("LlamaConfig", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "mistral": ("MistralConfig", {"head_dim": 32, "sliding_window": 128}),
    "qwen2": ("Qwen2Config", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", {"head_dim": 32}),
    "olmo2": ("Olmo2Config", {}),
    "olmo2-tied": ("Olmo2Config", {"tie_word_embeddings": True}),
    "phi3": ("Phi3Config", {"sliding_window": None}),
    "gemma3": ("Gemma3TextConfig", GEMMA),
}
QUANT_TYPES = {
    "q4_0": 2,
    "q8_0": 7,
    "q2_k": 10,
    "q3_k_m": 12,
    "q4_k_m": 15,
    "q5_k_m": 17,
    "q6_k": 18,
    "f16": 1,
}
QUANT_TYPES |= {"bf16": 32, "q4_1": 3, "q5_0": 8, "q5_1": 9}


MOSQUITTO = shutil.which("mosquitto", path=f"{os.environ['PATH']}:/usr/sbin:/opt/homebrew/sbin")


@pytest.fixture(scope="session")
def make_manifest():
    """`make_manifest(**changes)`."""

    def make(**changes) -> Manifest:
        settings = {
            "fleet": "home", "tier": "r4", "version": 0, "parent": None, "sha256": "0" * 64, "root": "1" * 64,
            "size_bytes": 10,
            "chunk_bytes": 1024, "encoding": "f32", "base": "b" * 64, "rank": 4, "space": "product",
            "recipe": Recipe(steps=1),
        }  # fmt: skip
        return Manifest(**settings | changes)

    return make


def pytest_collection_modifyitems(config, items):
    """Workers begin with what is allowed the longest: none waits for another's long test at the end."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: -max((mark.args[0] for mark in item.iter_markers("timeout")), default=0))


@pytest.fixture(scope="session")
def make_once(tmp_path_factory, pytestconfig):
    """`make_once(name, write)`: the folder that `write(folder)` fills, once for all workers."""
    place = tmp_path_factory.getbasetemp()
    if hasattr(pytestconfig, "workerinput"):
        place = place.parent

    def make(name: str, write: Callable[[Path], object]) -> Path:
        folder, done = place / f"shared-{name}", place / f"shared-{name}.done"
        with (place / f"shared-{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                folder.mkdir(exist_ok=True)
                write(folder)
                done.touch()
        return folder

    return make


@pytest.fixture(scope="session")
def make_header():
    """`make_header(payload, **changes)`; the update's id is that of its content, unless it is given."""

    def make(payload: bytes = b"delta", **changes) -> UpdateHeader:
        fields = {
            "fleet": "home", "device_id": "x", "tier": "r4", "base_version": 0,
            "base": "b" * 64, "attempt": 0,
            "sha256": hashlib.sha256(payload).hexdigest(), "size_bytes": len(payload), "chunk_bytes": 1024,
            "root": Tree(split_chunks(payload, changes.get("chunk_bytes", 1024))).root,
            "encoding": "f32", "num_examples": 10, "num_tokens": 100, "num_steps": 5, "seconds": 1.0,
            "loss_before": 2.0, "loss_after": 1.0, "base_sha256": None,
        } | changes  # fmt: skip
        of = [fields[name] for name in ("device_id", "base_version", "attempt", "sha256", "base_sha256")]
        return UpdateHeader(**{"update": update_id(*of)} | fields)

    return make


@pytest.fixture(scope="session")
def wheel(make_once):
    """The wheel of this checkout, built once."""
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", Path(__file__).parents[1]]
    folder = make_once(
        "wheel", lambda to: subprocess.run([*build, "--outdir", to], check=True, capture_output=True)
    )
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture
def mosquitto():
    """The port of a broker on this machine."""
    if MOSQUITTO is None:
        pytest.skip("the mosquitto program is not installed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with subprocess.Popen([MOSQUITTO, "-p", str(port)], stderr=subprocess.DEVNULL) as broker:
        while not _listens(port):
            time.sleep(0.05)
        yield port
        broker.terminate()


@pytest.fixture(scope="session")
def make_model(tmp_path_factory):
    """`make_model(name, seed=0, **changes)` writes a random model and gives its folder."""
    transformers = pytest.importorskip("transformers", reason="needs the torch extra")
    torch = pytest.importorskip("torch", reason="needs the torch extra")
    made: dict[str, Path] = {}

    def make(name: str, seed: int = 0, **changes) -> Path:
        key = json.dumps([name, seed, changes], sort_keys=True)
        if key not in made:
            folder = tmp_path_factory.mktemp(name)
            config_class, settings = MODELS[name]
            settings = {**SHAPE, "vocab_size": write_byte_tokenizer(folder), **settings, **changes}
            torch.manual_seed(seed)
            config = getattr(transformers, config_class)(**settings)
            model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
            with torch.no_grad():
                for parameter in model.parameters():  # norms of 1 and biases of 0 would hide mistakes
                    spread = 0.2 if parameter.ndim == 1 else parameter.shape[1] ** -0.5
                    parameter.normal_(0.5 if parameter.ndim == 1 else 0.0, spread)
            model.save_pretrained(folder)
            made[key] = folder
        return made[key]

    return make


@pytest.fixture(scope="session")
def make_gguf(make_model, llama):
    """`make_gguf(name, quant="f32", seed=0, **changes)`: the same model as a GGUF file of one type."""
    from converters.gguf_export.model import write_gguf

    def make(name: str, quant: str = "f32", seed: int = 0, **changes) -> Path:
        folder = make_model(name, seed, **changes)
        plain, path = (folder / f"{name}-{kind}.gguf" for kind in ("f32", quant))
        if not plain.exists():
            write_gguf(folder, plain)
        return path if path.exists() else llama.quantize(plain, path, quant)

    return make


@pytest.fixture(scope="session")
def llama():
    """llama.cpp: `load`, `encode`, `logits` and `quantize`."""
    api = pytest.importorskip("llama_cpp", reason="needs the llama extra")
    silence = api.llama_log_callback(lambda level, text, data: None)
    api.llama_log_set(silence, ctypes.c_void_p(0))
    api.llama_backend_init()
    return SimpleNamespace(
        api=api,
        silence=silence,  # kept alive
        load=lambda path: _load(api, path),
        encode=lambda model, text: _encode(api, model, text),
        logits=lambda model, tokens, adapter=None: _logits(api, model, tokens, adapter),
        quantize=lambda source, path, quant: _quantize(api, source, path, quant),
    )


def write_byte_tokenizer(folder: Path) -> int:
    """A tokenizer of 258 tokens, one for each byte; gives their number."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet = ["<s>", "</s>", *map(chr, printable), *map(chr, range(256, 512 - len(printable)))]
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    (folder / "tokenizer.json").write_text(
        json.dumps(
            {
                "version": "1.0",
                "added_tokens": [{"id": n, "content": alphabet[n], **special} for n in (0, 1)],
                "normalizer": None,
                "pre_tokenizer": byte_level,
                "post_processor": None,
                "decoder": byte_level,
                "model": {"type": "BPE", "vocab": {t: n for n, t in enumerate(alphabet)}, "merges": []},
            }
        )
    )
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return len(alphabet)


def _listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _load(api, path):
    params = api.llama_model_default_params()
    params.n_gpu_layers, params.use_extra_bufts = 0, False  # AMX crashes on quantised weights
    model = api.llama_model_load_from_file(str(path).encode(), params)
    assert model, f"llama.cpp does not load {path}"
    return model


def _encode(api, model, text):
    raw = text.encode()
    room = (api.llama_token * (len(raw) + 2))()
    count = api.llama_tokenize(api.llama_model_get_vocab(model), raw, len(raw), room, len(room), False, False)
    return list(room[:count])


def _logits(api, model, tokens, adapter=None):
    params = api.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = 256
    params.n_threads = params.n_threads_batch = 1
    params.type_k = params.type_v = params.flash_attn_type = 0  # keys and values in float32
    context = api.llama_init_from_model(model, params)
    if adapter is not None:
        lora = api.llama_adapter_lora_init(model, str(adapter).encode())
        assert lora, f"llama.cpp does not load {adapter}"
        adapters, scales = (type(lora) * 1)(lora), (ctypes.c_float * 1)(1.0)
        assert api.llama_set_adapters_lora(context, adapters, 1, scales) == 0
    batch = api.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for place, token in enumerate(tokens):
        batch.token[place], batch.pos[place], batch.logits[place] = token, place, 1
        batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
    assert api.llama_decode(context, batch) == 0
    vocab_size = api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))
    found = np.ctypeslib.as_array(api.llama_get_logits(context), (len(tokens), vocab_size)).copy()
    api.llama_batch_free(batch)
    api.llama_free(context)
    return found


def _quantize(api, source, path, quant):
    params = api.llama_model_quantize_default_params()
    params.ftype, params.nthread = QUANT_TYPES[quant], 1
    done = api.llama_model_quantize(str(source).encode(), str(path).encode(), ctypes.byref(params))
    assert done == 0, f"llama.cpp does not quantise {source} to {quant}"
    return path
