"Injected defects: the same cells, one thing wrong, and the truth about it."

import numpy as np
import pytest
from scipy.ndimage import binary_dilation

from pathloop.checklist import load_checklist
from pathloop.data import to_uint8
from pathloop.defects import DEFECTS, defects_of, inject, inject_with_masks
from pathloop.smear import RECIPES, SMEAR_CLASSES, make_smear, smear_classes

OF_THE_CAMERA = ("colour cast", "blur")
OF_THE_NUCLEUS = ("wrong lobe count", "wrong N:C ratio", "two nuclei", "no nucleus", "wrong chromatin")


def test_none_is_the_sound_smear() -> None:
    sound = inject("none", 2, 32, seed=3)
    assert sound.hashes == make_smear(2, 32, seed=3).hashes
    assert set(sound.attributes["defect"]) == {"none"} and set(sound.attributes["breaks"]) == {""}


@pytest.mark.parametrize("defect", list(DEFECTS))
def test_only_what_should_change_changes(defect: str) -> None:
    types = list(DEFECTS[defect].types)
    broken, masks = inject_with_masks(defect, 1, 64, 6, types)
    sound, sound_masks = inject_with_masks("none", 1, 64, 6, types)
    assert broken.classes == types and not (masks[:, 0] & ~masks[:, 1]).any()
    changed = (to_uint8(broken.images) != to_uint8(sound.images)).any(-1)
    assert changed.any((1, 2)).all()
    if defect in OF_THE_CAMERA:
        assert np.array_equal(masks, sound_masks)
    else:
        layer = 0 if defect in OF_THE_NUCLEUS else 1
        assert not (changed & ~binary_dilation(masks[:, layer] | sound_masks[:, layer], np.ones((1, 3, 3)), iterations=3)).any()


@pytest.mark.parametrize("defect", list(DEFECTS))
def test_truth_names_the_defect_and_what_it_breaks(defect: str) -> None:
    cells = inject(defect, 1, 16, seed=2, classes=list(DEFECTS[defect].types))
    sound = make_smear(1, 16, seed=2, classes=cells.classes)
    criteria = load_checklist().criteria_names
    assert set(cells.attributes["defect"]) == {defect}
    for i, text in enumerate(cells.attributes["breaks"]):
        named = text.split(", ")
        assert named[0] == DEFECTS[defect].breaks and set(named) <= {*criteria, "picture"} and len(set(named)) == len(named)
        same = [c for c in criteria if c not in named and c not in ("nc_ratio", "cell_size")]
        assert cells.attributes.loc[i, same].equals(sound.attributes.loc[i, same])
    assert cells.attributes[criteria].map(lambda text: isinstance(text, str) and bool(text)).all(axis=None)


def test_numbers_are_those_of_the_broken_cell() -> None:
    granulocytes = inject("wrong N:C ratio", 3, seed=1, classes=["segmented neutrophil", "monocyte"]).attributes
    lymphocytes = inject("wrong N:C ratio", 3, seed=1, classes=["lymphocyte", "myelocyte"]).attributes
    assert (granulocytes["nc_area_ratio"] > 0.7).all() and (lymphocytes["nc_area_ratio"] < 0.25).all()
    assert (inject("no nucleus", 2).attributes["nc_area_ratio"] == 0).all()
    assert (inject("missing granules", 2).attributes["granule_density"] == 0).all()
    assert (inject("foreign inclusions", 2).attributes["vacuoles"] >= 5).all()
    lobes = inject("wrong lobe count", 4, classes=["segmented neutrophil", "lymphocyte"]).attributes["lobes"]
    assert set(lobes[:4]) <= {1, 6, 7, 8} and set(lobes[4:]) <= {3, 4}


def test_size_is_wrong_by_half_or_nearly_double() -> None:
    cells, sound = (inject(name, 3, seed=4, classes=smear_classes("all")) for name in ("wrong size", "none"))
    ratio = (cells.attributes["cell_diameter_um"] / sound.attributes["cell_diameter_um"]).groupby(cells.labels).mean()
    for name, factor in zip(cells.classes, ratio, strict=True):
        assert 1.5 < factor < 1.9 if name in ("lymphocyte", "erythroblast") else 0.44 < factor < 0.6, name


def test_blur_and_cast_show_in_plain_statistics() -> None:
    sound, blurred, cast = (inject(name, 3, 32, seed=5).images for name in ("none", "blur", "colour cast"))
    edges = [np.abs(np.diff(images, axis=-1)).mean((1, 2, 3)) for images in (sound, blurred)]
    assert (edges[1] < 0.75 * edges[0]).all()
    assert (np.abs(cast.mean((2, 3)) - sound.mean((2, 3))).max(1) > 0.1).all()


@pytest.mark.parametrize("defect", [name for name in DEFECTS if name != "missing granules"])
def test_defects_are_to_be_seen_at_demo_size(defect: str) -> None:
    "The noise of the sensor has a standard deviation of at most 2.2 grey levels."
    broken, masks = inject_with_masks(defect, 2, 32, 8)
    sound, sound_masks = inject_with_masks("none", 2, 32, 8, broken.classes)
    square = (to_uint8(broken.images).astype(float) - to_uint8(sound.images)) ** 2
    cell = masks[:, 1] | sound_masks[:, 1]
    assert min(np.sqrt(square[i][cell[i]].mean()) for i in range(len(broken))) > 5


def test_an_image_depends_on_defect_seed_type_and_index_alone() -> None:
    many = inject("torn membrane", 3, 32, seed=7, workers=2)
    few = inject("torn membrane", 1, 32, seed=7, classes=["monocyte", "basophil"])
    for name in few.classes:
        assert few.of_class(name).hashes == many.of_class(name).hashes[:1]
    assert len(set(many.names)) == len(set(many.hashes)) == len(many)


def test_every_type_has_defects_and_defaults_are_the_eight() -> None:
    assert all(len(defects_of(name)) >= 6 for name in RECIPES)
    assert inject("blur", 1, 16).classes == SMEAR_CLASSES
    assert inject("missing granules", 1, 16).classes == [name for name in SMEAR_CLASSES if "missing granules" in defects_of(name)]


@pytest.mark.parametrize(
    ("request_", "word"),
    [
        ({"defect": "wrong lobes"}, "Did you mean 'wrong lobe count'"),
        ({"defect": ""}, "defect must be 'none' or one of"),
        ({"defect": "missing granules", "classes": ["lymphocyte"]}, "can occur"),
        ({"defect": "blur", "classes": ["neutrophil"]}, "Did you mean"),
        ({"defect": "blur", "classes": "monocyte"}, "list of names"),
        ({"defect": "blur", "size": 8}, "size"),
        ({"defect": "blur", "n_per_class": 0}, "n_per_class"),
    ],
)
def test_bad_requests_are_refused(request_: dict, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        inject(**({"n_per_class": 1} | request_))
    with pytest.raises(ValueError, match="cell_type must be one of"):
        defects_of("neutrophil")
