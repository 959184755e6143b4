"""Splits that part no patient and no copies; streams that give the same pixels; downloads that go on."""

import hashlib
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pathloop.core import file_hash
from pathloop.data import CellImages, drop_small_classes, load_images, open_images, split_by_use
from pathloop.duplicates import fingerprints, groups_of, near_duplicates, same_value
from pathloop.fetch import SETS, fetch, unzip
from pathloop.stream import StreamedImages


def random_cells(n: int, classes: int = 3, seed: int = 0) -> CellImages:
    random = np.random.default_rng(seed)
    images = np.kron(random.uniform(-0.9, 0.9, (n, 3, 4, 4)), np.ones((4, 4))).astype(np.float32)
    return CellImages(images, np.arange(n) % classes, [f"type {i}" for i in range(classes)])


@pytest.mark.parametrize("seed", range(4))
def test_no_patient_on_both_sides(seed: int) -> None:
    cells = random_cells(240, seed=seed)
    patient = np.random.default_rng(seed).choice(20, 240, p=np.arange(1, 21) / 210)
    cells = CellImages(cells.images, cells.labels, cells.classes, attributes=pd.DataFrame({"patient": [f"p{i}" for i in patient]}))
    parts = cells.split(seed=seed)
    seen = [set(part.attributes["patient"]) for part in parts.values()]
    assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2]) and sum(map(len, parts.values())) == 240
    assert 0.5 <= len(parts["train"]) / 240 <= 0.7 and all(min(part.counts().values()) >= 1 for part in parts.values())
    assert parts["test"].names == cells.split(seed=seed)["test"].names


def test_unknown_patients_are_their_own() -> None:
    cells = random_cells(60)
    lone = CellImages(cells.images, cells.labels, cells.classes, attributes=pd.DataFrame({"group": [""] * 60}))
    assert {part: len(found) for part, found in lone.split().items()} == {"train": 36, "test": 12, "judge": 12}
    with pytest.raises(ValueError, match="group must be a column"):
        lone.split(group="doctor")


def test_too_few_patients_is_told() -> None:
    cells = random_cells(60)
    two = CellImages(cells.images, cells.labels, cells.classes, attributes=pd.DataFrame({"patient": ["p", "q"] * 30}))
    with pytest.raises(ValueError, match="enough patient"):
        two.split()


@pytest.mark.parametrize("turn", range(8))
def test_near_copies_stay_together(turn: int) -> None:
    cells = random_cells(60)
    turned = np.rot90(cells.images, turn % 4, (2, 3))
    turned = turned[..., ::-1] if turn >= 4 else turned
    noisy = (turned + np.random.default_rng(turn).normal(0, 0.02, turned.shape)).clip(-1, 1).astype(np.float32)
    both = CellImages(np.concatenate([cells.images, noisy]), np.tile(cells.labels, 2), cells.classes, names=[f"{i}" for i in range(60)] * 2)
    parts = both.split()
    for part in parts.values():
        assert all(pd.Series(part.names).value_counts() == 2)
    torn = both.split(near=False)
    assert any((pd.Series(part.names).value_counts() == 1).any() for part in torn.values()), "the test must be able to fail"


def test_given_split_that_leaks_is_refused() -> None:
    cells = random_cells(24)
    use = np.repeat(["train", "test", "judge", "train"], 6)
    whole = CellImages(cells.images, cells.labels, cells.classes, attributes=pd.DataFrame({"use": use}))
    assert len(split_by_use(whole)["train"]) == 12
    images = whole.images.copy()
    images[6] = images[0, :, ::-1]
    with pytest.raises(ValueError, match=r"000000 \(train\), 000006 \(test\)"):
        split_by_use(CellImages(images, whole.labels, whole.classes, attributes=whole.attributes))
    table = whole.attributes.assign(patient=[f"p{i % 9}" for i in range(24)])
    with pytest.raises(ValueError, match="images of one patient"):
        split_by_use(CellImages(whole.images, whole.labels, whole.classes, attributes=table))


