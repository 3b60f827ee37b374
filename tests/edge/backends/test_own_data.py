"""Every form of data gives the same tokens and labels as its plain JSONL, for every kind of tokenizer."""

import json

import pytest

from edge.backends import load_model
from edge.backends.tokenizer import context_tokens, load_tokenizer
from edge.training.data.dataset import load_dataset
from edge.training.data.source import DataSource
from edge.training.data.summary import summarise

ALPACA = "Below is an instruction that describes a task"
PLAIN = {
    "text": [{"text": "once upon"}, {"text": " a time\n"}],
    "pairs": [{"prompt": "turn on ", "completion": "ON"}, {"prompt": "ünï ", "completion": "東京 🎈"}],
    "chats": [
        {
            "messages": [
                {"role": "system", "content": "s"},
                {"role": "user", "content": "u"},
                {"role": "assistant", "content": "yes"},
                {"role": "user", "content": "v"},
                {"role": "assistant", "content": "no"},
            ]
        }
    ],
}
INPUT = f"{ALPACA}, paired with an input that provides further context. Write a response that appropriately "
SPEAKERS = {"system": "system", "user": "human", "assistant": "gpt"}
PARTS = [{**t, "content": [{"type": "text", "text": t["content"]}]} for t in PLAIN["chats"][0]["messages"]]
CHAT = PLAIN["chats"][0]["messages"]
FORMS = [  # name, rows, plain rows of the same content, how the source is read
    ("list content", [{"messages": PARTS}], PLAIN["chats"], {}),
    ("sharegpt", [{"conversations": [{"from": SPEAKERS[t["role"]], "value": t["content"]} for t in CHAT]}],
     PLAIN["chats"], {}),
    ("sharegpt roles", [{"conversations": CHAT, "id": 3}], PLAIN["chats"], {}),
    ("nulls", [{"messages": [{**t, "name": None, "tool_calls": None} for t in CHAT], "prompt": "u"}],
     PLAIN["chats"], {}),
    ("named", [{"q": r["prompt"], "a": r["completion"], "text": "?"} for r in PLAIN["pairs"]],
     PLAIN["pairs"], {"prompt_column": "q", "completion_column": "a"}),
    ("alpaca", [{"instruction": "Add.", "input": "1, 2", "output": "3", "text": "all of it"}],
     [{"prompt": f"{INPUT}completes the request.\n\n### Instruction:\nAdd.\n\n### Input:\n1, 2\n\n"
       "### Response:\n", "completion": "3"}], {}),
    ("alpaca without input", [{"instruction": "Say {x}.", "input": "", "output": "{x}"}],
     [{"prompt": f"{ALPACA}. Write a response that appropriately completes the request.\n\n"
       "### Instruction:\nSay {x}.\n\n### Response:\n", "completion": "{x}"}], {}),
]  # fmt: skip


@pytest.fixture(
    scope="module",
    params=[
        "toy_base",
        pytest.param("llama_base", marks=pytest.mark.torch),
        pytest.param("llama_gguf", marks=pytest.mark.llama),
    ],
)
def base(request):
    library = {"llama_base": "transformers", "llama_gguf": "llama_cpp"}.get(request.param, "numpy")
    pytest.importorskip(library)
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def tokenizer(base):
    return load_tokenizer(base)


def ids(path, tokenizer, **settings):
    dataset = load_dataset(DataSource(path=str(path), **settings), tokenizer, seq_tokens=400)
    return [(example.tokens.tolist(), example.labels.tolist()) for example in dataset.examples]


@pytest.mark.parametrize(("rows", "plain", "how"), [form[1:] for form in FORMS], ids=[f[0] for f in FORMS])
def test_every_form_is_what_its_plain_jsonl_is(tmp_path, write_data, tokenizer, rows, plain, how):
    expected = ids(write_data(tmp_path / "plain", "jsonl", plain), tokenizer)
    assert ids(write_data(tmp_path / "form", "jsonl", rows), tokenizer, **how) == expected


@pytest.mark.parametrize("kind", ["json", "csv", "tsv", "parquet", "saved", "saved-dict", "mlx-lm"])
@pytest.mark.parametrize("name", ["text", "pairs"])
def test_every_kind_of_file_is_what_its_plain_jsonl_is(tmp_path, write_data, tokenizer, kind, name):
    expected = ids(write_data(tmp_path / "plain", "jsonl", PLAIN[name]), tokenizer)
    assert ids(write_data(tmp_path / "file", kind, PLAIN[name]), tokenizer) == expected


