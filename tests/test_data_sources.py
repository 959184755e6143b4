"""Every kind of file and every layout, and every fault that a source can have."""

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pathloop.data import load_images, open_images, to_uint8
from pathloop.inspection import check_source, inspect_source
from pathloop.sources import list_images, open_picture, read_image, read_npz


def write_png(path: Path, seed: int = 0, size: int = 24) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(40, 250, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC).save(path)
    return path


def two_classes(folder: Path, each: int = 3) -> Path:
    for i in range(2 * each):
        write_png(folder / "ab"[i % 2] / f"{i}.png", i)
    return folder


RED = (200, 30, 40)


@pytest.mark.parametrize("ending", ["png", "jpg", "jpeg", "bmp", "tif", "tiff", "webp", "PNG"])
@pytest.mark.parametrize("size", [(24, 24), (30, 20), (9, 40)])
def test_formats_and_shapes(tmp_path: Path, ending: str, size: tuple[int, int]) -> None:
    path = tmp_path / f"x.{ending}"
    Image.new("RGB", size, RED).save(path)
    for fit in ("pad", "crop"):
        pixels = read_image(path, 16, fit)
        assert pixels.shape == (16, 16, 3)
        np.testing.assert_allclose(pixels[8, 8], RED, atol=4)


@pytest.mark.parametrize(("mode", "ending"), [("RGBA", "png"), ("LA", "png"), ("L", "png"), ("1", "png"), ("P", "png"), ("CMYK", "jpg"), ("CMYK", "tif"), ("YCbCr", "jpg"), ("LAB", "tif")])
def test_modes(tmp_path: Path, mode: str, ending: str) -> None:
    picture = Image.new("RGB", (16, 16), RED)
    if mode == "LAB":
        picture = Image.new("LAB", (16, 16), (128, 0, 0))
    path = tmp_path / f"x.{ending}"
    (picture if mode == "LAB" else picture.convert(mode)).save(path)
    pixels = read_image(path, 16)
    assert pixels.dtype == np.uint8 and pixels.shape == (16, 16, 3)
    if mode in ("RGBA", "CMYK", "YCbCr"):
        np.testing.assert_allclose(pixels[8, 8], RED, atol=12)
    if mode in ("L", "LA"):
        np.testing.assert_allclose(pixels[8, 8], [82] * 3, atol=3)


def test_palette_with_transparency_lies_on_white(tmp_path: Path) -> None:
    picture = Image.new("P", (8, 8), 1)
    picture.putpalette([0, 0, 0, *RED])
    picture.save(tmp_path / "x.png", transparency=1)
    assert (read_image(tmp_path / "x.png", 8) == 255).all()


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_sixteen_bit_grey_is_not_stretched(tmp_path: Path, ending: str) -> None:
    Image.fromarray(np.full((8, 8), 257 * 100, np.uint16)).save(tmp_path / f"x.{ending}")
    assert (read_image(tmp_path / f"x.{ending}", 8) == 100).all()


@pytest.mark.parametrize(("orientation", "corner"), [(1, (0, 0)), (3, (7, 7)), (6, (0, 7)), (8, (7, 0))])
def test_exif_rotation(tmp_path: Path, orientation: int, corner: tuple[int, int]) -> None:
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[0, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "x.png", exif=exif)
    assert read_image(tmp_path / "x.png", 8)[corner].tolist() == [255] * 3


def bomb() -> bytes:
    "A PNG whose header says 30,000 x 30,000 and which holds next to nothing."
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)) + chunk(b"IDAT", zlib.compress(b"0" * 1000)) + chunk(b"IEND", b"")


