"""`auto` chooses by what the base is, then by the machine, then by what is installed, and says why."""

import json

import pytest

from edge.backends import Machine, base_kind, choose_backend, resolve_backend
from edge.errors import BackendError, MissingExtra


@pytest.fixture
def make_base(tmp_path):
    """`make_base(kind)`: so much of a base model as a choice is made by."""

    def make(kind):
        folder = tmp_path / kind
        if kind == "GGUF":
            folder.with_suffix(".gguf").write_bytes(b"GGUF")
            return folder.with_suffix(".gguf")
        folder.mkdir()
        config = {"model_type": "llama"}
        if kind == "packed":  # as mlx_lm.convert writes it
            config |= {"quantization": {"group_size": 64, "bits": 4}}
            config |= {"quantization_config": config["quantization"]}
        (folder / "config.json").write_text(json.dumps(config))
        if kind == "toy":
            (folder / "toy.json").write_text("{}")
        return folder

    return make


def machine(system, processor, *absent):
    """A machine on which `absent` libraries cannot be found, and all others can."""
    return Machine(system, processor, lambda name: name not in absent or None)


@pytest.mark.parametrize(
    ("kind", "name", "why"),
    [
        ("GGUF", "llama_cpp", "for a GGUF file"),
        ("packed", "mlx", "for a folder in MLX's quantisation"),
        ("toy", "toy", "for a toy model"),
        ("folder", "torch", "for a folder in full precision"),
    ],
)
def test_the_base_decides_whatever_else_is_installed(make_base, kind, name, why):
    assert choose_backend(make_base(kind), machine("linux", "x86_64")) == (name, why)


@pytest.mark.parametrize(
    ("where", "absent", "name", "why"),
    [
        (("darwin", "arm64"), (), "mlx", "for a folder in full precision on Apple silicon"),
        (("darwin", "x86_64"), (), "torch", "for a folder in full precision"),
        (
            ("darwin", "arm64"),
            ("mlx_lm",),
            "torch",
            "full precision on Apple silicon, as mlx is not installed",
        ),
        (("linux", "x86_64"), ("torch",), "mlx", "for a folder in full precision, as torch is not installed"),
    ],
)
def test_a_folder_goes_to_what_suits_the_machine_and_is_there(make_base, where, absent, name, why):
    chosen = choose_backend(make_base("folder"), machine(*where, *absent))
    assert chosen.name == name
    assert chosen.why.endswith(why)


@pytest.mark.parametrize(
    ("kind", "where", "absent", "told"),
    [
        ("GGUF", ("linux", "x86_64"), ("llama_cpp",), r"is a GGUF file, and backend llama_cpp .*\[llama\]"),
        ("packed", ("linux", "x86_64"), ("mlx_lm",), r"in MLX's quantisation, and backend mlx .*\[mlx\]"),
        (
            "folder",
            ("linux", "x86_64"),
            ("torch", "mlx_lm"),
            r"full precision, and backend torch .*\[torch\]",
        ),
        ("folder", ("darwin", "arm64"), ("torch", "mlx_lm"), r"full precision, and backend mlx .*\[mlx\]"),
    ],
)
def test_what_the_base_needs_is_one_sentence_with_the_command(make_base, kind, where, absent, told):
    with pytest.raises(MissingExtra, match=told) as caught:
        choose_backend(make_base(kind), machine(*where, *absent))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "asked", "own"),
    [("packed", "torch", "mlx"), ("GGUF", "mlx", "llama_cpp"), ("folder", "llama_cpp", "torch")],
)
def test_a_backend_that_cannot_read_the_base_says_which_can(make_base, kind, asked, own):
    with pytest.raises(
        BackendError, match=f"which backend {asked} does not read; choose backend {own} or auto"
    ):
        resolve_backend(asked, make_base(kind), machine("linux", "x86_64"))


def test_what_was_asked_for_is_taken(make_base):
    found = resolve_backend("torch", make_base("folder"), machine("darwin", "arm64"))
    assert found == ("torch", "as asked")


def test_a_folder_that_mlx_packed_is_known(make_model, tmp_path):
    mlx_lm = pytest.importorskip("mlx_lm", reason="needs the mlx extra")
    mlx_lm.convert(str(make_model("llama")), str(tmp_path / "packed"), quantize=True, q_bits=4)
    assert base_kind(tmp_path / "packed") == "packed by MLX"
    assert choose_backend(tmp_path / "packed").name == "mlx"


def test_a_configuration_that_is_no_object_is_left_to_those_who_read_it(tmp_path):
    (tmp_path / "config.json").write_text("[]")
    assert base_kind(tmp_path) == "folder"
    (tmp_path / "config.json").write_bytes(b"\xff{")
    assert base_kind(tmp_path) == "folder"
