"""The generator: the same samples from stock diffusers, resuming after a kill, saving, and bad input."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import EDMDPMSolverMultistepScheduler, UNet2DModel
from torch.nn import functional as F

from pathloop.data import CellImages
from pathloop.diffusion import (
    PRESETS,
    Generator,
    NetworkConfig,
    Pool,
    averaged_generator,
    denoise,
    denoising_loss,
    drop_classes,
    make_unet,
    pretrain,
    sample_pool,
    stain_at_random,
)
from pathloop.finetune import finetune
from pathloop.latent import fit_codec, latent_network, load_codec
from pathloop.sampling import SAMPLERS
from pathloop.training import TrainConfig, snapshot_folder

NETWORK = NetworkConfig(size=16, channels=(16, 32))
SHORT = TrainConfig(steps=12, batch_size=8, checkpoint_every=4, precision="fp32", warmup=2)


def make_cells(n: int = 12, size: int = 16) -> CellImages:
    images = np.random.default_rng(0).uniform(-1, 1, (n, 3, size, size)).astype(np.float32)
    return CellImages(images, np.arange(n) % 3, ["a", "b", "c"])


@pytest.fixture(scope="module")
def generator() -> Generator:
    return pretrain(make_cells(), NETWORK, SHORT, device="cpu")


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("steps", [6, 18])
def test_stock_diffusers_reproduces_the_samples(generator: Generator, tmp_path: Path, half: bool, steps: int) -> None:
    "Nothing but diffusers and three lines opens the saved folder and samples the same images."
    generator.save_pretrained(tmp_path / "g", half=half)
    unet = UNet2DModel.from_pretrained(tmp_path / "g", subfolder="unet", torch_dtype=torch.float32, low_cpu_mem_usage=False)
    scheduler = EDMDPMSolverMultistepScheduler.from_pretrained(tmp_path / "g", subfolder="scheduler")
    scheduler.set_timesteps(steps)
    seeds, labels = [3, 4, 5], torch.tensor([2, 0, 1])
    x = torch.stack([torch.randn((12, 8, 8), generator=torch.Generator().manual_seed(s)) for s in seeds]) * scheduler.init_noise_sigma
    with torch.no_grad():
        for t in scheduler.timesteps:
            output = unet(scheduler.scale_model_input(x, t), t, class_labels=labels).sample
            x = scheduler.step(output, t, x).prev_sample
    stock = F.pixel_shuffle(x, 2).clamp(-1, 1).numpy()
    ours = Generator.from_pretrained(tmp_path / "g", "cpu").sample(labels.numpy(), seeds, steps=steps)
    np.testing.assert_allclose(stock, ours, atol=1e-4)
    assert stock.std() > 0.05
    weights = [path for path in (tmp_path / "g").rglob("*") if path.suffix in (".bin", ".pt", ".pkl", ".ckpt")]
    assert not weights, "no pickles"


def test_scheduler_and_loss_share_one_preconditioning(generator: Generator) -> None:
    scheduler = generator.scheduler()
    scheduler.set_timesteps(5)
    x, labels = torch.randn(2, 12, 8, 8), torch.tensor([0, 1])
    t, sigma = scheduler.timesteps[2], scheduler.sigmas[2]
    with torch.no_grad():
        raw = generator.unet(scheduler.precondition_inputs(x, sigma), t, class_labels=labels).sample
        stock = scheduler.precondition_outputs(x, raw, sigma)
        ours = denoise(generator.unet, x, sigma.repeat(2), labels, generator.config.sigma_data)
    torch.testing.assert_close(stock, ours, atol=1e-5, rtol=1e-4)


def test_loss_of_a_perfect_denoiser_is_zero_and_unreduced() -> None:
    clean = torch.randn(4, 12, 8, 8)
    sigma = torch.tensor([0.1, 0.5, 1.0, 5.0])

    class Perfect(torch.nn.Module):
        def forward(self, x, t, class_labels):  # type: ignore[no-untyped-def]
            wide = sigma.view(-1, 1, 1, 1)
            total = (wide**2 + 0.25).sqrt()
            raw = (clean - 0.25 / total**2 * (x * total)) / (wide * 0.5 / total)
            return type("Output", (), {"sample": raw})

    loss = denoising_loss(Perfect(), clean, torch.zeros(4, dtype=torch.long), sigma, torch.randn(4, 12, 8, 8), 0.5)
    assert loss.shape == (4,)
    torch.testing.assert_close(loss, torch.zeros(4), atol=1e-3, rtol=0)


def test_image_does_not_depend_on_its_batch(generator: Generator) -> None:
    labels, seeds = np.array([0, 1, 2, 0, 1]), np.array([7, 8, 9, 10, 11])
    whole = generator.sample(labels, seeds, steps=4, batch_size=5)
    parts = generator.sample(labels[::-1].copy(), seeds[::-1], steps=4, batch_size=2)[::-1]
    np.testing.assert_allclose(whole, parts, atol=1e-4)


def test_guidance_of_one_is_no_guidance_and_more_changes_images(generator: Generator) -> None:
    labels, seeds = np.array([0, 1]), [1, 2]
    plain = generator.sample(labels, seeds, steps=4)
    np.testing.assert_array_equal(plain, generator.sample(labels, seeds, guidance=1.0, steps=4))
    assert np.abs(plain - generator.sample(labels, seeds, guidance=3.0, steps=4)).max() > 1e-4


@pytest.mark.parametrize("sampler", list(SAMPLERS))
def test_every_sampler_paints_and_no_image_depends_on_its_batch(generator: Generator, sampler: str) -> None:
    labels, seeds = np.array([0, 1, 2, 0]), np.array([7, 8, 9, 10])
    whole = generator.sample(labels, seeds, steps=8, sampler=sampler)
    parts = generator.sample(labels[::-1].copy(), seeds[::-1], steps=8, sampler=sampler, batch_size=3)[::-1]
    np.testing.assert_allclose(whole, parts, atol=1e-3)
    assert np.isfinite(whole).all() and whole.std() > 0.05


def test_guide_and_interval(generator: Generator) -> None:
    labels, seeds = np.array([0, 1]), [1, 2]
    plain = generator.sample(labels, seeds, steps=6)
    np.testing.assert_allclose(plain, generator.sample(labels, seeds, steps=6, guide=generator, guide_scale=2.0), atol=1e-4)  # away from itself: nowhere
    worse = Generator(make_unet(NETWORK, 3), ["a", "b", "c"], NETWORK)
    assert np.abs(plain - generator.sample(labels, seeds, steps=6, guide=worse, guide_scale=2.0)).max() > 1e-3
    np.testing.assert_array_equal(plain, generator.sample(labels, seeds, steps=6, guidance=3.0, interval=(90.0, 100.0)))  # never acts
    with pytest.raises(ValueError, match="guide must have this generator's size"):
        generator.sample(labels, seeds, guide=Generator(make_unet(NETWORK, 3), ["a", "b", "d"], NETWORK), guide_scale=2.0)
    with pytest.raises(ValueError, match="guide must be given"):
        generator.sample(labels, seeds, guide_scale=2.0)
    with pytest.raises(ValueError, match="'sampels'"):
        generator.sample(labels, seeds, sampels="heun")


def test_pool_keeps_how_it_was_sampled(generator: Generator, tmp_path: Path) -> None:
    pool = sample_pool(generator, 1, guidance=1.5, steps=6, sampler="unipc", interval=(0.1, 5.0), guide=generator, guide_scale=1.2)
    pool.save(tmp_path)
    kept = Pool.load(tmp_path)
    assert kept.sampling == pool.sampling and kept.sampling.sampler == "unipc" and kept.guide_id == generator.id
    (tmp_path / "pool.json").write_text(json.dumps({"classes": pool.classes, "generator_id": "x", "guidance": 2.0, "steps": 9}))
    old = Pool.load(tmp_path)
    assert (old.sampling.guidance, old.sampling.steps, old.sampling.sampler) == (2.0, 9, "dpm++")


def test_training_is_deterministic_and_moves_every_parameter() -> None:
    first, second = (pretrain(make_cells(), NETWORK, SHORT, device="cpu") for _ in range(2))
    assert first.id == second.id
    torch.manual_seed(SHORT.seed)
    fresh = make_unet(NETWORK, 3).state_dict()
    same = [name for name, value in first.unet.state_dict().items() if torch.equal(value, fresh[name])]
    assert not same, f"never trained: {same}"


def test_classes_are_dropped_at_the_stated_rate() -> None:
    dropped = drop_classes(torch.zeros(20_000, dtype=torch.long), 0.1, 3, torch.Generator().manual_seed(0)) == 3
    assert abs(dropped.float().mean() - 0.1) < 0.01


@pytest.mark.slow
def test_killed_at_ten_moments_ends_bit_for_bit_the_same(tmp_path: Path) -> None:
    "SIGKILL at ten random moments of one training, run again each time from its checkpoint."
    code = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
from dataclasses import replace
import pathloop.diffusion as d
from test_diffusion import NETWORK, SHORT, make_cells
original = d.random_loss
def said(*args):
    print("step", flush=True)
    return original(*args)
d.random_loss = said
settings = replace(SHORT, steps=60, average_snapshots=6)
print("id", d.pretrain(make_cells(), NETWORK, settings, {str(tmp_path / 'c.safetensors')!r}, device="cpu").id, flush=True)
"""
    environment = {**os.environ, "PATHLOOP_QUIET": "1", "OMP_NUM_THREADS": "1"}
    random, done = np.random.default_rng(5), 0
    for _ in range(10):
        steps, delay = int(random.integers(1, 8)), float(random.uniform(0, 0.05))
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment) as process:
            assert process.stdout is not None
            for line in process.stdout:
                done += 1
                steps -= line.strip() == "step"
                if steps == 0:
                    time.sleep(delay)
                    os.kill(process.pid, signal.SIGKILL)
                    break
    again = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    torch.set_num_threads(1)
    straight = pretrain(make_cells(), NETWORK, replace(SHORT, steps=60, average_snapshots=6), device="cpu")
    assert f"id {straight.id}" in again.stdout.split("\n")
    assert again.stdout.count("step") < 60, "it did not resume"
    assert done >= 10


