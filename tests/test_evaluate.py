"""Evaluation: closed forms, sanity of every metric on sets whose truth is known, bad input, the report."""

import re

import numpy as np
import pandas as pd
import pytest

from pathloop import evaluate as ev
from pathloop import features, intervals, metrics, neighbours, utility
from pathloop import report as report_page
from pathloop.data import CellImages
from pathloop.evaluate import FLOOR, Arm, Report, TooFewImages, evaluate

SIZE = 16


def cells(n_per_type: int, seed: int, types: int = 2) -> CellImages:
    "Discs whose colour and radius tell the type."
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(types), n_per_type)
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE - 0.5
    centre = random.normal(0, 0.06, (2, len(labels), 1, 1))
    radius = (0.22 + 0.12 * labels + random.normal(0, 0.02, len(labels)))[:, None, None]
    inside = (np.hypot(x - centre[0], y - centre[1]) < radius)[:, None]
    colour = np.array([[-0.5, -0.8, 0.0], [0.3, -0.5, 0.1]])[labels][:, :, None, None]
    images = np.where(inside, colour, 0.7) + random.normal(0, 0.08, (len(labels), 3, SIZE, SIZE))
    return CellImages(images.clip(-1, 1).astype(np.float32), labels, ["small", "large"][:types])


def flat(images: np.ndarray) -> np.ndarray:
    "Features that cost nothing: colours of a coarse grid."
    return images.reshape(len(images), 3, 4, 4, 4, 4).mean((3, 5)).reshape(len(images), -1)[:, ::2]


@pytest.fixture(scope="module")
def real() -> dict[str, CellImages]:
    return {"train": cells(60, 1), "test": cells(60, 2), "fresh": cells(60, 3)}


@pytest.fixture(scope="module")
def cloud() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(400, 6))


# Shares


@pytest.mark.parametrize(("successes", "n", "low", "high"), [
    (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718), (29, 29, 0.8830, 1.0)])
def test_wilson_interval_known_values(successes, n, low, high): # Newcombe 1998, Statistics in Medicine 17:857, table I
    assert intervals.wilson_interval(successes, n)[1:3] == pytest.approx((low, high), abs=6e-5)


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_wilson_interval_refuses(successes, n):
    with pytest.raises(ValueError, match="successes must be"):
        intervals.wilson_interval(successes, n)


def pairs(both: int, won: int, lost: int, none: int) -> tuple[np.ndarray, np.ndarray]:
    counts = [both, won, lost, none]
    return np.repeat([True, False, True, False], counts), np.repeat([True, True, False, False], counts)


@pytest.mark.parametrize(("won", "lost", "p"), [(0, 0, 1.0), (5, 0, 0.0625), (12, 2, 0.012939453125), (3, 3, 1.0), (10, 1, 0.01171875)])
def test_mcnemar_is_the_exact_binomial(won, lost, p):
    found = intervals.mcnemar(*pairs(7, won, lost, 4))
    assert (found.gained, found.lost) == (won, lost)
    assert found.p == pytest.approx(p)


def test_paired_gain_known_value_and_symmetry(): # Newcombe 1998, Statistics in Medicine 17:2635, method 10
    before, after = pairs(36, 12, 2, 0)
    assert intervals.paired_gain(before, after)[:3] == pytest.approx((0.2, 0.0569, 0.3404), abs=6e-5)
    back = intervals.paired_gain(after, before)
    assert back[:3] == pytest.approx((-0.2, -0.3404, -0.0569), abs=6e-5)
    same = intervals.paired_gain(before, before)
    assert same.value == 0 and same.low < 0 < same.high


def test_paired_gain_interval_holds_the_truth():
    random = np.random.default_rng(0)
    held = 0
    for _ in range(300):
        luck = random.random(200)
        before, after = luck < 0.7, (luck + random.normal(0, 0.1, 200)) < 0.7 + 0.1
        truth = 0.0996 # Mean gain over 10 million draws
        gain = intervals.paired_gain(before, after)
        held += gain.low <= truth <= gain.high
    assert held >= 0.92 * 300


