import os
import subprocess
import sys
from pathlib import Path

import pytest

from edge.errors import MissingExtra
from edge.training.backends.hub import find_base


def test_a_local_folder_is_itself(tmp_path):
    assert find_base(str(tmp_path)) == tmp_path
    assert find_base("no-such-folder") == Path("no-such-folder")


def test_a_gguf_file_that_is_missing_is_not_looked_for_on_the_hub():
    assert find_base("models/phone.gguf") == Path("models/phone.gguf")


def test_a_hub_name_needs_the_hubs_client(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        MissingExtra, match=r"someone/model is no local folder.*pip install 'tunefleet\[torch\]'"
    ):
        find_base("someone/model")


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
