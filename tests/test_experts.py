"""Properties, bad input and files of the pathologist learned from experts."""

import numpy as np
import pandas as pd
import pytest

from pathloop.data import CellImages
from pathloop.experts import DAMAGES, ExpertPathologist, damage_images, fit_expert_pathologist
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


def test_verdict_is_the_and_of_its_parts(expert, real):
    verdicts = expert.verdicts(real.images, 1 - real.labels)
    parts = (verdicts[["type", "attributes", "sound"]] == "yes").all(axis=1)
    assert ((verdicts["verdict"] == "plausible") == parts).all()
    assert len(expert.verdicts(real.images[:0], real.labels[:0])) == 0


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_is_seeded_and_changes_the_image(kind, real):
    one, two, other = (damage_images(real.images[:4], kind, seed) for seed in (1, 1, 2))
    assert (one == two).all() and one.shape == (4, 3, 32, 32) and np.abs(one).max() <= 1
    assert all((a != b).any() for a, b in zip(one, real.images[:4], strict=True))
    assert kind == "coarse" or (one != other).any()


def test_errors_name_argument_and_remedy(expert, real):
    cases = {"attributes must be columns": {"attributes": ["colour of mood"]}, "tolerance must be": {"tolerance": 0.7}, "kinds must be some": {"kinds": ("rain",)}}
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