def test_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    pretrain(make_cells(), NETWORK, SHORT, path, device="cpu")
    other = CellImages(make_cells().images, np.arange(12) % 2, ["a", "b"])
    with pytest.raises(ValueError, match="same network, class list and images"):
        pretrain(other, NETWORK, SHORT, path, device="cpu")
    renamed = CellImages(make_cells().images, make_cells().labels, ["a", "b", "d"])
    with pytest.raises(ValueError, match='"d"'):
        pretrain(renamed, NETWORK, SHORT, path, device="cpu")


def test_divergence_stops_and_says_what_to_do() -> None:
    with pytest.raises(FloatingPointError, match="lower learning_rate"):
        pretrain(make_cells(), NETWORK, replace(SHORT, steps=200, learning_rate=1e12), device="cpu")


def test_jitter_leaves_a_stock_network_and_resumes(tmp_path: Path) -> None:
    "Told of the change while training; afterwards nothing of it is left, stock diffusers opens it, and a cut run ends the same."
    whole = pretrain(make_cells(), NETWORK, SHORT, device="cpu", jitter=0.2)
    assert type(whole.unet.class_embedding) is torch.nn.Embedding
    plain = pretrain(make_cells(), NETWORK, SHORT, device="cpu")
    assert not torch.equal(whole.unet.class_embedding.weight, plain.unet.class_embedding.weight)
    whole.save_pretrained(tmp_path / "g")
    assert np.array_equal(Generator.from_pretrained(tmp_path / "g", device="cpu").sample([0, 1], [5, 6]), whole.sample([0, 1], [5, 6]))
    place = tmp_path / "c.safetensors"

    def stop(step: int, unet: torch.nn.Module) -> dict[str, float]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(make_cells(), NETWORK, replace(SHORT, watch_every=6), place, device="cpu", jitter=0.2, watches=[stop])
    resumed = pretrain(make_cells(), NETWORK, SHORT, place, device="cpu", jitter=0.2)
    assert all(torch.equal(a, b) for a, b in zip(whole.unet.parameters(), resumed.unet.parameters(), strict=True))
    with pytest.raises(ValueError, match="same network, class list and images"):
        pretrain(make_cells(), NETWORK, SHORT, place, device="cpu")