def test_every_near_pair_is_found() -> None:
    "Held against comparing all pairs under all eight turns."
    cells = random_cells(40)
    images = np.concatenate([cells.images, np.rot90(cells.images[:7], 3, (2, 3))[:, :, ::-1] * 0.97])
    prints = fingerprints(images)
    turns = [np.rot90(prints, k, (2, 3))[..., ::step] for k in range(4) for step in (1, -1)]
    apart = np.min([np.sqrt(((prints[:, None] - turned[None]) ** 2).mean((2, 3, 4))) for turned in turns], axis=0)
    for near in (3.0, 40.0, 80.0):
        first, second = np.nonzero(np.triu(apart <= near, 1))
        found = near_duplicates(prints, near)
        assert list(zip(found.first, found.second, strict=True)) == list(zip(first, second, strict=True)), near


def test_groups_join_through_others() -> None:
    groups = groups_of(5, (np.array([0, 1]), np.array([1, 2])), same_value(["", "", "", "x", "x"]))
    assert groups[0] == groups[1] == groups[2] != groups[3] == groups[4]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i, image in enumerate(random_cells(30).images):
        place = tmp_path / "set" / "abc"[i % 3]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.round((image.transpose(1, 2, 0) + 1) * 127.5).astype(np.uint8)).save(place / f"{i:02d}.png")
    return tmp_path / "set"


def test_stream_is_the_same_set(folder: Path, tmp_path: Path) -> None:
    whole, stream = load_images(folder, 16), open_images(folder, 16, cache=tmp_path / "cache")
    assert isinstance(stream.images, StreamedImages) and not stream.images.shard.there.any(), "opening reads nothing"
    assert stream.images.shape == whole.images.shape and stream.names == whole.names
    for index in (3, [5, 1, 1], slice(2, 9), np.array([], int)):
        np.testing.assert_array_equal(stream.images[index], whole.images[index])
    assert stream.images.shard.there.sum() == 8
    assert stream.hashes == whole.hashes
    parts, same = stream.split(), whole.split()
    for name in parts:
        assert isinstance(parts[name].images, StreamedImages) and parts[name].names == same[name].names
    kept, _ = drop_small_classes(stream, 2)
    np.testing.assert_array_equal(np.asarray(kept.of_class("b").images), whole.of_class("b").images)
    assert stream.show(2).axes


def test_filled_stream_survives_its_files_until_they_change(folder: Path, tmp_path: Path) -> None:
    stream = open_images(folder, 16, cache=tmp_path / "cache")
    stream.images.fill()
    assert stream.images.shard.there.all()
    again = open_images(folder, 16, cache=tmp_path / "cache")
    assert again.images.shard.there.all()
    Image.new("RGB", (9, 9), "white").save(folder / "a" / "00.png")
    changed = open_images(folder, 16, cache=tmp_path / "cache")
    assert not changed.images.shard.there.any() and changed.images[0].min() == 1


class _Server(BaseHTTPRequestHandler):
    "Serves one file; breaks off in the middle as often as it is told; knows ranges."

    content = b""
    breaks = 0
    asked: list[str] = []

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        kind = type(self)
        wanted = self.headers.get("Range", "")
        kind.asked.append(wanted)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}")
        self.send_header("Content-Length", str(len(self.content) - start))
        self.end_headers()
        part = self.content[start:]
        if kind.breaks:
            kind.breaks -= 1
            part = part[: len(part) // 2]
        self.wfile.write(part)


@pytest.fixture
def server() -> Iterator[type[_Server]]:
    handler = type("Handler", (_Server,), {"asked": []})
    running = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=partial(running.serve_forever, 0.05), daemon=True).start()
    handler.url = f"http://127.0.0.1:{running.server_port}/file"  # type: ignore[attr-defined]
    yield handler
    running.shutdown()


