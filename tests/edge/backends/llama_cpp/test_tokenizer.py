"""A GGUF file's tokenizer gives the ids of the model that it was made from."""

import os
from pathlib import Path

import pytest

pytestmark = pytest.mark.llama

ASSETS = Path(os.environ.get("TUNEFLEET_ASSETS", Path(__file__).parents[5] / "shared" / "assets"))
TEXTS = (
    "turn the lamp on",
    " a space before",
    "two  spaces, and\nlines",
    "naïve café ☃",
    "",
    "a , b . it 's",
)


@pytest.fixture(scope="module")
def pair(make_model, make_gguf):
    """The tokenizer of a GGUF file and the one of its source."""
    transformers = pytest.importorskip("transformers", reason="needs the torch extra")
    from edge.backends.llama_cpp.context import Model
    from edge.backends.llama_cpp.tokenizer import GgufTokenizer
    from edge.backends.transformers import HubTokenizer

    source = transformers.AutoTokenizer.from_pretrained(make_model("llama"))
    return GgufTokenizer(Model(make_gguf("llama"))), HubTokenizer(source)


@pytest.mark.parametrize("text", TEXTS)
def test_texts_have_the_ids_and_ids_the_texts_of_the_source(pair, text):
    found, source = pair
    assert found.encode(text) == source.encode(text)
    assert found.decode(source.encode(text)) == source.decode(source.encode(text))


def test_special_tokens_are_those_of_the_source(pair):
    found, source = pair
    assert (found.bos_id, found.eos_id) == (source.bos_id, source.eos_id)
    assert found.encode("<s>on") == source.encode("<s>on")


@pytest.mark.assets
@pytest.mark.skipif(not ASSETS.exists(), reason="needs ../shared/assets or TUNEFLEET_ASSETS")
@pytest.mark.parametrize("name", ["stories260K", "tinystories-656K"])
def test_characters_that_a_vocabulary_cannot_spell_are_left_out(name, tmp_path):
    transformers = pytest.importorskip("transformers", reason="needs the torch extra")
    from converters.gguf_export.model import write_gguf
    from edge.backends.llama_cpp.context import Model
    from edge.backends.llama_cpp.tokenizer import GgufTokenizer
    from edge.backends.transformers import HubTokenizer

    folder = ASSETS / "models" / name
    write_gguf(folder, tmp_path / "base.gguf")
    found = GgufTokenizer(Model(tmp_path / "base.gguf"))
    source = HubTokenizer(transformers.AutoTokenizer.from_pretrained(folder))
    for text in TEXTS:
        assert found.encode(text) == source.encode(text)
        assert found.decode(found.encode(text)) == source.decode(source.encode(text))
