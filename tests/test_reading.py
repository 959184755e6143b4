"""Plans reach their power, lists are blind and balanced, and intervals hold for other readers and images."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from pathloop.core import image_hash
from pathloop.data import from_uint8, read_image
from pathloop.evaluate import TooFewImages, mcnemar, wilson_interval
from pathloop.reading import (
    clustered_difference,
    clustered_share,
    design_effect,
    equivalent,
    make_reading,
    noninferior,
    open_key,
    paired_power,
    plan_equivalence,
    plan_images,
    plan_noninferiority,
    plan_pairs,
    reader_agreement,
    reader_auc,
    reader_table,
    reading_figure,
    simulate_readers,
    unblind,
)
from pathloop.smear import make_smear

SETS = dict(zip(("real", "before", "after"), (make_smear(6, 16, seed) for seed in range(3)), strict=True))
READERS = ["ann", "bob", "eve", "joe"]
READING = make_reading(SETS, READERS, 40, paired=("before", "after"), seed=3)
READS = unblind(READING.key, simulate_readers(READING.key, {"before": 2.4, "after": 0.4}, seed=1))


# --- planning ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("gained", "lost", "n"), [(0.15, 0.05, 120), (0.2, 0.2, 60), (0.4, 0.05, 30)])
def test_paired_power_against_simulation(gained: float, lost: float, n: int) -> None:
    drawn = np.random.default_rng(0).choice(3, (800, n), p=[gained, lost, 1 - gained - lost])
    hits = wilson_interval(sum(mcnemar(d == 1, d == 0).p < 0.05 for d in drawn), len(drawn))
    assert hits.low - 0.01 < paired_power(n, gained, lost) < hits.high + 0.01


def test_pairs_are_just_enough() -> None:
    n = plan_pairs(0.15, 0.05)
    assert paired_power(n, 0.15, 0.05) >= 0.8 and paired_power(n - 1, 0.15, 0.05) < 0.81
    assert plan_pairs(0.05, 0.15) == n  # the direction does not matter
    assert plan_pairs(0.15, 0.05, power=0.9) > n > plan_pairs(0.25, 0.05)


def test_plans_against_statsmodels() -> None:
    proportion, power = pytest.importorskip("statsmodels.stats.proportion"), pytest.importorskip("statsmodels.stats.power")
    for expected, reference, margin in ((0.95, 0.95, 0.05), (0.85, 0.9, 0.1), (0.9, 0.9, 0.03)):
        spread = np.sqrt(expected * (1 - expected) + reference * (1 - reference))
        theirs = power.normal_sample_size_one_tail(expected - reference + margin, 0.8, 0.025, std_null=spread)
        assert plan_noninferiority(expected, reference, margin) == int(np.ceil(theirs))
    for margin in (0.05, 0.1):
        theirs, _ = proportion.power_ztost_prop(0.5 - margin, 0.5 + margin, plan_equivalence(margin), 0.5, alpha=0.05, variance_prop=0.5)
        assert theirs == pytest.approx(0.9, abs=0.01)


def test_equivalence_against_simulation() -> None:
    n = plan_equivalence(0.1)
    random = np.random.default_rng(1)
    shown = [equivalent(clustered_share(random.random(n) < 0.5, np.zeros(n), np.arange(n), level=0.9), 0.1).shown for _ in range(600)]
    assert 0.86 < np.mean(shown) < 0.94
    wrong = [equivalent(clustered_share(random.random(n) < 0.6, np.zeros(n), np.arange(n), level=0.9), 0.1).shown for _ in range(600)]
    assert np.mean(wrong) < 0.075


def test_noninferiority_against_simulation() -> None:
    n = plan_noninferiority(0.9, 0.9, 0.1)
    random, one = np.random.default_rng(2), np.arange(2 * n) < n
    shares = {truth: np.mean([noninferior(clustered_difference(random.random(2 * n) < np.where(one, truth, 0.9), one, np.zeros(2 * n), np.arange(2 * n)), 0.1).shown for _ in range(600)]) for truth in (0.9, 0.8)}
    assert 0.76 < shares[0.9] < 0.86 and shares[0.8] < 0.045


def test_readers_cannot_be_replaced_by_images() -> None:
    for readers in (6, 9, 30):
        images = plan_images(200, readers, 0.02, 0.1)
        assert readers * images / design_effect(images, readers, 0.02, 0.1) >= 200 > readers * (images - 1) / design_effect(images - 1, readers, 0.02, 0.1)
    with pytest.raises(ValueError, match="readers must be more than 4 at this"):
        plan_images(200, 4, 0.02)
    assert plan_images(200, 1, 0.0, 0.0) == 200


@pytest.mark.parametrize(("call", "message"), [
    (lambda: plan_pairs(0.1, 0.1), "shares that differ"),
    (lambda: plan_pairs(0.8, 0.4), "gained \\+ lost must lie between 0 and 1"),
    (lambda: plan_noninferiority(0.8, 0.9, 0.1), "above the expected loss, 0.1"),
    (lambda: plan_noninferiority(1.0, 0.9, 0.1), "expected must lie between 0 and 1; got 1"),
    (lambda: plan_equivalence(0.6), "margin must lie between 0 and 0.5"),
    (lambda: design_effect(10, 3, 1.2), "reader_correlation must lie"),
])
def test_impossible_plans(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


# --- lists ------------------------------------------------------------------------------------------------------------


def test_lists_are_complete_and_blind() -> None:
    key = READING.key
    assert list(READING.list) == ["reader", "position", "item"]
    assert key["item"].is_unique and key["item"].str.fullmatch("[0-9a-f]{10}").all()
    for _, of_reader in key.groupby("reader"):
        once = of_reader[of_reader["occurrence"] == 1]
        assert once["set"].value_counts().to_dict() == {"real": 40, "before": 40, "after": 40}
        assert once["image"].is_unique
        assert (once.groupby("set")["cell_type"].value_counts() == 5).all()
        assert list(of_reader["position"]) == list(range(1, len(of_reader) + 1))
        assert set(once["subject"][once["set"] == "before"]) == set(once["subject"][once["set"] == "after"])
    for row in key.sample(20, random_state=0).itertuples():
        assert image_hash(READING.images[row.item]) == row.image


def test_order_differs_and_is_even() -> None:
    orders = [tuple(of_reader["image"]) for _, of_reader in READING.key.groupby("reader")]
    assert len(set(orders)) == len(READERS)
    for _, of_reader in READING.key.groupby("reader"):
        first = of_reader[of_reader["occurrence"] == 1]
        halves = first.iloc[: len(first) // 2]["set"].value_counts()
        assert halves.min() >= 15
        assert not (first["set"].to_numpy()[:-1] != first["set"].to_numpy()[1:]).all()  # or the next could be guessed


def test_repeats_come_late_and_under_another_number() -> None:
    for _, of_reader in READING.key.groupby("reader"):
        again = of_reader[of_reader["occurrence"] == 2]
        assert len(again) == 18
        before = of_reader[of_reader["occurrence"] == 1].set_index("image")["position"]
        assert (again["position"].to_numpy() - before[again["image"]].to_numpy() > len(of_reader) / 5).all()
    assert not (make_reading(SETS, READERS, 10, repeats=0).key["occurrence"] == 2).any()


def test_same_seed_same_lists() -> None:
    again = make_reading(SETS, READERS, 40, paired=("before", "after"), seed=3)
    pd.testing.assert_frame_equal(READING.key, again.key)
    assert list(make_reading(SETS, READERS, 40, seed=4).list["item"]) != list(READING.list["item"])


def test_folder_holds_no_secret(tmp_path) -> None:
    READING.save(tmp_path / "list", tmp_path / "keeper" / "key.csv")
    text = "".join(path.read_text() for path in (tmp_path / "list").iterdir() if path.is_file())
    assert not any(word in text for word in ("real", "before", "after", "pair", "lymphocyte", *READING.key["image"][:5]))
    pictures = sorted((tmp_path / "list" / "images").iterdir())
    assert [path.stem for path in pictures] == sorted(READING.key["item"])
    pixels = from_uint8(read_image(pictures[0], 16)[None])[0]
    assert image_hash(pixels) == image_hash(READING.images[pictures[0].stem])
    assert b"tEXt" not in pictures[0].read_bytes() and b"tIME" not in pictures[0].read_bytes()
    assert (tmp_path / "keeper" / "key.csv").stat().st_mode & 0o077 == 0
    pd.testing.assert_frame_equal(open_key(tmp_path / "list", tmp_path / "keeper" / "key.csv"), READING.key, check_dtype=False)
    with pytest.raises(FileExistsError, match="key must not exist"):
        READING.save(tmp_path / "other", tmp_path / "keeper" / "key.csv")
    assert not (tmp_path / "other").exists()
    with pytest.raises(FileExistsError):
        READING.save(tmp_path / "list", tmp_path / "key2.csv")
    assert not (tmp_path / "key2.csv").exists()


@pytest.mark.parametrize(("change", "error", "message"), [
    (dict(sets={"before": SETS["before"]}), ValueError, "the real images under 'real'"),
    (dict(readers=["ann", "ann"]), ValueError, "different names"),
    (dict(readers=[]), ValueError, "at least one"),
    (dict(per_set=49), TooFewImages, "at least 49 images each"),
    (dict(repeats=0.9), ValueError, "repeats must be a share"),
    (dict(paired=("before", "later")), ValueError, "paired must name sets"),
    (dict(sets={"real": SETS["real"], "x": make_smear(6, 32, 0)}, paired=()), ValueError, "same classes and size"),
])
def test_bad_lists(change: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        make_reading(**(dict(sets=SETS, readers=READERS, per_set=20, paired=("before", "after")) | change))


# --- answers ----------------------------------------------------------------------------------------------------------


def test_answers_must_fit() -> None:
    answers = READS[["item", "rating"]]
    for bad, message in ((answers.iloc[1:], "1 not answered"), (pd.concat([answers, answers[:2]]), "2 answered twice"),
                         (answers.assign(item="0"), "not in the key"), (answers.assign(rating=0), "not rated 1 to 6"), (answers[["item"]], "'item' and 'rating'")):
        with pytest.raises(ValueError, match=message):
            unblind(READING.key, bad)
    shuffled = unblind(READING.key, answers.sample(frac=1, random_state=0))
    pd.testing.assert_frame_equal(shuffled[["item", "rating"]], READS[["item", "rating"]])


def test_correct_is_correct() -> None:
    said_real = READS["rating"] >= 4
    assert (READS["correct"] == np.where(READS["set"] == "real", said_real, ~said_real)).all()


# --- analysis ---------------------------------------------------------------------------------------------------------


def crossed(random, readers: int, images: int, mean: float, of_readers: float, of_images: float):
    p = expit(mean + random.normal(0, of_readers, readers)[:, None] + random.normal(0, of_images, images)[None])
    return random.random(p.size) < p.ravel(), np.repeat(np.arange(readers), images), np.tile(np.arange(images), readers)


def test_share_is_the_analysis_of_variance() -> None:
    "For complete lists the variance is that of two random factors, from the mean squares."
    values, who, what = crossed(np.random.default_rng(0), 5, 80, 0.0, 0.6, 1.2)
    table = values.reshape(5, 80).astype(float)
    by_reader = 80 * ((table.mean(1) - table.mean()) ** 2).sum() / 4
    by_image = 5 * ((table.mean(0) - table.mean()) ** 2).sum() / 79
    found = clustered_share(values, who, what)
    naive = table.mean() * (1 - table.mean()) / 400
    expected = (by_reader + by_image - table.var()) / 400  # the mean square of single readings, before readers and images are taken off
    assert found.design_effect * naive == pytest.approx(expected, rel=0.02)
    assert (found.readers, found.images) == (5, 80)


@pytest.mark.parametrize(("readers", "images", "of_readers", "of_images"), [(5, 60, 0.5, 0.8), (8, 40, 0.2, 1.2), (4, 80, 0.0, 0.0)])
def test_interval_covers_where_the_naive_one_does_not(readers: int, images: int, of_readers: float, of_images: float) -> None:
    random = np.random.default_rng(7)
    truth = expit(random.normal(0.5, np.hypot(of_readers, of_images), 400_000)).mean()
    ours, naive = [], []
    for _ in range(400):
        values, who, what = crossed(random, readers, images, 0.5, of_readers, of_images)
        found = clustered_share(values, who, what).estimate
        ours.append(found.low <= truth <= found.high)
        low, high = wilson_interval(int(values.sum()), len(values))[1:3]
        naive.append(low <= truth <= high)
    assert np.mean(ours) > 0.92
    if of_readers:
        assert np.mean(naive) < 0.85


def test_difference_covers_and_uses_pairs() -> None:
    random, held, widths = np.random.default_rng(8), [], {"paired": [], "not": []}
    truth = expit(random.normal(1.0, 1.1, 400_000)).mean() - expit(random.normal(0.4, 1.1, 400_000)).mean()
    who, what = np.tile(np.repeat(np.arange(6), 50), 2), np.tile(np.arange(50), 12)
    one = np.arange(600) < 300
    for _ in range(300):
        lean = random.normal(0, 0.6, 6)[who] + random.normal(0, 0.9, 50)[what]
        values = random.random(600) < expit(lean + np.where(one, 1.0, 0.4))
        found = clustered_difference(values, one, who, what)
        held.append(found.estimate.low <= truth <= found.estimate.high)
        widths["paired"].append(np.diff(found.estimate[1:3])[0])
        widths["not"].append(np.diff(clustered_difference(values, one, who, what + 50 * one).estimate[1:3])[0])
    assert np.mean(held) > 0.91
    assert np.mean(widths["paired"]) < 0.9 * np.mean(widths["not"])


def test_two_way_sandwich_is_that_of_statsmodels() -> None:
    api = pytest.importorskip("statsmodels.api")
    values, who, what = crossed(np.random.default_rng(3), 7, 50, 0.0, 0.8, 1.2)
    one = what < 25
    found = clustered_difference(values, one, who, what)
    fit = api.OLS(values.astype(float), api.add_constant(one.astype(float))).fit(cov_type="cluster", cov_kwds={"groups": np.stack([who, what], 1), "use_correction": False})
    assert found.estimate.value == pytest.approx(fit.params[1])
    n = len(values)
    parts = np.where(one, (values - values[one].mean()) / one.sum(), -(values - values[~one].mean()) / (~one).sum())
    plain = (np.bincount(who, parts) ** 2).sum() + (np.bincount(what, parts) ** 2).sum() - (parts**2).sum()
    assert plain == pytest.approx(fit.bse[1] ** 2, rel=1e-6)
    alone = sum(values[k].mean() * (1 - values[k].mean()) / k.sum() for k in (one, ~one))
    assert found.design_effect * alone == pytest.approx(plain, rel=0.25)  # with R / (R - 1) and I / (I - 1)
    assert n == found.estimate.n


def test_all_alike_and_one_reader() -> None:
    who, what = np.repeat(np.arange(3), 30), np.tile(np.arange(30), 3)
    assert clustered_share(np.ones(90, bool), who, what).estimate[:3] == wilson_interval(30, 30)[:3]
    alone = clustered_share(np.arange(40) % 2 == 0, np.zeros(40), np.arange(40))
    assert alone.readers == 1 and alone.design_effect == pytest.approx(40 / 39)
    with pytest.raises(ValueError, match="must be booleans"):
        clustered_share(np.ones(90), who, what)
    with pytest.raises(TooFewImages, match="at least 10"):
        clustered_share(np.ones(90, bool), who, what // 4)
    with pytest.raises(ValueError, match="some of each"):
        clustered_difference(np.ones(90, bool), np.ones(90, bool), who, what)


def test_reader_auc() -> None:
    once = READS[READS["occurrence"] == 1]
    by_hand = [roc_auc_score(part["real"], part["rating"]) for _, part in once.groupby("reader")]
    found = reader_auc(READS)
    assert found.estimate.value == pytest.approx(np.mean(by_hand))
    assert found.estimate.low < min(0.5 + 0.2, found.estimate.value) < found.estimate.high
    assert reader_table(READS)["auc"].sort_index().to_numpy() == pytest.approx(np.array(by_hand))
    with pytest.raises(ValueError, match="1 missing readings"):
        reader_auc(READS.drop(index=once.index[3]))
    with pytest.raises(ValueError, match="real and synthetic"):
        reader_auc(READS[READS["real"]])


def test_reader_auc_covers() -> None:
    "Five readers with habits and skills of their own, images with looks of their own: the mean AUC of all such readers is held."
    random, held = np.random.default_rng(11), []
    real = np.repeat([True, False], 40)
    skills = random.normal(0.8, 0.3, 200_000)
    truth = norm.cdf(skills / np.sqrt(2 * (1 + 0.6**2))).mean()
    for _ in range(300):
        look, skill = random.normal(0, 0.6, 80), random.normal(0.8, 0.3, 5)
        seen = look + np.outer(skill, real) + random.normal(0, 1, (5, 80))
        reads = pd.DataFrame({"reader": np.repeat(np.arange(5), 80), "image": np.tile(np.arange(80), 5), "real": np.tile(real, 5), "rating": seen.ravel(), "occurrence": 1})
        found = reader_auc(reads).estimate
        held.append(found.low <= truth <= found.high)
    assert 0.92 < np.mean(held) <= 0.99


def test_agreement_of_copies_and_coins() -> None:
    twins = READS.assign(says_real=READS["image"].str[0] < "8")
    agreed = reader_agreement(twins)
    assert agreed["alpha"].astype(float).to_list() == [1.0, 1.0]
    coins = reader_agreement(READS.assign(says_real=np.random.default_rng(0).random(len(READS)) < 0.5))
    assert abs(coins.loc["between readers", "alpha"]) < 0.1
    assert agreed.loc["with themselves", "images"] == 18 * len(READERS)


def test_a_difference_that_is_there_is_found() -> None:
    once = READS[(READS["occurrence"] == 1) & (READS["set"] != "real")]
    gain = clustered_difference(once["says_real"], once["set"] == "after", once["reader"], once["subject"])
    assert gain.estimate.value > 0 and gain.images == 40
    assert noninferior(gain, 0.05).shown and "4 readers" in noninferior(gain, 0.05).text


def test_figure(tmp_path) -> None:
    assert 5_000 < len(reading_figure(READS)._repr_jpeg_()) < 100_000
