"""Finetuning: exact limits of the objective, the untouched original, and bad weights."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_diffusion import NETWORK, SHORT, make_cells

from pathloop.diffusion import Generator, Pool, pretrain
from pathloop.finetune import FinetuneConfig, check_weights, finetune

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
