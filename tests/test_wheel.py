"""The wheel holds all that the package needs, and works in an environment of its own, outside the checkout."""

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path, timeout: int = 300) -> str:
    "Output of a command that must succeed; nothing of the checkout is on its path."
    environment = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=environment, timeout=timeout,
                          stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "The wheel, built in a copy of the checkout."
    from conftest import copy_checkout

    folder = tmp_path_factory.mktemp("wheel")
    copy = copy_checkout(folder)
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, copy, cwd=folder)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty environment with the wheel in it; returns its folder of commands.

    The dependencies are lent by the environment that runs the tests, through a path file, instead of being downloaded
    again. Path files inside a lent folder are not followed, so an editable pathloop there stays out of sight.
    """
    folder = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    commands = folder / ("Scripts" if os.name == "nt" else "bin")
    run(sys.executable, "-m", "pip", "--python", commands / "python", "install", "--no-deps", "--no-index", wheel,
        cwd=folder)
    lent = run(commands / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    Path(lent, "lent.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return commands


def test_wheel_holds_what_the_package_needs(wheel: Path, checkout: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    package = checkout / "pathloop"
    expected = {path.relative_to(checkout).as_posix() for path in package.rglob("*") if path.is_file()}
    assert expected <= names, f"missing from the wheel: {sorted(expected - names)}"
    for ending in (".py", "py.typed", ".yaml", ".j2", ".js", ".safetensors"):
        assert any(name.startswith("pathloop/") and name.endswith(ending) for name in names), f"no {ending} file"
    strangers = {name.split("/")[0] for name in names} - {"pathloop"}
    assert all(name.endswith(".dist-info") for name in strangers), strangers
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_installed_package_is_the_wheel(installed: Path, tmp_path: Path) -> None:
    code = "import pathloop; print(pathloop.__file__); print(pathloop.__version__)"
    file, version = run(installed / "python", "-c", code, cwd=tmp_path).split()
    assert Path(file).resolve().is_relative_to(installed.parent.resolve())
    assert version == run(sys.executable, "-c", "import pathloop; print(pathloop.__version__)", cwd=tmp_path).strip()


@pytest.mark.parametrize("arguments", [["--help"], ["demo", "--help"], ["run", "--help"]], ids=" ".join)
def test_command_explains_itself(installed: Path, tmp_path: Path, arguments: list[str]) -> None:
    assert "Usage" in run(installed / "pathloop", *arguments, cwd=tmp_path)


@pytest.mark.timeout(1500) # The other tests' limit is too near on a slow machine with another test beside
def test_loop_runs_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    "The whole loop outside the checkout, at small scale, down to its report."
    said = run(installed / "pathloop", "demo", "--tiny", "--out", tmp_path / "study", cwd=tmp_path, timeout=1400)
    report = Path(said.strip().split("Report: ")[-1])
    assert report.is_file() and "<title>" in report.read_text(encoding="utf-8")
