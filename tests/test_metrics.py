"""Metrics on known answers: closed forms, sets with a known fault, peers where they are installed, bad input."""

import numpy as np
import pytest

from pathloop.features import cell_features, fit_module, fit_scaled, load_encoder, rank_agreement
from pathloop.intervals import TooFewImages
from pathloop.metrics import frechet_distance, frechet_of_moments, kernel_distance, kernel_width, vendi_score
from pathloop.neighbours import (
    authenticity,
    expected_coverage,
    nearest,
    neighbour_metrics,
    precision_recall_density_coverage,
)
from pathloop.smear import make_smear
from pathloop.utility import Downstream, accuracy_gain, augment, rare_class_gain


def normal(n: int, d: int, seed: int, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d)) + shift


@pytest.mark.parametrize(("n", "m", "d", "k"), [(150, 150, 3, 5), (120, 200, 40, 3), (300, 90, 12, 10)])
def test_equal_to_plain_definitions(n, m, d, k):
    real, made = normal(n, d, 0) + 50, normal(m, d, 1, 0.2) + 50
    across = np.sqrt(np.square(real[:, None] - made[None]).sum(2))
    own = [np.sort(np.sqrt(np.square(x[:, None] - x[None]).sum(2)), 1)[:, k] for x in (real, made)]
    found = precision_recall_density_coverage(real, made, k)
    ball = across < own[0][:, None]
    plain = {"precision": ball.any(0).mean(), "recall": (across < own[1][None]).any(1).mean(), "density": ball.sum(0).mean() / k, "coverage": ball.any(1).mean()}
    assert {name: e.value for name, e in found.items()} == pytest.approx(plain, abs=1e-12)


def plain_metrics(real, made, k):
    "From full float64 matrices."
    def away(x, y):
        return np.sqrt(np.maximum((x**2).sum(1)[:, None] + (y**2).sum(1)[None] - 2 * x @ y.T, 0))
    across, own = away(real, made), [np.sort(away(x, x), 1)[:, k] for x in (real, made)]
    ball = across < own[0][:, None]
    return {"precision": ball.any(0).mean(), "recall": (across < own[1][None]).any(1).mean(), "density": ball.sum(0).mean() / k, "coverage": ball.any(1).mean()}


@pytest.mark.parametrize("kind", ["cloud", "islands", "far from zero", "heavy tails", "one width less"])
def test_rounding_never_decides(kind):
    "Wide features, more rows than a block: bfloat16 where the processor has it, and still the values of float64."
    real, made = normal(1300, 300, 0), normal(1100, 300, 1, 0.05)
    if kind == "islands":
        real, made = (x * 0.02 + normal(5, 300, 9)[np.arange(len(x)) % 5] for x in (real, made))
    elif kind == "far from zero":
        real, made = real + 30, made + 30
    elif kind == "heavy tails":
        real, made = (x * np.random.default_rng(7).standard_t(2, (len(x), 1)) for x in (real, made))
    elif kind == "one width less":
        real, made = real[:, :255], made[:, :255]
    found = neighbour_metrics(real, made)
    assert {name: found[name].value for name in ("precision", "recall", "density", "coverage")} == pytest.approx(plain_metrics(real, made, 5), abs=1e-12)


