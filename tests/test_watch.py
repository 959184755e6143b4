"""Watches of a training: the share nearer to training images, stopping, and looking on."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pathloop.data import load_images, open_images, to_uint8
from pathloop.diffusion import Generator, NetworkConfig, make_unet, pretrain
from pathloop.latent import fit_codec, latent_network
from pathloop.smear import make_smear
from pathloop.training import StopTraining, TrainConfig
from pathloop.watch import LiveView, MemorisationWatch, memorisation_figure, nearer_to_training

TRAIN, OTHERS = make_smear(6, 16, seed=0), make_smear(6, 16, seed=1)
NETWORK = NetworkConfig(size=16, channels=(16, 32))


@pytest.mark.parametrize("turn", range(4))
@pytest.mark.parametrize("flip", [1, -1])
def test_copies_are_found_in_all_eight_orientations(turn: int, flip: int) -> None:
    copies = np.ascontiguousarray(np.rot90(TRAIN.images[:, :, :, ::flip], turn, (2, 3)))
    assert nearer_to_training(copies, TRAIN.images, OTHERS.images)[0] == 1
    assert nearer_to_training(copies, OTHERS.images, TRAIN.images)[0] == 0


def test_ties_count_half_and_the_interval_holds_the_share() -> None:
    share, low, high = nearer_to_training(make_smear(4, 16, seed=3).images, TRAIN.images, TRAIN.images)
    assert share == 0.5 and low < share < high


def test_watch_ends_only_after_its_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    unet = make_unet(NETWORK, len(TRAIN.classes))
    watch = MemorisationWatch(TRAIN, OTHERS, NETWORK, n=48, patience=2)
    monkeypatch.setattr(Generator, "sample", lambda self, labels, seeds, steps: TRAIN.images[: len(labels)])
    watch.history.append(watch(100, unet))
    assert watch.history[0]["nearer_to_training"] == 1
    with pytest.raises(StopTraining, match="100% of the generated images") as stopped:
        watch(200, unet)
    assert stopped.value.seen["nearer_to_training"] == 1


def test_noise_is_not_blamed_for_the_real_image_that_is_nearest_to_all_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).uniform(-1, 1, (48, 3, 16, 16)).astype(np.float32)
    monkeypatch.setattr(Generator, "sample", lambda self, labels, seeds, steps: noise)
    unet, shares = make_unet(NETWORK, len(TRAIN.classes)), []
    for train, others in ((TRAIN, OTHERS), (OTHERS, TRAIN)): # One of the two holds the image that is nearest
        shares.append(MemorisationWatch(train, others, NETWORK, n=48)(500, unet)["nearer_low"])
    assert max(shares) > 0.6


def test_streamed_sets_are_watched_and_compressed_like_those_in_memory(tmp_path: Path) -> None:
    sets = []
    for name, cells in (("train", TRAIN), ("others", OTHERS)):
        for i, (pixels, label) in enumerate(zip(to_uint8(cells.images), cells.labels, strict=True)):
            (tmp_path / name / cells.classes[label]).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / name / cells.classes[label] / f"{i}.png")
        sets.append((load_images(tmp_path / name, 16), open_images(tmp_path / name, 16, cache=tmp_path / "cache")))
    (train, train_streamed), (others, others_streamed) = sets
    unet = make_unet(NETWORK, len(train.classes))
    assert MemorisationWatch(train_streamed, others_streamed, NETWORK, n=24, steps=2)(5, unet) == MemorisationWatch(train, others, NETWORK, n=24, steps=2)(5, unet)
    assert nearer_to_training(train.images, train_streamed.images, others_streamed.images)[0] == 1
    brief = TrainConfig(steps=2, batch_size=8, warmup=1)
    codecs = [fit_codec(cells, factor=2, width=8, settings=brief, device="cpu")[0] for cells in (train, train_streamed)]
    assert codecs[0].config["scaling_factor"] == codecs[1].config["scaling_factor"]
    painted = pretrain(train_streamed, latent_network(codecs[1], 16, channels=(32,)), brief, device="cpu", codec=codecs[1])
    assert painted.sample(np.arange(2), range(2), steps=2).shape == (2, 3, 16, 16)


def test_a_figure_of_nothing_but_copies_can_be_drawn() -> None:
    import pandas as pd

    for n in (48, 128, 200):
        share, low, high = nearer_to_training(np.tile(TRAIN.images, (5, 1, 1, 1))[:n], TRAIN.images, OTHERS.images)
        memorisation_figure(pd.DataFrame({"step": [1], "loss": [1.0], "nearer_to_training": [share], "nearer_low": [low], "nearer_high": [high]}))
        assert share == 1


def test_a_resumed_run_counts_the_looks_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "Two looks above the limit end a run, also when it was cut between them."
    settings = TrainConfig(steps=60, batch_size=4, precision="fp32", watch_every=20, checkpoint_every=20)
    monkeypatch.setattr(Generator, "sample", lambda self, labels, seeds, steps: TRAIN.images[: len(labels)])

    def cut(step: int, unet: torch.nn.Module) -> dict[str, float]:
        if step == 40:
            raise KeyboardInterrupt
        return {}

    def new() -> MemorisationWatch:
        return MemorisationWatch(TRAIN, OTHERS, NETWORK, n=48, patience=2)

    with pytest.raises(KeyboardInterrupt):
        pretrain(TRAIN, NETWORK, settings, tmp_path / "c.safetensors", device="cpu", watches=[cut, new()])
    resumed = pretrain(TRAIN, NETWORK, settings, tmp_path / "c.safetensors", device="cpu", watches=[new()])
    straight = pretrain(TRAIN, NETWORK, settings, device="cpu", watches=[new()])
    assert list(resumed.history["step"]) == list(straight.history["step"]) == [20, 40]
    assert resumed.history["loss"].equals(straight.history["loss"])


def test_untrained_network_is_not_blamed_and_figure_needs_a_watch() -> None:
    import pandas as pd

    seen = MemorisationWatch(TRAIN, OTHERS, NETWORK, n=48, steps=3, limit=1.0)(1, make_unet(NETWORK, len(TRAIN.classes)))
    assert 0 <= seen["nearer_low"] <= seen["nearer_to_training"] <= seen["nearer_high"] <= 1
    with pytest.raises(ValueError, match="MemorisationWatch"):
        memorisation_figure(pd.DataFrame({"step": [1], "loss": [1.0]}))
    assert LiveView(TRAIN.classes, NETWORK)(1, make_unet(NETWORK, len(TRAIN.classes))) == {}


def test_too_few_images_are_named() -> None:
    with pytest.raises(ValueError, match="got 48, 5 and 48"):
        nearer_to_training(OTHERS.images, TRAIN.images[:5], OTHERS.images)
