"""README.md is made from index.ipynb and shows what GitHub can show."""

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import readme  # noqa: E402

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


@pytest.fixture
def page(tmp_path: Path) -> Path:
    "A page with one of everything that the converter treats."
    figure = new_output("display_data", data={"image/png": PIXEL, "text/plain": "<Figure>"})
    table = new_output("execute_result", data={"text/html": "<style>td{}</style><table><tr><td>7</td></tr></table>"})
    notebook = new_notebook(cells=[
        new_markdown_cell("# Title\n> Summary, with [a link](nbs/00_core.ipynb)."),
        new_code_cell("#| hide\nsecret = 1"),
        new_code_cell("#| eval: false\nshown_but_not_run()"),
        new_code_cell("#| echo: false\nplot()", outputs=[figure]),
        new_code_cell("table", outputs=[table]),
        new_markdown_cell("```{mermaid}\nflowchart LR\n```"),
    ])
    nbformat.write(notebook, tmp_path / "index.ipynb")
    return tmp_path


def test_directives_and_figures(page: Path) -> None:
    body, figures = readme.convert(page / "index.ipynb")
    assert body.startswith("<!-- Made from index.ipynb")
    assert "# Title" in body and "[a link](nbs/00_core.ipynb)" in body
    assert "shown_but_not_run()" in body and "secret" not in body and "plot()" not in body and "#|" not in body
    assert "<td>7</td>" in body and "<style>" not in body
    assert "```mermaid" in body
    assert len(figures) == 1 and all(f"({readme.FIGURES}/{name})" in body for name in figures)


def test_writing_removes_old_figures(page: Path) -> None:
    (page / readme.FIGURES).mkdir()
    (page / readme.FIGURES / "old.png").write_bytes(b"old")
    readme.write(page, page)
    assert [path.suffix for path in (page / readme.FIGURES).iterdir()] == [".png"]
    assert not (page / readme.FIGURES / "old.png").exists()
    assert (page / "README.md").read_text(encoding="utf-8").endswith("\n")


def test_readme_is_up_to_date() -> None:
    done = subprocess.run([sys.executable, "tools/readme.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_relative_links_resolve() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = [target.split("#")[0] for target in re.findall(r"\]\(([^)\s]+)", text)]
    local = [target for target in targets if target and "://" not in target and not target.startswith("mailto:")]
    assert not [target for target in local if not (ROOT / target).exists()]
