"""Concepts that the training labels never said: split a class, add a type, enrich a rare one, forbid a feature; with seeds and intervals.

    python -m bench.concepts ../shared/data/pbc64 --work runs/concepts --judge runs/judges/judge --out bench/results/concepts_pbc64.json
    python -m bench.concepts ... --only split --seeds 0 1 2        # one part of the table

The generator is pretrained without the concepts: band and segmented neutrophils are one class, the three stages of immature granulocytes
another, basophils are left out. A seed draws the labelled images, the training's chance and the sampled images. The judge (made by
`bench/judges.py`) learned from other images, with the subtypes apart; it decides, and is told nothing. Steps, rates and strengths were fixed
before any image was judged. What is made lies in the work folder and is never made twice.
"""

import argparse
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from functools import cached_property
from pathlib import Path

os.environ.setdefault("PATHLOOP_QUIET", "1")

import numpy as np
import torch

from bench.methods import kept, network, quick
from pathloop.attributes import AttributeConfig, AttributedGenerator, fit_attributes, sample_without
from pathloop.concepts import ConceptConfig, add_concept
from pathloop.core import read_json, write_json
from pathloop.data import CellImages, Picture, load_images, split_by_use
from pathloop.diffusion import Generator, Pool, pretrain
from pathloop.experts import ExpertPathologist
from pathloop.features import fit_cell_features
from pathloop.finetune import FinetuneConfig, finetune
from pathloop.guide import best_of
from pathloop.intervals import mcnemar, paired_gain, wilson_interval
from pathloop.loop import open_cells, save_cells
from pathloop.neighbours import precision_recall_density_coverage
from pathloop.subtypes import (
    ConceptModel,
    SplitConfig,
    add_type,
    fit_concept_model,
    merge_classes,
    nearest_type,
    sibling_guide,
    split_class,
)
from pathloop.training import TrainConfig
from pathloop.utility import rare_class_gain

GROUPS = {"neutrophil": ["band neutrophil", "segmented neutrophil"], "immature granulocyte": ["promyelocyte", "myelocyte", "metamyelocyte"]}
RARE, KNOWN = "basophil", ("eosinophil", "erythroblast", "lymphocyte", "monocyte", "platelet")
SPLIT = SplitConfig(steps=100, row_steps=40)
AWAY, GUIDED = {"guide_scale": 2.0}, {"guidance": 1.5}
FIRST = 1_000_000 # Of the seeds of judged images


def without(cells: CellImages, name: str) -> CellImages:
    "All but one class."
    left = [c for c in cells.classes if c != name]
    part = cells.subset(cells.labels != cells.classes.index(name))
    return replace(part, labels=np.array([left.index(cells.classes[k]) for k in part.labels]), classes=left)


class Setting:
    "Real images, the generator that was not told, the judge that knows."

    def __init__(self, images: str, work: Path, judge: Path, pretrain_steps: int) -> None:
        self.images, self.work, self.judge_folder, self.pretrain_steps = images, work, judge, pretrain_steps
        work.mkdir(parents=True, exist_ok=True)

    @cached_property
    def real(self) -> dict[str, CellImages]:
        if not (self.work / "test.npz").exists():
            for name, cells in split_by_use(load_images(self.images, 32)).items():
                save_cells(cells, self.work / f"{name}.npz")
        return {name: open_cells(self.work / f"{name}.npz") for name in ("train", "test")}

    def told(self, part: str) -> CellImages:
        "What the generator is told of a part: merged classes, no rare type."
        cells = self.real[part]
        for parent, names in GROUPS.items():
            cells = merge_classes(cells, parent, names)
        return without(cells, RARE)

    @cached_property
    def generator(self) -> Generator:
        folder = self.work / "generator"
        if not folder.exists():
            pretrain(self.told("train"), settings=TrainConfig(steps=self.pretrain_steps), checkpoint=self.work / "pretrain.safetensors").save_pretrained(folder)
        return Generator.from_pretrained(folder)

    @cached_property
    def judge(self) -> ExpertPathologist:
        return ExpertPathologist.load(self.judge_folder)

    def of(self, part: str, names: list[str]) -> tuple[np.ndarray, np.ndarray]:
        "Real images of some types, and which of them each is."
        cells = self.real[part]
        names_of = np.array(cells.classes)[cells.labels]
        chosen = np.isin(names_of, names)
        return cells.images[chosen], np.array([names.index(name) for name in names_of[chosen]])

    def named(self, images: np.ndarray, names: list[str]) -> np.ndarray:
        "Which of these types the judge takes each image for."
        return self.judge._log_probabilities(images)[0][:, [self.judge.classes.index(name) for name in names]].argmax(1)

    def plausible(self, images: np.ndarray, asked: list[str]) -> np.ndarray:
        "The full verdict, in four parts."
        return self.judge.plausible(images, np.array([self.judge.classes.index(name) for name in asked]))

    @cached_property
    def features(self) -> Callable[[np.ndarray], np.ndarray]:
        return fit_cell_features(self.real["train"].images)

    def coverage(self, images: np.ndarray, names: list[str]) -> dict[str, float]:
        "Share of real test images of these types that have a drawn one as near as their own neighbours."
        real = self.of("test", names)[0]
        found = precision_recall_density_coverage(self.features(real), self.features(images))
        return {"coverage": found["coverage"].value, "coverage_low": found["coverage"].low, "coverage_high": found["coverage"].high, "precision": found["precision"].value}


