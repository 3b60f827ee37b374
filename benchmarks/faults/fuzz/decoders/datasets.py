"""Training data in every form that is read, in every kind of file."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from benchmarks.faults.fuzz.decoders.folder import Replaced
from benchmarks.faults.fuzz.mutation import Form
from benchmarks.faults.fuzz.target import Target
from edge.backends.toy import ByteTokenizer
from edge.training.data.check import check_source
from edge.training.data.dataset import load_dataset
from edge.training.data.readers.folders import locate
from edge.training.data.source import DataSource
from edge.training.data.summary import summarise

ROWS: tuple[Mapping[str, object], ...] = (
    {"prompt": "turn ", "completion": "ON"},
    {"text": "a line\nand another"},
    {"instruction": "add", "input": "1 2", "output": "3"},
    {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "well"}]},
    {
        "messages": [
            {"role": "system", "content": [{"type": "text", "text": "be brief"}]},
            {"role": "user", "content": "weather?"},
            {"role": "tool", "name": "get", "content": "sun", "tool_call_id": None},
            {"role": "assistant", "content": "<think>so</think>sun", "reasoning_content": "so"},
        ],
        "tools": [{"type": "function", "function": {"name": "get", "parameters": {}}}],
    },
    {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "there"}]},
)


def targets(root: Path) -> Iterator[Target]:
    """Lists the readers of data; files lie below `root`."""
    lines = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    array = json.dumps(ROWS).encode()
    table = b'prompt,completion\r\nturn ,ON\r\n"a ""b""","c\nd"\r\n'
    kinds: tuple[tuple[str, Form, bytes, int], ...] = (
        ("data.jsonl", "lines", lines, 8),
        ("data.json", "json", array, 6),
        ("data.csv", "bytes", table, 3),
        ("data.tsv", "bytes", table.replace(b",", b"\t"), 2),
        ("data.txt", "bytes", lines, 1),
    )
    for name, form, seed, weight in kinds:
        folder = root / name
        folder.mkdir()
        seeds = [seed, b"\xef\xbb\xbf" + seed] if form == "bytes" else [seed]
        yield Target(f"data/{name}", form, seeds, Replaced(folder, name, _Read(name)), weight)
    saved = root / "saved"
    for part in ("train", "test"):
        (saved / part).mkdir(parents=True)
        for name in ("state.json", "dataset_info.json"):
            (saved / part / name).write_text("{}")
    splits = json.dumps({"splits": ["train", "test"]}).encode()
    yield Target("data/dataset_dict.json", "json", [splits], Replaced(saved, "dataset_dict.json", locate), 2)


class _Read:
    """Reads a file in a folder as `data check`, `train` and the summary do."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, folder: Path) -> None:
        source = DataSource(path=str(folder / self._name))
        tokenizer = ByteTokenizer()
        summarise(source, tokenizer, seq_tokens=64)
        check_source(source, lambda: tokenizer)
        load_dataset(source, tokenizer, seq_tokens=64)
