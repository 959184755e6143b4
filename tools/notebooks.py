"""Keep the notebooks fit to commit: `python tools/notebooks.py check` or `... clean`.

`nbdev_clean` also erases execution counts, which are the evidence that a page was run from top to bottom. So the
cleaning here is nbdev's own, with the counts put back.
"""

import argparse
import ast
import base64
import copy
import os
import re
import sys
from pathlib import Path

import nbformat
from nbdev.clean import clean_nb

ROOT = Path(__file__).resolve().parent.parent
PAGE_LIMIT, IMAGE_LIMIT = 500_000, 100_000  # bytes
MACHINE_PATH = re.compile(r"/(?:tmp|home|root|work|Users|private|var/folders)/[\w.-]+")
NEVER_RUN = re.compile(r"^#\|\s*eval:\s*false\b", re.MULTILINE)


def find_notebooks(root: Path = ROOT) -> list[Path]:
    "Every notebook of the project; hidden and underscored folders are left out, as nbdev does."
    relative = sorted(path.relative_to(root) for path in root.rglob("*.ipynb"))
    return [root / path for path in relative if not any(part[0] in "._" for part in path.parts)]


def cleaned(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    "A copy without editors' metadata and memory addresses; outputs and execution counts stay."
    result = copy.deepcopy(notebook)
    clean_nb(result)
    result.metadata.pop("widgets", None)  # The state of widgets is big, and a page shows pictures
    for before, after in zip(notebook.cells, result.cells, strict=True):
        if before.cell_type != "code":
            continue
        after["execution_count"] = before.get("execution_count")
        for output_before, output_after in zip(before.outputs, after.outputs, strict=True):
            if "execution_count" in output_before:
                output_after["execution_count"] = output_before["execution_count"]
    return nbformat.from_dict(result)


def text_of(output: nbformat.NotebookNode) -> str:
    "All that an output says in words: streams, tracebacks, text and HTML."
    pieces = [output.get("text", ""), *output.get("traceback", [])]
    pieces += [value for kind, value in output.get("data", {}).items() if kind.startswith("text/")]
    return "\n".join("".join(piece) for piece in pieces)


def image_bytes(output: nbformat.NotebookNode) -> int:
    "Size of the largest image in an output, 0 where there is none."
    sizes = [0]
    for kind, value in output.get("data", {}).items():
        if kind == "image/svg+xml":
            sizes.append(len("".join(value).encode()))
        elif kind.startswith("image/"):
            sizes.append(len(base64.b64decode("".join(value))))
    return max(sizes)


def mixed_imports(notebook: nbformat.NotebookNode) -> list[int]:
    "Cells of a module's page that import and do something else: nbdev runs whatever imports when it makes the site."
    if not any("#| default_exp" in cell.source for cell in notebook.cells):
        return []
    mixed = []
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type != "code" or re.search(r"^#\|\s*export|^%", cell.source, re.MULTILINE):
            continue
        imports = [isinstance(part, ast.Import | ast.ImportFrom) for part in ast.parse(cell.source).body]
        if any(imports) and not all(imports):
            mixed.append(number)
    return mixed


def problems(path: Path) -> list[str]:
    "What is wrong with one notebook, as sentences."
    notebook = nbformat.read(path, as_version=4)
    found = []
    if cleaned(notebook) != notebook:
        found.append("carries editor metadata or memory addresses: run `make clean-notebooks`")
    size = path.stat().st_size
    if size > PAGE_LIMIT:
        found.append(f"is {size // 1000} KB; a page has at most {PAGE_LIMIT // 1000} KB: make its figures smaller")
    found += [f"cell {n} imports and does more: imports stand in cells of their own" for n in mixed_imports(notebook)]
    skipped: list[str] = []
    last_count = 0
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type != "code" or not cell.source.strip() or NEVER_RUN.search(cell.source):
            continue
        count = cell.get("execution_count")
        if count is None:
            skipped.append(str(number))
        elif count <= last_count:
            found.append(f"cell {number} was executed out of order: restart the kernel and run all")
        last_count = max(last_count, count or 0)
        for output in cell.outputs:
            if output.output_type == "error":
                found.append(f"cell {number} ends in an error: {output.ename}")
            if leak := MACHINE_PATH.search(text_of(output)):
                found.append(f"cell {number} shows a path of one machine: {leak.group()}")
            if image_bytes(output) > IMAGE_LIMIT:
                found.append(f"cell {number} has an image of {image_bytes(output) // 1000} KB; the limit is "
                             f"{IMAGE_LIMIT // 1000} KB")
    if skipped:
        found.append(f"has cells that were not executed ({', '.join(skipped)}): run it from top to bottom")
    return found


def check(paths: list[Path]) -> int:
    "Print every problem; the number of notebooks that have one."
    bad = 0
    for path in paths:
        found = problems(path)
        bad += bool(found)
        for problem in found:
            print(f"{os.path.relpath(path, ROOT)} {problem}")
    print(f"{len(paths)} notebooks: {bad or 'none'} to mend")
    return bad


def clean(paths: list[Path]) -> None:
    "Rewrite those notebooks that cleaning changes."
    for path in paths:
        notebook = nbformat.read(path, as_version=4)
        result = cleaned(notebook)
        if result != notebook:
            nbformat.write(result, path)
            print(f"cleaned {os.path.relpath(path, ROOT)}")


def main() -> None:
    "Check or clean all notebooks, or those named."
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=["check", "clean"])
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: all")
    arguments = parser.parse_args()
    paths = [path.resolve() for path in arguments.notebooks] or find_notebooks()
    if arguments.action == "clean":
        clean(paths)
    else:
        sys.exit(1 if check(paths) else 0)


if __name__ == "__main__":
    main()