def share(right: np.ndarray) -> dict[str, float]:
    value = wilson_interval(int(right.sum()), len(right))
    return {"value": value.value, "low": value.low, "high": value.high, "n": value.n}


@dataclass
class Split:
    "One seed of splitting a class: labels, networks, images."

    setting: Setting
    parent: str
    seed: int
    n: int # Judged images of each subtype
    budget: int = 64

    def __post_init__(self) -> None:
        self.names, self.work = GROUPS[self.parent], self.setting.work / f"split {self.parent}" / f"seed-{self.seed}"
        self.images, self.truth = self.setting.of("train", self.names)
        random = np.random.default_rng(self.seed)
        each = self.budget // len(self.names)
        self.few = np.concatenate([random.choice(np.flatnonzero(self.truth == k), each, replace=False) for k in range(len(self.names))])

    @cached_property
    def model(self) -> ConceptModel:
        return fit_concept_model(self.images[self.few], self.truth[self.few], self.names)

    def rows_only(self) -> Generator:
        told = self.setting.told("train")
        held = told.subset(np.arange(0, len(told), 100))
        return network(self.work / "rows only", lambda: add_concept(
            self.setting.generator, self.parent, self.names, self.images[self.few], self.truth[self.few], told, held=held,
            judge=lambda images: np.zeros(len(images), int), settings=ConceptConfig(seed=self.seed), n_judged=2)[0])

    def split(self, oracle: bool = False) -> Generator:
        few = np.arange(len(self.truth)) if oracle else self.few
        return network(self.work / ("all labels" if oracle else "split"), lambda: split_class(
            self.setting.generator, self.parent, self.model, self.images[few], self.truth[few], self.setting.told("train"), replace(SPLIT, seed=self.seed)))

    def distilled(self) -> Generator:
        "The split generator, taught its own best of four by the concept model: the concept reward at the cost of one image."
        def make() -> Generator:
            split = self.split()
            labels = np.repeat([split.classes.index(name) for name in self.names], 64)
            seeds = FIRST * (1 + self.seed) + 900_000 + np.arange(len(labels))
            lesson = quick(best_of, split, labels, seeds, self.model.score(split.classes), n=4, **AWAY, guide=sibling_guide(split, self.names))
            told = replace(self.setting.told("train"), classes=split.classes)
            return finetune(split, lesson, np.ones(len(lesson)), told, "sft", FinetuneConfig(steps=100, learning_rate=1e-4, beta=1.0, seed=self.seed))

        return network(self.work / "distilled", make)

    def arms(self) -> dict[str, Callable[[], tuple[Generator, dict]]]:
        def away(g: Generator) -> tuple[Generator, dict]:
            return g, AWAY | {"guide": sibling_guide(g, self.names)}

        arms = {
            "the parent's row": lambda: (self.setting.generator, GUIDED),
            "all weights": lambda: (self.split(), GUIDED),
            "all weights, away from sibling": lambda: away(self.split()),
            "new rows only": lambda: (self.rows_only(), GUIDED),
            "new rows only, away from sibling": lambda: away(self.rows_only()),
            "all weights, away, best of 4": lambda: away(self.split()),
            "best of 4, distilled": lambda: (self.distilled(), GUIDED),
        }
        if self.seed == 0:
            arms |= {"all labels": lambda: (self.split(oracle=True), GUIDED), "all labels, away from sibling": lambda: away(self.split(oracle=True))}
        return arms

    def pool(self, arm: str) -> Pool:
        def make() -> Pool:
            generator, way = self.arms()[arm]()
            seeds = FIRST * (1 + self.seed) + np.tile(np.arange(self.n), len(self.names))
            asked = [self.parent if arm.startswith("the parent") else name for name in self.names]
            labels = np.repeat([generator.classes.index(name) for name in asked], self.n)
            many = arm.endswith("best of 4")
            return quick(best_of, generator, labels, seeds, self.model.score(generator.classes) if many else lambda images, _: np.zeros(len(images)), n=4 if many else 1, **way)

        return kept(self.work / "images" / arm, make)

    def others(self, generator: Generator, name: str, per_type: int = 24) -> np.ndarray:
        "Verdicts on images of the types that were not touched, at the same seeds for every network."
        labels = np.repeat([generator.classes.index(t) for t in KNOWN], per_type)
        seeds = FIRST * (1 + self.seed) + 500_000 + np.arange(len(labels))
        pool = kept(self.work / "images" / f"others, {name}", lambda: quick(best_of, generator, labels, seeds, lambda images, _: np.zeros(len(images)), n=1, **GUIDED))
        return self.setting.plausible(pool.images, [pool.classes[k] for k in pool.labels])

    def row(self, arm: str) -> dict:
        images, asked = self.pool(arm).images, np.repeat(np.arange(len(self.names)), self.n)
        return {"arm": arm, "seed": self.seed, "right": (self.setting.named(images, self.names) == asked).tolist(), "asked": asked.tolist(),
                "plausible": self.setting.plausible(images, [self.names[k] for k in asked]).tolist(), **self.setting.coverage(images, self.names)}


