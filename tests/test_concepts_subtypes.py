"""Splitting classes and adding types with a tiny untrained generator: what moves, what stays, bad input."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pathloop.data import CellImages
from pathloop.diffusion import Generator, NetworkConfig, make_unet
from pathloop.subtypes import (
    ConceptModel,
    SplitConfig,
    add_type,
    fit_concept_model,
    merge_classes,
    nearest_type,
    sibling_guide,
    split_class,
    subtype_weights,
)

SIZE = 16
NETWORK = NetworkConfig(size=SIZE, channels=(16, 32))
BRIEF = SplitConfig(steps=3, row_steps=3, batch_size=8, warmup=1, precision="fp32", confident=0.5)
NAMES = ["pale", "dark"]


@pytest.fixture()
def generator() -> Generator:
    torch.manual_seed(0)
    return Generator(make_unet(NETWORK, 2).eval(), ["cell", "other"], NETWORK)


def blobs(labels: np.ndarray, seed: int) -> np.ndarray:
    "A disk on a bright ground; darker and larger for label 1."
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:SIZE, :SIZE] - SIZE / 2 + 0.5
    disk = np.hypot(y, x) < (4 + 1.5 * labels[:, None, None])
    image = np.where(disk, -0.2 - 0.3 * labels[:, None, None], 0.8)[:, None].repeat(3, 1)
    return (image + random.normal(0, 0.05, image.shape)).clip(-1, 1).astype(np.float32)


LABELS = np.tile([0, 1], 12)


@pytest.fixture(scope="module")
def model() -> ConceptModel:
    return fit_concept_model(blobs(LABELS, 0), LABELS, NAMES)


def real(seed: int = 1) -> CellImages:
    return CellImages(blobs(LABELS, seed), np.repeat([0, 1], 12), ["cell", "other"])


def test_merging_keeps_images_and_order() -> None:
    cells = CellImages(blobs(np.array([0, 1, 0]), 0), np.array([0, 1, 2]), ["a", "b", "c"])
    merged = merge_classes(cells, "ab", ["a", "b"])
    assert merged.classes == ["c", "ab"] and merged.labels.tolist() == [1, 1, 0] and merged.names == cells.names
    for parent, names, message in (("c", ["a", "b"], "parent must not be"), ("x", ["a"], "two or more"), ("x", ["a", "z"], "two or more")):
        with pytest.raises(ValueError, match=message):
            merge_classes(cells, parent, names)


def test_model_names_what_it_did_not_see_and_survives_its_file(model: ConceptModel, tmp_path: Path) -> None:
    fresh = blobs(LABELS, 7)
    assert (model.proba(fresh).argmax(1) == LABELS).mean() > 0.9 and model.checked.n == 24 and model.checked.low > 0.7
    model.save(tmp_path / "model.json")
    again = ConceptModel.load(tmp_path / "model.json")
    assert again.names == NAMES and np.allclose(again.proba(fresh), model.proba(fresh)) and again.checked == model.checked
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(ValueError, match="concept model of format"):
        ConceptModel.load(tmp_path / "other.json")
    with pytest.raises(ValueError, match="measurements each"):
        model.proba(np.zeros((1, 3, 6, 6), np.float32))


def test_three_concepts() -> None:
    labels = np.tile([0, 1, 2], 10)
    model = fit_concept_model(blobs(labels, 0), labels, ["a", "b", "c"])
    chances = model.proba(blobs(labels, 5))
    assert chances.shape == (30, 3) and np.allclose(chances.sum(1), 1) and (chances.argmax(1) == labels).mean() > 0.8


def test_score_is_one_for_what_is_no_concept(model: ConceptModel) -> None:
    images = blobs(np.array([1, 1, 1]), 3)
    score = model.score(["other", *NAMES])(images, np.array([0, 1, 2]))
    assert score[0] == 1 and score[1] < 0.5 < score[2]


def test_labels_go_before_guesses_and_unsure_guesses_teach_nothing(model: ConceptModel) -> None:
    few, others = blobs(LABELS, 0), blobs(LABELS, 9)
    wrong = 1 - LABELS
    images, weights = subtype_weights(model, few, wrong, np.concatenate([few[:4], others]), confident=0.5)
    assert len(images) == 48 and np.array_equal(weights[:24], np.eye(2)[wrong]) # Labelled ones are not guessed again
    assert (weights[24:].argmax(1) == LABELS).mean() > 0.9
    assert (subtype_weights(model, few, wrong, others, confident=0.9999999)[1][24:] == 0).all()
    assert len(subtype_weights(model, few, wrong, others[:0])[0]) == 24


def test_split_grows_the_class_list_and_leaves_the_old_generator(generator: Generator, model: ConceptModel, tmp_path: Path) -> None:
    before = generator.id
    call = (generator, "cell", model, blobs(LABELS, 0), LABELS, real())
    after = split_class(*call, BRIEF)
    assert generator.id == before and after.classes == ["cell", "other", *NAMES] and len(after.history) == 2
    assert not torch.equal(after.unet.class_embedding.weight[2], after.unet.class_embedding.weight[3])
    assert not torch.equal(after.unet.conv_in.weight, generator.unet.conv_in.weight)
    assert split_class(*call, BRIEF).id == after.id and split_class(*call, replace(BRIEF, seed=1)).id != after.id
    after.save_pretrained(tmp_path / "generator")
    assert Generator.from_pretrained(tmp_path / "generator").classes == after.classes


def test_rows_move_apart_before_the_weights_do(generator: Generator, model: ConceptModel) -> None:
    after = split_class(generator, "cell", model, blobs(LABELS, 0), LABELS, real(), replace(BRIEF, steps=1, learning_rate=1e-12, row_steps=10, average=0.5))
    old, new = generator.unet.class_embedding.weight, after.unet.class_embedding.weight
    assert torch.allclose(new[:2], old[:2], atol=1e-6) and torch.allclose(new[-1], old[-1], atol=1e-6)
    assert (new[2] - old[0]).abs().max() > 0.01


def test_siblings_swap_and_others_stay(generator: Generator, model: ConceptModel) -> None:
    split = split_class(generator, "cell", model, blobs(LABELS, 0), LABELS, real(), BRIEF)
    guide = sibling_guide(split, NAMES)
    rows, swapped = split.unet.class_embedding.weight, guide.unet.class_embedding.weight
    assert torch.allclose(swapped[2], rows[3], atol=1e-6) and torch.allclose(swapped[3], rows[2], atol=1e-6) and torch.equal(swapped[[0, 1, 4]], rows[[0, 1, 4]])
    plain, led = (split.sample(np.array([2, 1]), [5, 5], steps=3, guide=guide, guide_scale=scale) for scale in (1.0, 2.0))
    assert not np.allclose(plain[0], led[0], atol=1e-4) and np.allclose(plain[1], led[1], atol=1e-4) # A class without siblings is not led
    with pytest.raises(ValueError, match="two or more"):
        sibling_guide(split, ["pale", "none"])


def test_adds_a_type_from_eight_images(generator: Generator) -> None:
    images = blobs(np.ones(8, int), 4)
    near = nearest_type(generator, images, repeats=1)
    assert sorted(near.index) == ["cell", "other"] and near.is_monotonic_increasing
    after = add_type(generator, "new", images, real(), settings=BRIEF)
    assert after.classes == ["cell", "other", "new"] and after.sample(np.array([2]), [0], steps=2).shape == (1, 3, SIZE, SIZE)
    grown_again = add_type(after, "newer", images, replace(real(), classes=after.classes), like="new", settings=BRIEF)
    assert grown_again.classes[-2:] == ["new", "newer"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g, m: add_type(g, "new", blobs(np.ones(7, int), 0), real()), "at least 8 images"),
        (lambda g, m: add_type(g, "cell", blobs(np.ones(8, int), 0), real(), like="cell"), "not among"),
        (lambda g, m: add_type(g, "new", blobs(np.ones(8, int), 0), real(), like="nothing"), "parent must be one of"),
        (lambda g, m: add_type(g, "new", blobs(np.ones(8, int), 0), replace(real(), classes=["a", "b"]), like="cell"), "real must have"),
        (lambda g, m: split_class(g, "nothing", m, blobs(LABELS, 0), LABELS, real()), "parent must be one of"),
        (lambda g, m: split_class(g, "cell", m, blobs(LABELS, 0), LABELS + 1, real()), "labels must lie"),
        (lambda g, m: split_class(g, "cell", m, blobs(LABELS, 0), LABELS, replace(real(), classes=["a", "b"])), "real must have"),
        (lambda g, m: fit_concept_model(blobs(LABELS, 0), np.zeros(24, int), NAMES), "'dark': 0"),
        (lambda g, m: fit_concept_model(blobs(LABELS, 0), LABELS, ["one", "one"]), "different concepts"),
        (lambda g, m: SplitConfig(confident=1.0), "confident must be"),
        (lambda g, m: m.score(["cell"]), "some of the concepts"),
    ],
)
def test_bad_input(generator: Generator, model: ConceptModel, call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(generator, model)
