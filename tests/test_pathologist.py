"""Bad input, file formats and properties of the simulated pathologist and the judge."""

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pathloop.checklist import generic_checklist, load_checklist, verdict_of
from pathloop.data import CellImages
from pathloop.pathologist import (
    CRITERIA,
    DEFECTS,
    MEASUREMENTS,
    Judge,
    SimulatedPathologist,
    corrupt_images,
    fit_judge,
    fit_pathologist,
    measure_cell,
    measure_cells,
    segment_cell,
    segment_cells,
)
from pathloop.smear import make_smear, smear_masks

SHARED = Path(os.environ.get("PATHLOOP_SHARED", Path(__file__).parents[2] / "shared"))
FOUR = ["eosinophil", "lymphocyte", "monocyte", "erythroblast"]


@pytest.fixture(scope="module")
def real():
    return make_smear(14, size=32, seed=0, classes=FOUR)


@pytest.fixture(scope="module")
def new():
    return make_smear(6, size=32, seed=9, classes=FOUR)


@pytest.fixture(scope="module")
def checklist():
    return load_checklist("peripheral-blood")


@pytest.fixture(scope="module")
def pathologist(real, checklist):
    return fit_pathologist(real, checklist)


@pytest.fixture(scope="module")
def judge(real):
    return fit_judge(real, members=2, steps=40)


def dice(a, b):
    return 2 * (a & b).sum() / max(a.sum() + b.sum(), 1)


# Segmentation and measurement


@pytest.mark.parametrize("size", [32, 64, 96, 128])
def test_masks_have_the_image_size_and_overlap_the_truth(size):
    cells = make_smear(1, size=size, seed=3, classes=FOUR)
    nuclei, wholes = segment_cells(cells.images)
    true_nuclei, true_wholes = smear_masks(1, size=size, seed=3, classes=FOUR)
    assert nuclei.shape == wholes.shape == (4, size, size) and nuclei.dtype == bool
    assert np.mean([dice(a, b) for a, b in zip(nuclei, true_nuclei, strict=True)]) > 0.75
    assert np.mean([dice(a, b) for a, b in zip(wholes, true_wholes, strict=True)]) > 0.75


def test_one_image_gives_what_the_stack_gives(new):
    nuclei, wholes = segment_cells(new.images[:3])
    nucleus, whole = segment_cell(new.images[1])
    assert np.array_equal(nucleus, nuclei[1]) and np.array_equal(whole, wholes[1])
    table, one = measure_cells(new.images[:3]), measure_cell(new.images[1])
    assert list(table.columns) == MEASUREMENTS == list(one)
    np.testing.assert_allclose(table.iloc[1].to_numpy(), list(one.values()), rtol=1e-4, atol=1e-5)


def test_an_image_that_is_not_square_is_segmented():
    image = make_smear(1, size=64, seed=3, classes=["lymphocyte"]).images[0][:, 4:60]
    nucleus, whole = segment_cell(image)
    assert nucleus.shape == (56, 64) and nucleus.any() and whole.any()


@pytest.mark.parametrize("fill", [-1.0, 0.0, 1.0])
def test_an_empty_field_holds_no_cell(fill):
    image = np.full((3, 32, 32), fill, np.float32)
    nucleus, whole = segment_cell(image)
    assert not nucleus.any() and not whole.any()
    assert np.isnan(list(measure_cell(image).values())).all()


def test_noise_is_measured_without_error():
    images = np.random.default_rng(0).uniform(-1, 1, (4, 3, 32, 32)).astype(np.float32)
    assert measure_cells(images).shape == (4, len(MEASUREMENTS))


def test_no_images_give_an_empty_table():
    assert measure_cells(np.zeros((0, 3, 32, 32), np.float32)).shape == (0, len(MEASUREMENTS))
    assert segment_cells(np.zeros((0, 3, 32, 32), np.float32))[0].shape == (0, 32, 32)


