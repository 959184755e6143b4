"""Coefficients against other people's code and published examples; verdict rules and rater reports against what is known."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import cohen_kappa_score

from pathloop.agreement import (
    METHODS,
    agreement,
    cohen_kappa,
    consensus,
    dawid_skene,
    fleiss_kappa,
    gwet_ac1,
    rater_report,
    repeats,
    self_agreement,
    standing,
)


def votes(said, cell_types=None):
    "A verdict table from rater -> words on each image ('p', 'i', 'u', or '-' for none)."
    rows = []
    for rater, words in said.items():
        for i, word in enumerate(words):
            if word != "-":
                verdict = {"p": "plausible", "i": "implausible", "u": "unsure"}[word]
                answer = {"p": "yes", "i": "no", "u": "unsure"}[word]
                rows.append({"image": f"{i}", "granules": answer, "verdict": verdict, "cell_type": cell_types[i] if cell_types else "t", "rater": rater})
    return pd.DataFrame(rows).set_index("image")


def simulated(n=400, good=0.8, errors=(0.05, 0.1, 0.2), seed=0):
    random = np.random.default_rng(seed)
    truth = random.random(n) < good
    return truth, votes({f"r{k}": np.where(truth ^ (random.random(n) < error), "p", "i") for k, error in enumerate(errors)})


def counts_of(table):
    return np.stack([(table == 0).sum(1), (table == 1).sum(1)], 1)


@pytest.fixture(params=range(5))
def table(request):
    random = np.random.default_rng(request.param)
    truth = random.random(60) < 0.7
    return np.stack([truth ^ (random.random(60) < error) for error in (0.1, 0.2, 0.3)], 1).astype(int)


def test_fleiss_is_that_of_statsmodels(table):
    inter_rater = pytest.importorskip("statsmodels.stats.inter_rater")
    assert fleiss_kappa(counts_of(table)) == pytest.approx(inter_rater.fleiss_kappa(counts_of(table)))


def test_fleiss_of_his_own_example():
    "Fleiss 1971 by way of Wikipedia: ten subjects, fourteen raters, five categories, kappa 0.210."
    counts = np.array([[0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
                       [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7]])
    assert fleiss_kappa(counts) == pytest.approx(0.210, abs=5e-4)


def test_cohen_is_that_of_scikit_learn(table):
    pairs = [cohen_kappa_score(table[:, a], table[:, b]) for a, b in combinations(range(3), 2)]
    assert cohen_kappa(table) == pytest.approx(np.mean(pairs)) and cohen_kappa(table[:, :2]) == pytest.approx(pairs[0])


def test_cohen_takes_the_images_that_two_raters_share():
    table = np.array([[1, 1, -1], [0, 0, -1], [1, 0, -1], [0, 0, 1], [1, -1, 1], [0, -1, 0]])
    shared = [([1, 0, 1, 0], [1, 0, 0, 0]), ([0, 1, 0], [1, 1, 0]), ([0], [1])]
    assert cohen_kappa(table) == pytest.approx(np.mean([cohen_kappa_score(*pair) for pair in shared]))


@pytest.mark.parametrize(("both_yes", "differ", "both_no", "ac1"), [(118, 7, 0, 0.941), (80, 20, 0, 0.756), (40, 20, 40, 0.6)])
def test_ac1_of_two_raters_by_hand(both_yes, differ, both_no, ac1):
    "AC1 = (p - e) / (1 - e) with e = 2 q (1 - q); the first line is the case of kappa's paradox, kappa below zero."
    counts = np.array([[0, 2]] * both_yes + [[1, 1]] * differ + [[2, 0]] * both_no)
    n = both_yes + differ + both_no
    seen, q = (both_yes + both_no) / n, (both_yes + differ / 2) / n
    assert gwet_ac1(counts) == pytest.approx((seen - 2 * q * (1 - q)) / (1 - 2 * q * (1 - q)))
    assert gwet_ac1(counts) == pytest.approx(ac1, abs=2e-3)


def test_coefficients_are_undefined_without_data_or_variation():
    nothing, same = np.zeros((0, 2), int), np.array([[0, 2]] * 5)
    assert np.isnan([fleiss_kappa(nothing), gwet_ac1(nothing), fleiss_kappa(same), cohen_kappa(np.ones((5, 2), int))]).all()
    assert gwet_ac1(same) == 1


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    "Alpha of a large sample stands for the truth; 60 small samples' intervals."
    truth = agreement(simulated(20_000, seed=99)[1], resamples=1).loc["verdict"]
    held = {"alpha": 0, "ac1": 0}
    for seed in range(60):
        row = agreement(simulated(100, seed=seed)[1][["verdict", "cell_type", "rater"]], resamples=100).loc["verdict"]
        held["alpha"] += row["low"] <= truth["alpha"] <= row["high"]
        held["ac1"] += row["ac1_low"] <= truth["ac1"] <= row["ac1_high"]
    assert min(held.values()) >= 51, held  # 57 expected; below 51 once in a hundred


def test_agreement_by_cell_type():
    said = votes({"A": "ppiippii", "B": "ppiiiipp"}, ["x"] * 4 + ["y"] * 4)
    table = agreement(said, resamples=20, by="cell_type")
    assert table.loc[("x", "verdict"), "alpha"] == 1 and table.loc[("y", "verdict"), "alpha"] < 0
    assert table["images"].tolist() == [4] * 4 and table.index.names == ["cell_type", "criterion"]
    with pytest.raises(ValueError, match="by must be None or 'cell_type'"):
        agreement(said, by="rater")


@pytest.mark.parametrize(
    ("words", "majority", "unanimous"),
    [("ppp", "plausible", "plausible"), ("ppi", "plausible", "unsure"), ("iiu", "implausible", "implausible"), ("piu", "unsure", "unsure"), ("uuu", "unsure", "unsure"), ("p--", "plausible", "plausible")],
)
def test_rules_on_one_image(words, majority, unanimous):
    said = votes(dict(zip("ABC", words, strict=True)))
    found = [consensus(said, method)[["verdict", "granules"]].iloc[0].tolist() for method in ("majority", "unanimous")]
    as_answer = {"plausible": "yes", "implausible": "no", "unsure": "unsure"}
    assert found == [[majority, as_answer[majority]], [unanimous, as_answer[unanimous]]]


def test_one_image_shown_as_two_types_has_two_verdicts():
    said = pd.concat([votes({"A": "p"}), votes({"A": "i"}, ["other"])])
    for method in METHODS:
        assert len(consensus(said, method)) == 2
    assert consensus(said).set_index("cell_type")["verdict"].to_dict() == {"t": "plausible", "other": "implausible"}


def test_adjudication_settles():
    said = votes({"A": "pi", "B": "ip", "C": "i-"}).assign(view="card")
    said.loc[said["rater"] == "C", "view"] = "adjudication"
    table = consensus(said).loc[["0", "1"]]
    assert table["verdict"].tolist() == ["implausible", "unsure"] and table["adjudicated"].tolist() == [True, False]
    assert table["raters"].tolist() == [1, 2] and agreement(said, resamples=5).loc["verdict", "images"] == 2


def test_dawid_skene_finds_the_raters_errors_and_beats_the_majority():
    truth, said = simulated(2000, errors=(0.05, 0.35, 0.40), seed=3)
    tasks, raters = said.index.astype(int).to_numpy(), pd.factorize(said["rater"])[0]
    found, errors = dawid_skene((said["verdict"] == "plausible").to_numpy(int), tasks, raters)
    assert np.allclose(errors[:, 1, 0], [0.05, 0.35, 0.40], atol=0.05)
    majority = consensus(said)["verdict"].eq("plausible").to_numpy()
    weighed = consensus(said, "dawid-skene")
    assert ((weighed["probability"] > 0.5).to_numpy() == truth).mean() > (majority == truth).mean() + 0.05
    assert (weighed["verdict"] == "unsure").to_numpy().tolist() == weighed["probability"].between(0.2, 0.8, inclusive="neither").tolist()
    assert (found.sum(1) == pytest.approx(1)) and np.isclose(found[:, 1].mean(), 0.8, atol=0.03)


def test_dawid_skene_is_that_of_crowd_kit():
    "Step for step. Left to itself crowd-kit 1.4 stops when its bound first falls, here after the second step."
    crowdkit = pytest.importorskip("crowdkit.aggregation")
    _, said = simulated(300, errors=(0.1, 0.2, 0.3, 0.35), seed=5)
    said = said.sample(frac=0.7, random_state=0)
    tasks, where = pd.factorize(said.index)
    table = pd.DataFrame({"task": said.index, "worker": said["rater"].to_numpy(), "label": said["verdict"].to_numpy()})
    for steps in (1, 2, 50):
        found, _ = dawid_skene((said["verdict"] == "plausible").to_numpy(int), tasks, pd.factorize(said["rater"])[0], steps, tolerance=0)
        theirs = crowdkit.DawidSkene(n_iter=steps, tol=-np.inf).fit_predict_proba(table)
        assert np.allclose(found[:, 1], theirs.loc[where, "plausible"], atol=1e-9)


def test_dawid_skene_needs_answers_and_leaves_what_is_open_unsure():
    with pytest.raises(ValueError, match="labels must hold at least one"):
        dawid_skene(np.zeros(0, int), np.zeros(0, int), np.zeros(0, int))
    table = consensus(votes({"A": "uu", "B": "uu"}), "dawid-skene")
    assert table["verdict"].tolist() == ["unsure"] * 2 and table["probability"].isna().all()


def log(said):
    "Events from (rater, image, verdict, purpose, seconds), in order."
    rows = []
    for number, (rater, image, verdict, purpose, seconds) in enumerate(said):
        about = {"image": image, "shown_as": "t", "generator": "g", "source": "human", "rater": rater, "supersedes": None}
        answer = {"plausible": "yes", "implausible": "no", "unsure": "unsure"}[verdict]
        rows.append(about | {"uuid": f"e{number}", "kind": "review", "purpose": purpose, "verdict": verdict, "answers": {"granules": answer}, "seconds": seconds, "first_seconds": seconds / 2})
    return pd.DataFrame(rows)


def test_what_stands():
    events = log([("A", "1", "plausible", None, 1), ("A", "1", "implausible", None, 1), ("A", "1", "plausible", "repeat", 1), ("B", "1", "plausible", "control", 1)])
    assert standing(events)["uuid"].tolist() == ["e1", "e3"]
    assert standing(events, repeats=True)["uuid"].tolist() == ["e1", "e2", "e3"]
    undo = events.iloc[[1]].assign(kind="undo", uuid="u", supersedes="e1")
    assert standing(pd.concat([events, undo]))["uuid"].tolist() == ["e0", "e3"]


def test_self_agreement_from_repeats():
    firsts = [("A", f"{i}", "plausible" if i % 2 else "implausible", None, 1) for i in range(20)]
    again = [("A", f"{i}", "plausible" if i % 2 or i == 0 else "implausible", "repeat", 1) for i in range(10)]
    events = log(firsts + again + [("B", "1", "plausible", None, 1)])
    assert len(repeats(events)) == 20
    table = self_agreement(events, resamples=50)
    assert table.loc[("A", "verdict"), ["same", "images"]].tolist() == [0.9, 10] and table.index.get_level_values(0).unique().tolist() == ["A"]
    assert len(self_agreement(log(firsts), 10)) == 0


def test_rater_report():
    said = [("A", f"{i}", "plausible" if i < 20 else "implausible", None, 6.0) for i in range(40)]
    said += [("B", f"{i}", "unsure" if i % 4 == 0 else "plausible", None, 0.5) for i in range(40)]
    said += [("B", f"c{i}", "implausible" if i < 3 else "plausible", "control", 0.5) for i in range(6)]
    known = pd.DataFrame({"image": [f"c{i}" for i in range(6)], "cell_type": "t", "expected": "plausible"})
    report = rater_report(log(said), known)
    ana, ben = report.loc["A"], report.loc["B"]
    assert (ana["judged"], ana["per_minute"], ana["unsure"], ana["checks"]) == (40, 10, 0, 0)
    assert ana["drift"] == -1 and ana["drift_p"] < 1e-9 and np.isnan(ana["failed_low"])
    assert (ben["judged"], ben["unsure"], ben["hasty"], ben["checks"], ben["failed"]) == (40, 0.25, 1, 6, 3)
    assert ben["failed_low"] < 0.5 < ben["failed_high"] and ben["drift_p"] == 1
    assert ana["with_others"] == pytest.approx(15 / 30) and ben["with_others"] == pytest.approx(15 / 30)
    assert len(rater_report(log(said).iloc[:0])) == 0


def test_ten_thousand_images_take_seconds():
    _, said = simulated(10_000)
    for method in METHODS:
        assert len(consensus(said, method)) == 10_000
