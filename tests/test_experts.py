"""Properties, bad input and files of the pathologist learned from experts."""

import numpy as np
import pandas as pd
import pytest

from pathloop.data import CellImages
from pathloop.defects import inject
from pathloop.experts import (
    DAMAGES,
    ExpertPathologist,
    _fit_looks,
    _floors,
    _offsets,
    damage_images,
    fit_expert_pathologist,
)
from pathloop.smear import make_smear

TWO = ["eosinophil", "lymphocyte"]


@pytest.fixture(scope="module")
def real():
    cells = make_smear(40, size=32, seed=0, classes=TWO)
    cells.attributes["granule_kind"] = np.where(cells.labels == cells.classes.index("eosinophil"), "orange", "none").astype(object)
    cells.attributes.loc[cells.attributes.index[:3], "granule_kind"] = None
    cells.attributes.loc[cells.attributes.index[3:5], "granule_kind"] = ""
    return cells


@pytest.fixture(scope="module")
def expert(real):
    return fit_expert_pathologist(real, ["granule_kind"], steps=60, width=16, half=False)


def test_learns_type_and_attribute_on_new_smears(expert):
    new = make_smear(10, size=32, seed=5, classes=TWO)
    truth = np.where(new.labels == new.classes.index("eosinophil"), "orange", "none")
    assert (expert.attributes(new.images, abstain=False)["granule_kind"].to_numpy() == truth).mean() >= 0.9
    scores = [expert.scores(new.images, labels)["type"].mean() for labels in (new.labels, 1 - new.labels)]
    assert scores[0] > scores[1] + 0.5


def test_an_empty_cell_is_no_answer(expert):
    assert expert.values == {"granule_kind": ["none", "orange"]}


def test_saved_expert_answers_the_same(expert, real, tmp_path):
    expert.save(tmp_path / "expert")
    again = ExpertPathologist.load(tmp_path / "expert")
    pd.testing.assert_frame_equal(again.scores(real.images[:6], real.labels[:6]), expert.scores(real.images[:6], real.labels[:6]))
    assert (again.plausible(real.images, real.labels) == expert.plausible(real.images, real.labels)).all()
    with pytest.raises(ValueError, match="expert.json"):
        ExpertPathologist.load(tmp_path)
    written = (tmp_path / "expert" / "expert.json").read_text()
    (tmp_path / "expert" / "expert.json").write_text(written.replace("pathloop-expert-2", "pathloop-expert-1"))
    with pytest.raises(ValueError, match="must have format 'pathloop-expert-2'; got 'pathloop-expert-1'"):
        ExpertPathologist.load(tmp_path / "expert")


def test_verdict_is_the_and_of_its_parts(expert, real):
    verdicts = expert.verdicts(real.images, 1 - real.labels)
    parts = (verdicts[["type", "attributes", "sound", "real"]] == "yes").all(axis=1)
    assert ((verdicts["verdict"] == "plausible") == parts).all()
    assert len(expert.verdicts(real.images[:0], real.labels[:0])) == 0


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_is_seeded_and_changes_the_image(kind, real):
    one, two, other = (damage_images(real.images[:4], kind, seed) for seed in (1, 1, 2))
    assert (one == two).all() and one.shape == (4, 3, 32, 32) and np.abs(one).max() <= 1
    assert all((a != b).any() for a, b in zip(one, real.images[:4], strict=True))
    assert kind == "coarse" or (one != other).any()


def test_two_judges_of_other_bodies_learn_from_broken_smears(tmp_path):
    sound = make_smear(30, size=32, seed=20, classes=TWO)
    broken = inject("no nucleus", 20, size=32, seed=21, classes=TWO)
    judge = fit_expert_pathologist(sound, ["nucleus_shape"], body="plain", width=8, steps=60, members=2, kinds=(), broken=broken, half=False)
    assert "none" in judge.values["nucleus_shape"] and not judge.expected["nucleus_shape"][:, judge.values["nucleus_shape"].index("none")].any()
    new, bad = make_smear(15, size=32, seed=30, classes=TWO), inject("no nucleus", 15, size=32, seed=30, classes=TWO)
    assert judge.plausible(new.images, new.labels).mean() > judge.plausible(bad.images, bad.labels).mean() + 0.4
    judge.save(tmp_path / "plain")
    again = ExpertPathologist.load(tmp_path / "plain")
    assert len(again.networks) == 2 and (again.plausible(new.images, new.labels) == judge.plausible(new.images, new.labels)).all()


def test_real_images_are_as_close_as_usual_and_noise_is_not(real):
    looks, new = _fit_looks(real), make_smear(20, size=32, seed=9, classes=TWO)
    own, other = looks.own_closeness(), looks.closeness(new.images, new.labels)
    assert abs(np.median(own)) < 1e-6 and abs(np.median(other)) < 0.25 and (other < np.quantile(own, 0.02)).mean() < 0.15
    noisy = np.clip(new.images + np.random.default_rng(0).normal(0, 0.15, new.images.shape), -1, 1).astype(np.float32)
    assert (looks.closeness(noisy, new.labels) < np.quantile(own, 0.02)).mean() > 0.9
    assert (looks.closeness(real.images, real.labels) >= own - 1e-6).all() # With itself among its neighbours nothing is farther


def test_floors_refuse_the_share_asked_for_and_types_with_few_images_follow_the_rest():
    random = np.random.default_rng(0)
    scores, labels = np.r_[random.normal(size=4000), random.normal(size=4000) + 3, [9.0]], np.r_[np.zeros(4000, int), np.ones(4000, int), 2]
    floors = _floors(scores[:-1], labels[:-1], 2, 0.1)
    assert (scores[:4000] < floors[0]).mean() == pytest.approx(0.1, abs=0.02) and (scores[4000:-1] < floors[1]).mean() == pytest.approx(0.1, abs=0.02)
    assert _floors(scores, labels, 3, 0.1)[2] < 3


def test_offsets_raise_rare_values_only_where_that_helps():
    random = np.random.default_rng(0)
    truth = (random.random(2000) < 0.08).astype(int)
    evidence = random.normal(size=2000) + 1.5 * truth
    odds = 1.5 * evidence - 1.125 + np.log(0.08 / 0.92)
    offsets = _offsets(np.stack([-np.logaddexp(0, odds), -np.logaddexp(0, -odds)], 1), truth)
    assert offsets[1] > offsets[0] and offsets[1] - offsets[0] < 3.5
    sure = np.where(np.eye(2)[truth] > 0, -0.01, -5.0)
    assert (_offsets(sure, truth) == 0).all()


def test_errors_name_argument_and_remedy(expert, real):
    cases = {"attributes must be columns": {"attributes": ["colour of mood"]}, "tolerance must be": {"tolerance": 0.7}, "kinds must be some": {"kinds": ("rain",)},
             "body must be one of": {"body": "deep"}, "members must be 1 or more": {"members": 9}, "none only with broken": {"kinds": ()},
             "broken must have the classes": {"broken": make_smear(1, size=32, seed=0)}}
    for message, change in cases.items():
        with pytest.raises(ValueError, match=message):
            fit_expert_pathologist(real, **({"attributes": ["granule_kind"], "steps": 1} | change))
    with pytest.raises(ValueError, match="at least 2 classes and 8"):
        fit_expert_pathologist(real.subset(np.r_[0:3, 40:43]), [])
    with pytest.raises(ValueError, match="images must be 32 x 32"):
        expert.attributes(np.zeros((1, 3, 64, 64), np.float32))
    with pytest.raises(ValueError, match="kind must be one of"):
        damage_images(real.images, "rain")
    assert isinstance(real, CellImages)
