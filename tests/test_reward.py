"""The reward model end to end at toy size, bad input, determinism and the saved folder."""

import numpy as np
import pandas as pd
import pytest

from pathloop.core import image_hashes
from pathloop.data import CellImages
from pathloop.reward import (
    RewardModel,
    calibration_error,
    fit_platt,
    fit_reward,
    reliability_table,
    review_targets,
    score_metrics,
    wrong_labels,
)

CLASSES = ["red", "green"]
SMALL = {"members": 2, "steps": 60, "batch": 24, "width": 16}


def coloured(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    "Discs on noise, red ones of class 0 and green ones of class 1."
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    images = rng.normal(0, 0.2, (n, 3, 16, 16))
    images[np.arange(n), labels, 4:12, 4:12] += 0.7
    return images.clip(-1, 1).astype(np.float32), labels


def judged(n: int, seed: int) -> tuple[np.ndarray, np.ndarray, pd.DataFrame]:
    "Discs shown as right or wrong class, one in ten unsure."
    rng = np.random.default_rng(seed)
    images, truth = coloured(n, seed)
    shown = np.where(rng.random(n) < 0.4, 1 - truth, truth)
    colour = np.where(shown == truth, "yes", "no").astype(object)
    colour[rng.random(n) < 0.1] = "unsure"
    words = {"yes": "plausible", "no": "implausible", "unsure": "unsure"}
    return images, shown, pd.DataFrame({"colour": colour, "size": "yes", "verdict": [words[c] for c in colour]})


@pytest.fixture(scope="module")
def real() -> CellImages:
    return CellImages(*coloured(80, 1), CLASSES)


@pytest.fixture(scope="module", params=["types", "scratch"])
def model(real: CellImages, request: pytest.FixtureRequest) -> RewardModel:
    return fit_reward(*judged(160, 2), real, seed=3, body=request.param, **SMALL)


def test_learns_the_verdict_with_the_sign_of_plausible(model: RewardModel) -> None:
    images, shown, reviews = judged(200, 5)
    score = model.score(images, shown)
    assert score.shape == (200,) and score.min() >= 0 and score.max() <= 1
    assert score[reviews.verdict == "plausible"].mean() > score[reviews.verdict == "implausible"].mean() + 0.5
    assert (model.criteria_scores(images, shown).columns == ["colour", "size"]).all()
    assert np.allclose(model.score(images, 1 - shown) + score, 1, atol=0.5)


def test_spread_is_the_members_deviation(model: RewardModel) -> None:
    images, shown, _ = judged(20, 6)
    a, b = model.calibration["verdict"]
    members = 1 / (1 + np.exp(-(a * model.logits(images, shown)[:, :, 0] + b)))
    assert np.allclose(model.spread(images, shown), members.std(0), atol=1e-5)
    assert np.allclose(model.score(images, shown), members.mean(0), atol=1e-5)


def test_report_counts_and_intervals(model: RewardModel) -> None:
    report = model.report
    counts = report["counts"]
    assert counts["judged"] == 160 and counts["trained_on"] + counts["held_out"] == 160 and 38 <= counts["held_out"] <= 42
    assert report["n"] == report["n_plausible"] + report["n_implausible"] <= counts["held_out"]
    for name in ("auroc", "auprc", "auprc_implausible", "brier", "ece"):
        entry = report[name]
        assert entry["low"] - 1e-9 <= entry["value"] <= entry["high"] + 0.1 and 0 <= entry["reference"] <= 1
    assert sum(row["n"] for row in report["reliability"]) == report["n"]
    assert report["calibration"].startswith("cross-fitted")
    size = next(row for row in report["criteria"] if row["criterion"] == "size")
    assert size["no"] == 0 and size["auroc"] is None and not size["calibrated"]


def test_history_has_a_curve_for_each_member(model: RewardModel) -> None:
    assert set(model.history.member) == {0, 1} and model.history.step.max() == SMALL["steps"]
    curve = model.history.groupby("step").loss_real.mean()
    assert curve.iloc[-1] < curve.iloc[0]
    assert model.history[model.history.step == SMALL["steps"]].loss_judged.between(0, 0.5).all()


def test_same_seed_same_model_other_seed_other_model(real: CellImages) -> None:
    images, shown, reviews = judged(80, 2)
    short = SMALL | {"steps": 5}
    one, two, other = (fit_reward(images, shown, reviews, real, seed=s, **short).logits(images, shown) for s in (0, 0, 1))
    assert np.array_equal(one, two) and not np.allclose(one, other)


def test_saved_and_loaded(model: RewardModel, tmp_path) -> None:
    images, shown, _ = judged(20, 7)
    model.save(tmp_path / "reward")
    again = RewardModel.load(tmp_path / "reward")
    assert np.array_equal(again.score(images, shown), model.score(images, shown))
    assert again.report == model.report and again.settings == model.settings
    pd.testing.assert_frame_equal(again.history, model.history)
    assert sorted(path.name for path in (tmp_path / "reward").iterdir()) == ["history.csv", "reward.json", "reward.safetensors"]
    with pytest.raises(FileExistsError):
        model.save(tmp_path / "reward")


def test_weights_table_names_each_image(model: RewardModel) -> None:
    images, shown, _ = judged(10, 8)
    table = model.weights_table(images, shown, np.arange(10))
    assert list(table.columns) == ["image", "cell_type", "seed", "p_plausible", "spread"]
    assert list(table.image) == image_hashes(images) and list(table.cell_type) == [CLASSES[i] for i in shown]
    with pytest.raises(ValueError, match="seeds must have one entry per image"):
        model.weights_table(images, shown, np.arange(9))


def test_scores_do_not_depend_on_the_batch(model: RewardModel) -> None:
    images, shown, _ = judged(12, 9)
    assert np.allclose(model.logits(images, shown, batch=5), model.logits(images, shown), atol=1e-4)
    assert model.score(images[:0], shown[:0]).shape == (0,)


def test_refuses_too_few_with_the_counts(real: CellImages) -> None:
    images, shown, reviews = judged(60, 2)
    few = np.r_[np.flatnonzero(reviews.verdict == "plausible"), np.flatnonzero(reviews.verdict == "implausible")[:7]]
    with pytest.raises(ValueError, match="'implausible': 7"):
        fit_reward(images[few], shown[few], reviews.iloc[few], real, **SMALL)


def test_eight_of_each_verdict_are_enough_to_run(real: CellImages) -> None:
    images, shown, reviews = judged(80, 2)
    few = np.r_[np.flatnonzero(reviews.verdict == "plausible")[:8], np.flatnonzero(reviews.verdict == "implausible")[:8]]
    report = fit_reward(images[few], shown[few], reviews.iloc[few], real, **(SMALL | {"steps": 5})).report
    assert report["n"] == 4 and "too few" in report["calibration"]


def test_reviews_of_an_image_stay_on_one_side(real: CellImages) -> None:
    from pathloop.reward import _held_out

    images, _, reviews = judged(60, 2)
    twice = pd.concat([reviews, reviews], ignore_index=True)
    held = _held_out(twice, image_hashes(images) * 2, 0.25, seed=0)
    assert np.array_equal(held[:60], held[60:]) and 13 <= held[:60].sum() <= 17


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r, i: r.iloc[:-1], "one row per image"),
        (lambda r, i: r.drop(columns="verdict"), "column 'verdict'"),
        (lambda r, i: r.assign(source=["human", "simulated"] * (len(r) // 2)), "one source"),
        (lambda r, i: r.set_index(pd.Index(image_hashes(i)[::-1])), "in another order"),
        (lambda r, i: r.assign(verdict=r.verdict.replace("unsure", "perhaps")), r"\['perhaps'\]"),
    ],
)
def test_misfitting_reviews(real: CellImages, change, message: str) -> None:
    images, shown, reviews = judged(80, 2)
    with pytest.raises(ValueError, match=message):
        fit_reward(images, shown, change(reviews, images), real, **SMALL)


def test_other_bad_input(real: CellImages, model: RewardModel) -> None:
    images, shown, reviews = judged(80, 2)
    with pytest.raises(ValueError, match="size of the real ones"):
        fit_reward(images[:, :, :8, :8], shown, reviews, real, **SMALL)
    with pytest.raises(ValueError, match="validation_fraction"):
        fit_reward(images, shown, reviews, real, validation_fraction=0.9, **SMALL)
    with pytest.raises(ValueError, match="labels must lie from 0 to 1"):
        fit_reward(images, shown + 1, reviews, real, **SMALL)
    with pytest.raises(ValueError, match="16 x 16"):
        model.score(np.zeros((1, 3, 32, 32), np.float32), np.array([0]))
    with pytest.raises(ValueError, match=r"\['nucleus'\] are missing"):
        review_targets(reviews, ["nucleus"])
    with pytest.raises(ValueError, match="at least 2"):
        wrong_labels(np.zeros(3, int), 1, np.random.default_rng(0))


def test_unsure_answers_are_masked_not_half() -> None:
    _, known = review_targets(pd.DataFrame({"a": ["yes", None, "unsure"], "verdict": ["plausible", "unsure", None]}), ["a"])
    assert known.tolist() == [[True, True], [False, False], [False, False]]


def test_metrics_against_closed_forms() -> None:
    truth = np.tile([0, 1], 50)
    constant = np.full(100, 0.5)
    metrics = score_metrics(constant, truth)
    assert metrics["auroc"]["value"] == 0.5 and metrics["brier"]["value"] == pytest.approx(0.25)
    assert calibration_error(np.ones(40), np.ones(40, int)) == 0
    assert calibration_error(np.full(40, 0.75), np.zeros(40, int)) == pytest.approx(0.75)
    table = reliability_table(constant, truth)
    assert table.n.sum() == 100 and (table.low <= table.observed).all() and (table.observed <= table.high).all()
    with pytest.raises(ValueError, match="shape"):
        fit_platt(np.zeros(4), np.zeros(4))


def test_platt_survives_perfect_separation() -> None:
    slope, offset = fit_platt(np.array([[-9.0, -8, 8, 9]]), np.array([0, 0, 1, 1]))
    assert 0 < slope < 10 and abs(offset) < 5
