"""Asking a model as it was trained, alike on all backends."""

import json
import shutil
from functools import partial
from threading import Event

import pytest

from converters.gguf_export.model import write_gguf
from coordinator.demo.files import MODEL
from edge.backends import load_model
from edge.errors import DataError
from edge.training.asking import encode_questions, end_tokens
from edge.training.data.dataset import load_dataset
from edge.training.data.source import DataSource
from edge.training.requests import Generation, Piece, Sampling
from edge.training.worker.held_model import HeldModel
from edge.training.worker.model_server import ModelServer

LIBRARIES = {"torch": "peft", "mlx": "mlx_lm", "llama_cpp": "llama_cpp"}
START, END = "<|im_start|>", "<|im_end|>"
# ChatML, with what templates of today make use of.
TEMPLATE = """{%- if tools is not none %}{{ raise_exception('no tools here') }}{% endif -%}
{%- for message in messages %}
{%- if message.role == 'tool' %}{% continue %}{% endif %}
{%- if message.role == 'robot' %}{{ raise_exception('no robots') }}{% endif %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.role == 'assistant' %}{% generation %}{{ message.content }}{% endgeneration %}
{%- else %}{{ message.content | tojson if message.role == 'data' else message.content }}{% endif %}
{{- '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""


@pytest.fixture(scope="session")
def chat_base(make_model, tmp_path_factory):
    """A model whose turns end with a token that its tokenizer does not call its last."""
    folder = tmp_path_factory.mktemp("chat") / "model"
    shutil.copytree(make_model("qwen2", vocab_size=260), folder)
    whole = json.loads((folder / "tokenizer.json").read_text())
    special = whole["added_tokens"][0]
    whole["added_tokens"] += [
        {**special, "id": 258 + n, "content": text} for n, text in enumerate((START, END))
    ]
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": TEMPLATE}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 257]}))
    return folder


@pytest.fixture(scope="session")
def opened(chat_base, tmp_path_factory):
    """`opened(backend, base)`: a session as the worker process holds one."""

    def load(name, folder, precision):
        return load_model(name, folder, precision=precision)

    def open_model(name, base):
        pytest.importorskip(LIBRARIES[name], reason=f"needs the {name} extra")
        folder = chat_base if base == "chat" else MODEL
        if name == "llama_cpp":
            path = tmp_path_factory.mktemp("gguf") / "model.gguf"
            write_gguf(folder, path)
            folder = path
        sent = []
        held = HeldModel(partial(load, name, folder), "float32")
        return ModelServer(held, Event(), sent.append), sent

    return open_model


@pytest.mark.parametrize("name", ["mlx", "llama_cpp"])
@pytest.mark.parametrize(("base", "system"), [("chat", "Be kind."), ("chat", None), ("shipped", None)])
def test_greedy_answers_are_those_of_torch(opened, name, base, system):
    request = Generation(
        prompts=("What is MQTT?", "Grüße, 你好"),
        adapter=None,
        sampling=Sampling(max_tokens=24),
        asking="chat",
        system=system,
    )
    answers = [opened(each, base)[0].answer(request) for each in ("torch", name)]
    assert answers[0] == answers[1]
    assert all(one.num_tokens for one in answers[0].completions)


@pytest.mark.parametrize("name", LIBRARIES)
def test_the_tokens_before_an_answer_are_those_of_training(opened, name, tmp_path):
    tokenizer = opened(name, "chat")[0].model.tokenizer
    turns = [("system", "Be kind."), ("user", "so & <so>?"), ("assistant", "yes")]
    path = tmp_path / "chat.jsonl"
    rows = [{"messages": [{"role": role, "content": text} for role, text in turns]}]
    rows += [{"prompt": "ab ", "completion": "c"}, {"instruction": "Add.", "output": "3"}]
    path.write_text("\n".join(map(json.dumps, rows)))
    chat, plain, alpaca = load_dataset(DataSource(path=str(path)), tokenizer, seq_tokens=200).examples
    asked = Generation(
        prompts=("so & <so>?",), adapter=None, sampling=Sampling(), asking="chat", system="Be kind."
    )
    (question,) = encode_questions(asked, tokenizer, 256)
    assert question == chat.tokens[: len(question)].tolist()
    assert chat.labels.tolist().index(True) == len(question)
    told = "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nso & <so>?<|im_end|>\n"
    turns = [{"role": role, "content": text} for role, text in turns[:2]]
    assert tokenizer.render(turns, add_generation_prompt=True) == f"{told}{START}assistant\n"
    for asking, prompt, example in (("plain", "ab ", plain), ("alpaca", "Add.", alpaca)):
        asked = Generation(prompts=(prompt,), adapter=None, sampling=Sampling(), asking=asking)
        (question,) = encode_questions(asked, tokenizer, 256)
        assert question == example.tokens[: len(question)].tolist()
        assert example.labels.tolist().index(True) == len(question)


@pytest.mark.parametrize("name", LIBRARIES)
def test_an_answer_ends_where_the_model_or_its_template_ends_one(opened, name):
    tokenizer = opened(name, "chat")[0].model.tokenizer
    assert tokenizer.encode(END) == [259]
    expected = {1, 259} if name == "llama_cpp" else {1, 257, 259}  # the file names one, and knows the other
    assert end_tokens(tokenizer) == expected


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_template_that_refuses_a_message_is_an_error_of_the_data(opened, name):
    tokenizer = opened(name, "chat")[0].model.tokenizer
    with pytest.raises(DataError, match="chat template does not take these messages: no robots"):
        tokenizer.render([{"role": "robot", "content": "hi"}], add_generation_prompt=True)


@pytest.mark.parametrize("name", ["torch", "mlx"])
def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers(opened, name):
    session, _ = opened(name, "chat")
    ask = Generation(prompts=("a" * 250,), adapter=None, sampling=Sampling(max_tokens=9))
    (found,) = session.answer(ask).completions
    assert (found.num_prompt_tokens, found.num_tokens, found.ended_by) == (251, 5, "context")
    long = Generation(prompts=("a" * 260, "b", "c" * 300), adapter=None, sampling=Sampling(), asking="chat")
    with pytest.raises(DataError) as caught:
        session.answer(long)
    message = str(caught.value)
    assert "prompt 1 of 3 has" in message
    assert "prompt 3 of 3 has" in message
    assert "prompt 2" not in message
    assert message.count("context holds 256") == 2


def test_pieces_are_the_text_and_come_before_it_ends(opened):
    session, sent = opened("torch", "chat")
    ask = Generation(
        prompts=("a", "bc"), adapter=None, sampling=Sampling(max_tokens=30, temperature=1.0), is_streamed=True
    )
    found = session.answer(ask).completions
    assert all(isinstance(piece, Piece) for piece in sent)
    for index, completion in enumerate(found):
        pieces = [piece.text for piece in sent if piece.prompt == index]
        assert "".join(pieces) == completion.text
        assert len(pieces) > 1
