"""The tool that keeps notebooks fit to commit finds what it should and erases nothing that a reader needs."""

import base64
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import notebooks  # noqa: E402


def executed(source: str, count: int | None, *outputs: nbformat.NotebookNode) -> nbformat.NotebookNode:
    return new_code_cell(source, execution_count=count, outputs=list(outputs), id=f"c{count}")


def said(text: str) -> nbformat.NotebookNode:
    return new_output("stream", name="stdout", text=text)


@pytest.fixture
def save(tmp_path: Path):
    "Writes a notebook of the given cells; returns its path."

    def write(*cells: nbformat.NotebookNode, **metadata: object) -> Path:
        nbformat.write(new_notebook(cells=list(cells), metadata=metadata), tmp_path / "page.ipynb")
        return tmp_path / "page.ipynb"

    return write


BIG_IMAGE = new_output("display_data", data={"image/png": base64.b64encode(bytes(120_000)).decode()})
ERROR = new_output("error", ename="ZeroDivisionError", evalue="", traceback=[])


@pytest.mark.parametrize(("cells", "problem"), [
    ([executed("1", 1), executed("2", 2)], None),
    ([executed("1", 1), executed("#| eval: false\n2", None)], None),
    ([executed("1", 1), executed("2", None)], "not executed (1)"),
    ([executed("1", 2), executed("2", 1)], "out of order"),
    ([executed("1", 1, ERROR)], "ZeroDivisionError"),
    ([executed("1", 1, said("saved in /home/ann/a.png"))], "path of one machine: /home/ann"),
    ([executed("1", 1, said("<Axes at 0x7f3a>"))], "memory addresses"),
    ([executed("1", 1, BIG_IMAGE)], "image of 120 KB"),
    ([executed("1", 1, said("x" * 600_000))], "is 600 KB"),
    ([executed("#| default_exp one", 1), executed("import os\n\nos.sep", 2)], "cell 1 imports and does more"),
    ([executed("import os\n\nos.sep", 1)], None),
])
def test_problems(save, cells: list, problem: str | None) -> None:
    found = notebooks.problems(save(*cells))
    assert (not found) if problem is None else any(problem in sentence for sentence in found), found


def test_cleaning_keeps_outputs_and_counts(save) -> None:
    cell = executed("1", 7, said("<Axes at 0x7f3a>"))
    cell.metadata["execution"] = {"iopub.status.busy": "now"}
    path = save(cell, language_info={"name": "python", "version": "3.11.7"})
    notebooks.clean([path])
    after = nbformat.read(path, as_version=4)
    assert after.cells[0].execution_count == 7 and after.cells[0].outputs[0].text == "<Axes>"
    assert not after.metadata and not after.cells[0].metadata


def test_hidden_folders_are_left_out(tmp_path: Path) -> None:
    for folder in ("nbs", ".venv", "_proc", "nbs/.ipynb_checkpoints"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "page.ipynb").touch()
    assert notebooks.find_notebooks(tmp_path) == [tmp_path / "nbs" / "page.ipynb"]
