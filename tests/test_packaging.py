"""What is stated twice agrees: versions, Python, dependencies and the set of them that works together."""

import configparser
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import pathloop

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REQUIREMENTS = PROJECT["dependencies"] + sum(PROJECT["optional-dependencies"].values(), [])
LINES = [line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if line[0] != "#"]


def settings() -> configparser.SectionProxy:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "settings.ini")
    return parser["DEFAULT"]


def test_constraints_are_plain_pins() -> None:
    assert not [line for line in LINES if not re.fullmatch(r"[\w.-]+==[\w.]+", line)], "no paths, hosts, local versions"


@pytest.mark.parametrize("text", sorted(set(REQUIREMENTS)))
def test_constraints_lie_in_the_ranges(text: str) -> None:
    requirement = Requirement(text)
    pins = {canonicalize_name(name): version for name, version in (line.split("==") for line in LINES)}
    pin = pins.get(canonicalize_name(requirement.name))
    assert pin and requirement.specifier.contains(pin), f"constraints.txt pins {pin}, pyproject.toml asks for {text}"


def test_version_and_python_are_stated_once() -> None:
    assert pathloop.__version__ == settings()["version"]
    assert PROJECT["requires-python"] == f">={settings()['min_python']}"


def test_every_make_target_in_the_prose_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for page in ("README.md", "CONTRIBUTING.md", ".pre-commit-config.yaml", ".ci/run", ".github/workflows/site.yml"):
        named = re.findall(r"(?:`|^|run: |entry: |exec )make ([a-z-]+)", (ROOT / page).read_text("utf-8"), re.MULTILINE)
        assert set(named) <= targets, page