@pytest.mark.parametrize(("before", "after", "message"), [
    (np.array([1, 0]), np.array([True, False]), "before must be booleans"),
    (np.array([True]), np.array([True, False]), "same seeds"),
    (np.array([], bool), np.array([], bool), "n above 0")])
def test_pairs_refused(before, after, message):
    for function in (intervals.mcnemar, intervals.paired_gain):
        with pytest.raises(ValueError, match=message):
            function(before, after)


# Distances


def test_frechet_closed_forms(cloud):
    assert metrics.frechet_distance(cloud, cloud).value == pytest.approx(0, abs=1e-8)
    shifted = metrics.frechet_distance(cloud, cloud + np.array([3, 0, 4, 0, 0, 0]))
    assert shifted.value == pytest.approx(25, abs=1e-8)
    spread = np.trace(np.cov(cloud.T))
    assert metrics.frechet_distance(cloud, 2 * (cloud - cloud.mean(0)) + cloud.mean(0)).value == pytest.approx(spread, rel=1e-9)


def test_frechet_interval_holds_a_real_shift():
    random = np.random.default_rng(1)
    found = [metrics.frechet_distance(random.normal(size=(400, 3)), random.normal(size=(400, 3)) + 1) for _ in range(30)]
    assert sum(e.low < 3.0 < e.high for e in found) >= 25


def test_kernel_distance_is_unbiased_and_ordered(cloud):
    random = np.random.default_rng(2)
    nulls = [metrics.kernel_distance(random.normal(size=(60, 6)), random.normal(size=(60, 6)), times=2).value for _ in range(60)]
    assert abs(np.mean(nulls)) < 3 * np.std(nulls) / np.sqrt(60)
    near, far = metrics.kernel_distance(cloud, cloud[::-1] + 0.3), metrics.kernel_distance(cloud, cloud + 1.0)
    assert 0 < near.high < far.low < 2


@pytest.mark.parametrize("kernel", ["gaussian", "polynomial"])
def test_kernel_interval_holds_its_value_within_types(kernel):
    random = np.random.default_rng(3)
    labels = np.repeat([0, 1, 2], 30)
    place = 6 * np.eye(3)[labels]
    found = metrics.kernel_distance(place + random.normal(size=(90, 3)), place + random.normal(size=(90, 3)), None, labels, labels, kernel)
    assert found.low <= found.value <= found.high


def test_precision_recall_density_coverage_by_hand():
    real = np.repeat(np.arange(24.0), 1)[:, None] # On a line, one apart: every radius at k=1 is 1
    four = neighbours.precision_recall_density_coverage(real, real + 0.25, k=1)
    assert {name: e.value for name, e in four.items()} == pytest.approx({"precision": 1, "recall": 1, "density": (23 * 2 + 1) / 24, "coverage": 1})
    gone = neighbours.precision_recall_density_coverage(real, real + 100, k=1)
    assert all(e.value == 0 for e in gone.values())


def islands(places: list[int], n: int, seed: int) -> np.ndarray:
    middle = np.array([[0, 0], [9, 0], [0, 9], [9, 9]])[np.resize(places, n)]
    return middle + np.random.default_rng(seed).normal(size=(n, 2))


def test_dropped_and_invented_modes():
    real = islands([0, 1, 2], 240, 0)
    same = neighbours.precision_recall_density_coverage(real, islands([0, 1, 2], 240, 1))
    dropped = neighbours.precision_recall_density_coverage(real, islands([0, 1], 240, 2))
    invented = neighbours.precision_recall_density_coverage(real, islands([0, 1, 2, 3], 240, 3))
    assert dropped["recall"].high < same["recall"].low and dropped["coverage"].high < same["coverage"].low
    assert dropped["precision"].low > 0.8
    assert invented["precision"].high < same["precision"].low and invented["coverage"].value > 0.85


METRICS = [metrics.frechet_distance, metrics.kernel_distance, neighbours.precision_recall_density_coverage, metrics.realism_test]