def summed(rows: list[dict], names: list[str]) -> list[dict]:
    "Over seeds: named as asked, in all and for each subtype; plausible; coverage."
    found = []
    for arm in dict.fromkeys(row["arm"] for row in rows):
        of = [row for row in rows if row["arm"] == arm]
        right, asked, plausible = (np.concatenate([row[name] for row in of]) for name in ("right", "asked", "plausible"))
        found.append({"arm": arm, "seeds": len(of), **share(right), "by_seed": [float(np.mean(row["right"])) for row in of],
                      "subtypes": {name: share(right[asked == k]) for k, name in enumerate(names)}, "plausible": share(plausible),
                      **{name: float(np.mean([row[name] for row in of])) for name in ("coverage", "coverage_low", "coverage_high", "precision")}})
    return found


def split_part(setting: Setting, parent: str, seeds: list[int], n: int, keep: Callable[[dict], None]) -> dict:
    names, runs, rows = GROUPS[parent], [Split(setting, parent, seed, n) for seed in seeds], []
    images, truth = setting.of("test", names)
    found = {"names": names, "budget": runs[0].budget, "settings": SPLIT.to_dict(),
             "real": {**share(setting.named(images, names) == truth), "plausible": share(setting.plausible(images, [names[k] for k in truth]))},
             "model": [{"seed": run.seed, "cross_validated": run.model.checked._asdict(), "on_test": share(run.model.proba(images).argmax(1) == truth)} for run in runs]}
    for run in runs:
        for arm in run.arms():
            file = run.work / "rows" / f"{arm}.json"
            if not file.exists():
                file.parent.mkdir(parents=True, exist_ok=True)
                write_json(file, run.row(arm))
            rows.append(read_json(file))
            keep(found | {"table": summed(rows, names)})
            print(f"  {parent}, seed {run.seed}, {arm}: {np.mean(rows[-1]['right']):.2f} named as asked, coverage {rows[-1]['coverage']:.2f}", flush=True)
    before = np.concatenate([run.others(setting.generator, "before") for run in runs])
    after = np.concatenate([run.others(run.split(), "after") for run in runs])
    gain, pairs = paired_gain(before, after), mcnemar(before, after)
    others = {"before": share(before), "after": share(after), "change": gain._asdict(), "gained": pairs.gained, "lost": pairs.lost, "p": pairs.p}
    return found | {"table": summed(rows, names), "others": others}


