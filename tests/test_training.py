"""The training loop: several processes train as one, a full disk loses nothing, memory, averages, trackers."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from pathloop.diffusion import Generator, NetworkConfig, make_unet
from pathloop.latent import fit_codec
from pathloop.smear import make_smear
from pathloop.training import TrainConfig, _moving_average, _State, averaged_weights, share, train

NETWORK = NetworkConfig(size=16, channels=(16, 32))
SHORT = TrainConfig(steps=6, batch_size=8, learning_rate=0.01, warmup=1, precision="fp32", checkpoint_every=2)


def new_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))


def loss(network: nn.Module, random: torch.Generator) -> torch.Tensor:
    x = torch.randn(8, 3, generator=random)
    noise = torch.randn(8, 1, generator=random)
    return (network(share(x)) - share(x.sum(1, keepdim=True) + noise)).square().mean()


def weights(network: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


def brief_codec() -> torch.nn.Module:
    return fit_codec(make_smear(4, 16, seed=0), factor=2, width=8, settings=TrainConfig(steps=4, batch_size=8, warmup=1, precision="fp32"), device="cpu")[0]


TWO = f"""
import sys, torch
sys.path.insert(0, {str(Path(__file__).parent)!r})
from accelerate import PartialState
state = PartialState(cpu=True)
import test_training as t
from pathloop.training import train
network = t.new_network()
history = train(network, t.loss, t.SHORT, sys.argv[1] + "/c.safetensors")
from pathloop.diffusion import Generator, make_unet
import numpy as np
torch.manual_seed(0)
images = Generator(make_unet(t.NETWORK, 3), ["a", "b", "c"], t.NETWORK).sample(np.arange(5) % 3, range(5), steps=4)
codec = t.brief_codec()
if state.is_main_process:
    np.save(sys.argv[1] + "/images.npy", images)
    np.save(sys.argv[1] + "/codec.npy", t.weights(codec).numpy())
    print("WEIGHTS", state.num_processes, *[f"{{w:.9e}}" for w in t.weights(network).tolist()], flush=True)
state.wait_for_everyone()
state.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_train_and_sample_as_one(tmp_path: Path) -> None:
    "gloo on two CPU processes: the same weights as one process, so the same gradients."
    script = tmp_path / "two.py"
    script.write_text(TWO)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_addr", "127.0.0.1", "--master_port", "0",
               "--rdzv_backend", "c10d", "--rdzv_endpoint", "127.0.0.1:0", str(script), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = [line for line in done.stdout.split("\n") if line.startswith("WEIGHTS")]
    _, processes, *numbers = line.split()
    alone = new_network()
    train(alone, loss, SHORT)
    assert processes == "2"
    torch.testing.assert_close(torch.tensor([float(n) for n in numbers]), weights(alone), rtol=1e-4, atol=1e-6)
    torch.manual_seed(0)
    straight = Generator(make_unet(NETWORK, 3), ["a", "b", "c"], NETWORK).sample(np.arange(5) % 3, range(5), steps=4)
    np.testing.assert_allclose(np.load(tmp_path / "images.npy"), straight, atol=1e-4)
    ours, theirs = weights(brief_codec()).numpy(), np.load(tmp_path / "codec.npy")
    assert np.isclose(ours, theirs, rtol=1e-3, atol=1e-5).mean() > 0.995 # Adam follows even a gradient that is nothing but rounding, in a few biases