@pytest.mark.parametrize("metric", METRICS)
def test_distances_refuse(metric, cloud):
    with pytest.raises(TooFewImages, match="at least 20 images.*got 3"):
        metric(cloud, cloud[:3])
    with pytest.raises(ValueError, match="synthetic must be finite; got 6 NaN"):
        metric(cloud, np.where(np.arange(400)[:, None] == 0, np.nan, cloud))
    with pytest.raises(ValueError, match="same number of features"):
        metric(cloud, cloud[:, :3])
    with pytest.raises(ValueError, match="must be features of shape"):
        metric(cloud, np.zeros((30, 2, 2)))


@pytest.mark.parametrize("metric", METRICS[:3])
def test_own_features_are_welcome(metric, real):
    of_images = metric(real["test"].images, real["fresh"].images, features=flat)
    assert of_images == metric(flat(real["test"].images), flat(real["fresh"].images))
    with pytest.raises(ValueError, match=r"real must lie in \[-1, 1\]"):
        metric(real["test"].images * 3, real["fresh"].images, features=flat)


def test_more_refusals(cloud):
    with pytest.raises(TooFewImages, match="at least 69 images for 64 features without shrinkage; got 30"):
        metrics.frechet_distance(np.ones((30, 64)) * np.arange(30)[:, None], np.ones((40, 64)), shrinkage=False)
    with pytest.raises(ValueError, match="k must be from 1 to 50; got 0"):
        neighbours.precision_recall_density_coverage(cloud, cloud, k=0)
    with pytest.raises(ValueError, match="kernel must be 'gaussian' or 'polynomial'; got 'linear'"):
        metrics.kernel_distance(cloud, cloud, kernel="linear")
    with pytest.raises(ValueError, match="one entry per image"):
        metrics.frechet_distance(cloud, cloud, None, np.zeros(3, int), np.zeros(400, int))


# Realism, usefulness, copies


def test_realism_test_finds_noise_and_nothing_else(real):
    noisy = (real["fresh"].images + np.random.default_rng(0).normal(0, 0.04, real["fresh"].images.shape)).clip(-1, 1).astype(np.float32)
    honest = metrics.realism_test(real["test"].images, real["fresh"].images)
    assert honest.low < 0.5 < honest.high + 0.05
    assert metrics.realism_test(real["test"].images, noisy).low > 0.75


def test_texture_features_ignore_what_eight_bits_hide(real):
    images = real["test"].images[:8]
    quantised = np.round((images + 1) * 127.5) / 127.5 - 1
    assert np.array_equal(features.texture_features(images), features.texture_features(quantised.astype(np.float32)))
    assert features.texture_features(images).shape == (8, 82)


def test_features_repeat_and_refuse(real):
    train = real["train"]
    one, two = (features.fit_features(train.images, train.labels, 2, seed=4, steps=8) for _ in range(2))
    assert np.array_equal(one(train.images[:9]), two(train.images[:9]))
    assert one(train.images[:9]).shape == (9, 64) and one(train.images[:9]).dtype == np.float64
    with pytest.raises(ValueError, match="16 pixels wide.*got 8"):
        one(train.images[:, :, :8, :8])
    with pytest.raises(ValueError, match="at least 16 images"):
        features.fit_features(train.images[:5], train.labels[:5], 2)


def test_training_leaves_the_random_state_alone(real):
    import torch

    before = torch.get_rng_state()
    features.fit_features(real["train"].images[:20], real["train"].labels[:20], 2, steps=1)
    assert torch.equal(before, torch.get_rng_state())


def test_downstream_accuracy_tells_right_from_wrong_labels(real):
    train, test = real["train"], real["test"]
    right = utility.downstream_accuracy(train.images, train.labels, test.images, test.labels, 2, seeds=[0], steps=40)
    random = np.random.default_rng(0).permutation(train.labels)
    wrong = utility.downstream_accuracy(train.images, random, test.images, test.labels, 2, seeds=[0], steps=40)
    assert right.accuracy.low > 0.9 > wrong.accuracy.high
    assert right.per_class.n.tolist() == [60, 60]