def type_part(setting: Setting, shots: list[int], n: int, classifier_seeds: int) -> dict:
    "The type that was left out, from a few images; and what the drawn ones teach a classifier."
    train, test, rows, tables = setting.real["train"], setting.real["test"], [], []
    members = np.flatnonzero(train.labels == train.classes.index(RARE))
    for shot in shots:
        few = np.random.default_rng(0).choice(members, shot, replace=False) # Those that `rare_class_gain` keeps
        home = setting.work / f"add {RARE}" / f"{shot}"
        after = network(home / "network", lambda few=few: add_type(setting.generator, RARE, train.images[few], setting.told("train"), settings=SPLIT))
        labels, seeds = np.full(n, len(after.classes) - 1), FIRST + np.arange(n)
        pool = kept(home / "images", lambda after=after, labels=labels, seeds=seeds: quick(best_of, after, labels, seeds, lambda images, _: np.zeros(len(images)), n=1, **GUIDED))
        rows.append({"shots": shot, "like": str(nearest_type(setting.generator, train.images[few]).index[0]), "plausible": share(setting.plausible(pool.images, [RARE] * n)),
                     "named": share(np.array(setting.judge.classes)[setting.named(pool.images, setting.judge.classes)] == RARE), **setting.coverage(pool.images, [RARE])})
        print(f"  {RARE} from {shot}: plausible {rows[-1]['plausible']['value']:.2f}, coverage {rows[-1]['coverage']:.2f}", flush=True)
        table = rare_class_gain(train, pool.images, np.full(n, train.classes.index(RARE)), test, RARE, keep=shot, seeds=range(classifier_seeds))
        tables.append({"shots": shot, "table": table.to_dict("records")})
        print(table.round(3).to_string(index=False), flush=True)
    return {"type": RARE, "added": rows, "rare": tables, "classifier_seeds": classifier_seeds}


def attribute_part(setting: Setting, n: int, column: str = "cytoplasm_vacuole", kind: str = "monocyte", labels: int = 64) -> dict:
    "An attribute that is asked for, and one that is forbidden; what the judge, who knows experts' annotations, sees of it."
    told, test = setting.told("train"), setting.real["test"].of_class(kind)
    home, seeds = setting.work / f"attribute {column}", FIRST + np.arange(n)

    def taught() -> AttributedGenerator:
        if not (home / "network").exists():
            fit_attributes(setting.generator, told, [column], AttributeConfig(steps=100)).save_pretrained(home / "network")
        return AttributedGenerator.from_pretrained(home / "network")

    def seen(images: np.ndarray) -> np.ndarray:
        return (setting.judge.attributes(images, abstain=False)[column] == "yes").to_numpy()

    described, rows = taught(), []
    label = np.full(n, described.generator.classes.index(kind))
    for away in (1.0, 2.0):
        for value in described.values[column]:
            images = described.sample(label, seeds, {column: value}, away=away, **({} if away > 1 else GUIDED))
            rows.append({"arm": f"asked: {value}, away {away:g}", "seen": share(seen(images)), "plausible": share(setting.plausible(images, [kind] * n))})
    cells = setting.real["train"].of_class(kind)
    truth = (cells.attributes[column] == "yes").to_numpy().astype(int)
    few = np.random.default_rng(0).permutation(len(cells))[:labels]
    model = fit_concept_model(cells.images[few], truth[few], ["without", "with"])
    label = np.full(n, setting.generator.classes.index(kind))
    plain = setting.generator.sample(label, seeds, **GUIDED)
    rows.append({"arm": "not constrained", "seen": share(seen(plain)), "plausible": share(setting.plausible(plain, [kind] * n))})
    pool, cost = sample_without(setting.generator, label, seeds, model, "with", limit=0.4, n=8, **GUIDED)
    rows.append({"arm": "forbidden: rejected until absent", "seen": share(seen(pool.images)), "plausible": share(setting.plausible(pool.images, [kind] * len(pool))), "sampled": cost})
    has = (test.attributes[column] == "yes").to_numpy()
    for row in rows:
        print(f"  {row['arm']:34} {column} seen in {row['seen']['value']:.2f} [{row['seen']['low']:.2f}, {row['seen']['high']:.2f}] n={row['seen']['n']}", flush=True)
    return {"attribute": column, "type": kind, "rows": rows, "real": {"with": share(seen(test.images[has])), "without": share(seen(test.images[~has]))},
            "model": {"cross_validated": model.checked._asdict(), "on_test": share(model.proba(test.images).argmax(1) == has)}}


