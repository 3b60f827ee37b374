"""Every form of file gives what JSONL of the same content gives, and a broken one is told in one sentence."""

import csv
import gzip
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge.backends.toy import ByteTokenizer
from edge.errors import DataError, EdgeError

PAIRS = [
    {"prompt": "turn on ", "completion": "ON"},
    {"prompt": "two\nlines, a comma; a \"quote\" and a tab\t", "completion": "Köln 東京 🎈"},
    {"prompt": " ", "completion": "x"},
]  # fmt: skip
ALPACA = [
    {"instruction": "Name a colour.", "input": "", "output": "Red."},
    {"instruction": "Add.", "input": "1 and 2", "output": "3"},
]
CHATS = [
    {"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "yes"}]},
    {"messages": [{"role": "system", "content": "s"}, {"role": "assistant", "content": "no"}]},
]
KINDS = ("jsonl", "json", "csv", "semicolons", "tsv", "parquet", "saved", "saved-dict", "mlx-lm")
CALM = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)


def ids(dataset):
    return [(example.tokens.tolist(), example.labels.tolist()) for example in dataset.examples]


def refusal(read, path) -> str:
    """What is said of a file that cannot be used, and nothing of one that can."""
    try:
        read(path)
    except EdgeError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [PAIRS, ALPACA, [{"text": "once"}, {"text": "twice\n"}]])
def test_every_kind_of_file_gives_what_jsonl_gives(tmp_path, read, write_data, kind, rows):
    expected = read(write_data(tmp_path / "plain", "jsonl", rows))
    found = read(write_data(tmp_path / "other", kind, rows))
    assert ids(found) == ids(expected)
    assert found.digest == expected.digest


@pytest.mark.parametrize("kind", ["json", "parquet", "saved", "saved-dict", "mlx-lm"])
def test_conversations_are_the_same_in_all_kinds_that_can_hold_them(tmp_path, read, write_data, kind):
    expected = read(write_data(tmp_path / "plain", "jsonl", CHATS))
    assert ids(read(write_data(tmp_path / "other", kind, CHATS))) == ids(expected)


@CALM
@given(pairs=st.lists(st.tuples(texts, texts.filter(bool)), min_size=1, max_size=5))
@pytest.mark.parametrize("kind", ["json", "csv", "semicolons", "tsv"])
def test_any_text_survives_its_file(tmp_path, read, write_data, kind, pairs):
    rows = [{"prompt": prompt, "completion": completion} for prompt, completion in pairs]
    assert ids(read(write_data(tmp_path / "other", kind, rows))) == ids(
        read(write_data(tmp_path / "plain", "jsonl", rows))
    )


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=12,
)
names = st.sampled_from(
    ["text", "prompt", "completion", "messages", "conversations", "tools", "instruction", "input", "output"]
)
keys = st.sampled_from(["role", "content", "from", "value", "type", "text", "tool_calls", "reasoning"])
turns = st.lists(st.dictionaries(keys, values | st.sampled_from(["assistant", "gpt", "user"]), max_size=4))


@CALM
@given(rows=st.lists(st.dictionaries(names, values | turns, max_size=4) | values, max_size=5))
@pytest.mark.parametrize("kind", ["jsonl", "json"])
def test_any_json_is_read_or_refused_in_one_sentence(tmp_path, read, write_data, kind, rows):
    assert refusal(read, write_data(tmp_path, kind, rows)).isprintable()


@CALM
@given(content=st.binary(max_size=200) | st.text("[]{}\",:;\t\n\r ab'\\", max_size=80).map(str.encode))
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet", "a"])
def test_any_bytes_are_read_or_refused_in_one_sentence(tmp_path, read, name, content):
    (tmp_path / name).write_bytes(content)
    assert refusal(read, tmp_path / name).isprintable()


