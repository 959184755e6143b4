"The procedural smears: reproducible, right in their own numbers, distinguishable, refusing what they cannot draw."

import numpy as np
import pytest
from scipy.ndimage import label
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pathloop.checklist import load_checklist
from pathloop.core import image_hashes
from pathloop.data import CellImages, from_uint8, to_uint8
from pathloop.smear import (
    MATURATION_ROW,
    RECIPES,
    SMEAR_CLASSES,
    draw_scene,
    make_smear,
    render_scene,
    smear_classes,
    smear_masks,
)

EXPECTED_COLOURS = [
    [148.0, 109.9, 152.7],
    [140.9, 100.8, 152.0],
    [149.5, 90.6, 134.1],
    [124.4, 80.0, 142.2],
    [115.5, 83.0, 144.3],
    [118.5, 76.4, 151.1],
    [127.5, 79.5, 148.8],
    [159.7, 133.0, 159.8],
]


@pytest.fixture(scope="module")
def cells() -> CellImages:
    return make_smear(6, size=64, seed=11)


@pytest.fixture(scope="module")
def masks() -> tuple[np.ndarray, np.ndarray]:
    return smear_masks(6, size=64, seed=11)


def test_shapes_ranges_and_names(cells: CellImages) -> None:
    assert cells.images.shape == (48, 3, 64, 64) and cells.images.dtype == np.float32
    assert cells.images.min() >= -1 and cells.images.max() <= 1
    assert cells.classes == smear_classes() and set(cells.counts().values()) == {6}
    assert len(set(cells.names)) == len(set(cells.hashes)) == 48


def test_types_are_known_to_the_checklist_and_every_criterion_has_a_finding(cells: CellImages) -> None:
    checklist = load_checklist()
    assert set(SMEAR_CLASSES) <= set(checklist.classes)
    findings = cells.attributes[checklist.criteria_names]
    assert findings.map(lambda text: isinstance(text, str) and bool(text)).all(axis=None)


def test_pixels_are_bytes(cells: CellImages) -> None:
    again = to_uint8(cells.images).transpose(0, 3, 1, 2) / np.float32(127.5) - 1
    assert np.array_equal(again.astype(np.float32), cells.images)


@pytest.mark.parametrize("size", [16, 50, 128])
def test_an_image_depends_on_seed_type_and_index_alone(size: int) -> None:
    many = make_smear(2, size, seed=5)
    few = make_smear(1, size, seed=5, classes=["myelocyte", "basophil"])
    assert few.images.shape[-2:] == (size, size)
    for name in few.classes:
        assert few.of_class(name).hashes == many.of_class(name).hashes[:1]


def test_seeds_give_different_cells() -> None:
    assert not set(make_smear(3, 16, seed=0).hashes) & set(make_smear(3, 16, seed=1).hashes)


def test_the_look_is_frozen() -> None:
    "The shipped generator learned this look. Mean colours, because the last bit may differ between processors."
    images = to_uint8(make_smear(4, 32, seed=0).images)[:, 10:22, 10:22].reshape(8, -1, 3).mean(1)
    expected = np.array(EXPECTED_COLOURS)
    assert np.abs(images - expected).max() < 1.0


FROZEN = { # Type, size, seed, index: start of the hash of its pixels
    ("segmented neutrophil", 32, 0, 7): "e74cb9042832f66f",
    ("band neutrophil", 32, 0, 7): "9691982e9c797512",
    ("eosinophil", 32, 0, 7): "66a82427ff6171e5",
    ("basophil", 32, 0, 7): "334d78486333c651",
    ("lymphocyte", 32, 0, 7): "bfacf0c32a20c25b",
    ("monocyte", 32, 0, 7): "53a4092ade412fef",
    ("myelocyte", 32, 0, 7): "357ca1c7f042b91a",
    ("erythroblast", 32, 0, 7): "b701aa0e893f4f22",
    ("segmented neutrophil", 64, 1, 2): "d5958b8e50796261",
    ("basophil", 64, 1, 2): "0af303d9658d6f7e",
    ("monocyte", 64, 1, 2): "2e2cd8f09dc0512c",
    ("band neutrophil", 128, 2, 1): "7c4db0b2ff617cfa",
    ("myelocyte", 128, 2, 1): "b228804c61ed6f05",
    ("lymphocyte", 50, 3, 0): "da5599554837088d",
}


