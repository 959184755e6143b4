"""Which method deserves to be the default? Every finetuning, every sampling-time use of feedback, and every control, on the same seeds.

    python bench/methods.py smear --work runs/smear                                  # on the embedded smears
    python bench/methods.py "faulty smear" --work runs/faulty --judges runs/judges      # on an archive in which a third of the cells are faulty
    python bench/methods.py "faulty smear: blur" --work runs/blur --judges runs/judges  # the same with one fault, as of a scanner out of focus
    python bench/methods.py ../shared/data/pbc64 --work runs/pbc64 --judges runs/judges-pbc64 --per-class 28 --pool plain # on a folder of real images
    python bench/methods.py smear --work runs/smear --labels 64 128 256 512           # plausibility by label budget
    python bench/methods.py --like bench/results/methods_faulty.json --work runs/faulty --judges runs/judges --out again.json     # what that file holds, made again

What is made lies in the work folder and is never made twice, so the command can be stopped and run again. Two simulated pathologists of
different kind and taught on different images: one gives the feedback (`giver`), the other only judges. Guidance is chosen on other seeds
than those reported. One pretrained generator; the seeds are those of pool, feedback, reward, finetuning and sampled images.

The paper's objective learns from images sampled without guidance, as in the paper, and all else from guided ones, or with `--pool plain` from the
same as the paper's: where guidance leaves few images to reject, a reward finds more to learn from there.

The settings of the methods were fixed before any of their images was judged, and are not tuned per method. The curated arms are an
exception: theirs (`LONG`, and what is distilled) were chosen on seed 9 of the first archive below, where both judges were asked, and how far
to lead away (`pathloop.loop.LED_AWAY`) on seed 9 of the blurred one. And "reward-weighted, guided pool, sorted anchor" was added after its two
parts had been judged on the seeds reported.

"faulty smear" is a laboratory whose archive nobody has sorted: one training image in three has a fault of `pathloop.defects`, each kind as
often as its types allow. A generator that learns them paints them, and no guidance by type can tell it not to. Its judges and its test
images are those of sound smears. With a fault's name after a colon all faulty cells have that one, so that it is no rarity.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from functools import cached_property
from pathlib import Path

os.environ.setdefault("PATHLOOP_QUIET", "1")

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score

from pathloop.checklist import load_checklist
from pathloop.core import atomic_folder, read_json, write_json
from pathloop.data import CellImages, show_beside
from pathloop.defects import DEFECTS, defects_of, inject
from pathloop.diffusion import Generator, Pool, pretrain, sample_pool
from pathloop.evaluate import fit_features, nearest_training_check
from pathloop.experts import ExpertPathologist, fit_expert_pathologist
from pathloop.finetune import FinetuneConfig, best_part, finetune
from pathloop.guide import STRIDE, best_of, distil, fit_guide, reward_push, sample_accepted
from pathloop.intervals import mcnemar, paired_gain, wilson_interval
from pathloop.loop import (
    CURATING,
    DISTILLING,
    LED_AWAY,
    VERDICT_WEIGHTS,
    StudyConfig,
    _real_parts,
    open_cells,
    save_cells,
    shipped_generator,
)
from pathloop.metrics import kernel_distance, realism_test
from pathloop.neighbours import precision_recall_density_coverage
from pathloop.pathologist import SimulatedPathologist, fit_pathologist
from pathloop.reward import RewardModel, fit_reward
from pathloop.smear import make_smear
from pathloop.training import TrainConfig
from pathloop.utility import downstream_accuracy

REPORTED, LEARNING = 1_000_000, 10_000 # First seeds: of reported images (1, 2, 3 ... million), of pools
CHOOSING, LESSON, PICKED, FURTHER, AGAIN = 500_000_000, 600_000_000, 700_000_000, 800_000_000, 900_000_000 # Far from the reported: for choosing guidance, for distilling, for the best of four, for further pools, for second rounds
REJECTION = "sampled until accepted, guided"
GUIDANCES, LOWEST = (1.5, 2.0, 2.5), (0.0, 0.3) # Tried: strengths, and lowest noise levels at which guidance acts
WEAK, WEAK_STEPS = (24, 48, 48), 400 # For autoguidance: half the width, a tenth of the default's training
GENTLE = FinetuneConfig(steps=100, learning_rate=5e-5, beta=1.0)
PAPER = FinetuneConfig(steps=100, learning_rate=1e-4)
LONG = CURATING # Continued training, long enough to unlearn faults; chosen on seed 9, see above
SHOWN = 5 # Images of each type in a picture
FAULTY, SOUND_OF_TYPE, FAULTY_OF_TYPE = "faulty smear", 160, 80
GUIDE, GUIDE_SCALE = FinetuneConfig(steps=80, learning_rate=2e-4, beta=0.0, normalise=True), 1.5


@dataclass(frozen=True)
class Way:
    "How a network is finetuned."

    settings: FinetuneConfig
    guided: bool = False # Pool sampled with guidance?
    feedback: bool = True # Weights from feedback, or all 1
    equal: bool = False # Their mean for all: as much of the pool as with feedback, but no image before another
    larger: int = 1 # Times as many pool images; no more are judged
    rounds: int = 1 # Each with a fresh pool, sampled from the network so far
    sorted_anchor: bool = False # The real images are those that the reward likes
    sampler_steps: int = 0 # Steps of the sampler that paints the pool, then none of it judged; 0 for those of the pool that was judged
    verdicts: bool = True # Does an image that was judged weigh by its verdict, or by the reward as all others do?


SETTINGS = {
    "reward-weighted": Way(PAPER),
    "reward-weighted, all weights 1": Way(PAPER, feedback=False),
    "reward-weighted, one weight for all": Way(PAPER, equal=True),
    "reward-weighted, beta 0": Way(replace(PAPER, beta=0.0)),
    "reward-weighted, beta 3": Way(replace(PAPER, beta=3.0)),
    "reward-weighted, shared noise": Way(replace(PAPER, shared_noise=True)),
    "reward-weighted, by the reward alone": Way(PAPER, verdicts=False),
    "reward-weighted, pool of 9 sampler steps": Way(PAPER, sampler_steps=9),
    "reward-weighted, pool of 36 sampler steps": Way(PAPER, sampler_steps=36),
    "reward-weighted, coarse noise only": Way(replace(PAPER, noise_from=0.3, beta=1.0)),
    "reward-weighted, guided pool": Way(PAPER, guided=True),
    "reward-weighted, guided pool, all weights 1": Way(PAPER, guided=True, feedback=False),
    "reward-weighted, four times the pool": Way(PAPER, larger=4),
    "reward-weighted, four fresh pools": Way(PAPER, rounds=4),
    "reward-weighted, sorted anchor": Way(PAPER, sorted_anchor=True),
    "reward-weighted, guided pool, sorted anchor": Way(PAPER, guided=True, sorted_anchor=True),
    "sft": Way(PAPER, guided=True),
    "kto": Way(GENTLE, guided=True),
    "dpo": Way(GENTLE, guided=True),
    "nft": Way(GENTLE, guided=True),
    "nft, four fresh pools": Way(GENTLE, guided=True, rounds=4),
    "draft": Way(replace(GENTLE, steps=40), guided=True),
    "real-only": Way(PAPER, feedback=False),
    "real-only, long": Way(LONG, feedback=False),
    "reward-weighted, long": Way(replace(LONG, batch_size=32)),
    "reward-weighted, long, sorted anchor": Way(replace(LONG, batch_size=32), sorted_anchor=True),
}


@dataclass(frozen=True)
class Arm:
    name: str
    cost: int # Network calls per step and image, or for each that is tried where some are tried again
    control: bool
    sample: Callable[["Run", np.ndarray, np.ndarray], Pool]


class Setting:
    "What all seeds share: real images, generator, judges, best guidance."

    def __init__(self, images: str, work: Path, pretrain_steps: int, generator: str, judges: Path | None, body: str = "types", pool: str = "guided") -> None:
        self.body, self.pool = body, pool # Of the reward; what all but the paper's objective learns from
        self.taught: dict[int, RewardModel] = {} # Of each seed a reward, to lend the others what real images taught it
        self.images, self.work, self.pretrain_steps, self.given, self.judges_folder = images, work, pretrain_steps, generator, judges
        work.mkdir(parents=True, exist_ok=True)
        made_of = read(work / "images.json", lambda: {"images": images})["images"]
        if made_of != images:
            raise ValueError(f"--work must be a folder of its own for {images!r}; {work} holds {made_of!r}")

    @cached_property
    def real(self) -> dict:
        if not (self.work / "test.npz").exists():
            for name, cells in (faulty_archive(self.images) if self.images.startswith(FAULTY) else _real_parts(StudyConfig(images=self.images))[0]).items():
                save_cells(cells, self.work / f"{name}.npz")
        return {name: open_cells(self.work / f"{name}.npz") for name in ("train", "test", "judge") if (self.work / f"{name}.npz").exists()}

    @cached_property
    def generator(self) -> Generator:
        folder = shipped_generator(self.given) if self.given else self.work / "generator"
        if not folder.exists():
            (self._trained_on() if self.images.startswith(FAULTY) else pretrain(
                self.real["train"], settings=TrainConfig(steps=self.pretrain_steps), checkpoint=self.work / "pretrain.safetensors")).save_pretrained(folder)
        return Generator.from_pretrained(folder)

    def _trained_on(self) -> Generator:
        "The shipped generator of sound smears, trained on with the unsorted archive: a quarter of the time of a fresh one."
        sound = Generator.from_pretrained(shipped_generator("smear-32"))
        unused = quick(sample_pool, sound, 1, 0)
        settings = FinetuneConfig(steps=1200, batch_size=64, learning_rate=1e-3, warmup=100, average=0.995)
        return finetune(sound, unused, np.ones(len(unused)), self.real["train"], "real-only", settings, self.work / "trained-on.safetensors")

    @cached_property
    def remembered(self) -> "Remembered":
        return Remembered(self.generator)

    @cached_property
    def judges(self) -> dict:
        return make_judges(self)

    @cached_property
    def best(self) -> dict:
        "The untouched generator's best guidance, as settings of its sampling."
        found = read(self.work / "guidance.json", self._choose)["best"]
        return {"guidance": found["guidance"], "interval": tuple(found["interval"])}

    def _choose(self) -> dict:
        return self._try([{"guidance": guidance, "interval": (low, 100.0)} for low in LOWEST for guidance in GUIDANCES])

    def _try(self, ways: list[dict], **more) -> dict:
        "Of settings of sampling, the one whose images the judge accepts most."
        tried = []
        for way in ways:
            pool = quick(sample_pool, self.generator, 20, CHOOSING, **way, **more)
            tried.append(way | {"accepted": float(self.judges["judge"].plausible(pool.images, pool.labels).mean()), "n": len(pool)})
        return {"tried": tried, "best": max(tried, key=lambda way: way["accepted"])}

    @cached_property
    def weak(self) -> Generator:
        "A smaller network with less training on the same images, to be led away from (autoguidance, arXiv 2406.02507)."
        shape, settings = replace(self.generator.config, channels=WEAK), TrainConfig(steps=WEAK_STEPS)
        return network(self.work / "weak", lambda: pretrain(self.real["train"], shape, settings))

    @cached_property
    def autoguidance(self) -> dict:
        "The untouched generator's best autoguidance, alone or on top of gentle guidance by type, as settings of its sampling."
        ways = [{"guidance": guidance, "guide_scale": scale} for guidance in (1.0, LED_AWAY["guidance"]) for scale in (*GUIDANCES, LED_AWAY["guide_scale"])]
        found = read(self.work / "autoguidance.json", lambda: self._try(ways, guide=self.weak))["best"]
        return {"guide": self.weak, **{name: found[name] for name in ways[0]}}

    @cached_property
    def distilled(self) -> Generator:
        "The guided generator in one network: needs no feedback, so one for all seeds."
        lesson = quick(sample_pool, self.generator, 32, LESSON, **self.best)
        return network(self.work / "guidance distilled", lambda: distil(self.generator, lesson, self.real["train"], settings=DISTILLING, **self.best))


class Remembered:
    "A generator that paints each place once for the same settings: all budgets choose among the same images."

    def __init__(self, generator: Generator) -> None:
        self.generator, self.painted = generator, {}

    def __getattr__(self, name: str) -> object:
        return getattr(self.generator, name)

    def sample(self, labels: np.ndarray, seeds: np.ndarray, **sampling) -> np.ndarray:
        places = [(label, seed, *sampling.items()) for label, seed in zip(labels.tolist(), seeds.tolist(), strict=True)]
        new = [i for i, place in enumerate(places) if place not in self.painted]
        if new:
            self.painted |= zip([places[i] for i in new], self.generator.sample(labels[new], seeds[new], **sampling), strict=True)
        return np.stack([self.painted[place] for place in places])


class Giver:
    "The simulated pathologist who gives the feedback: `review` for the reward, `plausible` for the table."

    def __init__(self, pathologist: SimulatedPathologist | ExpertPathologist) -> None:
        self.review = pathologist.review if isinstance(pathologist, SimulatedPathologist) else pathologist.verdicts

    def plausible(self, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        return (self.review(images, labels)["verdict"] == "plausible").to_numpy()


def make_judges(setting: Setting) -> dict:
    "Who gives feedback, and who only judges: those that `bench/judges.py` made, or on smears without such a folder, two that are fitted now."
    if setting.judges_folder:
        return {"judge": ExpertPathologist.load(setting.judges_folder / "judge"), "giver": Giver(ExpertPathologist.load(setting.judges_folder / "giver"))}
    if setting.images != "smear":
        raise ValueError(f"--judges must name the folder of bench/judges.py for {setting.images!r}: only for 'smear' can two be fitted here")
    home, real = setting.work / "judges", setting.real
    home.mkdir(exist_ok=True)
    if not (home / "giver.json").exists(): # By rule, taught on training images
        fit_pathologist(real["train"], load_checklist("peripheral-blood")).save(home / "giver.json")
    if not (home / "judge").exists(): # A network, taught on smears of its own: types, attributes, known defects, looks
        broken = broken_smears(real["judge"])
        fit_expert_pathologist(real["judge"], load_checklist("peripheral-blood").criteria_names, broken=broken, members=2, steps=700).save(home / "judge")
    return {"judge": ExpertPathologist.load(home / "judge"), "giver": Giver(SimulatedPathologist.load(home / "giver.json"))}


def faulty_archive(images: str) -> dict[str, CellImages]:
    "An unsorted archive to learn from, with all faults or the one named after a colon, and sound smears to be compared with."
    sound = make_smear(SOUND_OF_TYPE, 32, 301)
    only = images.removeprefix(FAULTY).removeprefix(":").strip()
    everywhere = [name for name in DEFECTS if all(name in defects_of(cell_type) for cell_type in sound.classes)]
    if only and only not in everywhere:
        raise ValueError(f"the fault must be one that every type can have, {everywhere}; got {only!r}")
    parts = [replace(sound, attributes=sound.attributes.assign(defect="none"))]
    for k, name in enumerate(sound.classes):
        kinds = [only] if only else defects_of(name)
        for i, kind in enumerate(kinds):
            n = FAULTY_OF_TYPE // len(kinds) + (i < FAULTY_OF_TYPE % len(kinds))
            faulty = inject(kind, n, 32, 3000 + 100 * k + i, [name]) # Cells of its own for every fault
            parts.append(replace(faulty, labels=np.full(n, k), classes=list(sound.classes)))
    joined = [np.concatenate([getattr(part, field) for part in parts]) for field in ("images", "labels")]
    names, attributes = [name for part in parts for name in part.names], pd.concat([part.attributes for part in parts], ignore_index=True)
    return {"train": CellImages(*joined, list(sound.classes), names, attributes), "test": make_smear(100, 32, 303)}


def broken_smears(real: CellImages, per_class: int = 10) -> CellImages:
    "Smears with each known defect, of the same types as `real`."
    parts = [inject(defect, per_class, real.size, seed=500 + i) for i, defect in enumerate(DEFECTS)]
    labels = [np.array([real.classes.index(part.classes[label]) for label in part.labels]) for part in parts]
    attributes = pd.concat([part.attributes for part in parts], ignore_index=True)
    return CellImages(np.concatenate([part.images for part in parts]), np.concatenate(labels), list(real.classes), attributes=attributes)


def read(path: Path, make: Callable[[], dict]) -> dict:
    "A JSON file, made first if need be."
    if not path.exists():
        write_json(path, make())
    return read_json(path)


def quick(sample: Callable[..., Pool], *given, **more) -> Pool:
    "Sampling in 16-bit floats where the processor has them. For sampling alone: what trains inside would train on stale copies of its weights."
    with torch.autocast("cpu", torch.bfloat16, enabled=torch.cpu._is_avx512_bf16_supported()):
        return sample(*given, **more)


def network(folder: Path, make: Callable[[], Generator]) -> Generator:
    "A network, made first if need be."
    if not folder.exists():
        started = time.monotonic()
        make().save_pretrained(folder)
        print(f"  {folder.name}: {time.monotonic() - started:.0f} s", flush=True)
    return Generator.from_pretrained(folder)


def kept(folder: Path, make: Callable[[], Pool]) -> Pool:
    "A pool, made first if need be."
    if not folder.exists():
        pool = make()
        with atomic_folder(folder) as place:
            pool.save(place)
    return Pool.load(folder)


class Feedback:
    "A pool, what was said of a part of it, and the weights that came of it."

    def __init__(self, run: "Run", guided: bool) -> None:
        self.run, self.folder, self.way = run, run.work / f"feedback{' guided' * guided}", run.setting.best if guided else {}
        self.shared = run.setting.work / f"pool{' guided' * guided}" / f"seed-{run.seed}-{run.per_class}" # The same for all budgets
        self.generator, self.first, self.budget, self.before = run.generator, LEARNING * (1 + run.seed), run.budget, None

    @classmethod
    def again(cls, run: "Run", before: "Feedback", generator: Generator, way: dict, name: str) -> "Feedback":
        "A second round: images of a network that has learned from the first, and the rest of the labels; the reward learns from both rounds."
        found = cls(run, guided=False)
        found.folder = run.work / f"feedback, {name}, round 2"
        found.shared = found.folder / "pool"
        found.generator, found.way, found.before = generator, way, before
        found.first, found.budget = AGAIN + LEARNING * run.seed, run.budget - before.budget
        return found

    @cached_property
    def pool(self) -> Pool:
        return kept(self.shared, lambda: quick(sample_pool, self.generator, self.run.per_class, self.first, **self.way))

    def more(self, generator: Generator, times: int = 1, round: int = 0) -> Pool:
        "Another pool, `times` as large, of seeds that no other round has."
        return quick(sample_pool, generator, times * self.run.per_class, FURTHER + REPORTED * round + LEARNING * self.run.seed, **self.way)

    @cached_property
    def asked(self) -> np.ndarray:
        "As many of each type, at random."
        random, ranks = np.random.default_rng(self.run.seed), np.empty(len(self.pool), int)
        for label in range(len(self.pool.classes)):
            of_type = np.flatnonzero(self.pool.labels == label)
            ranks[of_type] = random.permutation(len(of_type))
        return np.sort(np.lexsort((self.pool.labels, ranks))[: self.budget])

    @cached_property
    def reviews(self) -> pd.DataFrame:
        return self.run.setting.judges["giver"].review(self.pool.images[self.asked], self.pool.labels[self.asked])

    @property
    def judged(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, pd.DataFrame]:
        "Images, labels and seeds that were judged in all rounds so far, and what was said."
        here = tuple(getattr(self.pool, part)[self.asked] for part in ("images", "labels", "seeds"))
        if self.before is None:
            return (*here, self.reviews)
        *there, said = self.before.judged
        return (*map(np.concatenate, zip(there, here, strict=True)), pd.concat([said, self.reviews], ignore_index=True))

    @cached_property
    def reward(self) -> RewardModel:
        if not (self.folder / "reward").exists():
            images, labels, seeds, said = self.judged
            fit_reward(images, labels, said, self.run.train, seed=self.run.seed, members=3, seeds=seeds, pool_classes=True,
                       body=self.run.setting.body, start=self.run.setting.taught.get(self.run.seed)).save(self.folder / "reward")
        model = RewardModel.load(self.folder / "reward")
        if self.run.setting.body == "types": # What real images teach is the same for all budgets of a seed: it is learned once
            self.run.setting.taught.setdefault(self.run.seed, model)
        return model

    @cached_property
    def weights(self) -> np.ndarray:
        "The reward's probabilities; where a pathologist has spoken, the verdict."
        weights = self.reward.score(self.pool.images, self.pool.labels).astype(float)
        weights[self.asked] = self.reviews["verdict"].map(VERDICT_WEIGHTS).to_numpy()
        return weights


class Run:
    "One seed and label budget: its feedback and all arms."

    def __init__(self, setting: Setting, seed: int, labels: int, pool_per_class: int) -> None:
        self.setting, self.seed, self.budget, self.per_class = setting, seed, labels, pool_per_class
        self.work = setting.work / f"seed-{seed}-labels-{labels}{'-scratch' * (setting.body == 'scratch')}{'-plain' * (setting.pool == 'plain')}"
        self.work.mkdir(parents=True, exist_ok=True)
        self.generator, self.train = setting.generator, setting.real["train"]

    def place(self, arm: Arm) -> Path:
        "Where its images lie: those of the untouched generator are the same for all budgets."
        return (self.setting.work / f"seed-{self.seed}" if arm.name.startswith("untouched") else self.work) / "arms" / arm.name

    @cached_property
    def plain(self) -> Feedback:
        return Feedback(self, guided=False)

    @cached_property
    def guided(self) -> Feedback:
        return Feedback(self, guided=True) if self.setting.pool == "guided" else self.plain

    def tuned(self, name: str) -> Generator:
        way, method = SETTINGS[name], name.split(",")[0]
        source = self.guided if way.guided else self.plain

        def weigh(pool: Pool) -> np.ndarray:
            return source.reward.score(pool.images, pool.labels) if way.feedback else np.ones(len(pool))

        def make() -> Generator:
            real = self.better_half(True, source) if way.sorted_anchor else self.train
            reward = source.reward.log_plausible if method == "draft" else None
            generator, pool, weights = self.generator, source.pool, source.weights if way.feedback else np.ones(len(source.pool))
            if way.sampler_steps:
                pool = quick(sample_pool, generator, self.per_class, source.first, steps=way.sampler_steps, **source.way)
            if not way.verdicts or way.sampler_steps:
                weights = weigh(pool)
            if way.equal:
                weights = np.full(len(weights), weights.mean())
            if way.larger > 1:
                extra = source.more(generator, way.larger - 1)
                pool = replace(pool, **{part: np.concatenate([getattr(pool, part), getattr(extra, part)]) for part in ("images", "labels", "seeds")})
                weights = np.concatenate([weights, weigh(extra)])
            settings = shortened(way.settings, way.rounds)
            for i in range(way.rounds):
                if i:
                    pool = source.more(generator, round=i)
                    weights = weigh(pool)
                generator = finetune(generator, pool, weights, real, method, replace(settings, seed=self.seed + 100 * i), reward=reward)
            return generator

        return network(self.work / "networks" / name, make)

    def better_half(self, feedback: bool, source: Feedback | None = None) -> CellImages:
        "The half of each type's real images that the reward likes better; without feedback, the half that its networks find more typical of the type."
        reward = (source or self.guided).reward
        score = reward.score if feedback else reward.typicality
        return best_part(self.train, score(self.train.images, self.train.labels))

    def curated(self, feedback: bool) -> Generator:
        "Training goes on with the better half alone."
        def make() -> Generator:
            return finetune(self.generator, self.guided.pool, np.ones(len(self.guided.pool)), self.better_half(feedback), "real-only", replace(LONG, seed=self.seed))

        return network(self.work / "networks" / ("curated" if feedback else "curated by real images alone"), make)

    def in_two_rounds(self, curating: bool) -> Generator:
        "Half the labels and half the updates, then a pool of that network, the other half of the labels, and the other half of the updates."
        name = "curated" if curating else "reward-weighted"
        settings = shortened(LONG if curating else PAPER, 2)

        def learn(generator: Generator, source: Feedback, seed: int) -> Generator:
            real, method = (self.better_half(True, source), "real-only") if curating else (self.train, "reward-weighted")
            return finetune(generator, source.pool, source.weights, real, method, replace(settings, seed=seed))

        def make() -> Generator:
            half = Run(self.setting, self.seed, self.budget // 2, self.per_class)
            first = half.guided if curating else half.plain
            generator = network(self.work / "networks" / f"{name}, round 1 of 2", lambda: learn(self.generator, first, self.seed))
            second = Feedback.again(self, first, generator, self.led() if curating else {}, name)
            return learn(generator, second, self.seed + 100)

        return network(self.work / "networks" / f"{name}, two rounds", make)

    def led(self) -> dict:
        "Sampling settings: guided more gently, and led away from the untouched generator, which learned the whole archive."
        return {**self.setting.best, **LED_AWAY, "guide": self.generator}

    def curated_once(self, feedback: bool, led: bool = False) -> Generator:
        "The same with its guidance in it: one call."
        def make() -> Generator:
            start, way = self.curated(feedback), self.led() if led else self.setting.best
            lesson = quick(sample_pool, start, 32, LESSON + LEARNING * self.seed, **way)
            return distil(start, lesson, self.better_half(feedback), settings=replace(DISTILLING, seed=self.seed), **way)

        return network(self.work / "networks" / f"curated{'' if feedback else ' by real images alone'}{', led away' * led}, distilled", make)

    @property
    def picked(self) -> Generator:
        "The distilled guidance, taught the best of four of each place by the reward: selection at the cost of one call."
        def make() -> Generator:
            labels = np.repeat(np.arange(len(self.generator.classes)), 32)
            seeds = PICKED + LEARNING * self.seed + np.arange(len(labels))
            lesson = quick(best_of, self.generator, labels, seeds, self.guided.reward.score, n=4, **self.setting.best)
            return finetune(self.setting.distilled, lesson, np.ones(len(lesson)), self.train, "sft", replace(PAPER, seed=self.seed))

        return network(self.work / "networks" / "best of 4, distilled", make)

    def guide(self, feedback: bool) -> Generator:
        "Tuned on what was rejected; without feedback, on the whole pool."
        source = self.guided
        return network(self.work / "networks" / ("guide" if feedback else "guide without feedback"),
                       lambda: fit_guide(self.generator, source.pool, source.weights if feedback else None, self.train, replace(GUIDE, seed=self.seed)))

    def away(self, feedback: bool = True) -> dict:
        "Sampling settings: guided, and led away from the guide."
        return {**self.setting.best, "guide": self.guide(feedback), "guide_scale": GUIDE_SCALE}

    @property
    def distilled(self) -> Generator:
        way = self.away()
        lesson = kept(self.work / "lesson", lambda: quick(sample_pool, self.generator, 32, LESSON + LEARNING * self.seed, **way))
        return network(self.work / "networks" / "away from rejected, distilled", lambda: distil(
            self.generator, lesson, self.train, settings=replace(DISTILLING, seed=self.seed), **way))

    def best_of(self, generator: Generator, labels: np.ndarray, seeds: np.ndarray, n: int, **sampling) -> Pool:
        return quick(best_of, generator, labels, seeds, self.guided.reward.score, n=n, **sampling)

    def until_accepted(self, labels: np.ndarray, seeds: np.ndarray, most: int = 8, **sampling) -> Pool:
        "Rejection sampling by the reward; what is the last to be tried stays, so that no place is empty."
        found, _ = quick(sample_accepted, self.setting.remembered, labels, seeds, self.guided.reward.score, n=most - 1, **sampling)
        left = ~np.isin(seeds, found.seeds % STRIDE)
        if not left.any():
            return found
        last = self.at(self.setting.remembered, labels[left], seeds[left] + (most - 1) * STRIDE, **sampling)
        joined = {part: np.concatenate([getattr(found, part), getattr(last, part)]) for part in ("images", "labels", "seeds")}
        order = np.argsort(joined["seeds"] % STRIDE)
        return replace(found, **{part: rows[order] for part, rows in joined.items()})

    def at(self, generator: Generator, labels: np.ndarray, seeds: np.ndarray, **sampling) -> Pool:
        return quick(best_of, generator, labels, seeds, lambda images, _: np.zeros(len(images)), n=1, **sampling)


def shortened(settings: FinetuneConfig, times: int) -> FinetuneConfig:
    "For one of several rounds: its share of the steps, of the warmup and of the average's length."
    return replace(settings, steps=settings.steps // times, warmup=settings.warmup // times, average=1 - times * (1 - settings.average))


def best(run: Run) -> dict:
    return run.setting.best


def _arms() -> list[Arm]:
    arms = [
        Arm("untouched", 1, True, lambda r, c, s: r.at(r.generator, c, s)),
        Arm("untouched, guided", 2, True, lambda r, c, s: r.at(r.generator, c, s, **best(r))),
        Arm("untouched, autoguided", 3, True, lambda r, c, s: r.at(r.generator, c, s, **r.setting.autoguidance)),
        Arm("guidance distilled", 1, True, lambda r, c, s: r.at(r.setting.distilled, c, s)),
        Arm("away from the pool, guided", 3, True, lambda r, c, s: r.at(r.generator, c, s, **r.away(feedback=False))),
        Arm("best of 4, guided", 8, True, lambda r, c, s: r.best_of(r.setting.remembered, c, s, 4, **best(r))),
        Arm("best of 4 by real images alone, guided", 8, True, lambda r, c, s: quick(best_of, r.setting.remembered, c, s, r.guided.reward.typicality, n=4, **best(r))),
        Arm(REJECTION, 2, True, lambda r, c, s: r.until_accepted(c, s, **best(r))),
        Arm("best of 3", 3, True, lambda r, c, s: r.best_of(r.generator, c, s, 3)),
        Arm("guidance distilled, best of 3", 3, True, lambda r, c, s: r.best_of(r.setting.distilled, c, s, 3)),
        Arm("reward guidance, guided", 2, False, lambda r, c, s: r.at(r.generator, c, s, push=reward_push(r.guided.reward.log_plausible), **best(r))),
        Arm("away from rejected, guided", 3, False, lambda r, c, s: r.at(r.generator, c, s, **r.away())),
        Arm("away from rejected, distilled", 1, False, lambda r, c, s: r.at(r.distilled, c, s)),
        Arm("best of 4, distilled", 1, False, lambda r, c, s: r.at(r.picked, c, s)),
        Arm("curated", 1, False, lambda r, c, s: r.at(r.curated(True), c, s)),
        Arm("curated, guided", 2, False, lambda r, c, s: r.at(r.curated(True), c, s, **best(r))),
        Arm("curated, distilled", 1, False, lambda r, c, s: r.at(r.curated_once(True), c, s)),
        Arm("curated, led away", 3, False, lambda r, c, s: r.at(r.curated(True), c, s, **r.led())),
        Arm("curated, led away, distilled", 1, False, lambda r, c, s: r.at(r.curated_once(True, led=True), c, s)),
        Arm("curated, led away, distilled, best of 3", 3, False, lambda r, c, s: r.best_of(r.curated_once(True, led=True), c, s, 3)),
        Arm("curated, two rounds, led away", 3, False, lambda r, c, s: r.at(r.in_two_rounds(curating=True), c, s, **r.led())),
        Arm("reward-weighted, two rounds", 1, False, lambda r, c, s: r.at(r.in_two_rounds(curating=False), c, s)),
        Arm("reward-weighted, two rounds, guided", 2, False, lambda r, c, s: r.at(r.in_two_rounds(curating=False), c, s, **best(r))),
        Arm("curated by real images alone, led away", 3, True, lambda r, c, s: r.at(r.curated(False), c, s, **r.led())),
        Arm("curated by real images alone, led away, distilled", 1, True, lambda r, c, s: r.at(r.curated_once(False, led=True), c, s)),
        Arm("real-only, long, led away", 3, True, lambda r, c, s: r.at(r.tuned("real-only, long"), c, s, **r.led())),
        Arm("curated by real images alone", 1, True, lambda r, c, s: r.at(r.curated(False), c, s)),
        Arm("curated by real images alone, distilled", 1, True, lambda r, c, s: r.at(r.curated_once(False), c, s)),
        Arm("curated by real images alone, guided", 2, True, lambda r, c, s: r.at(r.curated(False), c, s, **best(r))),
    ]
    for name, way in SETTINGS.items():
        control = not way.feedback or way.equal
        arms.append(Arm(name, 1, control, lambda r, c, s, name=name: r.at(r.tuned(name), c, s)))
        arms.append(Arm(f"{name}, guided", 2, control, lambda r, c, s, name=name: r.at(r.tuned(name), c, s, **best(r))))
    return arms


def sample_arms(run: Run, arms: list[Arm], per_class: int) -> dict[str, Pool]:
    labels = np.repeat(np.arange(len(run.generator.classes)), per_class)
    seeds = REPORTED * (1 + run.seed) + np.arange(len(labels))
    found = {}
    for arm in arms:
        started = time.monotonic()
        found[arm.name] = kept(run.place(arm), lambda arm=arm: arm.sample(run, labels, seeds))
        if len(found[arm.name]) != len(labels):
            raise ValueError(f"--per-class must stay as it was in this work folder; got {per_class}, where {run.place(arm)} holds {len(found[arm.name])} images of {len(run.generator.classes)} types")
        print(f"seed {run.seed}, {run.budget} labels, {arm.name}: {time.monotonic() - started:.0f} s", flush=True)
    return found


class Bench:
    "Measures a set of images against the real ones."

    def __init__(self, setting: Setting) -> None:
        self.setting, self.train, self.test = setting, setting.real["train"], setting.real["test"]
        self.features = fit_features(self.train.images, self.train.labels, len(self.train.classes))
        self.reference = self.features(self.test.images)

    def verdicts(self, images: np.ndarray, labels: np.ndarray) -> dict[str, list[int]]:
        return {name: np.asarray(judge.plausible(images, labels)).astype(int).tolist() for name, judge in self.setting.judges.items()}

    def measure(self, images: np.ndarray, labels: np.ndarray) -> dict:
        rows = self.features(images)
        kernel = kernel_distance(self.reference, rows, real_labels=self.test.labels, synthetic_labels=labels)
        near = precision_recall_density_coverage(self.reference, rows, real_labels=self.test.labels, synthetic_labels=labels)
        learnt = downstream_accuracy(images, labels, self.test.images, self.test.labels, len(self.test.classes), seeds=(0,))
        copies = nearest_training_check(self.train.images, self.test.images, images)
        return {"kernel_distance": list(kernel), "coverage": list(near["coverage"]), "precision": list(near["precision"]), "recall": list(near["recall"]),
                "detector_auc": list(realism_test(self.test.images, images)), "synthetic_trained_accuracy": list(learnt.accuracy),
                "near_training": list(copies.pixels)}


def judge_all(setting: Setting, runs: list[Run], arms: list[Arm], metrics_for: list[str] | None) -> list[dict]:
    bench, rows = Bench(setting), []
    for run in runs:
        for arm in arms:
            full = metrics_for is None or arm.name in metrics_for
            pool = Pool.load(run.place(arm))
            path = run.place(arm) / f"measured{'' if full else '-verdicts'}.json"
            found = read(path, lambda pool=pool, full=full: {"verdicts": bench.verdicts(pool.images, pool.labels)} | (bench.measure(pool.images, pool.labels) if full else {}))
            tries = 1 + float((pool.seeds // STRIDE).mean()) if arm.name == REJECTION else 1
            rows.append({"arm": arm.name, "cost": arm.cost * tries, "control": arm.control, "seed": run.seed, "labels": run.budget, **found})
    return rows


def picture(real: CellImages, run: Run, arms: list[Arm], path: Path) -> None:
    "Real training images at random, then for each arm the first places of each type, the same in all."
    pools = {arm.name: Pool.load(run.place(arm)) for arm in arms}
    sets = {"real, to learn from": real.subset(np.random.default_rng(0).permutation(len(real)))} | {
        name: CellImages(pool.images, pool.labels, pool.classes) for name, pool in pools.items()}
    show_beside(sets, SHOWN).savefig(path, pil_kwargs={"quality": 70})


def in_archive(run: Run, reward: RewardModel) -> dict[str, float]:
    "How well the reward ranks a type's sound real images above its faulty ones, and the share of faulty ones in the half that it likes. Nothing where no faults are known."
    real = run.train
    if real.attributes is None or "defect" not in real.attributes or (sound := (real.attributes["defect"] == "none").to_numpy()).all():
        return {}
    score = reward.score(real.images, real.labels)
    auroc = [roc_auc_score(sound[real.labels == label], score[real.labels == label]) for label in np.unique(real.labels)]
    return {"archive_auroc": float(np.mean(auroc)), "faulty_kept": float((best_part(real, score).attributes["defect"] != "none").mean())}


def compact(row: dict) -> dict:
    "A row with each judge's verdicts as one string of 0 and 1."
    return row | {"verdicts": {judge: "".join(map(str, said)) for judge, said in row["verdicts"].items()}}


def table(rows: list[dict], baseline: str = "untouched, guided") -> pd.DataFrame:
    "Arms pooled over seeds: acceptance with Wilson intervals, gain over the baseline with McNemar's p, means of the rest."
    lines = []

    def by(arm: str, labels: int) -> list[dict]:
        return sorted((r for r in rows if r["arm"] == arm and r["labels"] == labels), key=lambda r: r["seed"])

    def joined(found: list[dict], judge: str) -> np.ndarray:
        return np.concatenate([np.array(r["verdicts"][judge], bool) for r in found])

    for arm, labels in dict.fromkeys((r["arm"], r["labels"]) for r in rows):
        found, base = by(arm, labels), by(baseline, labels)
        line = {"arm": arm, "labels": labels, "calls": float(np.mean([r["cost"] for r in found])), "control": found[0]["control"], "seeds": len(found)}
        for judge in found[0]["verdicts"]:
            said = joined(found, judge)
            share = wilson_interval(int(said.sum()), len(said))
            line |= {judge: share.value, f"{judge}_low": share.low, f"{judge}_high": share.high, "n": len(said)}
            if len(base) == len(found):
                gain, test = paired_gain(joined(base, judge), said), mcnemar(joined(base, judge), said)
                line |= {f"{judge}_gain": gain.value, f"{judge}_gain_low": gain.low, f"{judge}_gain_high": gain.high, f"{judge}_p": test.p}
            line[f"{judge}_by_seed"] = [round(float(np.mean(r["verdicts"][judge])), 4) for r in found]
        for metric in ("kernel_distance", "coverage", "precision", "recall", "detector_auc", "synthetic_trained_accuracy", "near_training"):
            if metric in found[0]:
                line[metric] = float(np.mean([r[metric][0] for r in found]))
        lines.append(line)
    return pd.DataFrame(lines)


def like(path: Path) -> dict:
    "The options with which a file of results was made."
    made = read_json(path)
    rows = made["rows"]
    return {"images": made["images"], "arms": list(dict.fromkeys(row["arm"] for row in rows)), "metrics_for": list(dict.fromkeys(row["arm"] for row in rows if "coverage" in row)),
            **{option: sorted({row[name] for row in rows}) for option, name in (("seeds", "seed"), ("labels", "labels"))},
            **made["options"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="?", help="'smear', 'faulty smear' (or with one of its faults: 'faulty smear: blur'), or a folder or table that load_images reads")
    parser.add_argument("--like", type=Path, help="a file that this command wrote: its images, seeds, labels, arms and options, unless others are given")
    parser.add_argument("--work", type=Path, required=True, help="where everything is kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--labels", type=int, nargs="+", default=[256], help="judged images per seed; several for a curve")
    parser.add_argument("--pool-per-class", type=int, default=64)
    parser.add_argument("--per-class", type=int, default=24, help="reported images of each type, seed and arm")
    parser.add_argument("--arms", nargs="+", help="only these (and what they are compared with)")
    parser.add_argument("--generator", default="", help="a saved generator or the name of a shipped one, such as smear-32; without it one is pretrained")
    parser.add_argument("--pretrain-steps", type=int, default=4200)
    parser.add_argument("--judges", type=Path, help="folder with the judges of bench/judges.py; without it smears get two that are fitted now")
    parser.add_argument("--reward", choices=("types", "scratch"), default="types", help="what the reward is: taught types first, or from scratch as in the paper")
    parser.add_argument("--pool", choices=("guided", "plain"), default="guided", help="what all but the paper's objective learns from; that always learns from the plain one")
    parser.add_argument("--metrics-for", nargs="*", help="arms for which the other metrics are measured too, half a minute each; all without this option, none with nothing after it")
    parser.add_argument("--show", nargs="+", default=[], help="arms that a picture beside the figures shows, of the first seed")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    if made := parser.parse_known_args()[0].like:
        parser.set_defaults(**like(made))
    given = parser.parse_args()
    if not given.images:
        parser.error("images must be given, or --like")
    if given.show and (not given.out or given.per_class < SHOWN or not {*given.show} <= {*(given.arms or given.show), "untouched, guided"}):
        parser.error(f"--show needs --out, at least {SHOWN} images of each type, and arms that are run; got {given.show}")
    setting = Setting(given.images, given.work, given.pretrain_steps, given.generator, given.judges, given.reward, given.pool)
    arms = [arm for arm in _arms() if given.reward == "types" or "real images alone" not in arm.name]
    if unknown := {*(given.arms or []), *given.show, *(given.metrics_for or [])} - {arm.name for arm in arms}:
        parser.error(f"--arms, --show and --metrics-for must name arms, of {[arm.name for arm in arms]}; got {sorted(unknown)}")
    arms = [arm for arm in arms if not given.arms or arm.name in {*given.arms, "untouched, guided"}]
    runs = [Run(setting, seed, labels, given.pool_per_class) for labels in given.labels for seed in given.seeds]
    for run in runs:
        sample_arms(run, arms, given.per_class)
    rows = judge_all(setting, runs, arms, given.metrics_for)
    found = table(rows)
    with pd.option_context("display.width", 250, "display.max_columns", 40, "display.max_rows", 200):
        print(found[[c for c in found if not c.endswith(("_low", "_high", "_by_seed"))]].round(3).to_string(index=False))
    if given.show:
        picture(setting.real["train"], runs[0], [arm for name in given.show for arm in arms if arm.name == name], given.out.with_suffix(".jpg"))
    if given.out:
        test = setting.real["test"]
        bench = Bench(setting)
        real = {name: float(np.mean(v)) for name, v in bench.verdicts(test.images, test.labels).items()}
        reward = [{"seed": run.seed, "labels": run.budget, "guided": name == "guided", **{k: source.reward.report[k] for k in ("auroc", "brier", "n")}, **in_archive(run, source.reward),
                   "plausible": int((source.reviews["verdict"] == "plausible").sum())} for run in runs for name in ("plain", "guided")
                  for source in [getattr(run, name)] if (name == "plain" or source is not run.plain) and (source.folder / "reward").exists()]
        given.out.write_text(json.dumps({"date": str(date.today()), "device": f"{platform.machine()}, {torch.get_num_threads()} threads", "images": given.images,
                                         "options": {name: getattr(given, name) for name in ("per_class", "pool_per_class", "pool", "reward", "generator", "pretrain_steps")},
                                         "guidance": read_json(given.work / "guidance.json"), "autoguidance": read_json(tried) if (tried := given.work / "autoguidance.json").exists() else None,
                                         "real_accepted": real, "n_test": len(test), "reward": reward,
                                         "table": found.to_dict("records"), "rows": [compact(row) for row in rows]}, indent=1, default=float))


if __name__ == "__main__":
    main()