@pytest.mark.parametrize("bad, message", [
    (np.zeros((32, 32, 3), np.float32), "shape"),
    (np.zeros((2, 3, 32, 32), np.float32), "shape"),
    (np.full((3, 32, 32), 2.0, np.float32), r"\[-1, 1\]"),
    (np.full((3, 32, 32), np.nan, np.float32), "finite"),
    (np.zeros((3, 32, 32), np.uint8), "from_uint8"),
])
def test_bad_images_are_refused(bad, message):
    for function in (segment_cell, measure_cell):
        with pytest.raises(ValueError, match=message):
            function(bad)


def test_a_turned_image_measures_the_same(new):
    turned = measure_cells(np.rot90(new.images[:8], axes=(2, 3)).copy())
    straight = measure_cells(new.images[:8])
    assert np.median(np.abs(turned["cell_area"] / straight["cell_area"] - 1)) < 0.03
    assert np.median(np.abs(turned["nucleus_darkness"] / straight["nucleus_darkness"] - 1)) < 0.03


# Pathologist


def test_right_types_pass_and_wrong_ones_do_not(pathologist, new):
    right = pathologist.review(new.images, new.labels)["verdict"] == "plausible"
    wrong = pathologist.review(new.images, (new.labels + 1) % 4)["verdict"] == "plausible"
    assert right.mean() > 0.65 and wrong.mean() < 0.25


def test_review_has_the_promised_columns_words_and_verdicts(pathologist, new, checklist):
    review = pathologist.review(new.images, (new.labels + np.arange(len(new)) % 2) % 4)
    assert list(review.columns) == [*(c.name for c in checklist.for_type("lymphocyte")), "verdict"] == [*CRITERIA, "verdict"]
    assert set(np.unique(review[list(CRITERIA)])) <= {"yes", "no", "unsure"}
    assert review["verdict"].tolist() == [verdict_of(row) for row in review[list(CRITERIA)].to_dict("records")]
    assert pathologist.review(new.images[:0], new.labels[:0]).empty


def test_an_empty_field_is_implausible_and_the_rest_unsure(pathologist):
    review = pathologist.review(np.full((1, 3, 32, 32), 0.8, np.float32), np.array([0]))
    assert review.iloc[0].tolist() == ["no", *["unsure"] * 6, "implausible"]
    explanation = pathologist.explain(np.full((3, 32, 32), 0.8, np.float32), 0)
    assert explanation["value"].isna().all() and not explanation["inside"].any() and explanation.attrs["closest_type"] is None


def test_explanation_agrees_with_the_review(pathologist, new):
    review = pathologist.review(new.images[:5], new.labels[:5])
    for i in range(5):
        explanation = pathologist.explain(new.images[i], int(new.labels[i]))
        assert explanation["measurement"].tolist() == MEASUREMENTS
        assert explanation.groupby("criterion", sort=False)["answer"].first().tolist() == review.iloc[i, :7].tolist()
        assert (explanation["low"] <= explanation["high"]).all()


def test_a_stain_of_another_colour_is_seen(pathologist, new):
    review = pathologist.review(new.images[:, ::-1].copy(), new.labels)
    assert (review["verdict"] == "plausible").mean() < 0.1


def test_more_tolerance_rejects_more(real, checklist, new):
    strict = fit_pathologist(real, checklist, tolerance=0.4).review(new.images, new.labels)["verdict"] == "plausible"
    mild = fit_pathologist(real, checklist, tolerance=0.02).review(new.images, new.labels)["verdict"] == "plausible"
    assert strict.mean() < mild.mean()


def test_a_saved_pathologist_answers_alike(pathologist, new, tmp_path):
    pathologist.save(tmp_path / "pathologist.json")
    again = SimulatedPathologist.load(tmp_path / "pathologist.json")
    pd.testing.assert_frame_equal(again.review(new.images, new.labels), pathologist.review(new.images, new.labels))
    pd.testing.assert_frame_equal(again.report, pathologist.report)
    assert again.checklist == pathologist.checklist
    (tmp_path / "other.json").write_text(json.dumps({"format": "else"}))
    with pytest.raises(ValueError, match="Fit and save it again"):
        SimulatedPathologist.load(tmp_path / "other.json")


