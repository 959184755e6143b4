"""The guard: ends a run whose judge or coverage falls, keeps the last good network, and leaves a good run alone."""

import numpy as np
import pytest
import torch
from test_diffusion import NETWORK, SHORT, make_cells

from pathloop.diffusion import Generator, pretrain, sample_pool
from pathloop.features import texture_features
from pathloop.finetune import FinetuneConfig, finetune
from pathloop.guard import Guard, guard_figure


@pytest.fixture(scope="module")
def start() -> Generator:
    return pretrain(make_cells(36), NETWORK, SHORT, device="cpu")


def brightness(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return images.mean(axis=(1, 2, 3))


def make_guard(start: Generator, accepts, copying: float = 1.0) -> Guard:
    return Guard(start, accepts, brightness, texture_features, make_cells(36), make_cells(36), per_class=10, steps=3, copying=copying)


def falling(after: int):
    "A judge that accepts everything for some looks, and nothing from then on."
    looks = [0]

    def accepts(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        looks[0] += 1
        return np.full(len(images), looks[0] <= after)

    return accepts


def tune(start: Generator, guard: Guard) -> Generator:
    settings = FinetuneConfig(steps=9, batch_size=8, precision="fp32", warmup=1, learning_rate=1e-3, average=0.5, watch_every=3)
    return finetune(start, sample_pool(start, 6, 100, steps=3), np.linspace(0, 1, 18), make_cells(36), "kto", settings, watches=[guard])


def test_a_judge_that_falls_ends_the_run_and_the_last_good_is_kept(start: Generator) -> None:
    guard = make_guard(start, falling(after=2))  # the start and one look
    result = tune(start, guard)
    assert "the judge accepts 100.0 points fewer" in guard.stopped and "while the reward went from" in guard.stopped
    kept = guard.last_good(result)
    assert [look["step"] for look in guard.looks] == [0, 3, 6] and kept.id not in (result.id, start.id)
    settings = FinetuneConfig(steps=9, batch_size=8, precision="fp32", warmup=1, learning_rate=1e-3, average=0.5, watch_every=3)
    seen = {}
    finetune(start, sample_pool(start, 6, 100, steps=3), np.linspace(0, 1, 18), make_cells(36), "kto", settings,
             watches=[lambda step, unet: seen.update({step: {k: v.clone() for k, v in unet.state_dict().items()}}) or {}])
    assert all(torch.equal(value, kept.unet.state_dict()[name]) for name, value in seen[3].items())


def test_fallen_at_once_gives_the_start_back(start: Generator) -> None:
    guard = make_guard(start, falling(after=1))
    assert guard.last_good(tune(start, guard)).id == start.id


def test_a_good_run_is_left_alone(start: Generator) -> None:
    guard = make_guard(start, lambda images, labels: np.ones(len(images), bool))
    result = tune(start, guard)
    assert not guard.stopped and guard.last_good(result) is result and len(guard.looks) == 4
    assert {"judge", "reward", "coverage", "copying"} <= set(result.history)
    assert guard_figure(guard).axes


def test_copying_is_a_fault(start: Generator) -> None:
    guard = make_guard(start, lambda images, labels: np.ones(len(images), bool), copying=0.6)
    seen = guard.looks[0]
    assert not guard._fault(seen)
    assert "90% of the images are nearer to a training image" in guard._fault(seen | {"copying": 0.9, "copying_low": 0.7})
    assert "coverage fell from" in guard._fault(seen | {"coverage": 0.0, "coverage_high": guard.looks[0]["coverage_low"] - 0.01})


def test_no_picture_before_the_first_look(start: Generator) -> None:
    with pytest.raises(ValueError, match="at least once after the start"):
        guard_figure(make_guard(start, lambda images, labels: np.ones(len(images), bool)))
