"""docs/tour.ipynb, run in a kernel of its own: nothing in it fails, and the fleet learns."""

import os
import re
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "docs/tour.ipynb"


@pytest.mark.torch
@pytest.mark.timeout(600)
def test_the_tour_runs_and_its_fleet_learns(tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat", reason="needs the dev extra")
    nbclient = pytest.importorskip("nbclient", reason="needs the dev extra")
    for library in ("ipykernel", "torch", "matplotlib"):
        pytest.importorskip(library, reason="needs the dev, torch and demo extras")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "jupyter"))
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(NOTEBOOK.parents[1]), os.environ.get("PYTHONPATH", "")])
    )
    book = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(book)
    nbclient.NotebookClient(book, timeout=300, kernel_name="python3").execute()
    said = [text_of(cell) for cell in book.cells if cell.cell_type == "code"]
    before, after = (int(share) for share in re.findall(r"(\d+)% of 80 exactly right", "".join(said)))
    assert before == 0 < after
    found = re.search(r"boat: the flat alone (\d+)%, the fleet (\d+)%", "".join(said))
    assert found, said
    assert int(found[1]) < int(found[2])
    assert not any("Traceback" in text for text in said)


def test_the_tour_is_kept_without_outputs():
    nbformat = pytest.importorskip("nbformat", reason="needs the dev extra")
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        assert cell.cell_type != "code" or (cell.outputs, cell.execution_count) == ([], None)


def text_of(cell) -> str:
    return "".join(output.get("text", "") for output in cell.outputs)