@pytest.mark.parametrize("d", [3, 300])
def test_crowds_of_equal_images_neither_hang_nor_lie(d):
    "Copies of three images: every distance is a tie."
    copies = np.repeat(normal(3, d, 0), 500, 0)
    found = nearest(copies, None, 6)
    assert (found.squares == 0).all() and (found.which // 500 == np.arange(1500)[:, None] // 500).all() and (found.which != np.arange(1500)[:, None]).all()
    fresh = normal(1500, d, 1)
    assert neighbour_metrics(fresh, copies)["coverage"].value < 0.05
    assert neighbour_metrics(copies, copies)["precision"].value == 0 # Balls of radius 0 hold nothing, as in the definition


def test_equal_to_the_prdc_package():
    prdc = pytest.importorskip("prdc")
    real, made = normal(200, 20, 0), normal(200, 20, 1, 0.3)
    theirs = prdc.compute_prdc(real, made, 5)
    assert {name: e.value for name, e in precision_recall_density_coverage(real, made).items()} == pytest.approx({k: float(v) for k, v in theirs.items()}, abs=1e-12)


def test_jackknife_equals_leaving_out_by_hand():
    from pathloop.intervals import GROUPS, Z, deal_groups, jackknife_error

    real, made = normal(80, 3, 0), normal(80, 3, 1)
    random = np.random.default_rng(0)
    one, other = deal_groups(None, 80, random), deal_groups(None, 80, random)
    left = np.array([neighbour_metrics(real[one != g], made[other != g])["coverage"].value for g in range(GROUPS)])
    found = neighbour_metrics(real, made)["coverage"]
    assert found.value - found.low == pytest.approx(Z * jackknife_error(left), abs=1e-9)


def test_coverage_meets_its_closed_form():
    found = [neighbour_metrics(normal(200, 4, seed), normal(150, 4, 1000 + seed))["coverage"].value for seed in range(20)]
    assert np.mean(found) == pytest.approx(expected_coverage(200, 150), abs=0.015)


@pytest.mark.parametrize("good", [1.0, 0.7, 0.4])
def test_clipped_metrics_read_as_a_share_of_good_images(good):
    made = normal(400, 4, 1)
    made[round(400 * good):] += 100
    found = neighbour_metrics(normal(400, 4, 0), made)
    assert found["clipped_density"].value == pytest.approx(good, abs=0.1)
    assert found["clipped_coverage"].value == pytest.approx(good, abs=0.1)


def test_one_outlier_fools_precision_and_not_the_clipped_density():
    real = normal(100, 2, 0)
    real[0] = 60.0 # Its ball reaches all the way back
    junk = np.random.default_rng(1).uniform(20, 50, (100, 2))
    found = neighbour_metrics(real, junk)
    assert found["precision"].value > 0.8 and found["clipped_density"].value == 0


def test_same_set_and_far_set():
    cloud = normal(100, 3, 0)
    same, far = neighbour_metrics(cloud, cloud), neighbour_metrics(cloud, cloud + 1e3)
    assert all(same[name].value == 1 for name in ("precision", "recall", "coverage", "clipped_density", "clipped_coverage"))
    assert same["alpha_precision"].value > 0.97
    assert all(far[name].value == 0 for name in ("precision", "recall", "density", "coverage", "clipped_density", "clipped_coverage"))
    assert far["alpha_precision"].value < 0.05 and far["beta_recall"].value < 0.05


def test_alpha_precision_sees_too_central_and_too_peripheral_sets():
    real = normal(400, 4, 0)
    values = {scale: neighbour_metrics(real, scale * normal(400, 4, 1))["alpha_precision"].value for scale in (0.3, 1.0, 3.0)}
    assert values[1.0] > 0.9 > max(values[0.3], values[3.0])


@pytest.mark.parametrize("d", [2, 64, 300])
def test_beta_recall_is_near_1_for_one_distribution_and_falls_with_what_is_missing(d):
    real, fresh = normal(400, d, 0), normal(400, d, 1)
    full = neighbour_metrics(real, fresh)["beta_recall"].value
    assert full > 0.85
    assert neighbour_metrics(real, fresh[np.repeat(np.arange(20), 20)])["beta_recall"].value < 0.6 # Twenty images, twenty times
    assert neighbour_metrics(real, 3 * fresh)["beta_recall"].value < 0.7 # Reals all at the centre of what was made


def test_authenticity_of_copies_and_of_unequal_sets():
    train = normal(60, 5, 0)
    assert authenticity(train, np.tile(train[:5], (40, 1))).value == 0 # The published index would run out of range
    half = np.concatenate([train[:30], normal(30, 5, 1)])
    whole = authenticity(train, normal(60, 5, 1))
    assert authenticity(train, half).value < 0.7 * whole.value
    by_hand = []
    for row in half:
        away = np.linalg.norm(train - row, axis=1)
        near = away.argmin()
        by_hand.append(away[near] > np.sort(np.linalg.norm(train - train[near], axis=1))[1])
    assert authenticity(train, half).value == pytest.approx(np.mean(by_hand))


def test_frechet_closed_form_of_unequal_covariances():
    one, other = np.diag([1.0, 4.0, 9.0]), np.diag([4.0, 1.0, 9.0])
    assert frechet_of_moments(np.zeros(3), one, np.ones(3), other) == pytest.approx(3 + 1 + 1)
    random = np.random.default_rng(0)
    a, b = random.normal(size=(20_000, 3)) * [1, 2, 3], random.normal(size=(20_000, 3)) * [2, 1, 3] + 1
    assert frechet_distance(a, b).value == pytest.approx(5, rel=0.05)


def test_shrinkage_lowers_the_bias_of_few_images():
    real, made = normal(60, 50, 0), normal(60, 50, 1)
    plain, shrunk = frechet_distance(real, made, shrinkage=False), frechet_distance(real, made)
    assert shrunk.value < 0.5 * plain.value
    assert frechet_distance(real, made + 2).value == pytest.approx(200 + shrunk.value, rel=0.1)
    assert frechet_distance(normal(30, 64, 0), normal(30, 64, 1)).value > 0 # Fewer images than features


def test_kernel_distance_of_gaussians_has_a_closed_form():
    real, made = normal(1500, 1, 0), normal(1500, 1, 1, 1.0)
    square = kernel_width(real) ** 2 # Of the Gaussian kernel; E k(x, y) = sqrt(w/(w+2)) exp(-shift^2 / 2(w+2))
    expected = 2 * np.sqrt(square / (square + 2)) * (1 - np.exp(-1 / (2 * (square + 2))))
    assert kernel_distance(real, made, times=20).value == pytest.approx(expected, rel=0.15)


def test_vendi_known_answers():
    groups = np.repeat(1e3 * np.eye(4), 15, 0)
    assert vendi_score(groups, width=1.0).value == pytest.approx(4)
    assert vendi_score(1e4 * np.arange(40.0)[:, None], width=1.0).value == pytest.approx(40)
    assert vendi_score(groups, kernel="cosine").value == pytest.approx(4)
    uneven = np.repeat(1e3 * np.eye(2), [30, 10], 0)
    assert vendi_score(uneven, width=1.0).value == pytest.approx(np.exp(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25))))