def draw(setting: Setting, file: Path, n: int, each: int = 6) -> None:
    "Real cells and some of what was measured, as one picture: the first images, not chosen."
    names = GROUPS["neutrophil"]
    run = Split(setting, "neutrophil", 0, n)
    real, truth = setting.of("test", names)
    rows = {"real": np.concatenate([real[truth == k][:each] for k in range(2)])}
    for arm in ("the parent's row", "all weights", "all weights, away from sibling", "all weights, away, best of 4"):
        pool = run.pool(arm)
        rows[arm] = np.concatenate([pool.images[:each], pool.images[len(pool) // 2 :][:each]])
    if (few := setting.work / f"add {RARE}" / "8" / "images").exists():
        rows |= {f"real {RARE}s": setting.of("test", [RARE])[0][: 2 * each], f"{RARE}s from 8": Pool.load(few).images[: 2 * each]}
    figure = Picture(figsize=(7.4, 0.5 * len(rows) + 0.5), layout="constrained", dpi=100)
    axes = figure.subplots(len(rows), 1)
    for axis, (name, images) in zip(axes, rows.items(), strict=True):
        strip = np.concatenate(list(images.transpose(0, 2, 3, 1)), axis=1)
        axis.imshow((strip + 1) / 2, interpolation="nearest")
        axis.set(xticks=[], yticks=[])
        axis.set_ylabel(name.removeprefix("all weights, "), rotation=0, ha="right", va="center", fontsize=7)
    axes[0].set_title("left: asked to be a band neutrophil; right: segmented", fontsize=8)
    figure.savefig(file, pil_kwargs={"quality": 82})


PARTS = ("split", "stages", "type", "attribute", "picture")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", help="pbc64, or a set with the same types and attributes")
    parser.add_argument("--work", type=Path, required=True, help="folder for everything that is made")
    parser.add_argument("--judge", type=Path, required=True, help="an expert pathologist saved by bench/judges.py, of 32 px")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--n", type=int, default=48, help="judged images of each subtype and seed")
    parser.add_argument("--shots", type=int, nargs="+", default=[8, 16, 64])
    parser.add_argument("--classifier-seeds", type=int, default=3)
    parser.add_argument("--pretrain-steps", type=int, default=4200)
    parser.add_argument("--only", choices=PARTS, nargs="+", default=list(PARTS))
    parser.add_argument("--out", type=Path, help="JSON; parts that are not made now stay as they are")
    given = parser.parse_args()
    setting = Setting(given.images, given.work, given.judge, given.pretrain_steps)

    def keeper(name: str) -> Callable[[dict], None]:
        def keep(found: dict) -> None:
            if given.out:
                before = read_json(given.out) if given.out.exists() else {}
                write_json(given.out, before | {"device": f"{platform.machine()}, {torch.get_num_threads()} thread", "pretrain_steps": int(setting.generator.history["step"].max()),
                                                name: found | {"date": str(date.today())}})

        return keep

    make = {"split": lambda keep: split_part(setting, "neutrophil", given.seeds, given.n, keep),
            "stages": lambda keep: split_part(setting, "immature granulocyte", given.seeds, given.n, keep),
            "type": lambda keep: type_part(setting, given.shots, 160, given.classifier_seeds), "attribute": lambda keep: attribute_part(setting, given.n)}
    for name in (part for part in given.only if part in make):
        found = make[name](keeper(name))
        keeper(name)(found)
        for row in found.get("table", []):
            print(f"{row['arm']:34} {row['value']:.2f} [{row['low']:.2f}, {row['high']:.2f}] n={row['n']}  coverage {row['coverage']:.2f}  plausible {row['plausible']['value']:.2f}")

    if "picture" in given.only and given.out:
        draw(setting, given.out.with_suffix(".jpg"), given.n)


if __name__ == "__main__":
    main()
