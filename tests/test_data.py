"""Reading, splitting and dropping: every layout, and every mistake that the page names."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pathloop.data import CellImages, drop_small_classes, load_images, show_beside, show_grid, split_by_use, to_uint8


def make_cells(counts: dict[str, int], copies: int = 1, seed: int = 0) -> CellImages:
    "Random images, each `copies` times."
    total = sum(counts.values())
    images = np.random.default_rng(seed).uniform(-1, 1, (total, 3, 4, 4)).astype(np.float32)
    labels = np.repeat(np.arange(len(counts)), list(counts.values()))
    return CellImages(np.repeat(images, copies, 0), np.repeat(labels, copies), list(counts))


@pytest.mark.parametrize("ending", ["png", "jpg", "bmp", "tif", "webp"])
def test_folder_per_class_in_every_format(tmp_path: Path, ending: str) -> None:
    for name, colour in {"a": (200, 30, 30), "b": (30, 30, 200)}.items():
        (tmp_path / name).mkdir()
        Image.new("RGB", (24, 24), colour).save(tmp_path / name / f"1.{ending}")
    cells = load_images(tmp_path, 16)
    assert cells.counts() == {"a": 1, "b": 1} and cells.images.shape == (2, 3, 16, 16)
    np.testing.assert_allclose(to_uint8(cells.images)[0, 8, 8], (200, 30, 30), atol=4)


def test_table_with_split_and_attributes(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for i in range(4):
        Image.new("RGB", (8, 8), (10 * i, 0, 0)).save(tmp_path / "images" / f"{i}.png")
    rows = {"image": [f"images/{i}.png" for i in range(4)], "cell_type": ["x", "y"] * 2, "use": ["train", "train", "test", "test"], "size": list("abcd")}
    pd.DataFrame(rows).to_csv(tmp_path / "labels.csv", index=False)
    cells = load_images(tmp_path, 8)
    assert cells.classes == ["x", "y"] and cells.names[2] == "2.png"
    assert list(cells.attributes.columns) == ["use", "size"] and list(cells.attributes["size"]) == list("abcd")
    assert load_images(tmp_path, 8, label_column="size").classes == list("abcd")
    with pytest.raises(ValueError, match="must give every class images"):
        split_by_use(cells)


def test_wide_image_is_padded_not_squeezed(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    picture = Image.new("RGB", (40, 20), (255, 255, 255))
    picture.paste((0, 0, 0), (15, 5, 25, 15))
    picture.save(tmp_path / "a" / "wide.png")
    dark = to_uint8(load_images(tmp_path, 40).images)[0, :, :, 0] < 128
    assert np.ptp(np.flatnonzero(dark.any(0))) == np.ptp(np.flatnonzero(dark.any(1))), "the square is no square any more"


def test_exif_rotation_is_honoured(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:4] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(pixels).save(tmp_path / "a" / "1.png", exif=exif)
    assert to_uint8(load_images(tmp_path, 8).images)[0, 0, 0, 0] == 0


@pytest.mark.parametrize("content", [b"", b"just text", b"\x89PNG\r\n\x1a\n broken"])
def test_every_broken_file_is_named_at_once(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").mkdir()
    for name in ("one.png", "two.png"):
        (tmp_path / "a" / name).write_bytes(content)
    with pytest.raises(ValueError, match="2 of 2 images cannot be read") as error:
        load_images(tmp_path, 8)
    assert "one.png" in str(error.value) and "two.png" in str(error.value)


def test_missing_source_suggests_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "cells").mkdir()
    with pytest.raises(FileNotFoundError, match="Did you mean .*cells"):
        load_images(tmp_path / "cels")
    with pytest.raises(ValueError, match="has none"):
        load_images(tmp_path / "cells")


def test_table_without_labels(tmp_path: Path) -> None:
    pd.DataFrame({"file": ["x"]}).to_csv(tmp_path / "labels.csv", index=False)
    with pytest.raises(ValueError, match=r"has \['file'\]"):
        load_images(tmp_path)


@pytest.mark.parametrize("seed", range(5))
def test_split_keeps_copies_together_and_loses_nothing(seed: int) -> None:
    cells = make_cells({"a": 30, "b": 24, "c": 60}, copies=2, seed=seed)
    parts = split_by_use(cells, seed)
    hashes = {name: set(part.hashes) for name, part in parts.items()}
    assert sum(len(part) for part in parts.values()) == len(cells)
    assert not hashes["train"] & hashes["test"] and not hashes["train"] & hashes["judge"] and not hashes["test"] & hashes["judge"]
    assert all(min(part.counts().values()) >= 16 for part in parts.values())
    assert split_by_use(cells, seed)["test"].names == parts["test"].names


def test_split_fractions_are_kept_where_there_is_enough() -> None:
    parts = make_cells({"a": 1000}).split({"train": 0.7, "test": 0.3})
    assert len(parts["train"]) == 700


def test_bad_fractions() -> None:
    with pytest.raises(ValueError, match="sum to 1"):
        make_cells({"a": 9}).split({"train": 0.7, "test": 0.7})


def test_small_classes_are_dropped_and_told() -> None:
    rest, dropped = drop_small_classes(make_cells({"a": 30, "rare": 1, "b": 24}))
    assert dropped == {"rare": 1} and rest.classes == ["a", "b"] and rest.counts() == {"a": 30, "b": 24}
    with pytest.raises(ValueError, match="at least 2 classes"):
        drop_small_classes(make_cells({"a": 30, "b": 2}))


def test_parts_must_fit() -> None:
    images = np.zeros((2, 3, 4, 4), np.float32)
    with pytest.raises(ValueError, match="labels must have shape"):
        CellImages(images, np.array([0]), ["a"])
    with pytest.raises(ValueError, match="names must have one entry per image"):
        CellImages(images, np.array([0, 0]), ["a"], names=["x"])
    with pytest.raises(ValueError, match="must be one of"):
        CellImages(images, np.array([0, 0]), ["a"]).of_class("b")
    with pytest.raises(ValueError, match="classes must be given"):
        show_grid(images, np.array([0, 0]))


def test_grid_draws_every_image() -> None:
    cells = make_cells({"a": 5})
    figure = show_grid(cells.images, cells.labels, cells.classes, columns=3)
    assert sum(bool(axis.images) for axis in figure.axes) == 5


def test_sets_side_by_side_keep_their_rows_and_blocks() -> None:
    many, few = make_cells({"a": 5, "b": 4}), make_cells({"a": 1, "b": 2})
    axes = np.array(show_beside({"many": many, "few": few}, each=3).axes).reshape(2, 8)
    drawn = np.array([[bool(axis.images) for axis in row] for row in axes]).astype(int)
    assert drawn.tolist() == [[1, 1, 1, 0, 1, 0, 0, 0], [1, 1, 1, 0, 1, 1, 0, 0]]
    first_b_of_few = to_uint8(few.images[few.labels == 1])[0]
    assert (np.asarray(axes[1, 4].images[0].get_array()) == first_b_of_few).all()
    assert [axis.get_title() for axis in axes[0] if axis.get_title()] == ["many", "few"]
    with pytest.raises(ValueError, match="at least one, all of the same classes"):
        show_beside({})
    with pytest.raises(ValueError, match="each must be at least 1; got 0"):
        show_beside({"many": many}, each=0)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "classes"), [("pbc64", 11), ("wbc-tecom", 5)])
def test_real_collections(shared_data: Path, name: str, classes: int) -> None:
    cells = load_images(shared_data / name, 32)
    assert len(cells.classes) == classes and cells.images.min() >= -1
    rest, dropped = drop_small_classes(cells)
    split_by_use(rest)
    assert ("basophil" in dropped) == (name == "wbc-tecom")
