import os
import subprocess
import sys
from pathlib import Path

import pytest

from converters.bases.name import is_hub_name
from converters.bases.read import find_base
from converters.errors import BaseModelError


def test_a_local_folder_is_itself(tmp_path):
    assert find_base(str(tmp_path)) == tmp_path
    assert find_base("no-such-folder") == Path("no-such-folder")


def test_a_gguf_file_that_is_missing_is_not_looked_for_on_the_hub():
    assert find_base("models/phone.gguf") == Path("models/phone.gguf")


def test_without_the_hubs_client_one_is_told_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        BaseModelError,
        match=r"someone/model: no such folder.*pip install huggingface_hub, or download.*\.gguf",
    ):
        find_base("someone/model")


@pytest.mark.parametrize(
    "path", ["../model", "./models/llama", "a/b/c", "/opt/model", "model", "~/model", ""]
)
def test_what_can_only_be_a_path_is_not_looked_for_on_the_hub(path):
    assert not is_hub_name(path)
    assert find_base(path) == Path(path)


def test_a_folder_goes_before_a_hub_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_hub_name("someone/model")
    (tmp_path / "someone/model").mkdir(parents=True)
    assert not is_hub_name("someone/model")


def test_a_hub_out_of_reach_is_one_line():
    pytest.importorskip("huggingface_hub", reason="needs the torch or mlx extra")
    process = subprocess.run(
        [sys.executable, "-m", "tunefleet", "generate", "--base", "someone/model", "hello"],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 1
    assert process.stderr.splitlines()[-1].startswith(
        "tunefleet: someone/model: no such folder, and not to be had"
    )