@pytest.mark.parametrize(("change", "message"), [
    ({"train_labels": np.zeros(120, int)}, r"types \[1\] are missing"),
    ({"test_images": np.zeros((120, 3, 8, 8), np.float32)}, "of one width; got 16 and 8"),
    ({"train_images": np.full((120, 3, SIZE, SIZE), np.nan, np.float32)}, "train_images must be finite"),
    ({"test_labels": np.full(120, 7)}, "test_labels must lie from 0 to 1"),
    ({"train_images": np.zeros((4, 3, SIZE, SIZE), np.float32), "train_labels": np.array([0, 1, 0, 1])}, "at least 16 images")])
def test_downstream_accuracy_refuses(real, change, message):
    good = {"train_images": real["train"].images, "train_labels": real["train"].labels, "test_images": real["test"].images, "test_labels": real["test"].labels}
    with pytest.raises(ValueError, match=message):
        utility.downstream_accuracy(**(good | change), n_classes=2, seeds=[0], steps=1)


@pytest.mark.parametrize("turn", range(8))
def test_copies_are_found_in_any_orientation(real, turn):
    train, synthetic = real["train"].images, real["fresh"].images.copy()
    copies = np.rot90(train[30:60], turn % 4, (2, 3))
    synthetic[:30] = (copies[..., ::-1] if turn >= 4 else copies) * 0.97
    found = ev.nearest_training_check(train, real["test"].images, synthetic)
    assert found.pixels.low > 0.1
    assert (found.closest.train == found.closest.synthetic + 30).all() and (found.closest.ratio < 1).all()


def test_fresh_and_blurred_images_are_no_copies(real):
    train, test, fresh = (real[name].images for name in ("train", "test", "fresh"))
    blurred = (fresh + np.roll(fresh, 1, 2) + np.roll(fresh, 1, 3) + np.roll(fresh, (1, 1), (2, 3))) / 4
    for images in (fresh, blurred):
        found = ev.nearest_training_check(train, test, images, flat)
        assert found.pixels.low < 0.02 and found.features.low < 0.02
    exact = ev.nearest_training_check(train, test, train[:50], flat)
    assert exact.pixels.value == exact.features.value == exact.nearer.value == 1


def test_nearest_training_check_refuses(real):
    train, test = real["train"].images, real["test"].images
    with pytest.raises(TooFewImages, match="held_out must hold at least 100 images.*got 99"):
        ev.nearest_training_check(train, test[:99], train)
    with pytest.raises(ValueError, match="of one size"):
        ev.nearest_training_check(train, test, train[:, :, :8, :8])


# All together


def arm(images: np.ndarray, labels: np.ndarray, accepted: np.ndarray, **rest) -> Arm:
    return Arm(images, labels, accepted, seeds=np.arange(len(labels)), **rest)


@pytest.fixture(scope="module")
def arms(real) -> dict[str, Arm]:
    fresh, order = real["fresh"], np.arange(120)
    dull = (0.6 * fresh.images).astype(np.float32)
    return {"untouched": arm(dull, fresh.labels, order % 10 < 6, note="as it was", accepted_by_reviewer=order % 10 < 5),
            "control": arm(fresh.images, fresh.labels, order % 10 < 8, control=True, accepted_by_reviewer=order % 10 < 6),
            "method": arm(fresh.images, fresh.labels, (order % 10 < 8) ^ (order % 40 == 3), accepted_by_reviewer=order % 10 < 9)}


@pytest.fixture(scope="module")
def report(real, arms) -> Report:
    return evaluate(real["train"], real["test"], arms, flat, "untouched", np.arange(120) % 20 > 0, seeds=[0])


