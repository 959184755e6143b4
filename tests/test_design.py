"""The rooms of the house and which may open on which: the design's import table, held against the source."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "pathloop"

# Module: the modules of pathloop that it may import, and with each of them what that one itself stands on (whoever may
# open `data` may open `core`). Each row names only rows above it.
LISTED: dict[str, set[str]] = {
    "core": set(),
    "sources": set(),
    "duplicates": set(),
    "stream": {"core", "sources"},
    "data": {"core", "sources", "duplicates", "stream"},
    "inspection": {"data"},
    "fetch": {"core", "stream"},
    "smear": {"data"},
    "defects": {"smear"},
    "checklist": {"core"},
    "database": set(),
    "agreement": {"data"},
    "feedback": {"checklist", "database", "agreement"},
    "assignments": {"feedback", "data"},
    "exchange": {"feedback", "data"},
    "panel": {"assignments", "database", "feedback", "checklist", "data"},  # beyond the design: reference images are `CellImages`; still no torch
    "grid": {"panel", "assignments", "feedback", "checklist", "data"},
    "compare": {"panel", "assignments", "feedback", "checklist", "data"},
    "blind": {"panel", "assignments", "feedback", "checklist", "data"},
    "adjudicate": {"panel", "assignments", "agreement", "feedback", "checklist", "data"},
    "app": {"panel", "grid", "compare", "blind", "adjudicate", "assignments", "feedback", "checklist", "data"},
    "sampling": {"core"},  # parts of the design's diffusion, each on a page of its own
    "training": {"core"},
    "diffusion": {"data", "sampling", "training"},
    "watch": {"diffusion"},
    "hub": {"diffusion"},
    "latent": {"diffusion"},
    "pathologist": {"data", "checklist"},
    "raters": {"core"},
    "reward": {"data", "feedback"},
    "ask": {"reward"},
    "explain": {"reward"},
    "drift": {"reward"},
    "finetune": {"diffusion"},
    "guide": {"finetune"},
    "concepts": {"diffusion", "feedback", "checklist"},
    "intervals": {"core"},
    "features": {"data", "pathologist", "intervals"},  # the pathologist's segmentation: one checked one, not two
    "subtypes": {"concepts", "features", "intervals"},
    "attributes": {"guide", "subtypes"},
    "experts": {"data", "features"},
    "neighbours": {"features", "intervals"},
    "metrics": {"features", "intervals"},
    "utility": {"data", "features", "intervals"},
    "report": {"data", "features", "intervals"},
    "guard": {"diffusion", "watch", "neighbours"},
    "evaluate": {"data", "neighbours", "metrics", "utility", "report"},
    "sharing": {"evaluate"},
    "export": {"sharing"},
    "reading": {"sharing", "feedback"},
}
LISTED["loop"] = set(LISTED)
LISTED["concept_study"] = {"loop", "app", "subtypes"}
LISTED["cli"] = {"loop", "export", "inspection", "fetch", "checklist", "app", "concept_study"}


def with_foundations(name: str) -> set[str]:
    "The rooms that a module may open: those listed, and those that each of them may open."
    return LISTED[name].union(*(with_foundations(listed) for listed in LISTED[name])) if name != "cli" else LISTED[name]


ALLOWED = {name: with_foundations(name) for name in LISTED}

MODULES = sorted(path.stem for path in PACKAGE.glob("*.py") if not path.stem.startswith("_"))


def imports(name: str) -> list[tuple[int, str]]:
    "Line and full dotted name of everything that a module imports, inside functions and `TYPE_CHECKING` too."
    found = []
    for node in ast.walk(ast.parse((PACKAGE / f"{name}.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = ".".join(filter(None, ["pathloop" if node.level else "", node.module]))
            found += [(node.lineno, f"{module}.{alias.name}") for alias in node.names]
    return found


def rooms(name: str) -> dict[str, int]:
    "The modules of pathloop that a module imports, with the line."
    return {full.split(".")[1]: line for line, full in imports(name) if full.startswith("pathloop.")}


def test_table_only_names_rows_above() -> None:
    order = list(ALLOWED)
    for name, allowed in ALLOWED.items():
        assert allowed <= set(order[: order.index(name)]), name


def test_every_room_is_there() -> None:
    assert set(MODULES) == set(ALLOWED)


@pytest.mark.parametrize("name", MODULES)
def test_imports_follow_the_table(name: str) -> None:
    wrong = {room: line for room, line in rooms(name).items() if room in ALLOWED and room not in ALLOWED[name]}
    assert not wrong, f"pathloop/{name}.py imports {wrong} (room: line); allowed: {sorted(ALLOWED[name]) or 'none'}"


@pytest.mark.parametrize("name", MODULES)
def test_no_star_imports(name: str) -> None:
    assert not [(line, full) for line, full in imports(name) if full.endswith(".*")]


@pytest.mark.parametrize("name", MODULES)
def test_third_party_imports_are_declared(name: str) -> None:
    "What an exported module imports is a runtime dependency of the package: development tools stay in the notebooks."
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [name for group, names in project["optional-dependencies"].items() if group != "dev" for name in names]
    required = project["dependencies"] + extras  # the latter imported where they are used
    declared = {normal(re.split(r"[^\w.-]", dependency)[0]) for dependency in required}
    owners = packages_distributions()
    for line, full in imports(name):
        top = full.split(".")[0]
        if top != "pathloop" and top not in sys.stdlib_module_names:
            names = {normal(owner) for owner in owners.get(top, [top])}
            assert names & declared, f"pathloop/{name}.py:{line} imports {top}, which pyproject.toml does not require"


def normal(name: str) -> str:
    "A distribution's name as package indexes compare it."
    return re.sub(r"[-_.]+", "-", name).lower()


def test_panel_starts_without_torch() -> None:
    "Labelling starts at once on a machine without torch: neither the panel nor anything below it imports it."
    code = "import pathloop.panel, sys; sys.exit('torch was imported' if 'torch' in sys.modules else 0)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