def truncated(tmp_path: Path, ending: str) -> bytes:
    path = tmp_path / f"whole.{ending}"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
    content = path.read_bytes()
    path.unlink()
    return content[: len(content) // 2]


@pytest.mark.parametrize(("kind", "reason"), [
    ("zero", "empty"), ("text", "no image"), ("bomb", "bomb"), ("cut png", "truncated|not"), ("cut jpg", "truncated|not"), ("cut tif", "not"), ("nan", "NaN"),
    ("range", "from 0 to 1"), ("pages", "2 pages"), ("folder", "not"), ("missing", "does not exist"),
])
def test_every_bad_file_has_its_reason(tmp_path: Path, kind: str, reason: str) -> None:
    path = tmp_path / ("x.tif" if kind in ("nan", "range", "pages") else "x.png")
    if kind == "zero":
        path.touch()
    elif kind == "text":
        path.write_text("not a picture")
    elif kind == "bomb":
        path.write_bytes(bomb())
    elif kind.startswith("cut"):
        path.write_bytes(truncated(tmp_path, kind.split()[1]))
    elif kind in ("nan", "range"):
        Image.fromarray(np.full((4, 4), np.nan if kind == "nan" else 7, np.float32)).save(path)
    elif kind == "pages":
        Image.new("L", (4, 4)).save(path, save_all=True, append_images=[Image.new("L", (4, 4), 9)])
    elif kind == "folder":
        path.mkdir()
    with pytest.raises(ValueError, match=reason) as error:
        open_picture(path)
    assert path.name in str(error.value)


@pytest.mark.parametrize("ending", ["csv", "tsv", "parquet", "jsonl"])
def test_tables(tmp_path: Path, ending: str) -> None:
    for i in range(4):
        write_png(tmp_path / "pictures" / f"{i}.png", i)
    table = pd.DataFrame({"image": [f"pictures/{i}.png" for i in range(4)], "label": ["x", "y"] * 2, "group": ["p", "p", "q", None], "split": ["train"] * 3 + ["test"], "age": [1, 2, 3, 4]})
    path = tmp_path / f"cells.{ending}"
    if ending == "parquet":
        pytest.importorskip("pyarrow")
        table.to_parquet(path)
    elif ending == "jsonl":
        table.to_json(path, orient="records", lines=True)
    else:
        table.to_csv(path, sep="\t" if ending == "tsv" else ",", index=False)
    cells = load_images(path, 16)
    assert cells.counts() == {"x": 2, "y": 2} and list(cells.attributes) == ["group", "split", "age"]
    assert cells.attributes["group"].tolist() == ["p", "p", "q", ""] and cells.attributes["age"].tolist() == list("1234")


@pytest.mark.parametrize("how", ["csv", "jsonl", "folders"])
def test_imagefolder(tmp_path: Path, how: str) -> None:
    for split in ("train", "test"):
        for i in range(4):
            name = f"{'xy'[i % 2]}/{i}.png" if how == "folders" else f"{i}.png"
            write_png(tmp_path / split / name, i + 10 * (split == "test"))
        rows = pd.DataFrame({"file_name": [f"{i}.png" for i in range(4)], "label": ["x", "y"] * 2})
        if how == "csv":
            rows.to_csv(tmp_path / split / "metadata.csv", index=False)
        elif how == "jsonl":
            (tmp_path / split / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows.to_dict("records")))
    cells = load_images(tmp_path, 16)
    assert cells.counts() == {"x": 4, "y": 4} and cells.attributes["split"].value_counts().to_dict() == {"train": 4, "test": 4}


def test_imagefolder_with_attributes_and_labels_from_folders(tmp_path: Path) -> None:
    two_classes(tmp_path)
    names = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png"))
    pd.DataFrame({"file_name": names, "lobes": range(6)}).to_csv(tmp_path / "metadata.csv", index=False)
    cells = load_images(tmp_path, 16)
    assert cells.counts() == {"a": 3, "b": 3} and list(cells.attributes) == ["lobes"]