def test_vendi_equals_the_package():
    theirs = pytest.importorskip("vendi_score.vendi")
    rows = normal(50, 6, 0)
    assert vendi_score(rows, kernel="cosine").value == pytest.approx(theirs.score_dual(rows), rel=1e-6)


@pytest.mark.parametrize(("call", "message"), [
    (lambda: neighbour_metrics(np.ones((30, 3)), normal(30, 3, 0)), "real must differ from image to image; all 30"),
    (lambda: frechet_distance(np.ones((30, 3)), normal(30, 3, 0)), "real must differ"),
    (lambda: vendi_score(np.ones((30, 3))), "must differ"),
    (lambda: vendi_score(normal(30, 3, 0), kernel="linear"), "kernel must be"),
    (lambda: authenticity(normal(30, 3, 0), normal(30, 4, 0)), "same number of features; got 3 and 4"),
    (lambda: nearest(normal(30, 3, 0), None, 30), "k must be from 1 to 29"),
    (lambda: rank_agreement({"a": [1, 2]}), "at least 2 extractors"),
])
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_too_few_says_how_many():
    with pytest.raises(TooFewImages, match="at least 42 images.*got 30"):
        neighbour_metrics(normal(30, 3, 0), normal(50, 3, 0), k=20)


# Features and usefulness


def test_missing_cells_get_the_median_and_constant_features_no_weight():
    import pandas as pd

    images = np.random.default_rng(0).uniform(-1, 1, (20, 3, 8, 8)).astype(np.float32)
    table = cell_features(images, lambda x: pd.DataFrame({"cell_area": np.where(np.arange(len(x)) < 5, np.nan, x.mean((1, 2, 3)))}))
    assert table["found"].sum() == 15
    view = fit_scaled(lambda x: np.column_stack([np.where(np.arange(len(x)) < 5, np.nan, x.mean((1, 2, 3))), np.ones(len(x))]), images, "toy")
    assert np.isfinite(view(images)).all() and (view(images)[:, 1] == 0).all() and len(np.unique(view(images)[:5, 0])) == 1


def test_rank_agreement_of_equal_and_reversed_orders():
    found = rank_agreement({"a": [1, 2, 3], "b": [10, 20, 30], "c": [3, 2, 1]})
    assert found.tau.tolist() == pytest.approx([1, -1, -1])


def test_local_weights_are_opened_offline(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(hidden_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
    transformers.Dinov2Model(config).save_pretrained(tmp_path, safe_serialization=True)
    images = make_smear(3, size=16, seed=0).images
    assert load_encoder(tmp_path, images, size=28)(images).shape == (len(images), 24)


def test_module_must_give_rows():
    import torch

    images = make_smear(3, size=16, seed=0).images
    with pytest.raises(ValueError, match="module must map images"):
        fit_module(torch.nn.Identity(), images)


def test_gain_is_paired_and_bounded():
    right = np.tile(np.arange(40) % 2 == 0, (2, 1))
    empty = Downstream.__new__(Downstream, None, None, right, right)
    better = Downstream.__new__(Downstream, None, None, right | (np.arange(40) % 4 == 1), right)
    gain = accuracy_gain(empty, better, np.repeat([0, 1], 20))
    assert gain.value == pytest.approx(0.25) and gain.low > 0
    with pytest.raises(ValueError, match="same images"):
        accuracy_gain(empty, better, np.zeros(3, int))


def test_augment_changes_little_and_repeats():
    images = make_smear(2, size=16, seed=0).images
    assert np.array_equal(augment(images, 1), augment(images, 1))
    assert 0.01 < np.abs(augment(images, 1) - images).mean() < 0.5


def test_rare_class_refuses():
    smear = make_smear(6, size=16, seed=0, classes=["lymphocyte", "monocyte"])
    with pytest.raises(ValueError, match="keep must be below"):
        rare_class_gain(smear, smear.images, smear.labels, smear, "lymphocyte", keep=6)
    with pytest.raises(TooFewImages, match="at least 20 images of type 0"):
        rare_class_gain(smear, smear.images, smear.labels, smear, "lymphocyte", keep=20)