def test_only_what_the_assistant_says_is_labelled(tmp_path, write_data, tokenizer):
    path = write_data(tmp_path, "jsonl", PLAIN["chats"])
    ((tokens, labels),) = ids(path, tokenizer)
    said = [token for token, is_trained in zip(tokens, labels, strict=True) if is_trained]
    assert tokenizer.decode(said) == "yes\nno\n"
    assert said[-1] == tokenizer.eos_id


@pytest.mark.torch
@pytest.mark.llama
def test_a_folder_and_its_gguf_file_make_the_same_of_any_data(tmp_path, write_data, llama_base, llama_gguf):
    for number, (_, rows, _, how) in enumerate(FORMS):
        path = write_data(tmp_path / str(number), "jsonl", rows)
        assert ids(path, load_tokenizer(llama_base), **how) == ids(path, load_tokenizer(llama_gguf), **how)


def test_the_tokenizer_alone_is_that_of_the_loaded_model(base, tokenizer):
    model = load_model("auto" if base.is_file() or (base / "toy.json").exists() else "torch", base)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (model.tokenizer.bos_id, model.tokenizer.eos_id)
    assert tokenizer.encode("ünï <s> 東京") == model.tokenizer.encode("ünï <s> 東京")
    assert context_tokens(base) == model.card.max_tokens


def test_pieces_are_the_text_with_special_tokens_by_name(tokenizer):
    pieces = [tokenizer.piece(token) for token in (tokenizer.bos_id, *tokenizer.encode(" a b"))]
    assert pieces[0] in ("<s>", "<bos>")
    assert "".join(pieces[1:]) == " a b"


def test_a_summary_counts_what_is_there(tmp_path, write_data, tokenizer):
    rows = [{"prompt": "0123456789", "completion": "abcdefgh"}] * 2 + [{"prompt": "a", "completion": "b"}]
    rows += [{"prompt": "a", "completion": ""}, {"prompt": "a"}]
    source = DataSource(path=str(write_data(tmp_path, "jsonl", rows)))
    found = summarise(source, tokenizer, seq_tokens=5)
    assert (found.num_rows, found.num_unusable, found.num_empty, found.num_duplicates) == (5, 2, 1, 1)
    assert found.forms == {"prompt and completion": 3}
    assert (found.num_examples, found.num_tokens, found.num_labels) == (3, 44, 20)  # with bos and eos
    # Of bos, ten, eight and eos six stay: bos and five to be trained on.
    assert (found.num_truncated, found.num_tokens_lost, found.num_labels_lost) == (2, 28, 8)
    spread = found.lengths
    assert (spread.shortest, spread.median, spread.longest) == (4, 20, 20)
    assert [(entry.first, entry.last, entry.num_examples) for entry in spread.histogram] == [
        (4, 7, 1), (8, 15, 0), (16, 31, 2),
    ]  # fmt: skip
    assert found.faults == [
        {"reason": "have an empty completion", "count": 1, "first": [4]},
        {"reason": 'lack "completion"', "count": 1, "first": [5]},
    ]
    shown = found.examples[0]
    assert (shown.row, len(shown.tokens), shown.is_trained_on) == (1, 6, [False] + [True] * 5)
    assert "".join(shown.pieces[1:]) == "abcde"


def test_a_summary_of_text_that_is_cut_loses_nothing(tmp_path, write_data, tokenizer):
    path = write_data(tmp_path, "jsonl", [{"text": "abcdefghijklmnopqrstuvwxyz"}])
    found = summarise(DataSource(path=str(path)), tokenizer, seq_tokens=8)
    assert (found.num_split, found.num_examples, found.num_tokens) == (1, 4, 28)
    assert (found.num_truncated, found.num_tokens_lost, found.num_labels_lost) == (0, 0, 0)


def test_data_that_differs_only_in_labels_or_order_has_another_digest(tmp_path, write_data, tokenizer):
    rows = PLAIN["pairs"]
    paths = [write_data(tmp_path / str(n), "jsonl", rows[::step]) for n, step in enumerate((1, -1))]
    sources = [DataSource(path=str(path)) for path in paths]
    sources.append(DataSource(path=str(paths[0]), train_on_prompt=True))
    digests = {load_dataset(source, tokenizer, seq_tokens=64).digest for source in sources}
    assert len(digests) == 3
    (tmp_path / "again.json").write_text(json.dumps(rows))
    again = load_dataset(DataSource(path=str(tmp_path / "again.json")), tokenizer, seq_tokens=64)
    assert again.digest in digests