def test_a_generator_from_an_early_snapshot_guides_and_jitter_leaves_no_trace(tmp_path: Path) -> None:
    settings = replace(SHORT, steps=24, average_snapshots=6)
    late = pretrain(make_cells(), NETWORK, settings, tmp_path / "c.safetensors", device="cpu", jitter=0.2)
    early = averaged_generator(late, snapshot_folder(tmp_path / "c.safetensors"), step=8)
    assert early.id != late.id and set(early.unet.state_dict()) == set(late.unet.state_dict())
    plain, led = (late.sample([0, 1, 2], [1, 2, 3], steps=6, **way) for way in ({}, {"guide": early, "guide_scale": 2.0}))
    assert not np.array_equal(plain, led)


def test_weights_without_safetensors_are_refused(generator: Generator, tmp_path: Path) -> None:
    generator.save_pretrained(tmp_path / "g")
    (tmp_path / "g/unet/diffusion_pytorch_model.safetensors").unlink()
    torch.save(generator.unet.state_dict(), tmp_path / "g/unet/diffusion_pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        Generator.from_pretrained(tmp_path / "g", device="cpu")


def test_latents_from_codec_to_images_and_no_other_codec_on_resuming(tmp_path: Path) -> None:
    "A codec of factor 4 at 16 px, a network on its latents, both saved and opened; resumed with another codec it is refused."
    brief = replace(SHORT, steps=30, learning_rate=1e-3)
    codecs = [fit_codec(make_cells(), factor=4, width=8, settings=replace(brief, seed=seed), device="cpu")[0] for seed in (0, 1)]
    codecs[0].save_pretrained(tmp_path / "vae")
    codec = load_codec(tmp_path / "vae", device="cpu")
    network = latent_network(codec, 16, channels=(32,), layers=1)
    painted = pretrain(make_cells(), network, SHORT, tmp_path / "c.safetensors", device="cpu", codec=codec)
    painted.save_pretrained(tmp_path / "g")
    images = Generator.from_pretrained(tmp_path / "g", device="cpu").sample([0, 1], [5, 6], steps=4)
    assert images.shape == (2, 3, 16, 16) and np.array_equal(images, painted.sample([0, 1], [5, 6], steps=4))
    with pytest.raises(ValueError, match="generator must be one that paints pixels for method='draft'; got one of latents"):
        finetune(painted, sample_pool(painted, 2, steps=2), np.ones(6), make_cells(), "draft", reward=lambda images, labels: images.mean(dim=(1, 2, 3)))
    with pytest.raises(ValueError, match="codec"):
        pretrain(make_cells(), network, SHORT, tmp_path / "c.safetensors", device="cpu", codec=codecs[1])


def test_a_codec_resumes_on_the_same_images_only(tmp_path: Path) -> None:
    settings = replace(SHORT, steps=3, checkpoint_every=2)

    def make(cells: CellImages, pull: float = 0.01) -> torch.nn.Module:
        return fit_codec(cells, factor=4, width=8, settings=settings, pull=pull, device="cpu", checkpoint=tmp_path / "c.safetensors")[0]

    once, again = make(make_cells()), make(make_cells())
    assert all(torch.equal(a, b) for a, b in zip(once.parameters(), again.parameters(), strict=True))
    for cells, pull in ((make_cells().subset(np.arange(6)), 0.01), (make_cells(), 0.5)):
        with pytest.raises(ValueError, match="checkpoint must come from the same"):
            make(cells, pull)


@pytest.mark.parametrize("name", list(PRESETS))
def test_presets_have_a_network_that_can_be_made(name: str) -> None:
    network, _ = PRESETS[name]
    with torch.device("meta"):
        unet = make_unet(network, 11)
    assert unet.config["sample_size"] * network.fold == network.size


def test_a_changed_stain_stays_in_range_and_is_told() -> None:
    images = torch.rand(64, 3, 8, 8) * 1.7 - 0.95 # Neither black nor white, where a power changes nothing that could be told
    changed, told = stain_at_random(images, 0.3, torch.Generator().manual_seed(0))
    assert changed.min() >= -1 and changed.max() <= 1 and 16 < (told == 0).all(1).sum() < 48
    light, before = (changed + 1) / 2, ((images + 1) / 2).clamp(1e-3, 1)
    assert torch.allclose(light.log() / before.log(), (0.3 * told).exp()[:, :, None, None].expand_as(light), rtol=2e-2, atol=1e-3)


def test_bad_input_is_named(generator: Generator) -> None:
    with pytest.raises(ValueError, match="multiple of 4"):
        make_unet(NetworkConfig(size=18, channels=(16, 32)), 3)
    with pytest.raises(ValueError, match="labels must lie from 0 to 2"):
        generator.sample(np.array([3]), [0])
    with pytest.raises(ValueError, match=r"labels must have shape \(2,\)"):
        generator.sample(np.array([1]), [0, 1])
    with pytest.raises(ValueError, match="16 px a side"):
        generator.loss(np.zeros((1, 3, 32, 32)), np.array([0]))
    with pytest.raises(ValueError, match="must lie in"):
        generator.loss(np.full((1, 3, 16, 16), 7.0), np.array([0]))
    with pytest.raises(ValueError, match="classes must be one fewer"):
        Generator(generator.unet, ["a"], generator.config)
    with pytest.raises(ValueError, match="precision must be"):
        pretrain(make_cells(), NETWORK, TrainConfig(steps=1, precision="fp8"), device="cpu")
    with pytest.raises(ValueError, match=r"the last at least 32; got 2 and \(16,\)"):
        make_unet(NetworkConfig(size=16, channels=(16,)), 3)
    with pytest.raises(ValueError, match="jitter must be from 0 to 1; got 1.5"):
        pretrain(make_cells(), NETWORK, SHORT, device="cpu", jitter=1.5)
    with pytest.raises(ValueError, match="per_class must be at least 1"):
        sample_pool(generator, 0)


def test_loading_what_is_not_there_or_of_another_format(generator: Generator, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="must hold a saved generator"):
        Generator.from_pretrained(tmp_path)
    generator.save_pretrained(tmp_path / "g")
    with pytest.raises(FileExistsError):
        generator.save_pretrained(tmp_path / "g")
    about = json.loads((tmp_path / "g" / "pathloop.json").read_text())
    (tmp_path / "g" / "pathloop.json").write_text(json.dumps({**about, "format": 0}))
    with pytest.raises(ValueError, match="has format 0"):
        Generator.from_pretrained(tmp_path / "g")


def test_saved_generator_is_the_same_one(generator: Generator, tmp_path: Path) -> None:
    generator.save_pretrained(tmp_path / "g")
    again = Generator.from_pretrained(tmp_path / "g", "cpu")
    assert again.id == generator.id and again.classes == generator.classes
    assert list(again.history["step"]) == list(generator.history["step"])


def test_pool_can_be_made_again_from_its_seeds(generator: Generator, tmp_path: Path) -> None:
    pool = sample_pool(generator, per_class=2, first_seed=50, steps=4)
    pool.save(tmp_path)
    kept = Pool.load(tmp_path)
    assert kept.generator_id == generator.id
    again = generator.sample(kept.labels, kept.seeds, **kept.sampling.to_dict())
    assert np.abs(again - kept.images).max() <= 1.01 / 127.5
