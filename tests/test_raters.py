"""People who judge: they err as told, go on where they stopped, and stand where a pathologist stands."""

import numpy as np
import pandas as pd
import pytest

from pathloop.agreement import agreement, consensus
from pathloop.checklist import load_checklist
from pathloop.core import image_hashes
from pathloop.feedback import FeedbackStore
from pathloop.pathologist import fit_pathologist
from pathloop.raters import Rater, error_rates, make_raters, rate_all, review_all, true_review
from pathloop.smear import make_smear

TWO = ["eosinophil", "lymphocyte"]


def truth_of(n, share_bad=0.5, seed=0):
    random = np.random.default_rng(seed)
    bad = random.random(n) < share_bad
    answers = pd.DataFrame({"nucleus_shape": np.where(bad & (random.random(n) < 0.5), "no", "yes"), "granules": "yes"})
    answers.loc[bad & (answers["nucleus_shape"] == "yes"), "granules"] = "no"
    hashes = [f"{i:012x}" for i in random.integers(16**12, size=n)]
    return answers.assign(verdict=np.where(bad, "implausible", "plausible")), hashes


def agrees_with_its_answers(table):
    answers = table.drop(columns="verdict")
    expected = np.where((answers == "no").any(axis=1), "implausible", np.where((answers == "yes").all(axis=1), "plausible", "unsure"))
    return (table["verdict"] == expected).all()


@pytest.mark.parametrize(("sensitivity", "specificity", "unsure", "shared"), [(0.9, 0.7, 0.0, 0.0), (0.6, 0.95, 0.2, 0.3), (0.99, 0.99, 0.05, 0.9)])
def test_a_rater_errs_as_told(sensitivity, specificity, unsure, shared):
    truth, hashes = truth_of(4000)
    said = Rater(None, sensitivity=sensitivity, specificity=specificity, unsure=unsure, shared=shared).rate(truth, hashes)
    shares = pd.crosstab(truth["verdict"], said["verdict"], normalize="index")
    assert shares.loc["implausible", "implausible"] == pytest.approx(sensitivity * (1 - unsure), abs=0.04)
    assert shares.loc["plausible", "plausible"] == pytest.approx(specificity * (1 - unsure), abs=0.04)
    assert agrees_with_its_answers(said)


def test_one_call_or_many_give_the_same_and_a_second_look_may_differ():
    truth, hashes = truth_of(300)
    whole = Rater(None, seed=3, drift=2, fatigue=3, unsure=0.1).rate(truth, hashes)
    rater = Rater(None, seed=3, drift=2, fatigue=3, unsure=0.1)
    parts = [rater.rate(truth[a:b].reset_index(drop=True), hashes[a:b]) for a, b in ((0, 7), (7, 200), (200, 300))]
    pd.testing.assert_frame_equal(pd.concat(parts, ignore_index=True), whole)
    assert rater.seen == 300
    again = rater.rate(truth, hashes)
    assert 0 < (again["verdict"] != whole["verdict"]).mean() < 0.5
    pd.testing.assert_frame_equal(rater.fresh().rate(truth, hashes), whole)


def test_drift_moves_both_numbers_apart_and_fatigue_lowers_both_until_rest():
    places = np.array([0, 500, 1000])
    sensitivity, specificity = Rater(None, drift=1.0).rates(places)
    assert (np.diff(sensitivity) < 0).all() and (np.diff(specificity) > 0).all()
    sensitivity, specificity = Rater(None, fatigue=5.0, rest=100).rates(np.array([0, 99, 100]))
    assert sensitivity[1] < sensitivity[0] == pytest.approx(sensitivity[2]) and specificity[1] < specificity[0]
    assert np.allclose(error_rates(0.8, 0.7), (0.8, 0.7)) and np.allclose(error_rates(0.9, 0.9, 0, 1), 0.5)


def test_shared_luck_makes_raters_agree_without_being_right():
    truth, hashes = truth_of(1500)
    found = {}
    for shared in (0.0, 0.8):
        verdicts = rate_all(make_raters(None, 5, spread=0, seed=2, sensitivity=0.8, specificity=0.8, shared=shared), truth, hashes, ["cell"] * 1500)
        right = (consensus(verdicts).loc[hashes, "verdict"].to_numpy() == truth["verdict"]).mean()
        found[shared] = agreement(verdicts, resamples=10).loc["verdict", "alpha"], right
    assert found[0.8][0] > found[0.0][0] + 0.2 and found[0.0][1] > 0.92 > found[0.8][1]


def test_what_the_judge_leaves_open_stays_open():
    truth, hashes = truth_of(50)
    truth["granules"], truth["nucleus_shape"], truth["verdict"] = "unsure", "yes", "unsure"
    pd.testing.assert_frame_equal(Rater(None).rate(truth, hashes), truth)


def test_raters_stand_where_the_pathologist_stands(tmp_path):
    real, new, checklist = make_smear(12, size=32, seed=0, classes=TWO), make_smear(6, size=32, seed=1, classes=TWO), load_checklist()
    pathologist = fit_pathologist(real, checklist)
    raters = make_raters(pathologist, 3, seed=1)
    assert raters[0].classes == pathologist.classes
    reviews = raters[0].fresh().review(new.images, new.labels)
    assert list(reviews) == list(pathologist.review(new.images, new.labels)) and agrees_with_its_answers(reviews)
    store = FeedbackStore(tmp_path / "feedback.db")
    for rater in raters:
        store.record_reviews(new.images, new.labels, new.classes, rater.fresh().review(new.images, new.labels), rater.name, "simulated", "real", checklist)
    stored = store.verdicts()
    store.close()
    table = review_all([rater.fresh() for rater in raters], new.images, new.labels)
    assert sorted(stored["rater"].unique()) == [rater.name for rater in raters]
    assert (stored.groupby(["rater", stored.index])["verdict"].last() == table.groupby(["rater", table.index])["verdict"].last()).all()
    assert set(table.index) == set(image_hashes(new.images))


class OnlyPlausible:
    classes = TWO

    def plausible(self, images, labels):
        return images.mean((1, 2, 3)) > 0


def test_any_judge_will_do_and_others_are_refused():
    images = np.stack([np.full((3, 8, 8), value, np.float32) for value in (-0.5, 0.5)])
    table = true_review(OnlyPlausible(), images, np.zeros(2, int))
    assert list(table["verdict"]) == ["implausible", "plausible"] and agrees_with_its_answers(table)
    with pytest.raises(ValueError, match="judge must have a method review, verdicts or plausible; got str"):
        true_review("someone", images, np.zeros(2, int))


@pytest.mark.parametrize(("change", "message"), [
    ({"sensitivity": 0}, "sensitivity must lie above 0"), ({"specificity": 1.0}, "specificity must lie above 0"), ({"unsure": 1}, "unsure must be 0 or more"),
    ({"shared": -0.1}, "shared must be 0 or more"), ({"fatigue": -1}, "fatigue must be 0 or more"), ({"rest": 0}, "rest 1 or more"),
])
def test_settings_out_of_range_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        Rater(None, **change)


def test_wrong_tables_and_numbers_of_people_are_refused():
    truth, hashes = truth_of(4)
    with pytest.raises(ValueError, match="truth must have a column 'verdict' and a row per hash"):
        Rater(None).rate(truth, hashes[:3])
    with pytest.raises(ValueError, match="n must be 1 or more; got 0"):
        make_raters(None, 0)