@pytest.mark.parametrize("name", ["dataset_dict.json", "state.json", "train.jsonl"])
def test_a_damaged_folder_is_refused_in_one_sentence(tmp_path, complaint, name):
    pytest.importorskip("datasets", reason="needs the data extra")
    (tmp_path / "dataset_info.json").write_text("{")
    (tmp_path / name).write_text('{"splits": ["../../etc"')
    assert "\n" not in complaint(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        (
            "a.jsonl",
            '{"text": "ä"}'.encode("utf-16"),
            r"is UTF-16 text, expected UTF-8; convert it: iconv -f",
        ),
        ("a.csv", "text\nä\n".encode("utf-16-le"), "is UTF-16LE text"),
        ("a.csv", "text\nä\n".encode("utf-16-be"), "is UTF-16BE text"),
        ("a.jsonl", '{"text": "ä"}'.encode("utf-32"), "is UTF-32 text"),
        ("a.csv", "text\nä\n".encode("latin-1"), r"1 is not UTF-8 \(line 2\)"),
        (
            "a.jsonl.gz",
            gzip.compress(b'{"text": "a"}', mtime=0),
            r"is compressed with gzip; .* gunzip a\.jsonl\.gz",
        ),
        ("a.xlsx", b"PK\x03\x04rest", "is compressed with zip"),
        ("a.jsonl", b'{"text": NaN}', r"1 holds NaN or Infinity, which JSON lacks \(line 1\)"),
        ("a.jsonl", b'{"text": 1e999}', "holds a number that is too large"),
        ("a.jsonl", b'{"a":' + b"[" * 20_000 + b"]" * 20_000 + b"}", "1 is nested too deeply"),
        ("a.json", b'[{"a":' + b"[" * 20_000 + b"]" * 20_000 + b"}]", "is nested too deeply"),
        ("a.json", b'[{"text": "a"},\n{"text": }]', "begins as a JSON array, and is none: line 2: "),
        ("a.json", b'[{"text": "a"}', "begins as a JSON array, and is none: "),
        ("a.json", b'{\n"train": [1]}', r"holds one JSON object \(train\), expected an array of objects"),
        (
            "a.txt",
            b"First Citizen:\nSpeak.",
            "begins with 'First Citizen:', which is not JSON; expected JSONL",
        ),
        ("model.bin", b"\x93NUMPY\x01\0\0\0", "is a binary file"),
        ("a.parquet", b"PAR1 and no more", "cannot be read as Parquet"),
        ("a.csv", b"text,text\na,b\n", "its header names the column 'text' twice"),
        ("a.csv", b"prompt,completion\na\nb,c,d\ne,f\n", r"2 have more or fewer fields .*\(lines 2, 3\)"),
        ("a.csv", b'text\nfine\n"never closed\n\n', r"1 is not CSV: a quote stands .* \(line 3\)"),
        *((f"a{suffix}", b"", "holds no examples") for suffix in (".jsonl", ".json", ".csv", "")),
        ("a.csv", b"text\n", "holds no examples"),
        ("a.json", b"[]", "holds no examples"),
        ("a.jsonl", b"\n \n", "holds no examples"),
    ],
)
def test_a_file_that_cannot_be_read_is_told_in_one_sentence(tmp_path, read, complaint, name, content, reason):
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow", reason="needs the data extra")
    (tmp_path / name).write_bytes(content)
    message = complaint(tmp_path / name)
    assert message.startswith(f"{tmp_path / name}: ")
    assert len(message) < 400
    with pytest.raises(DataError, match=reason):
        read(tmp_path / name)


def test_marks_and_line_ends_of_windows_do_no_harm(tmp_path, read, write_data):
    plain = ids(read(write_data(tmp_path / "plain", "jsonl", PAIRS[:1])))
    row = json.dumps(PAIRS[0])
    for name, text in [
        ("a.jsonl", f"\ufeff{row}\r\n\r\n"),
        ("b.json", f"\ufeff\r\n[{row}]\r\n"),
        ("c.csv", "\ufeffprompt,completion\r\nturn on ,ON\r\n"),
        ("d.jsonl", row),
    ]:
        (tmp_path / name).write_bytes(text.encode())
        assert ids(read(tmp_path / name)) == plain


def test_line_numbers_count_lines_also_where_a_field_has_several(tmp_path, complaint):
    (tmp_path / "a.csv").write_text('prompt,completion\n"one\ntwo",x\n\nb,\nc,\n')
    assert "2 have an empty completion (lines 5, 6)" in complaint(tmp_path / "a.csv")


def test_a_field_may_be_longer_than_a_chapter(tmp_path, read):
    (tmp_path / "a.csv").write_text(f"text\n{'word ' * 50_000}\n")
    assert sum(len(tokens) - 1 for tokens, _ in ids(read(tmp_path / "a.csv"))) == 250_001


def test_a_column_that_is_null_is_not_there(tmp_path, complaint, write_data):
    rows = [{"prompt": "a", "completion": "b", "text": None}, {"prompt": "a", "completion": None}]
    for kind in ("jsonl", "parquet", "saved"):
        path = write_data(tmp_path / kind, kind, rows)
        assert '1 of 2 rows cannot be used: 1 lacks "completion"' in complaint(path)


def test_of_a_parquet_file_only_the_columns_that_say_something_are_read(tmp_path, read, complaint):
    pyarrow = pytest.importorskip("pyarrow", reason="needs the data extra")
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs the data extra")
    broken = pyarrow.array([b"\xff\xfe"]).cast(pyarrow.binary()).view(pyarrow.string())
    table = pyarrow.table({"text": ["a"], "picture": broken})
    parquet.write_table(table, tmp_path / "a.parquet")
    assert len(read(tmp_path / "a.parquet").examples) == 1
    assert "no known form (text, picture)" not in complaint(tmp_path / "a.parquet", prompt_column="question")