@pytest.mark.parametrize(("cell_type", "size", "seed", "index"), list(FROZEN))
def test_an_image_is_frozen_to_the_bit(cell_type: str, size: int, seed: int, index: int) -> None:
    "The shipped generator was trained on these very images; a faster renderer has to give the same bytes."
    pixels, _, _ = render_scene(draw_scene(cell_type, seed, index), size)
    assert image_hashes(from_uint8(pixels[None]))[0][:16] == FROZEN[cell_type, size, seed, index]


def test_the_default_types_are_those_of_the_shipped_generator() -> None:
    assert smear_classes() == SMEAR_CLASSES and len(SMEAR_CLASSES) == 8
    assert smear_classes("all") == [*SMEAR_CLASSES, "promyelocyte", "metamyelocyte"]
    assert smear_classes("maturation") == MATURATION_ROW
    with pytest.raises(ValueError, match="which must be one of"):
        smear_classes("everything")


def test_images_do_not_depend_on_workers() -> None:
    one = make_smear(3, 32, seed=4, classes=["monocyte", "promyelocyte"])
    two = make_smear(3, 32, seed=4, classes=["monocyte", "promyelocyte"], workers=2)
    assert one.hashes == two.hashes and one.names == two.names
    assert one.attributes.equals(two.attributes)


def test_a_neutrophil_matures() -> None:
    "Along the row the nucleus fills less of the cell, the cytoplasm loses its blue, and the nucleus its roundness."
    cells = make_smear(12, 64, seed=2, classes=MATURATION_ROW)
    nucleus, cell = smear_masks(12, 64, seed=2, classes=MATURATION_ROW)
    cytoplasm = cell & ~nucleus
    redness = [np.mean([(cells.images[i, 0] - cells.images[i, 2])[cytoplasm[i]].mean() for i in np.flatnonzero(cells.labels == k)]) for k in range(5)]
    table = cells.attributes.assign(type=[cells.classes[i] for i in cells.labels]).groupby("type", sort=False)
    ratio = table["nc_area_ratio"].mean()
    assert ratio.is_monotonic_decreasing and ratio.iloc[0] > 0.55 > 0.4 > ratio.iloc[-1]
    assert redness[0] < redness[1] < redness[2] < max(redness[3:])
    assert table["cell_diameter_um"].mean()["promyelocyte"] > table["cell_diameter_um"].mean()["metamyelocyte"]
    assert set(table.get_group("metamyelocyte")["nucleus_shape"]) == {"indented, bean-shaped"}


def test_new_types_have_every_finding_and_nested_masks() -> None:
    classes = ["promyelocyte", "metamyelocyte"]
    cells, (nucleus, cell) = make_smear(4, 48, 3, classes), smear_masks(4, 48, 3, classes)
    findings = cells.attributes[load_checklist().criteria_names]
    assert findings.map(lambda text: isinstance(text, str) and bool(text)).all(axis=None)
    assert not (nucleus & ~cell).any() and nucleus.any((1, 2)).all()


def test_masks_nest_and_agree_with_the_table(cells: CellImages, masks: tuple[np.ndarray, np.ndarray]) -> None:
    nucleus, cell = masks
    assert nucleus.shape == cell.shape == (48, 64, 64) and nucleus.dtype == bool
    assert not (nucleus & ~cell).any()
    ratio = nucleus.sum((1, 2)) / cell.sum((1, 2))
    diameter = 2 * np.sqrt(cell.sum((1, 2)) / np.pi) * 24 / 64
    assert np.abs(ratio - cells.attributes["nc_area_ratio"]).max() < 0.04
    assert np.abs(diameter - cells.attributes["cell_diameter_um"]).max() < 0.3