def test_types_with_few_images_are_named_with_their_counts(checklist, real):
    thin = real.subset(np.concatenate([np.flatnonzero(real.labels != 1), np.flatnonzero(real.labels == 1)[:5]]))
    with pytest.raises(ValueError, match=r"at least 8.*'lymphocyte': '[0-5] of 5 measurable'"):
        fit_pathologist(thin, checklist)


def test_a_class_missing_from_the_checklist_is_named(checklist, real):
    renamed = CellImages(real.images, real.labels, ["eosinophil", "unicorn", "monocyte", "erythroblast"])
    with pytest.raises(ValueError, match=r"unicorn.*generic_checklist"):
        fit_pathologist(renamed, checklist)
    general = fit_pathologist(renamed, generic_checklist(renamed.classes))
    assert general.classes[1] == "unicorn"


@pytest.mark.parametrize("tolerance", [0.0, 0.5, -1, 2])
def test_tolerance_out_of_range(real, checklist, tolerance):
    with pytest.raises(ValueError, match="tolerance"):
        fit_pathologist(real, checklist, tolerance=tolerance)


@pytest.mark.parametrize("labels, message", [
    ([0], "shape"), ([9] * 3, "from 0 to 3"), ([-1] * 3, "from 0 to 3"), ([0.5] * 3, "integers"),
])
def test_bad_labels_are_refused(pathologist, judge, new, labels, message):
    for ask in (pathologist.review, judge.score):
        with pytest.raises(ValueError, match=message):
            ask(new.images[:3], np.array(labels))


def test_images_of_another_size_are_refused(pathologist, judge):
    other = make_smear(1, size=64, classes=FOUR)
    for ask in (pathologist.review, judge.plausible):
        with pytest.raises(ValueError, match="32 x 32"):
            ask(other.images, other.labels)


# Judge


@pytest.mark.parametrize("kind", DEFECTS)
def test_defects_are_reproducible_images_that_differ(new, kind):
    broken = corrupt_images(new, kind, seed=4)
    assert broken.shape == new.images.shape and broken.dtype == np.float32 and np.abs(broken).max() <= 1
    assert np.array_equal(broken, corrupt_images(new, kind, seed=4))
    assert not np.array_equal(broken, corrupt_images(new, kind, seed=5))
    assert (np.abs(broken - new.images).max((1, 2, 3)) > 0.05).all()


def test_defects_need_two_types(new):
    with pytest.raises(ValueError, match="two types"):
        corrupt_images(new.of_class("monocyte"), "halves")


def test_the_judge_tells_types_apart(judge, new):
    right, wrong = judge.score(new.images, new.labels), judge.score(new.images, (new.labels + 1) % 4)
    assert right.mean() > wrong.mean() and (right <= 0).all() and right.shape == (len(new),)
    assert judge.plausible(new.images, new.labels).dtype == bool
    assert judge.score(new.images[:0], new.labels[:0]).shape == (0,)


def test_the_same_seed_gives_the_same_judge(real, new):
    a, b = (fit_judge(real, seed=3, members=2, steps=4).score(new.images, new.labels) for _ in range(2))
    np.testing.assert_allclose(a, b, rtol=1e-4)


def test_a_saved_judge_scores_alike_and_holds_no_pickle(judge, new, tmp_path):
    judge.save(tmp_path / "judge")
    assert sorted(path.name for path in (tmp_path / "judge").iterdir()) == ["judge.json", "judge.safetensors"]
    again = Judge.load(tmp_path / "judge")
    np.testing.assert_allclose(again.score(new.images, new.labels), judge.score(new.images, new.labels), rtol=1e-5)
    assert np.array_equal(again.thresholds, judge.thresholds)
    with pytest.raises(FileExistsError):
        judge.save(tmp_path / "judge")
    with pytest.raises(ValueError, match="judge.json"):
        Judge.load(tmp_path)