def sha256(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def test_download_goes_on_after_a_break(server: type, tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", train_images=np.random.default_rng(0).integers(0, 255, (80, 28, 28, 3), dtype=np.uint8), train_labels=np.arange(80)[:, None] % 8)
    server.content, server.breaks = (tmp_path / "set.npz").read_bytes(), 1
    ask = partial(fetch, "bloodmnist", url=server.url, known_hash=sha256(server.content), cache=tmp_path / "cache", tell=lambda _: None)
    with pytest.raises(OSError):
        ask()
    part = tmp_path / "cache" / "sets" / "bloodmnist.npz.part"
    assert 0 < part.stat().st_size < len(server.content)
    path = ask()
    assert server.asked[1].startswith("bytes=") and path.read_bytes() == server.content and not part.exists()
    ask()
    assert len(server.asked) == 2, "nothing is downloaded twice"
    assert len(load_images(path, 28)) == 80


def test_wrong_hash_leaves_nothing(server: type, tmp_path: Path) -> None:
    server.content = b"not what was published"
    with pytest.raises(ValueError, match="hash"):
        fetch("bloodmnist", url=server.url, cache=tmp_path, tell=lambda _: None)
    assert list((tmp_path / "sets").iterdir()) == []


def test_licence_and_citation_are_told(server: type, tmp_path: Path) -> None:
    said: list[str] = []
    with pytest.raises(ValueError):
        fetch("bloodmnist", url=server.url, cache=tmp_path, tell=said.append)
    assert "CC BY 4.0" in said[0] and "Acevedo" in said[0]


@pytest.mark.parametrize("name", ["pbc", "wbc-tecom"])
def test_sets_without_a_published_hash_ask_for_one(name: str) -> None:
    with pytest.raises(ValueError, match="known_hash must be given"):
        fetch(name)
    assert SETS[name].known_hash is None
    with pytest.raises(ValueError, match="name must be one of"):
        fetch("blood")


def test_pbc_and_tecom_archives_are_ready_to_read(server: type, tmp_path: Path, folder: Path) -> None:
    picture = next(folder.rglob("*.png"))
    inner, outer = tmp_path / "inner.zip", tmp_path / "outer.zip"
    with zipfile.ZipFile(inner, "w") as file:
        for name in ("basophil", "monocyte"):
            file.write(picture, f"PBC_dataset_normal_DIB/{name}/1.png")
    with zipfile.ZipFile(outer, "w") as file:
        file.write(inner, "PBC_dataset_normal_DIB.zip")
    for name, archive in (("inner", inner), ("outer", outer)):
        server.content = archive.read_bytes()
        path = fetch("pbc", url=server.url, known_hash=sha256(server.content), cache=tmp_path / name, tell=lambda _: None)
        assert load_images(path, 16).counts() == {"basophil": 1, "monocyte": 1}
    Image.open(picture).save(tmp_path / "1.bmp")
    with zipfile.ZipFile(tmp_path / "tecom.zip", "w") as file:
        file.writestr("segmentation_WBC-master/Class Labels of Dataset 1.csv", "image ID,class label\n1,2\n2,5\n")
        for i in (1, 2):
            file.write(tmp_path / "1.bmp", f"segmentation_WBC-master/Dataset 1/{i:03d}.bmp")
            file.write(picture, f"segmentation_WBC-master/Dataset 1/{i:03d}.png")
    server.content = (tmp_path / "tecom.zip").read_bytes()
    path = fetch("wbc-tecom", url=server.url, known_hash=sha256(server.content), cache=tmp_path / "tecom", tell=lambda _: None)
    assert load_images(path, 16).counts() == {"basophil": 1, "lymphocyte": 1}


@pytest.mark.parametrize("name", ["../out.txt", "/etc/out.txt", "a/../../out.txt", "..\\out.txt", "C:\\out.txt"])
def test_zip_slip_is_refused(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as file:
        file.writestr("good.txt", "x")
        file.writestr(name, "x")
    before = file_hash(tmp_path)
    with pytest.raises(ValueError, match="below its own folder"):
        unzip(tmp_path / "bad.zip", tmp_path / "out")
    assert file_hash(tmp_path) == before


def test_other_archives_that_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.zip").write_text("text")
    with pytest.raises(ValueError, match="must be a .zip"):
        unzip(tmp_path / "text.zip", tmp_path / "out")
    with zipfile.ZipFile(tmp_path / "big.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("zeros", b"\0" * 100_000)
    monkeypatch.setattr("pathloop.fetch.MOST_BYTES", 50_000)
    with pytest.raises(ValueError, match="at most 50000 bytes"):
        unzip(tmp_path / "big.zip", tmp_path / "out")
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as file:
        link = zipfile.ZipInfo("link")
        link.external_attr = 0o120777 << 16
        file.writestr(link, "/etc/passwd")
    with pytest.raises(ValueError, match="no links"):
        unzip(tmp_path / "link.zip", tmp_path / "out")
    assert not (tmp_path / "out").exists()
