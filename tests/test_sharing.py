"""Copies are found in every disguise that can be found, honest images are not accused, and attacks match known answers."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import mannwhitneyu, norm
from sklearn.metrics import roc_auc_score

from pathloop.data import CellImages
from pathloop.evaluate import TooFewImages
from pathloop.sharing import (
    CopyFinder,
    auc_interval,
    audit_sharing,
    ct_test,
    disguised_copies,
    excess_p,
    fit_yardstick,
    membership_attack,
    montage,
    power_figure,
    rank_z,
    straightened,
    suspicion_by_distance,
    suspicion_by_loss,
)
from pathloop.smear import make_smear

TRAIN, UNSEEN, NEW = (make_smear(24, 32, seed) for seed in (0, 1, 2))
FINDER = CopyFinder(TRAIN.images)


@pytest.fixture(scope="module")
def honest():
    return audit_sharing(TRAIN, UNSEEN, NEW.images, NEW.labels, plant=24)


@pytest.mark.parametrize("k", range(8))
def test_every_symmetry_is_a_copy(k: int) -> None:
    turned = np.rot90(TRAIN.images[:6], k % 4, (2, 3))
    near = FINDER(np.ascontiguousarray(turned[..., ::-1] if k > 3 else turned))
    assert (near.ratio["as it lies"] < 0.02).all()
    assert (near.nearest["as it lies"] == np.arange(6)).all()


def test_nearest_by_brute_force() -> None:
    "The block-wise distances are those of the definition."
    found = FINDER(UNSEEN.images[:5], block=2)
    ours, known = (((x - x.mean((2, 3), keepdims=True)) / (x.std((2, 3), keepdims=True) + 0.02)).astype(np.float64) for x in (UNSEEN.images[:5], TRAIN.images))
    for i in range(5):
        turns = [np.rot90(ours[i], k, (1, 2)) for k in range(4)]
        turns += [t[..., ::-1] for t in turns]
        apart = np.min([np.sqrt(((known - t) ** 2).mean((1, 2, 3))) for t in turns], axis=0)
        assert found.distance["as it lies"][i] == pytest.approx(apart.min(), rel=1e-3)
        assert found.nearest["as it lies"][i] == apart.argmin()
        assert found.ratio["as it lies"][i] == pytest.approx(apart.min() / np.sort(apart)[1:51].mean(), rel=1e-3)


def test_colour_is_forgotten() -> None:
    faded = (TRAIN.images[:8] * np.array([0.5, 0.7, 0.9]).reshape(3, 1, 1) + 0.05).astype(np.float32)
    assert (FINDER(faded).ratio["as it lies"] < 0.1).all()


def test_straightening_undoes_turning_and_moving() -> None:
    copies = disguised_copies(TRAIN.images)
    for name in ("rotated 15\N{DEGREE SIGN}", "moved 6 %"):
        near = FINDER(copies[name])
        assert (near.nearest["straightened"] == np.arange(len(TRAIN))).mean() > 0.7
        assert near.ratio["straightened"].median() < near.ratio["as it lies"].median() - 0.1


def test_straightened_keeps_an_empty_image_whole() -> None:
    assert np.isfinite(straightened(np.zeros((2, 3, 20, 20), np.float32))).all()


def test_features_are_one_more_view() -> None:
    finder = CopyFinder(TRAIN.images, features=lambda images: images.mean((2, 3)))
    near = finder(TRAIN.images[:3])
    assert list(near.ratio) == ["as it lies", "straightened", "features"]
    assert (near.nearest["features"] == [0, 1, 2]).all()


def test_larger_images_are_reduced() -> None:
    large = make_smear(2, 64, 0)
    near = CopyFinder(large.images)(large.images[:2, :, ::-1].copy())
    assert (near.ratio["as it lies"] < 0.02).all()


def test_yardstick_flags_its_share_and_no_more() -> None:
    unseen = FINDER(UNSEEN.images)
    yardstick = fit_yardstick(unseen, 0.05)
    assert (yardstick.score(unseen) < yardstick.limit).sum() == int(0.05 * (len(UNSEEN) + 1)) - 1
    with pytest.raises(TooFewImages, match="at least 199 images for a false alarm of 0.005"):
        fit_yardstick(unseen, 0.005)


def test_excess_is_exact_under_exchange() -> None:
    "Images and yardstick from one law: the p-value must fall below 5 % in at most 5 % of trials, and not in almost none."
    random = np.random.default_rng(0)
    unseen, new = random.normal(size=(4000, 400)), random.normal(size=(4000, 300))
    rank = 8
    counts = (new < np.sort(unseen, axis=1)[:, [rank - 1]]).sum(1)
    p = np.array([excess_p(k, 300, rank, 400) for k in range(counts.max() + 1)])[counts]
    assert 0.02 < (p < 0.05).mean() < 0.055
    assert excess_p(0, 300, rank, 400) == pytest.approx(1)


def test_rank_z_is_mann_whitney() -> None:
    random = np.random.default_rng(1)
    a, b = random.integers(0, 9, 40).astype(float), random.integers(2, 11, 55).astype(float)
    p = mannwhitneyu(a, b, alternative="less", use_continuity=False, method="asymptotic").pvalue
    assert norm.cdf(rank_z(a, b)) == pytest.approx(p, rel=1e-9)
    assert rank_z(np.ones(5), np.ones(7)) == 0


def test_ct_weighs_types_by_unseen_images() -> None:
    random = np.random.default_rng(2)
    near, far = random.random(60), random.random(90) + 0.2
    ours, theirs = np.repeat([0, 1], [20, 40]), np.repeat([0, 1, 2], [30, 57, 3])
    value, p = ct_test(near, far, ours, theirs)
    by_hand = (30 * rank_z(near[:20], far[:30]) + 57 * rank_z(near[20:], far[30:87])) / 87
    assert value == pytest.approx(by_hand)
    assert p < 0.01
    with pytest.raises(TooFewImages, match="share a cell type"):
        ct_test(near, far, ours, theirs + 5)


def test_ct_p_is_uniform_without_copying() -> None:
    random = np.random.default_rng(3)
    types = np.repeat(np.arange(4), 25)
    p = [ct_test(random.random(100), random.random(100), types, types)[1] for _ in range(800)]
    assert 0.03 < np.mean(np.array(p) < 0.05) < 0.075


def test_auc_and_its_interval() -> None:
    random = np.random.default_rng(4)
    positive, negative = random.integers(1, 7, 80), random.integers(0, 6, 60)
    estimate = auc_interval(positive, negative)
    assert estimate.value == pytest.approx(roc_auc_score(np.repeat([1, 0], [80, 60]), np.concatenate([positive, negative])))
    assert estimate.low < estimate.value < estimate.high
    assert auc_interval(np.arange(10, 20), np.arange(10)).high == 1
    with pytest.raises(TooFewImages, match="at least 2 scores"):
        auc_interval(positive, negative[:1])


def test_auc_interval_covers() -> None:
    random, truth = np.random.default_rng(5), norm.cdf(1 / np.sqrt(2))
    held = [(e.low <= truth <= e.high) for e in (auc_interval(random.normal(1, 1, 40), random.normal(0, 1, 40)) for _ in range(600))]
    assert 0.93 < np.mean(held) < 0.975


def test_attack_counts_false_accusations() -> None:
    strangers = np.arange(100.0)
    attack = membership_attack(np.array([98.5, 97.5, 94.5, 10.0]), strangers)
    assert [attack.found[share].value for share in (0.01, 0.05)] == [0.25, 0.75]  # one accused: above 98; five: above 94
    with pytest.raises(ValueError, match="finite"):
        membership_attack(np.array([np.nan, 1]), strangers)


def test_both_attackers_find_what_was_memorised() -> None:
    copies = disguised_copies(TRAIN.images)["blurred"]
    by_distance = membership_attack(suspicion_by_distance(copies, TRAIN), suspicion_by_distance(copies, UNSEEN))
    assert by_distance.auc.low > 0.95

    def remembers(images, labels, seed):
        return FINDER(images).distance["as it lies"].to_numpy() + 0.01

    by_loss = membership_attack(suspicion_by_loss(remembers, TRAIN, 1), suspicion_by_loss(remembers, UNSEEN, 1))
    assert by_loss.auc.value > 0.999 and by_loss.p < 1e-6


def test_honest_set(honest) -> None:
    assert honest.status != "copies found"
    assert honest.flagged.mean() < 0.05
    assert honest.planted.loc["same pixels", "value"] == 1
    assert honest.alarms.loc[0.0, "value"] < 0.1 < honest.alarms.loc[0.1, "value"]
    text = honest.verdict().lower()
    assert not any(word in text for word in ("private", "anonymous", "is safe", "guarantee"))
    assert "no test shows" in text and "planted" in text


def test_one_exact_copy_is_enough() -> None:
    images = NEW.images.copy()
    images[3] = np.rot90(TRAIN.images[9], 1, (1, 2))[..., ::-1]
    audit = audit_sharing(TRAIN, UNSEEN, images, NEW.labels, plant=4)
    assert audit.status == "copies found" and audit.flagged[3] and audit.table.at[3, "exact"]
    assert audit.table.at[3, "reason"] == "the pixels of training image 9"
    assert "1 of 192 images have exactly the pixels" in audit.verdict()


def test_same_audit_twice() -> None:
    one, two = (audit_sharing(TRAIN, UNSEEN, NEW.images[:40], NEW.labels[:40], plant=4) for _ in range(2))
    assert one.to_dict() == two.to_dict()


def test_json_and_pictures(honest, tmp_path) -> None:
    honest.save(tmp_path / "audit.json")
    kept = json.loads((tmp_path / "audit.json").read_text())
    assert kept["status"] == honest.status and len(kept["planted"]) == 10 and len(kept["flagged"]) == honest.flagged.sum()
    for figure in (power_figure(honest), montage(honest, TRAIN, UNSEEN, NEW.images, 6)):
        assert 5_000 < len(figure._repr_jpeg_()) < 100_000
    with pytest.raises(ValueError, match="those that were audited"):
        montage(honest, TRAIN, UNSEEN, NEW.images[:5])


@pytest.mark.parametrize(("change", "message"), [
    (lambda: dict(held_out=TRAIN), "held_out must hold no training image"),
    (lambda: dict(held_out=UNSEEN.subset(np.arange(60))), "at least 99 images for a false alarm of 0.01; got 60"),
    (lambda: dict(held_out=make_smear(4, 16, 3)), "must be of the size of train"),
    (lambda: dict(held_out=replace(UNSEEN, classes=UNSEEN.classes[::-1])), "must have the classes of train"),
    (lambda: dict(images=NEW.images[:, :1]), r"images must have shape \(n, 3, height, width\)"),
    (lambda: dict(images=NEW.images * np.nan), "must be finite"),
    (lambda: dict(images=NEW.images[:10], labels=NEW.labels[:10]), "images must hold at least 20"),
    (lambda: dict(labels=NEW.labels[:-1]), "labels must have shape"),
    (lambda: dict(train=TRAIN.subset(np.arange(9))), "train must hold at least 10"),
])
def test_bad_sets(change, message: str) -> None:
    given: dict = dict(train=TRAIN, held_out=UNSEEN, images=NEW.images, labels=NEW.labels) | change()
    with pytest.raises(ValueError, match=message):
        audit_sharing(**given)


def test_identical_training_images_do_not_accuse() -> None:
    "Duplicates among the training images shrink nothing: an honest image keeps its ratio."
    twice = CellImages(np.concatenate([TRAIN.images, TRAIN.images[:20]]), np.concatenate([TRAIN.labels, TRAIN.labels[:20]]), TRAIN.classes)
    audit = audit_sharing(twice, UNSEEN, NEW.images, NEW.labels, plant=4)
    assert audit.flagged.mean() < 0.05