def test_of_parts_that_belong_together_train_is_read(tmp_path, read, write_data):
    path = write_data(tmp_path, "saved-dict", PAIRS)
    assert len(read(path).examples) == len(PAIRS)
    assert len(read(path / "test").examples) == 1


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ([], "is a folder without train.jsonl, and no dataset saved to disk; name the file itself"),
        (["b.csv", "a.jsonl", "x.py"], "it holds a.jsonl, b.csv: name one"),
    ],
)
def test_a_folder_by_mistake_says_what_it_holds(tmp_path, complaint, files, reason):
    for name in files:
        (tmp_path / name).write_text("{}")
    assert reason in complaint(tmp_path)


def test_a_saved_dict_without_train_names_its_parts(tmp_path, complaint, write_data):
    path = write_data(tmp_path, "saved-dict", PAIRS)
    for file in (path / "train").iterdir():
        file.unlink()
    assert f"it holds the parts test: name one, as in {path / 'test'}" in complaint(path)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path, complaint):
    os.mkfifo(tmp_path / "pipe")
    assert "is neither a file nor a folder; write what a pipe gives to a file" in complaint(tmp_path / "pipe")


@pytest.mark.parametrize("kind", ["parquet", "saved"])
def test_a_library_that_is_missing_is_one_sentence_with_the_command(tmp_path, write_data, kind):
    path = write_data(tmp_path, kind, PAIRS)
    blocked = (
        "import sys; sys.modules |= dict.fromkeys(['pyarrow', 'datasets'])\n"
        "from edge.training.data.check import check_source\n"
        "from edge.training.data.source import DataSource\n"
        "try: check_source(DataSource(path=sys.argv[1]))\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", blocked, path], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("MissingExtra ")
    assert done.stdout.strip().endswith("run: pip install 'tunefleet[data]'")


def test_the_base_install_reads_what_its_library_reads(tmp_path, write_data):
    """JSON and CSV need neither pyarrow nor datasets, nor anything that trains."""
    paths = [write_data(tmp_path / kind, kind, PAIRS) for kind in ("jsonl", "json", "csv", "mlx-lm")]
    code = (
        "import sys; from edge.training.data.check import check_source\n"
        "from edge.training.data.source import DataSource\n"
        "for path in sys.argv[1:]: print(check_source(DataSource(path=path)))\n"
        "print({'pyarrow', 'datasets', 'torch', 'transformers', 'pandas'} & set(sys.modules))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *paths], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert done[0] == f"3 rows of prompt and completion in {paths[0]}"
    assert done[3] == f"3 rows of prompt and completion in {paths[3] / 'train.jsonl'}"
    assert done[4] == "set()"


def test_the_examples_of_the_docs_are_read_as_they_stand(tmp_path, read):
    text = (Path(__file__).parents[5] / "docs" / "data.md").read_text()
    rows = [json.loads(row) for row in re.findall(r"`(\{.*?\})` \|", text)]
    assert len(rows) == 6
    for number, row in enumerate(rows):
        (tmp_path / "a.jsonl").write_text(json.dumps(row))
        how = {"prompt_column": "question", "completion_column": "answer"} if number == 0 else {}
        (example,) = read(tmp_path / "a.jsonl", **how).examples
        said = ByteTokenizer().decode(example.tokens[example.labels].tolist())
        assert said.strip() == ("4" if number < 5 else row["text"])


def test_a_table_is_read_in_little_more_memory_than_its_tokens_take(tmp_path):
    """40 MB of CSV are 40 MB of byte tokens, in 5 bytes each with their labels; never the file as objects."""
    row = io.StringIO()
    csv.writer(row).writerow(["word " * 30, "more " * 20])
    with (tmp_path / "a.csv").open("w") as file:
        file.write("prompt,completion\n" + row.getvalue() * 160_000)
    code = (
        "import resource, sys; from edge.training.data.dataset import DataSource, load_dataset\n"
        "class Words:\n"
        "    bos_id, eos_id = 0, 1\n"
        "    def encode(self, text): return [2] * text.count(' ')\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "dataset = load_dataset(DataSource(path=sys.argv[1]), Words(), seq_tokens=512)\n"
        "print(len(dataset.examples), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "a.csv"], capture_output=True, text=True, check=True
    )
    num_examples, kib = map(int, done.stdout.split())
    if sys.platform == "darwin":
        kib //= 1024
    size = Path(tmp_path / "a.csv").stat().st_size
    assert num_examples == 160_000
    assert kib * 1024 < 1.5 * size
