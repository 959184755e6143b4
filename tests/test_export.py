"""A shared data set reads back, says what was tested, leaves out what was flagged and is never half written."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import yaml

from pathloop.data import load_images
from pathloop.export import export_dataset
from pathloop.sharing import audit_sharing
from pathloop.smear import make_smear

TRAIN, UNSEEN, NEW = (make_smear(16, 32, seed) for seed in (0, 1, 2))
IMAGES = NEW.images.copy()
IMAGES[5] = np.rot90(TRAIN.images[7], 1, (1, 2))
AUDIT = audit_sharing(TRAIN, UNSEEN, IMAGES, NEW.labels, plant=4)
SCORES = pd.DataFrame({"p_plausible": np.linspace(0, 1, len(NEW))})


def export(folder, **given):
    return export_dataset(folder, **(dict(images=IMAGES, labels=NEW.labels, train=TRAIN, held_out=UNSEEN, generator_id="g1", seeds=np.arange(500, 500 + len(NEW)),
                                          scores=SCORES, title="Cells: a | test", licence="cc-by-4.0", audit=AUDIT) | given))


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("out") / "cells"
    export(folder)
    return folder


def test_reads_back(shared) -> None:
    back, kept = load_images(shared / "images", 32), NEW.subset(~AUDIT.flagged)
    assert set(back.hashes) == set(kept.hashes)
    types = {code: NEW.classes[label] for code, label in zip(NEW.hashes, NEW.labels, strict=True)}
    assert all(types[code] == back.classes[label] for code, label in zip(back.hashes, back.labels, strict=True))


def test_metadata_follows_its_image(shared) -> None:
    table = pd.read_csv(shared / "images" / "metadata.csv")
    assert list(table)[:5] == ["file_name", "label", "seed", "generator", "sha256"]
    hashes = NEW.hashes
    for row in table.itertuples():
        i = row.seed - 500
        assert (hashes[i], NEW.classes[NEW.labels[i]]) == (row.sha256, row.label)
        assert row.p_plausible == pytest.approx(SCORES["p_plausible"][i], abs=1e-3)
        assert (shared / "images" / row.file_name).exists()


def test_what_was_left_out(shared) -> None:
    record = json.loads((shared / "audit.json").read_text())
    assert AUDIT.flagged[5] and 505 not in set(pd.read_csv(shared / "images" / "metadata.csv")["seed"])
    mine = next(row for row in record["flagged"] if row["row"] == 5)
    assert mine["exact"] is True and mine["seed"] == 505 and mine["why"] == "the pixels of training image 7"
    assert len(record["flagged"]) == AUDIT.flagged.sum() and record["status"] == "copies found"


def test_datasheet(shared) -> None:
    text = (shared / "README.md").read_text()
    header = yaml.safe_load(text.split("---")[1])
    assert (header["pretty_name"], header["license"], header["size_categories"]) == ("Cells: a | test", "cc-by-4.0", ["n<1K"])
    assert header["configs"][0]["data_files"][0]["path"] == ["images/**/*.png", "images/metadata.csv"]
    for line in AUDIT.verdict().splitlines():
        assert line in text
    assert "not to be used for any diagnosis" in text and "No test shows" in text
    assert not any(name in text + (shared / "audit.json").read_text() for name in TRAIN.names)  # file names may identify a patient


def test_no_training_image_in_the_folder(shared, tmp_path) -> None:
    assert sorted(p.name for p in shared.iterdir()) == ["README.md", "audit.json", "audit_power.jpg", "images"]
    assert shared.with_name("cells - closest pairs, not for sharing.jpg").exists()
    export(tmp_path / "inside", montage_inside=True)
    assert (tmp_path / "inside" / "audit.jpg").exists() and "](audit.jpg)" in (tmp_path / "inside" / "README.md").read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["inside"]


def test_flagged_images_only_when_asked_for(tmp_path) -> None:
    export(tmp_path / "all", flagged="include")
    assert len(pd.read_csv(tmp_path / "all" / "images" / "metadata.csv")) == len(NEW)
    assert "although the audit flagged" in (tmp_path / "all" / "README.md").read_text()
    with pytest.raises(ValueError, match="the audit flags .*Use flagged='leave out'"):
        export(tmp_path / "none", flagged="stop")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(("change", "error", "message"), [
    (dict(flagged="maybe"), ValueError, "flagged must be 'leave out', 'include' or 'stop'; got 'maybe'"),
    (dict(seeds=np.arange(3)), ValueError, "seeds must have one entry per image"),
    (dict(scores=SCORES[:4]), ValueError, "scores must have one row per image"),
    (dict(scores=SCORES.assign(label=1)), ValueError, r"columns \['label'\]"),
    (dict(images=IMAGES[:30], labels=NEW.labels[:30], seeds=None, scores=None), ValueError, "audit must be of exactly these images"),
    (dict(images=np.repeat(IMAGES[:1], len(NEW), 0)), ValueError, "images must differ from each other"),
    (dict(train=TRAIN, audit=None, held_out=TRAIN), ValueError, "held_out must hold no training image"),
    (dict(train=SimpleNamespace(classes=["a/b", *NEW.classes[1:]])), ValueError, "names that can be folders"),
])
def test_refused(tmp_path, change: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        export(tmp_path / "x", **change)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten_and_nothing_half_written(shared, tmp_path, monkeypatch) -> None:
    with pytest.raises(FileExistsError, match="nothing is overwritten"):
        export(shared)
    monkeypatch.setattr("pathloop.export._datasheet", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        export(tmp_path / "half")
    assert list(tmp_path.iterdir()) == []


def test_without_seeds_and_scores(tmp_path) -> None:
    export(tmp_path / "bare", seeds=None, scores=None)
    table = pd.read_csv(tmp_path / "bare" / "images" / "metadata.csv")
    assert table["seed"].isna().all() and list(table) == ["file_name", "label", "seed", "generator", "sha256"]


def test_hugging_face_reads_it(shared) -> None:
    pytest.importorskip("datasets")
    code = ("import sys; from datasets import load_dataset; d = load_dataset(sys.argv[1], split='train', cache_dir=sys.argv[2]); "
            "print(len(d), d[0]['image'].size, d[0]['label'])")
    done = subprocess.run([sys.executable, "-c", code, str(shared), str(shared.parent / "cache")], env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True)
    assert done.stdout.split()[0] == str((~AUDIT.flagged).sum()), done.stderr
