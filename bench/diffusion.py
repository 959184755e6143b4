"""Training and sampling against diffusers' own example script: same network, same images, same machine, one run.

    python bench/diffusion.py speed                                  # about 3 minutes on 2 cores
    python bench/diffusion.py quality --images ../shared/data/pbc64  # about 40 minutes on 2 cores
    python bench/diffusion.py jitter --images ../shared/data/pbc64   # an hour: what a told change of stain does where images are few
    python bench/diffusion.py pretrain --images ../shared/data/pbc64 --work runs/pretrained  # 25 minutes: a whole pretraining, watched
    python bench/diffusion.py sampling --images ../shared/data/pbc64 --work runs/pretrained  # 20 minutes: samplers on that one network
    python bench/diffusion.py speed --preset paper --images ../shared/data/pbc64             # 64 px, for a GPU; the same with `pretrain`

The example is diffusers' `examples/unconditional_image_generation/train_unconditional.py` with its defaults (AdamW, cosine
schedule, EMA, a DDPM that predicts noise, single precision unless told otherwise), given the same class-conditional
network on folded pixels. Its images wait in memory as tensors here, which is kinder to it than the script's own reading.
"""

import argparse
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path

os.environ.setdefault("PATHLOOP_QUIET", "1")

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from pathloop.data import CellImages, load_images, show_beside, split_by_use
from pathloop.diffusion import PRESETS, Generator, NetworkConfig, denoise, make_unet, pretrain
from pathloop.evaluate import fit_features, kernel_distance, nearest_training_check
from pathloop.neighbours import precision_recall_density_coverage
from pathloop.smear import make_smear
from pathloop.training import TrainConfig
from pathloop.watch import MemorisationWatch

RESULTS = Path(__file__).resolve().parent / "results"


def real_images(source: str, size: int) -> tuple[CellImages, CellImages]:
    "Training images and held-out ones."
    if source == "smear":
        return make_smear(128, size, seed=0), make_smear(64, size, seed=1)
    parts = split_by_use(load_images(source, size))
    return parts["train"], parts["test"]


