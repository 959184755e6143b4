"""What several test files share: a browser if there is one, data sets if they are there."""

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from postgresql_server import PrivateServer, postgresql_missing

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


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PrivateServer]:
    "A PostgreSQL server for these tests alone. Not durable: a test that wants to be quick need not wait for the disk."
    reason = postgresql_missing()
    if reason:
        pytest.skip(reason)
    server = PrivateServer(durable=False)
    yield server
    server.close()


@pytest.fixture(scope="session")
def new_store_url(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, pytest.FixtureRequest], str]:
    "Copies of one empty feedback store of each kind: quicker than to walk all the migrations for each test."
    from pathloop.feedback import FeedbackStore

    empty: dict[str, str] = {}

    def copy(kind: str, request: pytest.FixtureRequest) -> str:
        fresh = tmp_path_factory.mktemp("store") / "feedback.db"
        server = request.getfixturevalue("postgresql") if kind == "postgresql" else None
        if kind not in empty:
            empty[kind] = server.new_database() if server else str(fresh)
            FeedbackStore(empty[kind]).close()
            return copy(kind, request)
        return server.new_database(empty[kind].rsplit("/", 1)[1]) if server else str(shutil.copy(empty[kind], fresh))

    return copy


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, new_store_url: Callable[[str, pytest.FixtureRequest], str]) -> str:
    "Where an empty feedback store lies, on each kind of database in turn."
    return new_store_url(request.param, request)


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
