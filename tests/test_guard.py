"""The guard: ends a run whose judge or coverage falls, keeps the last good network, and leaves a good run alone."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_diffusion import NETWORK, SHORT, make_cells

from pathloop.diffusion import Generator, pretrain, sample_pool
from pathloop.features import texture_features
from pathloop.finetune import FinetuneConfig, finetune
from pathloop.guard import Guard, guard_figure
from pathloop.training import Watch


@pytest.fixture(scope="module")
def start() -> Generator:
    return pretrain(make_cells(36), NETWORK, SHORT, device="cpu")


def brightness(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return images.mean(axis=(1, 2, 3))


def make_guard(start: Generator, accepts, copying: float = 1.0, keep: Path | None = None) -> Guard:
    return Guard(start, accepts, brightness, texture_features, make_cells(36), make_cells(36), per_class=10, steps=3, copying=copying, keep=keep)


def falling(after: int):
    "A judge that accepts everything for some looks, and nothing from then on."
    looks = [0]

    def accepts(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        looks[0] += 1
        return np.full(len(images), looks[0] <= after)

    return accepts


def tune(start: Generator, *watches: Watch, checkpoint: Path | None = None, **changes: int) -> Generator:
    settings = FinetuneConfig(steps=9, batch_size=8, precision="fp32", warmup=1, learning_rate=1e-3, average=0.5, watch_every=3, checkpoint_every=3)
    return finetune(start, sample_pool(start, 6, 100, steps=3), np.linspace(0, 1, 18), make_cells(36), "kto", replace(settings, **changes), checkpoint, watches=watches)


def weights_after(start: Generator, step: int, **changes: int) -> dict[str, torch.Tensor]:
    "Of the averaged network, as a watch sees it."
    seen: dict[int, dict[str, torch.Tensor]] = {}
    tune(start, lambda now, unet: seen.update({now: {k: v.clone() for k, v in unet.state_dict().items()}}) or {}, **changes)
    return seen[step]


def assert_is(generator: Generator, weights: dict[str, torch.Tensor]) -> None:
    state = generator.unet.state_dict()
    assert state.keys() == weights.keys() and all(torch.equal(value, state[name]) for name, value in weights.items())


def test_a_judge_that_falls_ends_the_run_and_the_last_good_is_kept(start: Generator) -> None:
    guard = make_guard(start, falling(after=2))  # the start and one look
    result = tune(start, guard)
    assert "the judge accepts 100.0 points fewer" in guard.stopped
    assert re.search(r"; (the reward rose from|nor did the reward rise, from) -?\d\.\d{3} to ", guard.stopped)
    kept = guard.last_good(result)
    assert [look["step"] for look in guard.looks] == [0, 3, 6] and kept.id not in (result.id, start.id)
    assert_is(kept, weights_after(start, 3))


def test_adapters_are_seen_and_kept_merged(start: Generator) -> None:
    pytest.importorskip("peft")
    guard = make_guard(start, falling(after=2))
    result = tune(start, guard, lora_rank=2)
    kept = guard.last_good(result)
    assert_is(kept, weights_after(start, 3, lora_rank=2))
    assert kept.id not in (result.id, start.id) and kept.unet.state_dict().keys() == start.unet.state_dict().keys()


def test_a_resumed_run_still_has_its_looks_and_its_last_good_network(start: Generator, tmp_path: Path) -> None:
    def cut_off(step: int, unet: torch.nn.Module) -> dict[str, float]:
        if step == 6:
            raise KeyboardInterrupt
        return {}

    keep, checkpoint = tmp_path / "guard.safetensors", tmp_path / "run.safetensors"
    with pytest.raises(KeyboardInterrupt):
        tune(start, cut_off, make_guard(start, falling(after=9), keep=keep), checkpoint=checkpoint)
    guard = make_guard(start, falling(after=1), keep=keep)  # From the next look on nothing is accepted
    assert [look["step"] for look in guard.looks] == [0, 3]
    result = tune(start, guard, checkpoint=checkpoint)
    assert [look["step"] for look in guard.looks] == [0, 3, 6] and guard.looks[1]["judge"] == 1
    assert_is(guard.last_good(result), weights_after(start, 3))
    with pytest.raises(ValueError, match="keep must be a file of a guard with the start .* Remove it"):
        make_guard(result, falling(after=1), keep=keep)


def test_a_reward_that_rises_while_the_judge_falls_is_called_hacking(start: Generator) -> None:
    guard = make_guard(start, lambda images, labels: np.ones(len(images), bool))
    first = guard.looks[0]
    fallen = first | {"judge_gain": -0.2, "judge_gain_low": -0.3, "judge_gain_high": -0.1}
    assert guard._fault(fallen | {"reward": first["reward"] + 0.1}).endswith("which is reward hacking")
    assert "nor did the reward rise" in guard._fault(fallen) and not guard._fault(first | {"reward": 9.0})
    tune(start, guard)
    assert first["gap"] == 0
    for look in guard.looks:
        assert look["gap"] == pytest.approx((look["reward"] - first["reward"]) - (look["judge"] - first["judge"]))


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