class Example:
    "The example's training loop, a step at a time."

    def __init__(self, real: CellImages, network: NetworkConfig, steps: int, batch: int, precision: str, device: torch.device):
        self.accelerator = Accelerator(cpu=device.type == "cpu")
        self.fold, self.device, self.precision = network.fold, device, precision
        torch.manual_seed(0)
        self.unet = make_unet(network, len(real.classes)).to(device)
        self.ema = EMAModel(self.unet.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75, model_cls=UNet2DModel,
                            model_config=self.unet.config)
        self.noise = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")
        self.optimizer = torch.optim.AdamW(self.unet.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)
        self.rate = get_scheduler("cosine", self.optimizer, num_warmup_steps=min(500, steps // 10), num_training_steps=steps)
        data = TensorDataset(torch.from_numpy(real.images), torch.from_numpy(real.labels))
        self.loader = DataLoader(data, batch, shuffle=True, drop_last=True)

    def run(self, steps: int, after: Callable[[int], None] | None = None) -> None:
        self.unet.train()
        step = 0
        while step < steps:
            for images, labels in self.loader:
                if torch.rand(()) < 0.5:
                    images = images.flip(-1)
                clean = F.pixel_unshuffle(images.to(self.device), self.fold)
                noise = torch.randn_like(clean)
                times = torch.randint(0, 1000, (len(clean),), device=self.device)
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                    output = self.unet(self.noise.add_noise(clean, noise, times), times, class_labels=labels.to(self.device)).sample
                    loss = F.mse_loss(output.float(), noise)
                self.accelerator.backward(loss)
                self.accelerator.clip_grad_norm_(self.unet.parameters(), 1.0)
                self.optimizer.step()
                self.rate.step()
                self.optimizer.zero_grad()
                self.ema.step(self.unet.parameters())
                loss.detach().item()
                step += 1
                if after:
                    after(step)
                if step == steps:
                    return

    @torch.no_grad()
    def sample(self, labels: np.ndarray, scheduler: DDPMScheduler | DDIMScheduler, steps: int, batch: int = 128) -> np.ndarray:
        "What `DDPMPipeline` and `DDIMPipeline` do, with classes, on the averaged weights."
        self.ema.store(self.unet.parameters())
        self.ema.copy_to(self.unet.parameters())
        self.unet.eval()
        random, parts = torch.Generator().manual_seed(0), []
        for start in range(0, len(labels), batch):
            classes = torch.from_numpy(labels[start : start + batch]).to(self.device)
            side = self.unet.config["sample_size"]
            x = torch.randn((len(classes), self.unet.config["in_channels"], side, side), generator=random).to(self.device)
            scheduler.set_timesteps(steps)
            for t in scheduler.timesteps:
                x = scheduler.step(self.unet(x, t, class_labels=classes).sample, t, x, generator=random).prev_sample
            parts.append(F.pixel_shuffle(x, self.fold).clamp(-1, 1).cpu().numpy())
        self.ema.restore(self.unet.parameters())
        self.unet.train()
        return np.concatenate(parts)


def speed(real: CellImages, network: NetworkConfig, batch: int, device: torch.device, steps: int, rounds: int) -> dict:
    "Training images a second, ours and the example's, in turns."
    found: dict[str, list[float]] = {"pathloop": [], "example": [], "example in bf16": []}
    for _ in range(rounds):
        for name in found:
            if name == "pathloop":
                ticks: list[float] = []
                settings = TrainConfig(steps=steps + 5, batch_size=batch, compile=device.type == "cuda", watch_every=5)
                pretrain(real, network, settings, device=device.type, watches=[lambda step, unet, ticks=ticks: ticks.append(time.perf_counter()) or {}])
                seconds = ticks[-1] - ticks[0]
            else:
                example = Example(real, network, steps + 5, batch, "bf16" if "bf16" in name else "fp32", device)
                example.run(5)
                begin = time.perf_counter()
                example.run(steps)
                seconds = time.perf_counter() - begin
            found[name].append(steps * batch / seconds)
    middle = {name: float(np.median(values)) for name, values in found.items()}
    return {"images_per_second": middle, "all": found, "ratio": middle["pathloop"] / middle["example"],
            "ratio to bf16": middle["pathloop"] / middle["example in bf16"]}


def quality(real: CellImages, held_out: CellImages, network: NetworkConfig, batch: int, device: torch.device, budgets: list[int], per_class: int, slow: int) -> dict:
    "Kernel distance to held-out reals at three budgets of training images, and seconds to a pool at the last."
    features = fit_features(real.images, real.labels, len(real.classes), seed=0)
    reals = features(held_out.images)
    labels = np.repeat(np.arange(len(real.classes)), per_class)
    few = np.arange(slow) % len(real.classes)

    def measure(images: np.ndarray) -> tuple[float, ...]:
        return tuple(kernel_distance(reals, features(images)))[:3]

    table: dict[str, dict] = {"pathloop": {}, "example": {}}
    seconds: dict[str, float] = {}
    by_steps: dict[int, dict] = {}
    kept: list = []

    def paint(generator: Generator, calls: int) -> np.ndarray:
        begin = time.perf_counter()
        images = generator.sample(labels, range(len(labels)), steps=calls)
        by_steps[calls] = {"seconds": (time.perf_counter() - begin) / len(labels) * 1024, "kernel_distance": measure(images)}
        return images

    def look(step: int, unet: torch.nn.Module) -> dict[str, float]:
        if step in budgets:
            generator = Generator(unet, real.classes, network)  # type: ignore[arg-type]
            images = paint(generator, 18)
            table["pathloop"][step * batch] = by_steps[18]["kernel_distance"]
            if step == budgets[-1]:
                kept.append(images)
                for calls in (5, 6, 8, 10, 12):
                    paint(generator, calls)
            print("pathloop", step * batch, table["pathloop"][step * batch], flush=True)
        return {}

    pretrain(real, network, TrainConfig(steps=budgets[-1], batch_size=batch, watch_every=int(np.gcd.reduce(budgets))), device=device.type, watches=[look])
    example = Example(real, network, budgets[-1], batch, "bf16", device)

    def example_look(step: int) -> None:
        if step in budgets:
            begin = time.perf_counter()
            images = example.sample(labels, DDIMScheduler(num_train_timesteps=1000), 50)
            seconds["example, DDIM 50"] = (time.perf_counter() - begin) / len(labels) * 1024
            table["example"][step * batch] = measure(images)
            print("example", step * batch, table["example"][step * batch], flush=True)

    example.run(budgets[-1], example_look)
    begin = time.perf_counter()
    slowly = example.sample(few, DDPMScheduler(num_train_timesteps=1000), 1000)
    seconds["example, DDPM 1000"] = (time.perf_counter() - begin) / slow * 1024
    slow_distance = measure(slowly)

    def ratio(to: str, distance: float) -> dict:
        "The fewest calls whose images are no farther from the held-out reals, and how much sooner they are there."
        enough = [calls for calls in sorted(by_steps) if by_steps[calls]["kernel_distance"][0] <= distance]
        return {"calls": enough[0], "ratio": seconds[to] / by_steps[enough[0]]["seconds"]} if enough else {"calls": None, "ratio": None}

    return {"kernel_distance": table, "example, DDPM 1000, last budget": slow_distance, "pathloop, same n": measure(kept[-1][np.linspace(0, len(labels) - 1, slow).astype(int)]),
            "seconds to 1,024 images": seconds, "pathloop by calls, last budget": by_steps, "at equal distance, to DDPM 1000": ratio("example, DDPM 1000", slow_distance[0]),
            "at equal distance, to DDIM 50": ratio("example, DDIM 50", table["example"][budgets[-1] * batch][0]), "n": len(labels), "n of DDPM 1000": slow}


@torch.no_grad()
def sampled_by(generator: Generator, labels: np.ndarray, scheduler: DDPMScheduler | DDIMScheduler, steps: int, batch: int = 128) -> np.ndarray:
    "What `DDPMPipeline` and `DDIMPipeline` do, on our network: it says the clean image (`prediction_type=\"sample\"`) at the scheduler's noise levels."
    generator.unet.eval()
    random, parts = torch.Generator().manual_seed(0), []
    for start in range(0, len(labels), batch):
        classes = torch.from_numpy(labels[start : start + batch]).to(generator.device)
        x = torch.randn((len(classes), *generator.config.shape), generator=random).to(generator.device)
        scheduler.set_timesteps(steps)
        for t in scheduler.timesteps:
            kept = scheduler.alphas_cumprod[t].to(x.device) # Of the image's variance
            clean = denoise(generator.unet, x / kept.sqrt(), ((1 - kept) / kept).sqrt().expand(len(x)), classes, generator.config.sigma_data)
            x = scheduler.step(clean, t, x, generator=random).prev_sample
        parts.append(generator.restore(x).cpu().numpy())
    return np.concatenate(parts)


def sampling(real: CellImages, held_out: CellImages, generator: Generator, per_class: int, slow: int) -> dict:
    "Seconds to 1,024 images and their distance to held-out reals, on one network: ours by calls, and diffusers' DDIM 50 and DDPM 1,000."
    features = fit_features(real.images, real.labels, len(real.classes), seed=0)
    reals, labels = features(held_out.images), np.repeat(np.arange(len(real.classes)), per_class)
    few = np.arange(slow) % len(real.classes)
    rows: dict[str, dict] = {}

    def paint(name: str, classes: np.ndarray, images: Callable[[], np.ndarray]) -> None:
        begin = time.perf_counter()
        made = images()
        seconds = time.perf_counter() - begin
        rows[name] = {"seconds": seconds / len(classes) * 1024, "kernel_distance": tuple(kernel_distance(reals, features(made)))[:3], "n": len(classes)}
        print(name, rows[name], flush=True)

    generator.sample(labels[:32], range(32), steps=2) # Warm
    for calls in (6, 8, 10, 12, 15, 18, 25, 35):
        paint(f"pathloop, {calls}", labels, lambda calls=calls: generator.sample(labels, range(len(labels)), steps=calls))
    paint("DDIM, 50", labels, lambda: sampled_by(generator, labels, DDIMScheduler(num_train_timesteps=1000, prediction_type="sample"), 50))
    paint("DDPM, 1000", few, lambda: sampled_by(generator, few, DDPMScheduler(num_train_timesteps=1000, prediction_type="sample"), 1000))

    def ratio(to: str) -> dict:
        "The fewest calls whose images are no farther than the other's, and how much sooner they are there."
        enough = [name for name in rows if name.startswith("pathloop") and rows[name]["kernel_distance"][0] <= rows[to]["kernel_distance"][0]]
        return {"calls": enough[0] if enough else None, "ratio": rows[to]["seconds"] / rows[enough[0]]["seconds"] if enough else None}

    return {"rows": rows, "at equal distance": {to: ratio(to) for to in ("DDIM, 50", "DDPM, 1000")},
            "kernel_distance of real halves": kernel_distance(features(held_out.images[::2]), features(held_out.images[1::2]))}


def jitter(real: CellImages, held_out: CellImages, network: NetworkConfig, batch: int, device: torch.device, steps: int, per_type: int, per_class: int, seeds: int) -> dict:
    "Pretraining on few images of each type, with and without a told change of stain: distance to held-out reals, coverage, copies."
    features = fit_features(real.images, real.labels, len(real.classes), seed=0)
    reals, labels = features(held_out.images), np.repeat(np.arange(len(real.classes)), per_class)
    rows = []
    for seed in range(seeds):
        random = np.random.default_rng(seed)
        few = real.subset(np.concatenate([random.permutation(np.flatnonzero(real.labels == k))[:per_type] for k in range(len(real.classes))]))
        for strength in (0.0, 0.15, 0.3):
            generator = pretrain(few, network, TrainConfig(steps=steps, batch_size=batch, seed=seed), device=device.type, jitter=strength)
            images = generator.sample(labels, range(len(labels)), steps=18)
            near = precision_recall_density_coverage(reals, features(images), real_labels=held_out.labels, synthetic_labels=labels)
            rows.append({"seed": seed, "jitter": strength, "kernel_distance": kernel_distance(reals, features(images)).value, "precision": near["precision"].value,
                         "coverage": near["coverage"].value, "copies": nearest_training_check(few.images, held_out.images, images).pixels.value})
            print(rows[-1], flush=True)
    return {"rows": rows, "training images": len(few), "steps": steps, "n": len(labels)}


def whole(real: CellImages, held_out: CellImages, network: NetworkConfig, settings: TrainConfig, device: torch.device, work: Path, picture: Path) -> dict:
    "One pretraining from start to end under a watch for memorisation, resumable; kept in `work`, and painted beside real cells. A generator that lies there is only measured."
    watch, minutes = MemorisationWatch(real, held_out, network, n=200, limit=1.0), None
    if not (work / "generator").exists():
        begin = time.perf_counter()
        pretrain(real, network, settings, work / "pretrain.safetensors", device.type, watches=[watch]).save_pretrained(work / "generator")
        minutes = (time.perf_counter() - begin) / 60
    generator = Generator.from_pretrained(work / "generator", device.type)
    history = generator.history
    if "nearer_to_training" not in history: # Trained without a watch: one look, at the end
        history = pd.concat([history, pd.DataFrame([{"step": history["step"].iloc[-1], **watch(int(history["step"].iloc[-1]), generator.unet)}])], ignore_index=True)
    features = fit_features(real.images, real.labels, len(real.classes), seed=0)
    labels, reals = np.repeat(np.arange(len(real.classes)), 48), features(held_out.images)
    floor = kernel_distance(features(held_out.images[::2]), features(held_out.images[1::2]))
    images = generator.sample(labels, range(len(labels)), steps=18)
    near = precision_recall_density_coverage(reals, features(images), real_labels=held_out.labels, synthetic_labels=labels)
    show_beside({"real, never trained on": held_out, "painted": CellImages(images, labels, real.classes)}, 6).savefig(picture, pil_kwargs={"quality": 75})
    return {"minutes": minutes, "steps": int(history["step"].iloc[-1]), "training images": len(real), "images_per_second": float(history["images_per_second"].median()), "parameters": sum(p.numel() for p in generator.unet.parameters()),
            "kernel_distance": kernel_distance(reals, features(images)), "kernel_distance of real halves": floor, "precision": near["precision"], "coverage": near["coverage"], "copies": nearest_training_check(real.images, held_out.images, images).pixels, "n": len(labels),
            "looks": history.dropna(subset="nearer_to_training")[["step", "nearer_to_training", "nearer_low", "nearer_high"]].to_dict("records"), "loss": history.dropna(subset="loss")[["step", "loss"]].iloc[::5].round(4).to_dict("records")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "quality", "jitter", "pretrain", "sampling"])
    parser.add_argument("--images", default="smear", help="a folder that load_images reads, with a column 'use'; or 'smear'")
    parser.add_argument("--preset", choices=[name for name, (network, _) in PRESETS.items() if not network.latent], default="tiny", help="network, batch and pretraining")
    parser.add_argument("--work", type=Path, help="of pretrain and sampling: where checkpoint and generator are kept")
    parser.add_argument("--steps", type=int, default=40, help="of each round of speed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--budgets", type=int, nargs="+", default=[300, 600, 1200], help="updates at which quality is measured")
    parser.add_argument("--per-class", type=int, default=48)
    parser.add_argument("--per-type", type=int, default=32, help="of jitter: training images of each type")
    parser.add_argument("--seeds", type=int, default=2, help="of jitter")
    parser.add_argument("--slow", type=int, default=256, help="images sampled with 1,000 steps")
    given = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network, training = PRESETS[given.preset]
    batch = training.batch_size
    real, held_out = real_images(given.images, network.size)
    name = "-".join(["diffusion", given.what, Path(given.images).name] + [given.preset] * (given.preset != "tiny") + ["cuda"] * (device.type == "cuda"))
    RESULTS.mkdir(exist_ok=True)
    if given.what == "speed":
        found = speed(real, network, batch, device, given.steps, given.rounds)
    elif given.what == "jitter":
        found = jitter(real, held_out, network, batch, device, given.budgets[-1], given.per_type, given.per_class, given.seeds)
    elif given.what in ("pretrain", "sampling") and not given.work:
        parser.error("--work must name a folder where checkpoint and generator are kept")
    elif given.what == "sampling":
        found = sampling(real, held_out, Generator.from_pretrained(given.work / "generator", device.type), given.per_class, given.slow)
    elif given.what == "pretrain":
        found = whole(real, held_out, network, replace(training, compile=device.type == "cuda"), device, given.work, RESULTS / f"{name}.jpg")
    else:
        found = quality(real, held_out, network, batch, device, given.budgets, given.per_class, given.slow)
    found |= {"date": date.today().isoformat(), "device": torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()} CPU, {torch.get_num_threads()} threads",
              "torch": torch.__version__, "preset": given.preset, "batch": batch, "command": " ".join(["python bench/diffusion.py", *map(shlex.quote, ["WORK" if before == "--work" else word for before, word in zip([""] + sys.argv[1:], sys.argv[1:], strict=False)])])}
    (RESULTS / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