@pytest.mark.parametrize("channels", [(), (3,)])
def test_medmnist(tmp_path: Path, channels: tuple[int, ...]) -> None:
    arrays = {}
    for split, n in (("train", 8), ("val", 2), ("test", 3)):
        arrays[f"{split}_images"] = np.random.default_rng(n).integers(0, 255, (n, 28, 28, *channels), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(n)[:, None] % 8
    np.savez(tmp_path / "bloodmnist.npz", **arrays)
    cells = load_images(tmp_path / "bloodmnist.npz", 32)
    assert len(cells) == 13 and "immature granulocyte" in cells.classes and set(cells.attributes["split"]) == {"train", "val", "test"}
    assert inspect_source(tmp_path / "bloodmnist.npz").counts["basophil"] == 3
    with pytest.raises(ValueError, match="classes must name every label"):
        read_npz(tmp_path / "bloodmnist.npz", 28, ["one"])
    np.savez(tmp_path / "multi.npz", train_images=arrays["train_images"], train_labels=np.zeros((8, 14), int))
    with pytest.raises(ValueError, match="one label each"):
        load_images(tmp_path / "multi.npz")
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(ValueError, match="train_images"):
        load_images(tmp_path / "other.npz")
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(ValueError, match="cannot be read"):
        load_images(tmp_path / "text.npz")


@pytest.fixture
def faulty(tmp_path: Path) -> Path:
    "A table in which every row but three is wrong in another way."
    folder = tmp_path / "set"
    for i in range(6):
        write_png(folder / f"{i}.png", i)
    write_png(tmp_path / "outside.png")
    (folder / "text.png").write_text("no picture")
    rows = [("0.png", "a"), ("1.png", "b"), ("2.png", "b"), ("../outside.png", "a"), (str(tmp_path / "outside.png"), "a"), ("gone.png", "a"), ("3.png", ""), ("4.png", "nan"),
            ("./0.png", "a"), ("5.png", "a"), ("5.png", "b"), ("text.png", "a"), ("", "a")]
    pd.DataFrame(rows, columns=["image", "label"]).to_csv(folder / "labels.csv", index=False)
    return folder


def test_everything_wrong_is_told_at_once(faulty: Path) -> None:
    with pytest.raises(ValueError, match="10 of 13 images cannot be read") as error:
        load_images(faulty, 16)
    for words in ("leaves the table's folder", "gone.png: the file does not exist", "3.png: has no label", "4.png: has no label", "./0.png: is named more than once",
                  "with different labels", "text.png", "names no file"):
        assert words in str(error.value), words
    assert str(error.value).count("leaves the table's folder") == 2


def test_quarantine_goes_on_and_writes_down(faulty: Path, tmp_path: Path) -> None:
    cells = load_images(faulty, 16, quarantine=tmp_path / "faults.csv")
    assert cells.names == ["0.png", "1.png", "2.png"]
    faults = pd.read_csv(tmp_path / "faults.csv", keep_default_na=False)
    assert len(faults) == 10 and (faults["reason"] != "").all()
    assert (faulty / "text.png").exists(), "the file itself stays"
    streamed = open_images(faulty, 16, quarantine=tmp_path / "rows.csv", cache=tmp_path / "cache")
    assert len(streamed) == 4 and len(pd.read_csv(tmp_path / "rows.csv")) == 9
    with pytest.raises(ValueError, match="text.png"):
        np.asarray(streamed.images)


def test_unknown_class_suggests_the_nearest(tmp_path: Path) -> None:
    two_classes(tmp_path)
    for name in "0", "1":
        write_png(tmp_path / "lymphocite" / f"{name}.png", 90 + int(name))
    with pytest.raises(ValueError, match="unknown class 'lymphocite'"):
        load_images(tmp_path, 16, classes=["a", "b", "lymphocyte"])
    write_png(tmp_path / "c.png")
    pd.DataFrame({"image": ["c.png"], "label": ["lymphocite"]}).to_csv(tmp_path / "labels.csv", index=False)
    with pytest.raises(ValueError, match="did you mean 'lymphocyte'"):
        load_images(tmp_path, 16, classes=["a", "b", "lymphocyte"])


def test_missing_columns_and_wrong_tables(tmp_path: Path) -> None:
    pd.DataFrame({"image": ["x.png"], "kind": ["a"]}).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(ValueError, match=r"has \['image', 'kind'\]"):
        load_images(tmp_path / "t.csv")
    with pytest.raises(ValueError, match="a column 'species'"):
        load_images(tmp_path / "t.csv", label_column="species")
    (tmp_path / "t.xlsx").write_text("x")
    with pytest.raises(ValueError, match="must end in .csv"):
        load_images(tmp_path / "t.xlsx")
    (tmp_path / "broken.jsonl").write_text("{")
    with pytest.raises(ValueError, match="cannot be read as one"):
        load_images(tmp_path / "broken.jsonl")


def test_inspection_of_classes(tmp_path: Path) -> None:
    two_classes(tmp_path)
    (tmp_path / "empty").mkdir()
    write_png(tmp_path / "lonely" / "1.png", 77)
    write_png(tmp_path / "A" / "1.png", 78)
    found = inspect_source(tmp_path).findings
    by_kind = found.groupby("kind")["file"].apply(set).to_dict()
    assert by_kind["empty class"] == {"empty"} and by_kind["class with one image"] == {"lonely", "A"} and by_kind["class names alike"] == {"a", "A"}
    assert list_images(tmp_path).empty == ["empty"]


def test_inspection_finds_copies_and_conflicts(tmp_path: Path) -> None:
    two_classes(tmp_path)
    one = Image.open(tmp_path / "a" / "0.png")
    one.rotate(90).resize((48, 48)).save(tmp_path / "a" / "copy.jpg", quality=90)
    one.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "b" / "copy.png")
    inspection = inspect_source(tmp_path)
    found = inspection.findings.set_index("file")["kind"].to_dict()
    assert found == {"a/copy.jpg": "duplicate", "b/copy.png": "label conflict"} and not inspection.ok
    assert inspection.suspects() is not None


