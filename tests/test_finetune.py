"""Finetuning: exact limits of the objectives, the untouched original, adapters, and bad weights."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_diffusion import NETWORK, SHORT, make_cells

from pathloop.data import CellImages
from pathloop.diffusion import Generator, Pool, pretrain
from pathloop.finetune import (
    METHODS,
    FinetuneConfig,
    best_part,
    check_weights,
    finetune,
    optimality,
    pairs_within_types,
)

SETTINGS = FinetuneConfig(steps=6, batch_size=8, precision="fp32", warmup=1, learning_rate=1e-3)


@pytest.fixture(scope="module")
def start() -> tuple[Generator, Pool]:
    generator = pretrain(make_cells(), NETWORK, SHORT, device="cpu")
    cells = make_cells()
    return generator, Pool(cells.images, cells.labels, np.arange(12), cells.classes, generator.id)


def run(start: tuple[Generator, Pool], weights: np.ndarray, method: str = "reward-weighted", **changes: object) -> Generator:
    generator, pool = start
    return finetune(generator, pool, weights, make_cells(), method, replace(SETTINGS, **changes))  # type: ignore[arg-type]


def largest_gap(a: Generator, b: Generator) -> float:
    return max(float((p - q).detach().abs().max()) for p, q in zip(a.unet.parameters(), b.unet.parameters(), strict=True))


def test_vanishing_weights_are_the_control(start: tuple[Generator, Pool]) -> None:
    nearly_none = np.eye(12)[0] * 1e-12
    control = run(start, np.ones(12), "real-only")
    assert largest_gap(run(start, nearly_none, beta=1.0), control) < 1e-4
    assert largest_gap(run(start, np.ones(12), beta=1.0), control) > 1e-4


def test_constant_weights_are_the_same_when_normalised(start: tuple[Generator, Pool]) -> None:
    assert largest_gap(run(start, np.full(12, 0.25), normalise=True), run(start, np.ones(12), normalise=True)) < 1e-5


def test_the_start_is_left_alone_and_the_run_repeats(start: tuple[Generator, Pool]) -> None:
    generator, _ = start
    before = generator.id
    first, second = run(start, np.linspace(0, 1, 12)), run(start, np.linspace(0, 1, 12))
    assert generator.id == before and first.id == second.id != before
    assert all(torch.isfinite(p).all() for p in first.unet.parameters())


def test_resumes_from_its_checkpoint(start: tuple[Generator, Pool], tmp_path) -> None:
    generator, pool = start
    settings = replace(SETTINGS, checkpoint_every=2)
    for _ in range(2):  # the second run finds the checkpoint of step 4
        result = finetune(generator, pool, np.ones(12), make_cells(), settings=settings, checkpoint=tmp_path / "c.safetensors")
    assert result.id == finetune(generator, pool, np.ones(12), make_cells(), settings=settings).id
    fewer = make_cells().subset(np.arange(6))
    for weights, real in ((np.ones(12), fewer), (np.full(12, 0.5), make_cells())):
        with pytest.raises(ValueError, match="checkpoint must come from the same"):
            finetune(generator, pool, weights, real, settings=settings, checkpoint=tmp_path / "c.safetensors")


@pytest.mark.parametrize(("share", "stay"), [(0.01, 1), (0.25, 2), (0.5, 3), (0.6, 3), (1.0, 5)])
def test_the_best_part_of_each_class_stays(share: float, stay: int) -> None:
    cells = CellImages(np.ones((10, 3, 16, 16), np.float32) * np.arange(10, dtype=np.float32).reshape(-1, 1, 1, 1) / 10, np.arange(10) % 2, ["a", "b"])
    scores = np.arange(10) % 2 * 100 - np.arange(10.0) # One class scores higher throughout; in each the first are best
    best = best_part(cells, scores, share)
    assert np.bincount(best.labels).tolist() == [stay, stay]
    assert (best.images[:, 0, 0, 0] * 10).round().tolist() == list(range(2 * stay))


@pytest.mark.parametrize(
    ("weights", "rule"),
    [
        (np.ones(5), r"shape \(12,\); got \(5,\)"),
        (np.full(12, 1.5), "from 0 to 1; got values from 1.5"),
        (np.full(12, -0.5), "from 0 to 1"),
        (np.full(12, np.nan), "from 0 to 1"),
        (np.zeros(12), "must not all be 0"),
    ],
)
def test_bad_weights(weights: np.ndarray, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        check_weights(weights, 12)


def test_what_does_not_fit(start: tuple[Generator, Pool]) -> None:
    generator, pool = start
    with pytest.raises(ValueError, match="method must be one of"):
        run(start, np.ones(12), "ppo")
    with pytest.raises(ValueError, match="pool must have the generator's classes"):
        finetune(generator, replace(pool, classes=["x", "y", "z"]), np.ones(12), make_cells())
    with pytest.raises(ValueError, match="real must hold images of 16 px"):
        finetune(generator, pool, np.ones(12), make_cells(size=32))


def toy_reward(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    "Likes bright images."
    return torch.nn.functional.logsigmoid(20 * images.mean(dim=(1, 2, 3)))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_resumes_and_repeats(start: tuple[Generator, Pool], tmp_path, method: str) -> None:
    generator, pool = start
    settings = replace(SETTINGS, checkpoint_every=2)
    more = {"reward": toy_reward} if method == "draft" else {}

    def tune(checkpoint=None) -> Generator:
        return finetune(generator, pool, np.linspace(0, 1, 12), make_cells(), method, settings, checkpoint, **more)  # type: ignore[arg-type]

    result, before = tune(), generator.id
    assert result.id != before == generator.id and all(torch.isfinite(p).all() for p in result.unet.parameters())
    tune(tmp_path / "c.safetensors")
    assert tune(tmp_path / "c.safetensors").id == result.id


@pytest.mark.parametrize("method", ["kto", "dpo", "nft"])
def test_without_a_step_nothing_is_gained(start: tuple[Generator, Pool], method: str) -> None:
    "At the start the network is its own reference: with no learning rate it stays there."
    generator, _ = start
    assert largest_gap(run(start, np.linspace(0, 1, 12), method, learning_rate=0.0), generator) < 1e-6


def test_indifferent_weights_leave_nft_to_the_anchor(start: tuple[Generator, Pool]) -> None:
    "All as good as their type's average: only real images speak, and only where dropout is off do the two terms cancel."
    still = run(start, np.full(12, 0.7), "nft", beta=0.0, steps=1, learning_rate=1e-4)
    assert largest_gap(still, start[0]) < largest_gap(run(start, np.linspace(0, 1, 12), "nft", beta=0.0, steps=1, learning_rate=1e-4), start[0])
    np.testing.assert_array_equal(optimality(np.array([0, 0, 1]), np.array([0.2, 0.2, 0.9])), 0.5)
    assert optimality(np.zeros(4, int), np.array([0.0, 0.4, 0.6, 1.0])).tolist() == pytest.approx([0.5 - 0.5 / (2 * 0.7211) , 0.5 - 0.1 / (4 * 0.3606), 0.5 + 0.1 / (4 * 0.3606), 0.5 + 0.5 / (2 * 0.7211)], abs=2e-3)


def test_pairs_are_of_one_type_better_first() -> None:
    labels, weights = np.repeat([0, 1], 6), np.tile(np.linspace(0, 1, 6), 2)
    pairs = pairs_within_types(labels, weights)
    assert (labels[pairs[:, 0]] == labels[pairs[:, 1]]).all() and (weights[pairs[:, 0]] - weights[pairs[:, 1]] >= 0.1).all()
    with pytest.raises(ValueError, match="must differ by 0.1 or more"):
        pairs_within_types(labels, np.full(12, 0.6))


def test_given_pairs_decide(start: tuple[Generator, Pool]) -> None:
    generator, pool = start
    pairs = np.array([[0, 3], [1, 4], [2, 5]])
    one, other = (finetune(generator, pool, np.full(12, 0.5), make_cells(), "dpo", SETTINGS, pairs=p) for p in (pairs, pairs[:, ::-1]))
    assert largest_gap(one, other) > 1e-4
    for bad in (np.array([[0, 12]]), np.array([0, 1]), np.array([[0.5, 1.0]])):
        with pytest.raises(ValueError, match="pairs must be whole numbers"):
            finetune(generator, pool, np.full(12, 0.5), make_cells(), "dpo", SETTINGS, pairs=bad)


def test_the_reward_gradient_raises_the_reward(start: tuple[Generator, Pool]) -> None:
    generator, pool = start
    settings = replace(SETTINGS, steps=40, batch_size=6, beta=0.0, average=0.5, learning_rate=1e-3)
    tuned = finetune(generator, pool, np.ones(12), make_cells(), "draft", settings, reward=toy_reward)
    labels, seeds = np.arange(24) % 3, np.arange(24)
    assert (tuned.sample(labels, seeds, steps=8) - generator.sample(labels, seeds, steps=8)).mean() > 0.02
    with pytest.raises(ValueError, match="reward must be given"):
        run(start, np.ones(12), "draft")


def test_a_pair_does_not_fit_into_a_batch_of_one(start: tuple[Generator, Pool]) -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 2 for method='dpo'.*got 1"):
        run(start, np.linspace(0, 1, 12), "dpo", batch_size=1)


def test_a_checkpoint_belongs_to_its_pairs(start: tuple[Generator, Pool], tmp_path) -> None:
    generator, pool = start
    pairs, settings = np.array([[0, 3], [1, 4], [2, 5]]), replace(SETTINGS, checkpoint_every=2)
    first = finetune(generator, pool, np.full(12, 0.5), make_cells(), "dpo", settings, tmp_path / "c.safetensors", pairs=pairs)
    assert finetune(generator, pool, np.full(12, 0.5), make_cells(), "dpo", settings, tmp_path / "c.safetensors", pairs=pairs).id == first.id
    with pytest.raises(ValueError, match="checkpoint must come from the same"):
        finetune(generator, pool, np.full(12, 0.5), make_cells(), "dpo", settings, tmp_path / "c.safetensors", pairs=pairs[:, ::-1])


def test_nft_stays_nearer_to_its_start_with_a_price_on_the_distance(start: tuple[Generator, Pool]) -> None:
    weights = np.tile([0.0, 1.0], 6)
    free, held = (run(start, weights, "nft", beta=0.0, kl=kl, steps=60) for kl in (0.0, 100.0))
    labels, seeds = np.arange(9) % 3, np.arange(9)
    before = start[0].sample(labels, seeds, steps=4)
    moved = [np.abs(g.sample(labels, seeds, steps=4) - before).mean() for g in (free, held)]
    assert moved[1] < 0.8 * moved[0]


def test_coarse_noise_only_never_shows_the_pool_at_low_noise() -> None:
    from pathloop.finetune import _levels

    sigma = _levels(4000, 0.3, torch.Generator().manual_seed(0))
    assert sigma.min() >= 0.3 and _levels(4000, 0.0, torch.Generator().manual_seed(0)).min() < 0.05


def levels_seen(start: tuple[Generator, Pool], shared: bool) -> list[torch.Tensor]:
    "The noise levels that the network was given, call by call: real images, pool images, real images ..."
    generator, pool = start
    copied, seen = copy.deepcopy(generator), []
    copied.unet.register_forward_hook(lambda module, given, result: seen.append(given[1].detach().clone()))
    finetune(copied, pool, np.ones(12), make_cells(), settings=replace(SETTINGS, steps=3, shared_noise=shared))
    return seen


def test_noise_is_shared_only_if_asked(start: tuple[Generator, Pool]) -> None:
    for shared in (True, False):
        levels = levels_seen(start, shared)
        assert len(levels) == 6
        for of_real, of_pool in zip(levels[::2], levels[1::2], strict=True):
            assert torch.equal(of_real, of_pool) is shared
        assert not torch.equal(levels[0], levels[2]), "drawn anew for each update"


def test_adapters_change_only_what_they_touch(start: tuple[Generator, Pool]) -> None:
    pytest.importorskip("peft")
    generator, _ = start
    tuned = run(start, np.linspace(0, 1, 12), "kto", lora_rank=2)
    before, after = generator.unet.state_dict(), tuned.unet.state_dict()
    assert list(before) == list(after), "merged: nothing of the adapters is left"
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and all(any(part in name for part in ("to_q", "to_k", "to_v", "to_out", "conv1", "conv2")) for name in moved)


@pytest.mark.parametrize(("name", "value"), [("strength", 0.0), ("mix", 1.5), ("accept", -0.1), ("kl", -1.0), ("noise_from", -1.0), ("beta", -1.0), ("lora_rank", -1)])
def test_bad_settings(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be from"):
        FinetuneConfig(**{name: value})


def test_nothing_accepted(start: tuple[Generator, Pool]) -> None:
    with pytest.raises(ValueError, match=r"weights must exceed accept=0.5 somewhere"):
        run(start, np.full(12, 0.4), "sft")
