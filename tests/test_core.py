"""Seeds, settings, hashes and files: what must hold for everything built on them."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from pathloop.core import (
    Config,
    atomic_folder,
    check_images,
    check_labels,
    file_hash,
    image_hash,
    pick_device,
    read_json,
    write_json,
)


@pytest.mark.parametrize(
    ("images", "rule"),
    [
        (np.zeros((3, 8, 8)), "must have shape"),
        (np.zeros((2, 1, 8, 8)), "must have shape"),
        (np.zeros((2, 3, 8, 8), np.uint8), "must be floats"),
        (np.full((2, 3, 8, 8), np.nan), "must be finite"),
        (np.full((2, 3, 8, 8), 255.0), "must lie in"),
    ],
)
def test_bad_images_are_named(images: np.ndarray, rule: str) -> None:
    with pytest.raises(ValueError, match=f"pool {rule}"):
        check_images(images, name="pool")


@pytest.mark.parametrize(
    ("labels", "rule"),
    [([0.5], "must be integers"), ([[1]], "must have shape"), ([0, 3], "must lie from 0 to 2"), ([-1], "must lie")],
)
def test_bad_labels_are_named(labels: list, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        check_labels(np.array(labels), n_classes=3)


def test_labels_must_match_their_number() -> None:
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        check_labels(np.array([0, 1]), n_classes=2, n=3)


def test_hash_tells_images_and_shapes_apart() -> None:
    rng = np.random.default_rng(0)
    image = rng.uniform(-1, 1, (3, 4, 6)).astype(np.float32)
    assert image_hash(image) == image_hash(image.copy())
    assert image_hash(image) != image_hash(image.transpose(0, 2, 1))
    assert image_hash(image) != image_hash(image.reshape(3, 6, 4))
    with pytest.raises(ValueError, match="image must have shape"):
        image_hash(image[None])


def test_folder_hash_sees_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    first = file_hash(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    second = file_hash(tmp_path)
    (tmp_path / "b").write_text("2")
    assert len({first, second, file_hash(tmp_path)}) == 3


def test_unknown_setting_names_the_nearest() -> None:
    @dataclass(frozen=True)
    class Settings(Config):
        learning_rate: float = 1.0

    with pytest.raises(ValueError, match="did you mean 'learning_rate'"):
        Settings.from_dict({"learning_rat": 2.0})
    with pytest.raises(AttributeError):
        Settings().learning_rate = 3.0  # type: ignore[misc]


def test_device_that_is_not_there() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ValueError, match="no CUDA GPU is visible"):
        pick_device("cuda")


def test_existing_folder_is_never_overwritten(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "done") as place:
        (place / "x").write_text("kept")
    with pytest.raises(FileExistsError, match="must not exist yet"), atomic_folder(tmp_path / "done"):
        pass
    assert (tmp_path / "done" / "x").read_text() == "kept"


def test_killed_step_leaves_no_folder_under_its_name(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from pathloop.core import atomic_folder\n"
        "with atomic_folder(Path(sys.argv[1]) / 'step') as place:\n"
        "    (place / 'half').write_text('x'); print('writing', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "writing\n"
        os.kill(process.pid, signal.SIGKILL)
    assert not (tmp_path / "step").exists()


def test_json_is_replaced_whole(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"n": np.float32(0.5), "a": np.arange(2), "when": time.gmtime(0).tm_year})
    assert read_json(tmp_path / "x.json") == {"n": 0.5, "a": [0, 1], "when": 1970}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ValueError, match=r"bad\.json is not"):
        read_json(tmp_path / "bad.json")
