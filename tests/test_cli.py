"""The command line: the tour, one-line errors, exit codes."""

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pathloop.cli import app

COMMAND = [sys.executable, "-c", "from pathloop.cli import main; main()"]


def pathloop(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True)


def test_help_names_every_step_in_order() -> None:
    text = CliRunner().invoke(app, ["--help"]).output.split("One step of a study")[1]
    steps = ["prepare", "judges", "pretrain", "sample", "review", "reward", "finetune", "arms", "evaluate", "report"]
    places = [text.index(f" {step} ") for step in steps]
    assert places == sorted(places)
    assert "goes on where it was" in CliRunner().invoke(app, ["--help"]).output


def test_help_answers_without_loading_torch() -> None:
    code = "import sys; import pathloop.cli; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["status", "nowhere"], "must hold a study.toml"),
        (["run", "STUDY", "--images", "no/such/folder"], "does not exist"),
        (["run", "STUDY", "--feedback", "oracle"], "'simulated' or 'human'; got 'oracle'"),
        (["run", "STUDY", "--until", "tea"], "until must be one of"),
        (["run"], "Missing argument"),
        (["brew"], "No such command"),
    ],
)
def test_mistakes_are_one_line_and_exit_with_two(tmp_path: Path, arguments: list[str], says: str) -> None:
    done = pathloop(*[str(tmp_path / "s") if word == "STUDY" else word for word in arguments])
    assert done.returncode == 2 and says in done.stderr and "Traceback" not in done.stderr


def test_new_status_settings_and_look(tmp_path: Path) -> None:
    from PIL import Image

    from pathloop.data import to_uint8
    from pathloop.smear import make_smear

    runner = CliRunner()
    assert runner.invoke(app, ["new", str(tmp_path / "s"), "--feedback", "human"]).exit_code == 0
    assert 'feedback = "human"' in (tmp_path / "s" / "study.toml").read_text()
    assert "nothing made yet" in runner.invoke(app, ["status", str(tmp_path / "s")]).output
    assert "beta = 0.3" in runner.invoke(app, ["settings"]).output
    cells = make_smear(1, 32)
    for pixels, label in zip(to_uint8(cells.images), cells.labels, strict=True):
        (tmp_path / "cells" / cells.classes[label]).mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / "cells" / cells.classes[label] / "1.png")
    seen = runner.invoke(app, ["look", str(tmp_path / "cells"), "--out", str(tmp_path / "picture.png")])
    assert seen.exit_code == 0 and "1  basophil" in seen.output and (tmp_path / "picture.png").stat().st_size > 1000
