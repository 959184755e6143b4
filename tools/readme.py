"""Make README.md from index.ipynb: `python tools/readme.py`, or `... --check` to fail when it is out of date.

Quarto, which nbdev would use, is not on every machine; nbconvert comes with Jupyter. Hidden cells are left out as on
the site, figures go to `readme_files/`, and relative links stay as they are: they work on GitHub too.
"""

import argparse
import re
import sys
import tempfile
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parent.parent
FIGURES = "readme_files"
NOTICE = "<!-- Made from index.ipynb by `make readme`: edit the notebook, not this file. -->\n\n"
DIRECTIVE = re.compile(r"^#\|\s*(.+?)\s*$", re.MULTILINE)
HIDDEN = {"hide", "include: false"}
CODE_HIDDEN = {"hide_input", "echo: false"}
OUTPUT_HIDDEN = {"hide_output", "output: false"}


def prepare(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    "Apply the `#|` directives: drop what they hide, then drop the directives themselves."
    cells = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            directives = set(DIRECTIVE.findall(cell.source))
            cell.source = DIRECTIVE.sub("", cell.source).strip()
            if directives & HIDDEN or not cell.source:
                continue
            if directives & CODE_HIDDEN:
                cell.metadata["transient"] = {"remove_source": True}
            cell.outputs = [] if directives & OUTPUT_HIDDEN else [tidy(output) for output in cell.outputs]
        cells.append(cell)
    notebook.cells = cells
    notebook.metadata["language_info"] = {"name": "python"}  # So that code is marked as such; cleaning removed it
    return notebook


def tidy(output: nbformat.NotebookNode) -> nbformat.NotebookNode:
    "Keep of an output what GitHub can show: no style sheets, no widgets."
    data = output.get("data", {})
    data.pop("application/vnd.jupyter.widget-view+json", None)
    if "text/html" in data:
        data["text/html"] = re.sub(r"<style.*?</style>\s*", "", "".join(data["text/html"]), flags=re.DOTALL)
    return output


def convert(notebook_path: Path) -> tuple[str, dict[str, bytes]]:
    "The text of README.md and its figures by file name."
    notebook = prepare(nbformat.read(notebook_path, as_version=4))
    body, resources = MarkdownExporter().from_notebook_node(
        notebook, resources={"output_files_dir": FIGURES, "unique_key": "figure"}
    )
    body = body.replace("```{mermaid}", "```mermaid")  # Quarto's spelling, GitHub's spelling
    body = re.sub(r"\n{3,}", "\n\n", body).strip() + "\n"
    figures = {Path(name).name: data for name, data in (resources.get("outputs") or {}).items()}
    return NOTICE + body, figures


def write(root: Path, target: Path) -> None:
    "Write README.md and its figures into `target`, and remove figures that it no longer shows."
    body, figures = convert(root / "index.ipynb")
    (target / "README.md").write_text(body, encoding="utf-8")
    folder = target / FIGURES
    for old in folder.glob("*") if folder.exists() else []:
        if old.name not in figures:
            old.unlink()
    for name, data in figures.items():
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)


def contents(folder: Path) -> dict[str, bytes]:
    "README.md and its figures as they lie in `folder`."
    paths = [folder / "README.md", *sorted((folder / FIGURES).glob("*"))]
    return {path.name: path.read_bytes() for path in paths if path.exists()}


def main() -> None:
    "Write, or with `--check` compare."
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 when README.md is out of date")
    arguments = parser.parse_args()
    if not arguments.check:
        write(ROOT, ROOT)
        return
    with tempfile.TemporaryDirectory() as folder:
        write(ROOT, Path(folder))
        fresh, now = contents(Path(folder)), contents(ROOT)
    if fresh != now:
        stale = sorted(name for name in fresh.keys() | now.keys() if fresh.get(name) != now.get(name))
        sys.exit(f"{', '.join(stale)}: not what index.ipynb says. Run `make readme`.")
    print("README.md is what index.ipynb says")


if __name__ == "__main__":
    main()