@pytest.mark.parametrize("options, message", [({"members": 1}, "members"), ({"steps": 0}, "steps")])
def test_bad_settings_of_the_judge(real, options, message):
    with pytest.raises(ValueError, match=message):
        fit_judge(real, **options)


def test_a_judge_needs_images_of_two_types(real):
    with pytest.raises(ValueError, match="at least 2 classes and 8 images"):
        fit_judge(real.subset(np.arange(18)))
    odd = CellImages(real.images[:, :, :31, :31], real.labels, real.classes)
    with pytest.raises(ValueError, match="even number"):
        fit_judge(odd)


# Real cells, where they are


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "data" / "wbc-tecom").exists(), reason="no wbc-tecom")
@pytest.mark.parametrize("size, nucleus_aim, cell_aim", [(64, 0.92, 0.93), (32, 0.89, 0.93)])
def test_masks_overlap_those_of_experts(size, nucleus_aim, cell_aim):
    from PIL import Image

    folder, scores = SHARED / "data" / "wbc-tecom", []
    table = pd.read_csv(folder / "labels.csv")
    for name, mask_name in zip(table["image"], table["mask"], strict=True):
        picture = Image.open(folder / name).convert("RGB").resize((size, size), Image.Resampling.LANCZOS)
        mask = np.asarray(Image.open(folder / mask_name).resize((size, size), Image.Resampling.NEAREST))
        nucleus, whole = segment_cell(np.asarray(picture).transpose(2, 0, 1).astype(np.float32) / 127.5 - 1)
        scores.append((dice(nucleus, mask > 192), dice(whole, mask > 64)))
    nucleus_score, cell_score = np.mean(scores, axis=0)
    assert nucleus_score > nucleus_aim and cell_score > cell_aim


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "data" / "pbc64").exists(), reason="no pbc64")
def test_both_instruments_on_real_cells():
    from pathloop.data import load_images

    cells = load_images(SHARED / "data" / "pbc64", size=32)
    use = cells.attributes["use"].to_numpy()
    test, train, rest = cells.subset(use == "test"), cells.subset(use == "train"), cells.subset(np.isin(use, ["expert", "extra"]))
    pathologist, judge = fit_pathologist(train, generic_checklist(cells.classes)), fit_judge(rest)
    wrong = (test.labels + np.random.default_rng(3).integers(1, 11, len(test))) % 11
    for labels, lowest, highest in ((test.labels, 0.90, 0.98), (wrong, 0.0, 0.17)):
        by_pathologist = (pathologist.review(test.images, labels)["verdict"] == "plausible").mean()
        by_judge = judge.plausible(test.images, labels).mean()
        print(f"n {len(test)}: plausible to the pathologist {by_pathologist:.3f}, to the judge {by_judge:.3f}")
        assert lowest <= by_pathologist <= highest and lowest <= by_judge <= highest


@pytest.mark.slow
def test_judge_with_a_network_for_damage_refuses_what_it_was_shown(tmp_path: Path) -> None:
    real, new = make_smear(40, 32, seed=0), make_smear(10, 32, seed=9)
    judge = fit_judge(real, seed=0, steps=60, sound_steps=150)
    blurred = corrupt_images(new, "blur")
    sound, damaged = judge.soundness(new.images) >= judge.sound_floor, judge.soundness(blurred) >= judge.sound_floor
    assert sound.mean() > damaged.mean() + 0.5
    assert not judge.plausible(blurred, new.labels)[~damaged].any(), "what is damaged is not plausible"
    judge.save(tmp_path / "judge")
    np.testing.assert_allclose(Judge.load(tmp_path / "judge").soundness(new.images), judge.soundness(new.images), rtol=1e-5)
    with pytest.raises(ValueError, match="sound_steps must be 0 or more"):
        fit_judge(real, sound_steps=-1)
