"""Several raters, hard wrong classes, encoders, calibration, fresh evaluation, asking, explaining and drift."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score
from test_reward import CLASSES, SMALL, coloured, judged

from pathloop.ask import RULES, ask_next
from pathloop.core import image_hashes, read_json, write_json
from pathloop.data import CellImages, to_uint8
from pathloop.drift import drift_row, relabel_request
from pathloop.explain import RewardExplainer, nearest_judged, occlusion_map
from pathloop.reward import (
    RewardModel,
    _groups,
    _ridge,
    calibration_error,
    disagreement_loss,
    evaluate_reward,
    fit_isotonic,
    fit_platt,
    fit_reward,
    picture_hashes,
    rater_error,
    score_metrics,
    soft_reviews,
    stage_neighbours,
    wrong_labels,
)

TINY = SMALL | {"steps": 6}


@pytest.fixture(scope="module")
def real() -> CellImages:
    return CellImages(*coloured(60, 1), CLASSES)


@pytest.fixture(scope="module")
def model(real: CellImages) -> RewardModel:
    return fit_reward(*judged(120, 2), real, seeds=np.arange(120), **(SMALL | {"steps": 30}))


def test_shares_of_several_raters_are_learned_as_such(real: CellImages) -> None:
    images, shown, reviews = judged(60, 2)
    each = reviews.set_index(pd.Index(image_hashes(images)))
    soft = soft_reviews(pd.concat([each, each, each.assign(verdict="plausible")]), ["colour", "size"])
    assert list(soft.index) == list(each.index) and np.isclose(soft.verdict.to_numpy()[:, None], [1, 1 / 3]).any(1).all()
    fitted = fit_reward(images, shown, soft, real, **TINY)
    assert fitted.criteria == ["colour", "size"] and fitted.report["n_implausible"] > 0
    with pytest.raises(ValueError, match="shares from 0 to 1"):
        fit_reward(images, shown, soft.assign(colour=soft.colour * 2), real, **TINY)


def test_rater_error_finds_the_share_that_was_turned_over() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random(4000) < 0.6
    said = [pd.Series(np.where(truth ^ (rng.random(4000) < 0.1), "plausible", "implausible")) for _ in range(3)]
    assert abs(rater_error(pd.DataFrame({"verdict": pd.concat(said)})) - 0.1) < 0.01
    with pytest.raises(ValueError, match="at least two sure verdicts"):
        rater_error(pd.DataFrame({"verdict": said[0]}))


def test_hard_wrong_classes_are_neighbouring_stages() -> None:
    classes = ["platelet", "myelocyte", "metamyelocyte", "segmented neutrophil"]
    near = stage_neighbours(classes)
    assert near == [[], [2], [1, 3], [2]]
    labels = np.repeat(np.arange(4), 200)
    wrong = wrong_labels(labels, 4, np.random.default_rng(0), near, hard=1.0)
    assert all(w in near[c] for c, w in zip(labels, wrong, strict=True) if c) and set(wrong[labels == 0]) == {1, 2, 3}
    with pytest.raises(ValueError, match="neighbours given"):
        wrong_labels(labels, 4, np.random.default_rng(0), hard=0.5)


def test_heads_that_agree_cost_nothing() -> None:
    known = torch.ones(2, 3, dtype=torch.bool)
    assert disagreement_loss(torch.tensor([[-1.0, 1, 2], [0, 0, 0]]), known) == 0
    assert disagreement_loss(torch.tensor([[3.0, -3, 2], [0, 0, 0]]), known) > 0.3
    assert disagreement_loss(torch.tensor([[3.0, -3, 2], [0, 0, 0]]), torch.zeros(2, 3, dtype=torch.bool)) == 0


def test_no_verdict_is_likelier_than_a_criterion_it_needs(model: RewardModel) -> None:
    images, shown, _ = judged(120, 9)
    met = model.criteria_scores(images, shown)
    assert (model.score(images, shown)[:, None] <= met.to_numpy() + 1e-6).all()
    assert met["colour"].std() > 0.1 # Not merely raised to one


def test_a_defect_that_a_criterion_learned_counts_for_the_verdict(real: CellImages) -> None:
    "The verdicts say nothing (all unsure but a few); the criterion's head knows, and the verdict follows it."
    images, shown, reviews = judged(240, 2)
    told = reviews["verdict"].isin(["plausible", "implausible"]).to_numpy()
    few = np.r_[np.flatnonzero(told & (reviews["verdict"] == "plausible"))[:12], np.flatnonzero(told & (reviews["verdict"] == "implausible"))[:12]]
    reviews.loc[np.setdiff1d(np.arange(240), few), "verdict"] = "unsure"
    model = fit_reward(images, shown, reviews, real, seed=3, **SMALL)
    fresh, labels, truth = judged(200, 5)
    wrong = (truth["verdict"] == "implausible").to_numpy()
    assert model.logits(fresh, labels)[:, wrong, 0].mean() <= model.logits(fresh, labels)[:, wrong, 1].mean() + 1e-9
    assert model.score(fresh, labels)[~wrong].mean() > model.score(fresh, labels)[wrong].mean() + 0.3


def test_a_criterion_that_nobody_answered_does_not_bind_the_verdict(real: CellImages) -> None:
    images, shown, reviews = judged(160, 2)
    plain = fit_reward(images, shown, reviews, real, seed=3, criteria=["colour"], **SMALL)
    more = fit_reward(images, shown, reviews.assign(size="unsure"), real, seed=3, criteria=["colour", "size"], **SMALL)
    fresh, labels, _ = judged(60, 5)
    assert np.allclose(plain.score(fresh, labels), more.score(fresh, labels), atol=0.05) # The rest is chance: one more head was drawn


@pytest.mark.parametrize("kind", ["only failures asked", "one failure", "overruled"])
def test_a_criterion_binds_only_where_its_answers_show_it(real: CellImages, kind: str) -> None:
    images, shown, reviews = judged(160, 2)
    answers = np.full(160, "yes", object)
    if kind == "only failures asked": # Column asked of the rejected alone: 'no' is all that it ever heard
        answers = np.where(reviews["verdict"] == "implausible", "no", "unsure").astype(object)
    elif kind == "one failure":
        answers[7] = "no"
    else: # Said 'no' of half of all, whatever the verdict
        answers[::2] = "no"
    model = fit_reward(images, shown, reviews.assign(size=answers), real, seed=3, **SMALL)
    assert not any(net.binds[1 + model.criteria.index("size")] for net in model.nets)
    fresh, labels, truth = judged(200, 5)
    sure = (truth["verdict"] != "unsure").to_numpy()
    assert roc_auc_score(truth["verdict"][sure] == "plausible", model.score(fresh, labels)[sure]) > 0.97


def test_calibration_error_does_not_depend_on_the_order_of_tied_scores() -> None:
    truth = np.repeat([0, 1], 100)
    shuffled = np.random.default_rng(0).permutation(truth)
    assert calibration_error(np.full(200, 0.5), truth) == calibration_error(np.full(200, 0.5), shuffled) == 0


def test_shares_of_raters_are_refused_as_truth() -> None:
    shares = np.tile([2 / 3, 1.0, 0.0], 20)
    for call in (lambda: score_metrics(np.full(60, 0.6), shares), lambda: drift_row("r", np.full(60, 0.6), shares), lambda: fit_platt(np.zeros((2, 60)), shares)):
        with pytest.raises(ValueError, match="truth must hold 0 and 1 only; got .0.666"):
            call()


@pytest.mark.parametrize("error", [0.03, 0.08])
def test_the_interval_of_the_calibration_error_holds_it(error: float) -> None:
    "Scores that are too high by a known amount: 60 draws of 200 images, at most 6 of which may miss it."
    rng, held = np.random.default_rng(1), 0
    for draw in range(60):
        right = rng.uniform(0.1, 0.9, 200)
        metrics = score_metrics(right + error, (rng.random(200) < right).astype(int), draw, 60)["ece"]
        held += metrics["low"] <= error <= metrics["high"]
    assert held >= 54


def test_images_bound_by_seed_and_picture_are_one_group() -> None:
    a, b = np.random.default_rng(0).uniform(-1, 1, (2, 3, 8, 8)).astype(np.float32)
    groups = _groups(np.stack([a, b, b[:, :, ::-1], a + 0.1]), np.array([1, 2, 1, 9]))
    assert groups[0] == groups[1] == groups[2] != groups[3]


def test_an_older_saved_reward_is_refused_with_the_reason(model: RewardModel, tmp_path) -> None:
    model.save(tmp_path / "reward")
    card = read_json(tmp_path / "reward" / "reward.json")
    write_json(tmp_path / "reward" / "reward.json", {key: value for key, value in card.items() if key != "format"})
    with pytest.raises(ValueError, match="format 2; .* has 1, in which the criteria did not bind"):
        RewardModel.load(tmp_path / "reward")


def test_a_mask_of_what_is_judged_is_understood() -> None:
    images, labels = coloured(20, 3)
    mask = np.arange(20) < 15
    assert set(ask_next(images, labels, 5, "random", mask)) == set(range(15, 20))


def test_the_explainer_shows_other_images_and_says_what_it_remembers(model: RewardModel) -> None:
    images, shown, reviews = judged(120, 2) # What the model was fitted on
    explainer = RewardExplainer(model, images[:6], shown[:6], reviews["verdict"][:6], neighbours=6)
    others = int((shown[:6] == shown[0]).sum()) - 1
    page = explainer(to_uint8(images[:1])[0], CLASSES[shown[0]])
    assert "fitted on this image" in page and page.count("<figure>") == 1 + len(model.criteria) + others
    fresh = explainer(to_uint8(coloured(1, 77)[0])[0], CLASSES[shown[0]])
    assert "fitted on this image" not in fresh and fresh.count("<figure>") == 1 + len(model.criteria) + others + 1


def test_turned_copies_and_images_of_a_seed_are_one(real: CellImages) -> None:
    images, shown, reviews = judged(40, 2)
    assert picture_hashes(np.rot90(images[..., ::-1], 1, (2, 3))) == picture_hashes(images)
    assert len(set(picture_hashes(images))) == 40
    from pathloop.reward import _groups

    assert len(set(_groups(images, np.repeat(np.arange(20), 2)))) == 20


def test_fresh_evaluation_refuses_misfitting_reviews_and_real_training_images(model: RewardModel, real: CellImages) -> None:
    images, shown, reviews = judged(40, 8)
    with pytest.raises(ValueError, match="one row per image"):
        evaluate_reward(model, images, shown, reviews[:30])
    with pytest.raises(ValueError, match="in another order"):
        evaluate_reward(model, images, shown, reviews.set_axis(image_hashes(images)).iloc[::-1])
    with pytest.raises(ValueError, match="seeds must have one entry per image"):
        evaluate_reward(model, images, shown, reviews, seeds=np.arange(3))
    with pytest.raises(ValueError, match="40 of 40 are images it was fitted on"):
        evaluate_reward(model, real.images[:40], real.labels[:40], reviews)


def test_fresh_evaluation_refuses_what_it_was_fitted_on(model: RewardModel) -> None:
    images, shown, reviews = judged(120, 2)
    with pytest.raises(ValueError, match="3 of 3 are images it was fitted on"):
        evaluate_reward(model, images[:3, :, ::-1], shown[:3], reviews[:3])
    fresh, labels, said = judged(100, 8)
    with pytest.raises(ValueError, match="seeds must be new"):
        evaluate_reward(model, fresh, labels, said, seeds=np.arange(100))
    report = evaluate_reward(model, fresh, labels, said, seeds=1000 + np.arange(100))
    assert report["n"] == (said.verdict != "unsure").sum() and [row["class"] for row in report["classes"]] == CLASSES
    assert sum(row["plausible"] for row in report["classes"]) == report["n_plausible"]
    assert {"auroc low", "ece high"} <= set(report["criteria"][0])


def test_pessimism_takes_off_the_spread(model: RewardModel) -> None:
    images, shown, _ = judged(20, 6)
    mean, spread = model.score(images, shown), model.spread(images, shown)
    assert np.allclose(model.score(images, shown, penalty=0.5), (mean - 0.5 * spread).clip(0, 1), atol=1e-6)
    with pytest.raises(ValueError, match="penalty must be 0 or more"):
        model.score(images, shown, penalty=-1)


def test_too_few_of_a_class_and_the_fallback(real: CellImages) -> None:
    images, shown, reviews = judged(80, 2)
    one = np.flatnonzero(shown == 0)
    with pytest.raises(ValueError, match="'green': 0"):
        fit_reward(images[one], shown[one], reviews.iloc[one].reset_index(drop=True), real, **TINY)
    fitted = fit_reward(images[one], shown[one], reviews.iloc[one].reset_index(drop=True), real, pool_classes=True, **TINY)
    assert fitted.report["counts"]["pooled_classes"] == ["green"]


@pytest.mark.parametrize("method", ["temperature", "isotonic", "none"])
def test_calibrations_are_kept(real: CellImages, method: str, tmp_path) -> None:
    images, shown, reviews = judged(80, 2)
    fitted = fit_reward(images, shown, reviews, real, calibration=method, body="scratch", hard=0.5, balance="verdict", smoothing=0.1, **TINY)
    if method == "temperature":
        assert fitted.calibration["verdict"][1] == 0
    fitted.save(tmp_path / "reward")
    assert np.array_equal(RewardModel.load(tmp_path / "reward").score(images, shown), fitted.score(images, shown))


def test_a_class_with_enough_verdicts_has_its_own_calibration(real: CellImages) -> None:
    images, shown, reviews = judged(160, 2)
    fitted = fit_reward(images, shown, reviews, real, class_calibration_from=4, **TINY)
    assert "verdict | red" in fitted.calibration and fitted.calibration["verdict | red"] != fitted.calibration["verdict"]
    slope, offset = fitted.calibration["verdict | red"]
    red = shown == 0
    expected = 1 / (1 + np.exp(-(slope * fitted.logits(images[red], shown[red])[:, :, 0] + offset)))
    assert np.allclose(fitted.score(images, shown)[red], expected.mean(0), atol=1e-5)


def test_few_images_leave_platt_where_it_was() -> None:
    near = fit_platt(np.array([[0.0]]), np.array([1]), around=(0.5, -1.0))
    far = fit_platt(np.zeros((1, 400)), np.ones(400), around=(0.5, -1.0))
    assert abs(near[1] + 1) < 1.5 < far[1] + 1
    assert fit_isotonic(np.zeros((1, 40)), np.tile([0, 1], 20))[1][0] == pytest.approx(0.5)


@pytest.mark.parametrize("change", [{"balance": "size"}, {"calibration": "magic"}, {"hard": 2}, {"hard": 0.5}, {"body": "head"}, {"real_share": 1.0}, {"smoothing": 0.5}])
def test_settings_out_of_range(real: CellImages, change) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        fit_reward(*judged(80, 2), real, **(TINY | change))


def test_a_later_model_starts_from_what_real_images_taught(real: CellImages, tmp_path) -> None:
    images, shown, reviews = judged(160, 2)
    first = fit_reward(images[:80], shown[:80], reviews[:80], real, **TINY)
    first.save(tmp_path / "first")
    later = fit_reward(images, shown, reviews, real, start=RewardModel.load(tmp_path / "first"), **TINY)
    for one, two in zip(first.nets, later.nets, strict=True):
        assert torch.equal(one.types[1].weight, two.types[1].weight) and torch.equal(one.precision, two.precision)
        assert not torch.equal(one.head.weight, two.head.weight)
    anew = fit_reward(images, shown, reviews, real, **TINY)
    assert np.array_equal(anew.logits(images, shown), later.logits(images, shown)) and later.settings["taught_by"]["steps"] == TINY["steps"]
    other = CellImages(*coloured(60, 99), CLASSES)
    with pytest.raises(ValueError, match="same real images"):
        fit_reward(images, shown, reviews, other, start=first, **TINY)
    with pytest.raises(ValueError, match=r"none of \['green'\]"):
        fit_reward(images, shown, reviews, real.subset(real.labels == 0), **TINY)
    with pytest.raises(ValueError, match="start must be a model with body 'types' of the same members"):
        fit_reward(images, shown, reviews, real, start=first, **(TINY | {"members": 3}))
    with pytest.raises(ValueError, match="start must be .* same body"):
        fit_reward(images, shown, reviews, real, start=first, body="scratch", **TINY)


def test_the_ridge_is_near_the_best_whether_types_or_features_decide() -> None:
    random = np.random.default_rng(0)
    rows, fresh, even = random.normal(size=(60, 195)), random.normal(size=(2000, 195)), np.ones(60)

    def ranked(line: np.ndarray, columns: list[int]) -> float:
        return float(roc_auc_score(fresh[:, columns].sum(1) > 0, fresh @ line[:-1] + line[-1]))

    for columns in ([0, 1], [5, 80, 120]): # The verdict follows two of the three numbers, and the features are noise; or features alone
        wrong = random.random(60) < 0.15
        target = ((rows[:, columns].sum(1) > 0) ^ wrong).astype(float)
        without, alike = (ranked(_ridge(rows, target, even, count), columns) for count in (0.0, 1.0))
        assert abs(without - alike) > 0.05
        assert ranked(_ridge(rows, target, even), columns) > max(without, alike) - 0.05
    assert _ridge(rows, even, even)[-1] > 4 # One answer only: a constant
    assert not _ridge(rows, even, even)[:-1].any()


def test_real_images_alone_rank_right_classes_above_wrong_ones(model: RewardModel, real: CellImages) -> None:
    images, truth = coloured(100, 9)
    assert (model.typicality(images, truth) > model.typicality(images, 1 - truth)).mean() > 0.95
    assert model.typicality(images[:0], truth[:0]).shape == (0,)
    scratch = fit_reward(*judged(80, 2), real, body="scratch", **TINY)
    with pytest.raises(ValueError, match="body must be 'types'"):
        scratch.typicality(images, truth)


def test_mixed_sources_only_when_asked(real: CellImages) -> None:
    images, shown, reviews = judged(80, 2)
    both = reviews.assign(source=["human", "simulated"] * 40)
    with pytest.raises(ValueError, match="mixed_sources=True"):
        fit_reward(images, shown, both, real, **TINY)
    assert fit_reward(images, shown, both, real, mixed_sources=True, **TINY).criteria == ["colour", "size"]


@pytest.mark.parametrize("finetune", [False, True])
def test_an_encoder_from_a_folder(real: CellImages, tmp_path, finetune: bool) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
    encoder = transformers.Dinov2Model(config)
    encoder.save_pretrained(tmp_path / "encoder")
    images, shown, reviews = judged(80, 2)
    fitted = fit_reward(images, shown, reviews, real, encoder=str(tmp_path / "encoder"), encoder_size=28, finetune_encoder=finetune, **TINY)
    weight = dict(fitted.nets[0].encoder.named_parameters())["embeddings.patch_embeddings.projection.weight"]
    assert torch.equal(weight.cpu(), encoder.embeddings.patch_embeddings.projection.weight) is not finetune
    fitted.save(tmp_path / "reward")
    (tmp_path / "encoder").rename(tmp_path / "gone")
    assert np.allclose(RewardModel.load(tmp_path / "reward").score(images, shown), fitted.score(images, shown), atol=1e-6)
    with pytest.raises(ValueError, match="encoder must be a folder"):
        fit_reward(images, shown, reviews, real, encoder=str(tmp_path / "encoder"), **TINY)


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_names_new_images(model: RewardModel, rule: str) -> None:
    images, shown, _ = judged(60, 4)
    chosen = ask_next(images, shown, 10, rule, asked=range(20), model=model, seed=1)
    assert len(set(chosen)) == 10 and chosen.min() >= 20
    assert np.array_equal(chosen, ask_next(images, shown, 10, rule, asked=range(20), model=model, seed=1))
    if rule == "uncertainty":
        doubt = np.abs(model.score(images, shown) - 0.5)
        assert doubt[chosen].max() <= np.delete(doubt, np.r_[np.arange(20), chosen]).min()


def test_asking_wrongly(model: RewardModel) -> None:
    images, shown, _ = judged(10, 4)
    for arguments, message in [((11,), "n must be from 1 to the 10"), ((2, "magic"), "rule must be one of"), ((2, "k-centre"), "model must be given")]:
        with pytest.raises(ValueError, match=message):
            ask_next(images, shown, *arguments)


def test_the_map_finds_the_disc_and_the_neighbour_is_itself(model: RewardModel) -> None:
    images, shown, reviews = judged(30, 4)
    maps = occlusion_map(model, images[0], int(shown[0]), cover=4, step=2)
    assert set(maps) == {"verdict", "colour", "size"} and maps["verdict"].shape == (16, 16)
    beside = nearest_judged(model, images[:5], shown[:5], images, shown, reviews.verdict, k=2)
    first = beside[beside["rank"] == 1]
    assert list(first.judged) == list(range(5)) and (first.distance < 1e-3).all()


def test_drift_rings_when_the_score_is_too_high_and_not_by_chance() -> None:
    rng = np.random.default_rng(1)
    score = rng.random(300)
    honest = [relabel_request(pd.DataFrame([drift_row("r", p, rng.random(100) < p)])) for p in score.reshape(3, 100)]
    assert sum(map(bool, honest)) <= 1
    assert "mean score" in relabel_request(pd.DataFrame([drift_row("r", score[:100], rng.random(100) < score[:100] ** 3)]))
    with pytest.raises(ValueError, match="at least one round"):
        relabel_request(pd.DataFrame())
