"""What Quarto gets to render is sound: pages arrive, have titles, are in the sidebar, and their links lead to files."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

from notebooks import find_notebooks  # noqa: E402

PAGES = [path.relative_to(ROOT) for path in find_notebooks(ROOT)]


def cells(path: Path) -> list[dict]:
    "The cells of a notebook, each source as one string."
    notebook = json.loads(path.read_text(encoding="utf-8"))
    return [cell | {"source": "".join(cell["source"])} for cell in notebook["cells"]]


def prose(path: Path) -> str:
    "All markdown of a page, without its code."
    if path.suffix == ".ipynb":
        text = "\n\n".join(cell["source"] for cell in cells(path) if cell["cell_type"] == "markdown")
    else:
        text = path.read_text(encoding="utf-8")
    text = re.sub(r"^( *)```.*?^\1```", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`\n]*`", "", text)


def local_links(path: Path) -> list[str]:
    "Targets of links and pictures that lie in the repository."
    targets = re.findall(r"\]\(<?([^)\s>]+)", prose(path))
    targets = [unquote(target.split("#")[0]) for target in targets if not re.match(r"[a-z]+:|attachment:", target)]
    return [target for target in targets if target]


def sidebar_pages(contents: list) -> Iterator[str]:
    "Every page that a sidebar lists, at any depth."
    for entry in contents:
        if isinstance(entry, str):
            yield entry
        else:
            if "href" in entry:
                yield entry["href"]
            yield from sidebar_pages(entry.get("contents", []))


def listed() -> list[str]:
    sidebar = yaml.safe_load((ROOT / "sidebar.yml").read_text(encoding="utf-8"))["website"]["sidebar"]
    return list(sidebar_pages(sidebar["contents"]))


def test_sidebar_lists_every_notebook_once() -> None:
    entries = listed()
    missing = sorted({path.as_posix() for path in PAGES} - set(entries))
    assert not missing, f"add to sidebar.yml: {missing}"
    assert len(entries) == len(set(entries))


def test_sidebar_entries_exist() -> None:
    assert not [entry for entry in listed() if not (ROOT / entry).exists()]


@pytest.mark.parametrize("path", PAGES, ids=str)
def test_page_begins_with_title_and_summary(path: Path) -> None:
    first = next(cell for cell in cells(ROOT / path) if cell["cell_type"] == "markdown")["source"].strip()
    assert re.match(r"# \S.*\n+> \S", first), "a page begins with a markdown cell: '# Title' and '> one line'"


@pytest.mark.parametrize("path", [*PAGES, Path("CHANGELOG.md"), Path("CONTRIBUTING.md")], ids=str)
def test_links_lead_to_files(path: Path) -> None:
    broken = [link for link in local_links(ROOT / path) if not (ROOT / path).parent.joinpath(link).exists()]
    assert not broken


def test_no_formula_needs_another_server() -> None:
    settings = yaml.safe_load((ROOT / "_quarto.yml").read_text(encoding="utf-8"))
    assert settings["format"]["html"]["html-math-method"] == "mathml"
    assert set(settings["format"]["html"]["theme"]) == {"light", "dark"}
    assert {"nbdev.yml", "sidebar.yml"} <= set(settings["metadata-files"])


@pytest.mark.slow
def test_nbdev_proc_nbs(checkout: Path) -> None:
    "nbdev's own preparation of the site, in a copy. Only Quarto itself, which would come after it, is not needed."
    tools = checkout.parent / "bin"
    tools.mkdir()
    (tools / "quarto").write_text("#!/bin/sh\nexit 1\n")  # only looked for, never called by this step
    (tools / "quarto").chmod(0o755)
    path = os.pathsep.join([str(tools), str(Path(sys.executable).parent), os.environ["PATH"]])
    command = ["nbdev_proc_nbs", "--n_workers", "2", "--skip_folder_re", "^([_.]|pathloop$|tests$|tools$)"]
    done = subprocess.run(command, cwd=checkout, env=os.environ | {"PATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]

    processed = checkout / "_proc"
    assert {page.relative_to(processed) for page in processed.rglob("*.ipynb")} == set(PAGES)
    for name in ("_quarto.yml", "sidebar.yml", "nbdev.yml", "styles.css"):
        assert (processed / name).is_file(), name
    for page in PAGES:
        check_processed(processed / page)
    assert not list(processed.rglob(".venv"))


def check_processed(page: Path) -> None:
    "A processed page: title in the front matter, nothing hidden left, no failed cell, links that lead to files."
    first, *rest = cells(page)
    assert first["cell_type"] == "raw", f"{page.name} has no front matter"
    front = yaml.safe_load(first["source"].strip().strip("-"))
    assert front["title"], page.name
    for cell in rest:
        if cell["cell_type"] == "code":
            assert not re.search(r"^#\|\s*(hide|default_exp)\b", cell["source"], re.MULTILINE), page.name
            assert not [output for output in cell["outputs"] if output["output_type"] == "error"], page.name
    broken = [link for link in local_links(page) if not page.parent.joinpath(link).exists()]
    assert not broken, f"{page.name}: {broken}"