def test_check_writes_a_page_and_a_picture(tmp_path: Path) -> None:
    source = two_classes(tmp_path / "<cells>")
    said: list[str] = []
    assert check_source(source, tmp_path / "check.html", tell=said.append)
    page = (tmp_path / "check.html").read_text()
    assert "&lt;cells&gt;" in page and "<cells>" not in page and "data:image/jpeg" in page
    assert "6 readable images, 2 classes" in said[0] and "Nothing was found" in said[0]
    assert check_source(source, tmp_path / "check.png", tell=said.append) and Image.open(tmp_path / "check.png").width > 100
    with pytest.raises(ValueError, match="must end in"):
        check_source(source, tmp_path / "check.txt", tell=said.append)


def test_check_of_nothing_but_faults(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_text("text")
    said: list[str] = []
    assert not check_source(tmp_path, tmp_path / "check.html", tell=said.append)
    assert "a/x.png" in said[0] and "error: file at fault (1)" in said[0]
    with pytest.raises(ValueError, match="Write .html"):
        check_source(tmp_path, tmp_path / "check.png", tell=said.append)


def test_pad_and_crop_differ_as_stated(tmp_path: Path) -> None:
    two_classes(tmp_path)
    Image.new("RGB", (60, 20), RED).save(tmp_path / "a" / "wide.png")
    padded, cropped = (to_uint8(load_images(tmp_path, 20, fit=fit).images) for fit in ("pad", "crop"))
    assert padded.shape == cropped.shape
    with pytest.raises(ValueError, match="fit must be one of"):
        load_images(tmp_path, 20, fit="squeeze")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "wrong"), [("pbc64", set()), ("wbc-tecom", {"duplicate", "class with one image"})])
def test_real_collections(shared_data: Path, name: str, wrong: set[str]) -> None:
    found = inspect_source(shared_data / name).findings
    assert set(found["kind"]) - {"outlier"} == wrong