def test_table_is_tidy_and_whole(report):
    assert list(report.table) == ["arm", "metric", "value", "low", "high", "n"]
    assert not report.table.duplicated(["arm", "metric"]).any()
    for name in ("untouched", "control", "method", FLOOR):
        missing = {m.key for m in report_page.METRICS} - set(report.table[report.table["arm"] == name].metric)
        assert missing == ({"accepted_by_reviewer"} if name == FLOOR else set())
    inside = (report.table.low <= report.table.value + 1e-9) & (report.table.value <= report.table.high + 1e-9)
    assert inside.all(), report.table[~inside]
    assert report.wide().shape == (20, 4)


def test_floor_is_better_than_a_dull_arm_and_like_a_good_one(report):
    for metric in ("kernel_distance", "frechet_distance"):
        floor = report.get(FLOOR, metric)
        assert report.get("untouched", metric).low > floor.high
        assert report.get("method", metric).low < floor.high
    assert report.get("untouched", "realism_auc").low > 0.9
    assert report.details["n"] == 120 and report.details["per_class"] == {"small": 60, "large": 60}


def test_comparisons_are_paired_where_seeds_are_the_same(report):
    rows = report.comparisons.query("judge == 'accepted'").set_index(["arm", "against"])
    assert rows.paired.all() and (rows.loc[("control", "untouched")].gained, rows.loc[("control", "untouched")].lost) == (24, 0)
    assert rows.loc[("method", "control")].gain == pytest.approx(-3 / 120)


def test_summary_keeps_to_the_intervals(report):
    words = report.summary()
    assert "“method” is accepted more often than “untouched”" in words
    assert "The control “control” is as good as “method”" in words
    assert "McNemar p below 0.001" in words


def summary_of(before: np.ndarray, after: np.ndarray, report: Report, arms: dict[str, Arm], **reviewer) -> str:
    labels = arms["untouched"].labels
    pair = {"untouched": arm(arms["untouched"].images, labels, before, accepted_by_reviewer=reviewer.get("was")),
            "method": arm(arms["method"].images, labels, after, accepted_by_reviewer=reviewer.get("now"))}
    table = pd.concat([report.table[~report.table.metric.isin(["accepted"]) & (report.table["arm"] != "control")],
                       pd.DataFrame([{"arm": n, "metric": "accepted", **intervals.wilson_interval(int(a.accepted.sum()), 120)._asdict()} for n, a in pair.items()])])
    details = report.details | {"arms": {n: {"note": "", "n": 120} for n in pair}, "controls": []}
    return Report(table, ev._compare(pair, "untouched"), report.per_class, report.closest, details).summary()


def test_summary_of_a_tie_a_loss_and_a_taste(report, arms):
    half, order = np.arange(120) % 2 == 0, np.arange(120)
    assert "cannot be told apart" in summary_of(half, half ^ (order < 4), report, arms)
    worse = summary_of(half, half & (order > 60), report, arms)
    assert "LESS often" in worse and "accepts “method” less often than “untouched”" in worse and "finetuning" not in worse
    assert "reviewer's taste" in summary_of(half, half, report, arms, was=half, now=half | (order < 60))


def test_json_round_trip(report, tmp_path):
    report.to_json(tmp_path / "report.json")
    again = Report.from_json(tmp_path / "report.json")
    pd.testing.assert_frame_equal(again.table, report.table)
    assert again.summary() == report.summary() and again.details == report.details
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match="path must be a report"):
        Report.from_json(tmp_path / "other.json")


def test_page_is_one_quiet_file(report, real, arms, tmp_path):
    losses = pd.DataFrame({"step": range(9), "loss": np.linspace(1, 0.5, 9)})
    path = report.save_html(
        tmp_path / "deep" / "report.html", title="<Cells & more>", story="A story.", train=real["train"], test=real["test"], arms=arms, before="untouched",
        after="method", curves={"Loss": losses}, cards=[{"name": "step one", "hash": "abc", "settings": {"lr": 0.1}}], notes=["A caveat."])
    page = path.read_text()
    assert "&lt;Cells &amp; more&gt;" in page and "<Cells" not in page
    assert not re.search(r'(src|href)="(?!data:|#)', page) and "://" not in page and "url(" not in page
    assert all('alt="' in tag for tag in re.findall(r"<img[^>]*>", page))
    for words in ("refused by the independent judge", "accepted by the independent judge", "A caveat.", "step one", FLOOR, "seed 3"):
        assert words in page
    assert len(page) < 3_000_000


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_panel_of_equal_values_has_a_width(value):
    row = ("a", intervals.Estimate(value, value, value, 9), "arm")
    panel = report_page._panel("t", "m", report_page._METRIC["coverage"], [row, row])
    assert all(0 <= r["at"] <= 100 for r in panel["rows"]) and len(panel["ticks"]) >= 2


