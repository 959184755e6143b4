"""Concepts in a study: labels from answers, the folder that comes of it, the command line."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

from pathloop.cli import app
from pathloop.concept_study import add_type_to_study, split_study, subtype_checklist, subtype_labels, subtype_panel
from pathloop.core import image_hashes, read_json
from pathloop.data import to_uint8
from pathloop.diffusion import Generator
from pathloop.loop import TINY, Study, StudyConfig
from pathloop.smear import make_smear
from pathloop.subtypes import ConceptModel, SplitConfig

NAMES = ["horseshoe nucleus", "kidney nucleus"]
BRIEF = SplitConfig(steps=2, row_steps=2, batch_size=8)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    made = Study.create(tmp_path_factory.mktemp("study") / "s", StudyConfig(**TINY), say=lambda line: None)
    made.prepare()
    made.pretrain()
    return made


def test_one_clear_yes_is_a_label() -> None:
    images = make_smear(5, 16, seed=0, classes=["monocyte"]).images
    a, b = "is_horseshoe_nucleus", "is_kidney_nucleus"
    said = pd.DataFrame([
        (0, "yes", "no"), (1, "no", "yes"), (1, "no", "yes"), (1, "yes", "no"), # Two raters against one
        (2, "yes", "yes"), (3, "no", "no"), (4, "yes", "no"), (4, "no", "yes"), # Both, none, a draw
    ], columns=["image", a, b])
    said.index = [image_hashes(images)[i] for i in said.pop("image")]
    rows, labels = subtype_labels(said, images, NAMES)
    assert rows.tolist() == [0, 1] and labels.tolist() == [0, 1]
    with pytest.raises(ValueError, match="column for each question"):
        subtype_labels(said[[a]], images, NAMES)


def test_checklist_asks_one_question_per_subtype() -> None:
    checklist = subtype_checklist("monocyte", NAMES)
    assert checklist.classes == ["monocyte"] and checklist.criteria_names == ["is_horseshoe_nucleus", "is_kidney_nucleus"]
    for names in (["one"], ["a b", "A-B"]):
        with pytest.raises(ValueError, match="two or more"):
            subtype_checklist("monocyte", names)


def test_panel_answers_reach_the_split(study: Study) -> None:
    panel = subtype_panel(study, "monocyte", NAMES, "anna", n=4, view="grid")
    assert panel is not None
    cells = study.real("train").of_class("monocyte")
    odd = np.arange(len(cells)) % 2
    answers = pd.DataFrame({"is_horseshoe_nucleus": np.where(odd, "no", "yes"), "is_kidney_nucleus": np.where(odd, "yes", "no")})
    study.store.record_reviews(cells.images, np.zeros(len(cells), int), ["monocyte"], answers, "anna", "human", "real", subtype_checklist("monocyte", NAMES))
    folder = split_study(study, "monocyte", NAMES, settings=BRIEF)
    card = read_json(folder / "card.json")
    assert folder.name == "monocyte" and sum(card["labels"].values()) == len(cells) and card["labels_from"] == "the study's store" and card["from"] == "untouched"
    assert Generator.from_pretrained(folder / "generator").classes == [*study.generator().classes, *NAMES]
    assert ConceptModel.load(folder / "concept.json").names == NAMES
    with pytest.raises(FileExistsError, match="made already"):
        split_study(study, "monocyte", NAMES, settings=BRIEF)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (pd.DataFrame({"picture": ["x"]}), "columns image and subtype"),
        (pd.DataFrame({"image": ["x"], "subtype": [NAMES[0]]}), "unknown images \\['x'\\]"),
        (None, "at least 10 images of each"),
    ],
)
def test_bad_labels(study: Study, labels: pd.DataFrame | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split_study(study, "lymphocyte", NAMES, labels, BRIEF)


def test_type_from_a_folder(study: Study, tmp_path: Path) -> None:
    for kind in ("promyelocyte", "metamyelocyte"):
        (tmp_path / "one" / kind if kind == "promyelocyte" else tmp_path / "two" / kind).mkdir(parents=True)
    for i, pixels in enumerate(to_uint8(make_smear(8, 32, seed=3, classes=["promyelocyte"]).images)):
        Image.fromarray(pixels).save(tmp_path / "one" / "promyelocyte" / f"{i}.png")
    folder = add_type_to_study(study, "promyelocyte", tmp_path / "one", BRIEF)
    assert Generator.from_pretrained(folder / "generator").classes[-1] == "promyelocyte" and read_json(folder / "card.json")["images"] == 8


def test_command_line(study: Study, tmp_path: Path) -> None:
    runner = CliRunner()
    assert "split" in runner.invoke(app, ["concept", "--help"]).output
    table = tmp_path / "labels.csv"
    pd.DataFrame({"image": ["x"], "subtype": ["nothing"]}).to_csv(table, index=False)
    failed = runner.invoke(app, ["concept", "split", str(study.folder), "--parent", "lymphocyte", "--name", NAMES[0], "--name", NAMES[1], "--labels", str(table)])
    assert isinstance(failed.exception, ValueError) and "unknown subtypes" in str(failed.exception)