def test_masks_lie_on_the_dark_nucleus(cells: CellImages, masks: tuple[np.ndarray, np.ndarray]) -> None:
    nucleus, cell = masks
    green = cells.images[:, 1]
    for i in range(len(cells)):
        assert green[i][nucleus[i]].mean() < green[i][cell[i]].mean() < green[i][~cell[i]].mean()


def test_each_cell_is_one_piece(masks: tuple[np.ndarray, np.ndarray]) -> None:
    for mask in masks[1]:
        parts, count = label(mask)
        assert np.bincount(parts[parts > 0]).max() > 0.97 * mask.sum(), count


def test_findings_follow_the_numbers(cells: CellImages) -> None:
    table = cells.attributes.assign(type=[cells.classes[i] for i in cells.labels])
    assert (table.query("cell_size == 'small'")["cell_diameter_um"] < 10.5).all()
    assert (table.query("nc_ratio == 'low'")["nc_area_ratio"] < 0.35).all()
    assert ((table["vacuoles"] == 0) == (table["inclusions"] == "none")).all()
    assert set(table.query("type == 'segmented neutrophil'")["lobes"]) <= {3, 4, 5}
    assert (table.query("type == 'eosinophil'")["lobes"] <= 3).all()
    assert (table.query("type in ['lymphocyte', 'erythroblast']")["granule_density"] == 0).all()


def test_sizes_are_ordered_as_in_blood(cells: CellImages) -> None:
    diameter = cells.attributes["cell_diameter_um"].groupby([cells.classes[i] for i in cells.labels]).mean()
    assert diameter["monocyte"] > diameter["segmented neutrophil"] > diameter["lymphocyte"]
    for name in SMEAR_CLASSES:
        recipe = RECIPES[name]
        assert recipe.diameter_um[0] - 1 < diameter[name] < recipe.diameter_um[1] + 1.7


def test_types_can_be_told_apart_at_demo_size() -> None:
    "A linear reader of colours and a coarse picture does far better than chance, which is 1 in 8."
    train, test = make_smear(25, 32, seed=1), make_smear(8, 32, seed=2)

    def features(cells: CellImages) -> np.ndarray:
        middle = cells.images[:, :, 4:28, 4:28]
        coarse = middle.reshape(len(cells), 3, 6, 4, 6, 4).mean((3, 5)).reshape(len(cells), -1)
        sorted_colour = np.sort(middle.reshape(len(cells), 3, -1), axis=2)[:, :, ::24].reshape(len(cells), -1)
        return np.hstack([coarse, sorted_colour])

    reader = make_pipeline(StandardScaler(), LogisticRegression(C=0.05, max_iter=300))
    reader.fit(features(train), train.labels)
    assert reader.score(features(test), test.labels) > 0.7


@pytest.mark.parametrize(
    ("request_", "word"),
    [
        ({"n_per_class": 0}, "n_per_class"),
        ({"n_per_class": 1.5}, "n_per_class"),
        ({"size": 8}, "size"),
        ({"size": 256}, "size"),
        ({"size": 32.5}, "size"),
        ({"seed": -1}, "seed"),
        ({"classes": ["neutrophil"]}, "Did you mean"),
        ({"classes": []}, "classes"),
        ({"classes": "monocyte"}, r"Did you mean \['monocyte'\]"),
        ({"workers": 0}, "workers"),
        ({"workers": 1.5}, "workers"),
        ({"classes": ["monocyte", "monocyte"]}, "classes"),
    ],
)
def test_bad_requests_are_refused(request_: dict, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        make_smear(**({"n_per_class": 1} | request_))
    with pytest.raises(ValueError, match=word):
        smear_masks(**({"n_per_class": 1} | request_))