def test_accumulation_is_the_mean_of_its_draws() -> None:
    draws: list[int] = []

    def counted(network: nn.Module, random: torch.Generator) -> torch.Tensor:
        draws.append(1)
        return loss(network, random)

    history = train(new_network(), counted, TrainConfig(**SHORT.to_dict() | {"accumulate": 3}))
    assert len(draws) == 18 and len(history) == 1


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    "A limit on the size of files stands for a disk without room: the run stops, says so, and the last whole checkpoint is there."
    code = f"""
import sys, resource, signal
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_training as t
from pathloop.training import train
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
calls = []
def loss(network, random):
    calls.append(1)
    if len(calls) == 3:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
    return t.loss(network, random)
train(t.new_network(), loss, t.SHORT, {str(tmp_path / "c.safetensors")!r})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode != 0 and "make room and run again" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["c.safetensors"]
    resumed, straight = new_network(), new_network()
    train(resumed, loss, SHORT, tmp_path / "c.safetensors")
    train(straight, loss, SHORT)
    assert torch.equal(weights(resumed), weights(straight))


def test_out_of_memory_suggests_the_smaller_setting() -> None:
    def hungry(network: nn.Module, random: torch.Generator) -> torch.Tensor:
        return torch.empty(2**60).sum()

    with pytest.raises(MemoryError, match="set batch_size=4, accumulate=2"):
        train(new_network(), hungry, SHORT)


def test_an_older_checkpoint_is_refused_with_what_to_do(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"unet/0.weight": torch.zeros(2)}, tmp_path / "c.safetensors", {"step": "3", "history": "[]"})
    with pytest.raises(ValueError, match="must have format 3; .* has 1"):
        train(new_network(), loss, SHORT, tmp_path / "c.safetensors")


def test_a_checkpoint_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "c.safetensors").write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="must be a file that training wrote; .*c.safetensors cannot be read"):
        train(new_network(), loss, SHORT, tmp_path / "c.safetensors")


@pytest.mark.parametrize("change", [{"seed": 1}, {"learning_rate": 0.02}, {"average": 0.9}, {"batch_size": 4}, {"average_snapshots": 3}])
def test_a_run_goes_on_as_it_began_or_not_at_all(tmp_path: Path, change: dict[str, float]) -> None:
    train(new_network(), loss, SHORT, tmp_path / "c.safetensors") # Leaves the checkpoint of step 4
    with pytest.raises(ValueError, match=f"settings must be those that the checkpoint began with; .*{next(iter(change))}"):
        train(new_network(), loss, replace(SHORT, **change), tmp_path / "c.safetensors")
    with pytest.raises(ValueError, match="steps must be at least .* got 2, and .* has done 4"):
        train(new_network(), loss, replace(SHORT, steps=2), tmp_path / "c.safetensors")
    assert len(train(new_network(), loss, replace(SHORT, steps=20), tmp_path / "c.safetensors")) # A longer run may


@pytest.mark.parametrize("change", [{"learning_rate": -1e-3}, {"learning_rate": float("nan")}, {"warmup": -1}, {"decay": 1.5}])
def test_rates_out_of_range_are_named(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="learning_rate and warmup must be 0 or more, decay from 0 to 1; got"):
        replace(SHORT, **change)


def test_a_gradient_that_is_no_number_never_reaches_a_checkpoint(tmp_path: Path) -> None:
    def bad(network: nn.Module, random: torch.Generator) -> torch.Tensor:
        value = loss(network, random)
        if bad.calls == 1: # The second step: a finite loss whose gradient is none
            value = value + (next(network.parameters()).sum() * 0).sqrt()
        bad.calls += 1
        return value

    bad.calls = 0
    with pytest.raises(FloatingPointError, match="the gradient became nan at step 1"):
        train(new_network(), bad, replace(SHORT, checkpoint_every=1), tmp_path / "c.safetensors")
    resumed, straight = new_network(), new_network()
    train(resumed, loss, replace(SHORT, checkpoint_every=1), tmp_path / "c.safetensors")
    train(straight, loss, SHORT)
    assert torch.equal(weights(resumed), weights(straight))


def test_a_resumed_optimizer_has_the_weights_memory_format(tmp_path: Path) -> None:
    "A fused step on a GPU refuses moments that lie otherwise than the weights."
    def new() -> nn.Module:
        return nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)

    def fit(network: nn.Module, random: torch.Generator) -> torch.Tensor:
        return network(torch.randn(2, 3, 8, 8, generator=random).to(memory_format=torch.channels_last)).square().mean()

    train(new(), fit, SHORT, tmp_path / "c.safetensors")
    network = new()
    state = _State(network, SHORT, "")
    state.load(tmp_path / "c.safetensors")
    assert state.optimizer.state[network.weight]["exp_avg"].stride() == network.weight.stride() != network.weight.contiguous().stride()


def test_a_run_begun_afresh_leaves_no_snapshots_of_the_old_one(tmp_path: Path) -> None:
    for steps in (40, 20):
        (tmp_path / "c.safetensors").unlink(missing_ok=True)
        train(new_network(), loss, replace(SHORT, steps=steps, average_snapshots=4), tmp_path / "c.safetensors")
    assert {int(path.stem.split("-")[0]) for path in (tmp_path / "c-averages").iterdir()} == {5, 10, 15, 20}
    with pytest.raises(ValueError, match="first snapshot, 5; got 3"):
        averaged_weights(tmp_path / "c-averages", step=3)


def test_snapshots_are_kept_beside_the_checkpoint(tmp_path: Path) -> None:
    network = new_network()
    train(network, loss, TrainConfig(**SHORT.to_dict() | {"steps": 40, "average_snapshots": 8}), tmp_path / "c.safetensors")
    kept = averaged_weights(tmp_path / "c-averages", 0.1)
    assert set(kept) == set(network.state_dict()) and all(torch.isfinite(tensor).all() for tensor in kept.values())
    assert not torch.equal(kept["0.weight"], averaged_weights(tmp_path / "c-averages", 0.02)["0.weight"])


@pytest.mark.parametrize("ramp", [True, False])
def test_a_short_run_forgets_its_start_where_the_average_ramps(ramp: bool) -> None:
    "A weight that jumps from 0 to 1 at the first step's end: what is left of the 0 in the average after 40 steps."
    network = nn.Linear(1, 1)
    nn.init.constant_(network.weight, 0.0)
    settings = TrainConfig(steps=40, average=0.998, average_ramp=ramp)
    average = AveragedModel(network, multi_avg_fn=_moving_average(settings))
    average.update_parameters(network)
    nn.init.constant_(network.weight, 1.0)
    for _ in range(40):
        average.update_parameters(network)
    left = 1 - average.module.weight.item()
    expected = np.prod([min(0.998, (1 + n) / (10 + n)) if ramp else 0.998 for n in range(1, 41)])
    assert left == pytest.approx(expected, abs=1e-5) and (left < 1e-5 if ramp else left > 0.9)


def test_tensorboard_gets_the_curve(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    train(new_network(), loss, TrainConfig(**SHORT.to_dict() | {"tracker": "tensorboard"}), tmp_path / "c.safetensors")
    assert list((tmp_path / "logs").rglob("events*"))


@pytest.mark.skipif(not torch.cpu._is_avx512_bf16_supported(), reason="the processor has no bfloat16")
def test_autocast_around_training_changes_nothing() -> None:
    "Autocast keeps copies of weights until its outermost block ends; a training inside would never see its own updates."
    settings = TrainConfig(steps=6, batch_size=8, learning_rate=0.01, warmup=1, precision="bf16")
    plain, inside = new_network(), new_network()
    train(plain, loss, settings)
    with torch.autocast("cpu", torch.bfloat16):
        train(inside, loss, settings)
    torch.testing.assert_close(weights(plain), weights(inside), rtol=0, atol=0)
    assert not torch.equal(weights(plain), weights(new_network()))
