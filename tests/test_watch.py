"""Watches of a training: the share nearer to training images, stopping, and looking on."""

import numpy as np
import pytest

from pathloop.diffusion import Generator, NetworkConfig, make_unet
from pathloop.smear import make_smear
from pathloop.training import StopTraining
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
    assert watch(100, unet)["nearer_to_training"] == 1
    with pytest.raises(StopTraining, match="100% of the generated images") as stopped:
        watch(200, unet)
    assert stopped.value.seen["nearer_to_training"] == 1


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
