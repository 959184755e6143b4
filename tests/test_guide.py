"""Feedback at sampling time: choosing candidates, guidance away from rejected images, and distilling it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_diffusion import NETWORK, SHORT, make_cells

from pathloop.data import from_uint8, to_uint8
from pathloop.diffusion import Generator, Pool, pretrain, sample_pool
from pathloop.finetune import FinetuneConfig
from pathloop.guide import STRIDE, DistillConfig, best_of, distil, fit_guide, reward_push, sample_accepted

LABELS, SEEDS = np.arange(9) % 3, np.arange(9) + 5
QUICK = FinetuneConfig(steps=8, batch_size=8, precision="fp32", warmup=1, learning_rate=1e-3, average=0.5, beta=0.0, normalise=True)


def bright(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return images.mean(axis=(1, 2, 3))


@pytest.fixture(scope="module")
def start() -> Generator:
    return pretrain(make_cells(), NETWORK, SHORT, device="cpu")


@pytest.fixture(scope="module")
def pool(start: Generator) -> Pool:
    return sample_pool(start, 6, 100, steps=4)


def test_best_of_n_is_the_best_of_its_candidates_and_can_be_sampled_again(start: Generator) -> None:
    best = best_of(start, LABELS, SEEDS, bright, n=3, steps=4)
    candidates = np.stack([from_uint8(to_uint8(start.sample(LABELS, SEEDS + k * STRIDE, steps=4))) for k in range(3)])
    np.testing.assert_allclose(bright(best.images, LABELS), candidates.mean(axis=(2, 3, 4)).max(0), atol=1e-6)
    np.testing.assert_array_equal(from_uint8(to_uint8(start.sample(best.labels, best.seeds, steps=4))), best.images)
    assert best.generator_id == start.id and best.sampling.steps == 4


def test_rejection_keeps_what_passes_and_counts_the_cost(start: Generator) -> None:
    floor = float(np.median(bright(start.sample(LABELS, SEEDS, steps=4), LABELS)))
    accepted, cost = sample_accepted(start, LABELS, SEEDS, bright, floor=floor, n=4, steps=4)
    assert (bright(accepted.images, accepted.labels) >= floor).all() and len(accepted) <= len(LABELS) <= cost <= 4 * len(LABELS)
    with pytest.raises(ValueError, match="none of 9 candidates reached 2.0"):
        sample_accepted(start, LABELS, SEEDS, bright, floor=2.0, n=1, steps=4)
    for call in (best_of, sample_accepted):
        with pytest.raises(ValueError, match="n must be at least 1"):
            call(start, LABELS, SEEDS, bright, n=0)


def reward(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.logsigmoid(10 * images.mean(dim=(1, 2, 3)))


def test_reward_guidance_follows_the_gradient(start: Generator) -> None:
    plain, up, none = (start.sample(LABELS, SEEDS, steps=6, push=p) for p in (None, reward_push(reward, 20.0), reward_push(reward, 0.0)))
    assert (up - plain).mean() > 0 and np.abs(none - plain).max() < 1e-5


def test_guide_needs_something_rejected_and_leaves_the_generator_alone(start: Generator, pool: Pool) -> None:
    before = start.id
    weights = (bright(pool.images, pool.labels) > 0).astype(float)
    guide, control = fit_guide(start, pool, weights, make_cells(), QUICK), fit_guide(start, pool, None, make_cells(), QUICK)
    assert len({guide.id, control.id, before}) == 3 and start.id == before
    with pytest.raises(ValueError, match="no image was rejected"):
        fit_guide(start, pool, np.ones(len(pool)), make_cells(), QUICK)


def test_with_all_rejected_the_guide_learns_the_whole_pool(start: Generator, pool: Pool) -> None:
    assert fit_guide(start, pool, np.zeros(len(pool)), make_cells(), QUICK).id == fit_guide(start, pool, None, make_cells(), QUICK).id


@pytest.mark.slow
def test_the_student_comes_nearer_to_its_teacher(start: Generator, pool: Pool) -> None:
    guide = fit_guide(start, pool, (bright(pool.images, pool.labels) > 0).astype(float), make_cells(), QUICK)
    way = {"guidance": 2.0, "guide": guide, "guide_scale": 2.0}
    lesson = sample_pool(start, 12, 500, steps=6, **way)
    settings = DistillConfig(steps=150, batch_size=16, precision="fp32", learning_rate=2e-3, average=0.9)
    student = distil(start, lesson, make_cells(), settings=settings, **way)
    teacher, plain, taught = start.sample(LABELS, SEEDS, steps=6, **way), start.sample(LABELS, SEEDS, steps=6), student.sample(LABELS, SEEDS, steps=6)
    assert np.abs(taught - teacher).mean() < 0.8 * np.abs(plain - teacher).mean()


def test_distilling_resumes(start: Generator, pool: Pool, tmp_path) -> None:
    settings = replace(DistillConfig(), steps=4, batch_size=8, precision="fp32", checkpoint_every=2)
    whole = distil(start, pool, make_cells(), guidance=2.0, settings=settings)
    distil(start, pool, make_cells(), guidance=2.0, settings=settings, checkpoint=tmp_path / "c.safetensors")
    assert distil(start, pool, make_cells(), guidance=2.0, settings=settings, checkpoint=tmp_path / "c.safetensors").id == whole.id


def test_what_does_not_fit(start: Generator, pool: Pool) -> None:
    with pytest.raises(ValueError, match="nothing to distil"):
        distil(start, pool, make_cells())
    with pytest.raises(ValueError, match="images must have the generator's classes"):
        distil(start, replace(pool, classes=["x", "y", "z"]), make_cells(), guidance=2.0)