def test_page_refuses_unknown_arms(report, real, arms, tmp_path):
    with pytest.raises(ValueError, match="before and after must be arms of this report.*got 'x'"):
        report.save_html(tmp_path / "r.html", title="", story="", train=real["train"], test=real["test"], arms=arms, before="x", after="method")


def test_few_images_are_said_not_hidden(real, arms):
    small = {part: real[part].subset(np.r_[:9, 60:69]) for part in ("train", "test")}
    few = {name: arm(a.images[np.r_[:9, 60:69]], a.labels[np.r_[:9, 60:69]], a.accepted[np.r_[:9, 60:69]]) for name, a in arms.items()}
    report = evaluate(small["train"], small["test"], few, flat, seeds=[0])
    assert np.isnan(report.get("method", "frechet_distance").value) and np.isnan(report.get("method", "near_training_pixels").value)
    assert any("Fréchet" in note and "at least 20 images" in note for note in report.details["notes"])
    assert "–" in report.wide().to_numpy() or len(report.wide()) < 20
    assert "independent judge" in report.summary()


def test_arms_of_unequal_size_are_cut_to_one_mix(real, arms):
    chosen, counts = ev._matched({"more": arms["method"]}, real["train"], real["test"].subset(np.r_[:40, 60:80]))
    assert counts.tolist() == [60, 30]
    assert {name: np.bincount(real["train"].labels[index]).tolist() for name, index in chosen.items()} == {"more": [60, 30], FLOOR: [60, 30]}


@pytest.mark.parametrize(("change", "message"), [
    ({"arms": {}}, "baseline must be one of the arms"),
    ({"baseline": "nobody"}, "baseline must be one of the arms.*got 'nobody'"),
    ({"test_accepted": np.ones(3, bool)}, "test_accepted must be booleans"),
])
def test_evaluate_refuses(real, arms, change, message):
    good = {"train": real["train"], "test": real["test"], "arms": arms, "features": flat}
    with pytest.raises(ValueError, match=message):
        evaluate(**(good | change))


def test_evaluate_refuses_arms_that_do_not_fit(real, arms):
    fresh = real["fresh"]
    with pytest.raises(ValueError, match="has none of"):
        evaluate(real["train"], real["test"], {"a": arm(fresh.images[:60], fresh.labels[:60], np.ones(60, bool))}, flat)
    with pytest.raises(ValueError, match=r"arms\['a'\] must hold images of \(16, 16\) pixels"):
        evaluate(real["train"], real["test"], {"a": arm(fresh.images[:, :, :8, :8], fresh.labels, np.ones(120, bool))}, flat)
    with pytest.raises(ValueError, match="must not be named"):
        evaluate(real["train"], real["test"], {FLOOR: arms["method"]}, flat)


@pytest.mark.parametrize(("change", "message"), [
    ({"accepted": np.ones(120)}, "accepted must be booleans"),
    ({"accepted_by_reviewer": np.ones(3, bool)}, "accepted_by_reviewer must be booleans"),
    ({"seeds": np.arange(3)}, r"seeds must have shape \(120,\)"),
    ({"labels": np.zeros(120)}, "labels must be integers"),
    ({"images": np.zeros((120, SIZE, SIZE), np.float32)}, "images must have shape"),
])
def test_arm_refuses(real, change, message):
    fresh = real["fresh"]
    with pytest.raises(ValueError, match=message):
        Arm(**({"images": fresh.images, "labels": fresh.labels, "accepted": np.ones(120, bool)} | change))
