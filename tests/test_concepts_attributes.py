"""Attributes beside the cell type, and what must not be: with a tiny untrained generator."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from pathloop.attributes import (
    AttributeConfig,
    AttributedGenerator,
    allowed_weights,
    attribute_values,
    fit_attributes,
    sample_without,
)
from pathloop.concepts import grow_classes
from pathloop.data import CellImages
from pathloop.diffusion import Generator, NetworkConfig, Pool, make_unet
from pathloop.intervals import Estimate
from pathloop.subtypes import ConceptModel

SIZE = 16
NETWORK = NetworkConfig(size=SIZE, channels=(16, 32))
BRIEF = AttributeConfig(steps=12, batch_size=8, warmup=1, precision="fp32", learning_rate=1e-3, average=0.5)
CLASSES = ["cell", "other"]


def cells(n: int = 40, seed: int = 0) -> CellImages:
    "Bright where the attribute says so; every fifth image is not described."
    random = np.random.default_rng(seed)
    bright, labels = random.integers(0, 2, n), np.arange(n) % 2
    images = (random.normal(0, 0.1, (n, 3, SIZE, SIZE)) + (bright - 0.5)[:, None, None, None]).clip(-1, 1).astype(np.float32)
    light = np.where(np.arange(n) % 5 == 0, "unsure", np.array(["low", "high"])[bright])
    return CellImages(images, labels, CLASSES, attributes=pd.DataFrame({"light": light, "size": np.where(labels, "big", "small"), "note": "same"}))


@pytest.fixture()
def generator() -> Generator:
    torch.manual_seed(0)
    return Generator(make_unet(NETWORK, 2).eval(), list(CLASSES), NETWORK)


@pytest.fixture()
def described(generator: Generator) -> AttributedGenerator:
    return fit_attributes(generator, cells(), settings=BRIEF)


def test_only_known_values_that_are_frequent_are_attributes() -> None:
    assert attribute_values(cells()) == {"light": ["high", "low"], "size": ["big", "small"]} # Neither "unsure" nor what never varies
    assert attribute_values(cells(), ["size"]) == {"size": ["big", "small"]}
    with pytest.raises(ValueError, match="columns must be among"):
        attribute_values(cells(), ["mood"])
    with pytest.raises(ValueError, match="two values of 100 images"):
        attribute_values(cells(), least=100)


def test_training_leaves_an_ordinary_generator_and_rows(generator: Generator, described: AttributedGenerator) -> None:
    before = generator.id
    assert isinstance(described.generator.unet.class_embedding, torch.nn.Embedding) and isinstance(generator.unet.class_embedding, torch.nn.Embedding)
    assert generator.id == before and described.generator.classes == CLASSES and described.rows.shape[0] == 4
    assert (described.rows.abs().amax(1) > 0).all() # All values were seen
    assert fit_attributes(generator, cells(), settings=BRIEF).generator.id == described.generator.id


def test_what_is_not_asked_changes_nothing(described: AttributedGenerator) -> None:
    labels, seeds = np.array([0, 1, 0]), [3, 4, 5]
    plain = described.generator.sample(labels, seeds, steps=3)
    assert np.allclose(described.sample(labels, seeds, {}, steps=3), plain, atol=1e-4)
    asked = described.sample(labels, seeds, [{}, {"light": "high"}, {"light": "high", "size": "small"}], steps=3)
    assert np.allclose(asked[0], plain[0], atol=1e-4) and not np.allclose(asked[1], plain[1], atol=1e-4)
    assert not np.allclose(described.sample(labels, seeds, {"light": "high"}, away=3.0, steps=3), described.sample(labels, seeds, {"light": "high"}, steps=3), atol=1e-4)


def test_rows_add_up(described: AttributedGenerator) -> None:
    made = described.as_classes({"a": ("cell", {"light": "high", "size": "big"}), "b": ("other", {})})
    table, base = made.unet.class_embedding.weight, described.generator.unet.class_embedding.weight
    assert made.classes == [*CLASSES, "a", "b"]
    assert torch.allclose(table[2], base[0] + described.rows[0] + described.rows[2], atol=1e-5) and torch.equal(table[3], base[1]) and torch.equal(table[-1], base[-1])


def test_an_attribute_is_learned_in_the_right_direction(generator: Generator) -> None:
    long = replace(BRIEF, steps=150, batch_size=16, average=0.9)
    described = fit_attributes(generator, cells(64), ["light"], long)
    high, low = (described.sample(np.zeros(16, int), np.arange(16), {"light": value}, steps=8).mean() for value in ("high", "low"))
    assert high > low + 0.1


def test_saved_folder_is_read_by_all_and_old_ones_stay_readable(generator: Generator, described: AttributedGenerator, tmp_path: Path) -> None:
    described.save_pretrained(tmp_path / "described")
    generator.save_pretrained(tmp_path / "old")
    again = AttributedGenerator.from_pretrained(tmp_path / "described")
    assert again.values == described.values and torch.equal(again.rows, described.rows) and again.generator.id == described.generator.id
    assert Generator.from_pretrained(tmp_path / "described").id == described.generator.id
    assert Generator.from_pretrained(tmp_path / "old").id == generator.id
    with pytest.raises(ValueError, match="attributes.json"):
        AttributedGenerator.from_pretrained(tmp_path / "old")
    with pytest.raises(FileExistsError):
        described.save_pretrained(tmp_path / "described")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_class_list_grows_and_attributes_stay(described: AttributedGenerator) -> None:
    grown = replace(described, generator=grow_classes(described.generator, "cell", ["new"]))
    images = grown.sample(np.array([2, 0]), [1, 1], {"light": "low"}, steps=3)
    assert np.allclose(images[0], images[1], atol=1e-4) # The new class starts as a copy of its parent, described alike


def test_a_described_generator_can_be_taught_more(described: AttributedGenerator) -> None:
    more = fit_attributes(described.generator, cells(seed=1), ["size"], BRIEF)
    assert list(more.values) == ["size"] and more.generator.id != described.generator.id


def _by_brightness() -> ConceptModel:
    class Bright(ConceptModel):
        def proba(self, images: np.ndarray) -> np.ndarray:
            chance = np.clip((images.mean((1, 2, 3)) + 1) / 2, 0, 1)
            return np.stack([1 - chance, chance], 1)

    nothing = np.zeros(1)
    return Bright(["dark", "bright"], nothing, nothing, nothing, nothing, nothing, Estimate(1, 1, 1, 1))


def test_nothing_forbidden_comes_through(generator: Generator) -> None:
    labels, seeds = np.zeros(8, int), np.arange(8)
    every = generator.sample(labels, seeds, steps=2)
    limit = float(np.median(_by_brightness().proba(every)[:, 1]))
    pool, cost = sample_without(generator, labels, seeds, _by_brightness(), "bright", limit=limit, n=2, steps=2)
    assert (_by_brightness().proba(pool.images)[:, 1] <= limit + 0.01).all() and cost > 8 and len(pool) < cost
    for change, message in (({"forbidden": "red"}, "forbidden must be one of"), ({"limit": 0.0}, "limit must be above 0"), ({"limit": 1e-9}, "none of")):
        with pytest.raises(ValueError, match=message):
            sample_without(generator, labels, seeds, _by_brightness(), **{"forbidden": "bright", "n": 1, "steps": 2} | change)


def test_weights_constrain_only_the_types_named() -> None:
    data = cells(10)
    pool = Pool(data.images, data.labels, np.arange(10), CLASSES, "x")
    weights, some = allowed_weights(pool, _by_brightness(), "bright"), allowed_weights(pool, _by_brightness(), "bright", ["cell"])
    assert ((0 < weights) & (weights < 1)).all() and np.array_equal(some[data.labels == 0], weights[data.labels == 0]) and (some[data.labels == 1] == 1).all()
    with pytest.raises(ValueError, match="types must be among"):
        allowed_weights(pool, _by_brightness(), "bright", ["cat"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: d.sample(np.array([0]), [0], {"light": "odd"}), "light must be one of"),
        (lambda d: d.sample(np.array([0]), [0], {"mood": "odd"}), "asked must hold attributes"),
        (lambda d: d.sample(np.array([0]), [0], [{}, {}]), "one per image"),
        (lambda d: d.sample(np.array([5]), [0], {}), "labels must lie"),
        (lambda d: d.as_classes({"cell": ("cell", {})}), "not among"),
        (lambda d: d.as_classes({"x": ("nothing", {})}), "wanted must hold types"),
        (lambda d: replace(d, rows=d.rows[:1]), "rows must hold"),
        (lambda d: fit_attributes(d.generator, replace(cells(), classes=["a", "b"])), "real must have"),
        (lambda d: AttributeConfig(hide=1.0), "hide must be"),
    ],
)
def test_bad_input(described: AttributedGenerator, call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(described)
