"""Adding subtypes to a tiny untrained generator: shapes, promises, bad input."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pathloop.concepts import ConceptConfig, add_concept, concept_features, fit_concepts, grow_classes
from pathloop.data import CellImages
from pathloop.diffusion import Generator, NetworkConfig, make_unet

SIZE = 16
NETWORK = NetworkConfig(size=SIZE, channels=(16, 32))
BRIEF = ConceptConfig(steps=4, batch_size=8, warmup=1, checkpoint_every=1000, precision="fp32")
ALL = replace(BRIEF, rows_only=False, learning_rate=1e-3)


@pytest.fixture()
def generator() -> Generator:
    torch.manual_seed(0)
    return Generator(make_unet(NETWORK, 2), ["cell", "other"], NETWORK)


def images_of(labels: np.ndarray, seed: int) -> np.ndarray:
    "Noise that is brighter for label 1."
    rng = np.random.default_rng(seed)
    return (rng.normal(0, 0.2, (len(labels), 3, SIZE, SIZE)) + 0.4 * labels[:, None, None, None]).clip(-1, 1).astype(np.float32)


def real(seed: int) -> CellImages:
    labels = np.tile([0, 1], 12)
    return CellImages(images_of(labels, seed), labels, ["cell", "other"])


def bright(images: np.ndarray) -> np.ndarray:
    return (images.mean((1, 2, 3)) > 0.2).astype(int)


def test_new_rows_are_copies_between_old_rows_and_no_class(generator: Generator) -> None:
    grown = grow_classes(generator, "cell", ["dark", "bright", "spotted"])
    old, new = generator.unet.class_embedding.weight, grown.unet.class_embedding.weight
    assert grown.classes == ["cell", "other", "dark", "bright", "spotted"]
    assert torch.equal(new[:2], old[:2]) and torch.equal(new[2:5], old[:1].expand(3, -1)) and torch.equal(new[-1], old[-1])
    unconditional = [g.sample(np.array([1]), [3], guidance=2.0, steps=3) for g in (generator, grown)]
    assert np.allclose(*unconditional, atol=1e-4)


def test_features_do_not_change_when_the_image_is_turned(generator: Generator) -> None:
    images = images_of(np.array([0, 1, 0]), 1)
    features = concept_features(generator, images, "cell")
    assert np.allclose(features, concept_features(generator, images[:, :, ::-1].transpose(0, 1, 3, 2).copy(), "cell"), atol=1e-4)
    assert not generator.unet.mid_block._forward_hooks
    with pytest.raises(ValueError, match="16 px"):
        concept_features(generator, np.zeros((1, 3, 32, 32), np.float32), "cell")


def _changed(before: Generator, after: Generator) -> list[str]:
    pairs = zip(before.unet.named_parameters(), after.unet.parameters(), strict=True)
    return [name for (name, a), b in pairs if a.shape != b.shape or not torch.equal(a, b)]


def test_all_weights_move_when_asked_and_not_at_the_rate_of_rows(generator: Generator) -> None:
    labels = np.tile([0, 1], 12)
    run = dict(held=real(2), judge=bright, settings=ALL, pool_size=0, n_judged=4)
    after, result = add_concept(generator, "cell", ["dark", "bright"], images_of(labels, 3), labels, real(1), **run)
    assert len(_changed(generator, after)) > 0.9 * len(list(after.unet.parameters()))
    assert (result.kept.change != 0).all() and (result.kept.low < result.kept.high).all()
    assert all(parameter.requires_grad for parameter in after.unet.parameters())
    with pytest.raises(ValueError, match="at most 0.01"):
        ConceptConfig(rows_only=False)


def test_adds_two_subtypes_and_leaves_the_old_generator_alone(generator: Generator, tmp_path) -> None:
    labels, before = np.tile([0, 1], 12), generator.id
    run = dict(held=real(2), judge=bright, settings=BRIEF, pool_size=4, n_judged=5)
    after, result = add_concept(generator, "cell", ["dark", "bright"], images_of(labels, 3), labels, real(1), **run)
    assert generator.id == before and after.classes == ["cell", "other", "dark", "bright"] and after.id != before
    assert torch.equal(after.unet.class_embedding.weight[:2], generator.unet.class_embedding.weight[:2])
    assert torch.equal(after.unet.class_embedding.weight[-1], generator.unet.class_embedding.weight[-1])
    assert not torch.equal(after.unet.class_embedding.weight[2], after.unet.class_embedding.weight[3])
    assert _changed(generator, after) == ["class_embedding.weight"] and (result.kept.change == 0).all()
    assert list(result.judged["class"]) == ["dark", "bright"] and (result.judged.n == 5).all()
    for when in ("before", "after"):
        assert (result.judged[f"{when}_low"] <= result.judged[when] + 1e-9).all() and (result.judged[when] <= result.judged[f"{when}_high"] + 1e-9).all()
    assert list(result.kept["class"]) == ["cell", "other"] and (result.kept.n == 12).all()
    assert result.classifier["n"] == 6 and result.classifier["value"] == 1.0
    after.save_pretrained(tmp_path / "generator")
    assert Generator.from_pretrained(tmp_path / "generator").id == after.id
    again, _ = add_concept(generator, "cell", ["dark", "bright"], images_of(labels, 3), labels, real(1), **run)
    assert again.id == after.id


def test_classifier_learns_from_few_labels() -> None:
    rng = np.random.default_rng(0)
    labels = np.tile([0, 1, 2], 12)
    features = rng.normal(0, 1, (36, 5)) + 3 * np.eye(3, 5)[labels]
    assert fit_concepts(features, labels, 3, strength=1.0).score(features, labels) > 0.9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parent": "cells"}, "parent must be one of"),
        ({"names": ["dark"]}, "at least two subtypes"),
        ({"names": ["dark", "dark"]}, "names must be different"),
        ({"names": ["dark", "other"]}, "not among"),
        ({"labels": np.r_[np.zeros(20, int), np.ones(4, int)]}, "'bright': 4"),
        ({"labels": np.full(24, 2)}, "labels must lie from 0 to 1"),
        ({"real": CellImages(np.zeros((2, 3, SIZE, SIZE), np.float32), np.array([0, 1]), ["a", "b"])}, "real must have the generator's classes"),
    ],
)
def test_bad_input(generator: Generator, change: dict, message: str) -> None:
    labels = np.tile([0, 1], 12)
    call = {"parent": "cell", "names": ["dark", "bright"], "images": images_of(labels, 3), "labels": labels, "real": real(1)} | change
    with pytest.raises(ValueError, match=message):
        add_concept(generator, **call, held=real(2), judge=bright, settings=BRIEF, pool_size=4, n_judged=4)
