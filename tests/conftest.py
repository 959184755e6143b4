"""What several test files share: a browser if there is one, data sets if they are there."""

import importlib.util
import os
import shutil
from pathlib import Path

import pytest

# Small networks gain nothing from more threads, and lose much on a busy machine. Inherited by every process under test.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parent.parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def find_chromium() -> str | None:
    "Path of a Chromium on this machine, None where there is none."
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def browser_missing() -> str | None:
    "Why no browser can be driven, None when one can."
    if find_chromium() is None:
        return f"no browser: none of {', '.join(BROWSERS)} is installed (Debian: apt-get install chromium)"
    if importlib.util.find_spec("playwright") is None:
        return "no browser: the package playwright is not installed (pip install pathloop[dev])"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    "Skip the tests marked `browser` where no browser can be driven, and say why."
    reason = browser_missing()
    for item in items:
        if reason and item.get_closest_marker("browser"):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def chromium() -> str:
    "Path of Chromium, for `playwright.chromium.launch(executable_path=..., args=['--no-sandbox'])`."
    reason = browser_missing()
    if reason:
        pytest.skip(reason)
    return str(find_chromium())


@pytest.fixture(scope="session")
def shared_data() -> Path:
    "Folder of the data sets that are not part of the repository; `PATHLOOP_SHARED` names the folder above it."
    folder = Path(os.environ.get("PATHLOOP_SHARED", ROOT.parent / "shared")) / "data"
    if not folder.is_dir():
        pytest.skip(f"no data sets in {folder}: set PATHLOOP_SHARED to the folder that holds data/")
    return folder


def copy_checkout(parent: Path) -> Path:
    "Copy what the repository holds into `parent`, without environments, caches and builds."

    def left_out(folder: str, names: list[str]) -> list[str]:
        at_top = Path(folder) == ROOT
        return [
            name for name in names
            if name in {"__pycache__", ".ipynb_checkpoints", "build", "dist", "studies"} or name.endswith(".egg-info")
            or (at_top and name[0] in "._" and name != "_quarto.yml")
        ]

    return Path(shutil.copytree(ROOT, parent / "checkout", ignore=left_out))


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    "A copy of the checkout to build in, so that the checkout itself stays clean."
    return copy_checkout(tmp_path)
