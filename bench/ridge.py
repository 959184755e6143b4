"""How much should the reward's linear layer listen to what its networks see, beside three numbers on types?

    python -m bench.ridge smear                                                        # about 3 minutes on a core
    python -m bench.ridge ../shared/data/pbc64
    python -m bench.ridge "faulty smear: blur" --work runs/blur --judges runs/judges   # generated images; the work folder of bench/methods.py

The layer of `TypeNet` is a logistic regression with a ridge. Here it is fitted again and again on the same networks, with features that count
nothing, something or as much as one of the three numbers; with a choice by the verdicts themselves, on left-out fifths of them, of the least loss or of the
strictest within a standard error of it, among these amounts or among the smaller ones of before (of which "careful" was the default until November 2026); and
as the mean of a strict and a lax line. Verdicts: 0.75 of each budget, the part that `fit_reward` learns from; the same images for every rule. AUROC of the
score before its calibration on all images that were not judged, over draws of the judged ones; a draw with fewer than four of a verdict is left out.

Real test images are shown under a wrong type, or blurred, or both; a noisy rater mistakes the type in one of ten. On a folder of bench/methods.py the images
are the pool of its generator and the verdicts are the giver's; where its archive holds faults, a second AUROC asks whether sound real images come before
faulty ones of the same type.
"""

import argparse
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

os.environ.setdefault("PATHLOOP_QUIET", "1")

import numpy as np
import pandas as pd
from scipy.ndimage import gaussian_filter
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from bench.methods import Run, Setting
from bench.reward import mean_interval
from pathloop.core import read_json, write_json
from pathloop.loop import StudyConfig, _real_parts
from pathloop.reward import (
    FEATURES_COUNT,
    INVERSE_PENALTY,
    TypeNet,
    _binding,
    _criteria_of,
    _mirrored,
    _ridge,
    fit_reward,
    review_targets,
)

BUDGETS, BLURRED, WRONG, FAULTY = (64, 128, 256), 1.2, 0.15, 0.2 # Judged images; standard deviation in pixels; shares of the real test images
COUNTS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
STRICT, LAX = (0.0, 0.03), (0.3, 3.0)
CHOICES = { # Strictest first
    "": [(count, INVERSE_PENALTY) for count in COUNTS],
    " among less": [(count, penalty) for count in (0.0, 0.03, 0.1, 0.3) for penalty in (0.03, 0.3)],
}
Line = tuple[float, float] # What a feature counts, and the inverse of the penalty


def left_out_losses(rows: np.ndarray, targets: np.ndarray, choices: Sequence[Line]) -> np.ndarray:
    "Log loss (choices, n) of each choice on left-out fifths."
    fold, random = np.empty(len(rows), int), np.random.default_rng(0)
    for value in (False, True):
        index = random.permutation(np.flatnonzero((targets > 0.5) == value))
        fold[index] = np.arange(len(index)) % 5
    losses = np.empty((len(choices), len(rows)))
    for i, line in enumerate(choices):
        for k in range(5):
            layer = _ridge(rows[fold != k], targets[fold != k], np.ones((fold != k).sum()), *line)
            z = rows[fold == k] @ layer[:-1] + layer[-1]
            losses[i, fold == k] = np.logaddexp(0, z) - targets[fold == k] * z
    return losses


def chosen(rows: np.ndarray, targets: np.ndarray, choices: Sequence[Line]) -> dict[str, Line]:
    "The least loss; and the strictest that is not worse by more than a standard error of the difference, image by image."
    if min((targets > 0.5).sum(), (targets <= 0.5).sum()) < 5:
        return dict.fromkeys(("least loss", "careful"), choices[0])
    losses = left_out_losses(rows, targets, choices)
    above = losses - losses[losses.mean(1).argmin()]
    near = above.mean(1) <= above.std(1) / np.sqrt(len(rows))
    return {"least loss": choices[int(losses.mean(1).argmin())], "careful": choices[int(near.argmax())]}


def rules(rows: np.ndarray, targets: np.ndarray) -> dict[str, list[Line]]:
    "Of each rule the lines whose mean it takes."
    found = {f"counts {count:g}": [(count, INVERSE_PENALTY)] for count in COUNTS}
    for where, choices in CHOICES.items():
        found |= {f"chosen{where}, {how}": [line] for how, line in chosen(rows, targets, choices).items()}
    return found | {"mean of strict and lax": [STRICT, LAX]}


@dataclass
class World:
    "Images that could be judged, and what would be said."

    name: str
    images: np.ndarray
    labels: np.ndarray # As what each is shown
    reviews: pd.DataFrame # What the rater says
    truth: np.ndarray # bool, what is so
    archive: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None # Real images, their labels, and whether they are sound


def fitted(rows: np.ndarray, targets: np.ndarray, known: np.ndarray, drawn: np.ndarray, lines: dict[int, dict[str, list[Line]]]) -> dict[str, np.ndarray]:
    "Of each rule the layer of one member (binding columns, 3 + features + 1). What is chosen for the first member, column by column, is kept in `lines` for the others."
    found: dict[str, list[np.ndarray]] = {}
    for column in np.flatnonzero(_binding(targets, known)).tolist():
        own = known[:, column]
        answer, weights = targets[own, column].astype(float), drawn[own].astype(float)
        if min(weights[answer > 0.5].sum(), weights[answer <= 0.5].sum()) < 1:
            weights = np.ones(own.sum())
        if column not in lines:
            lines[column] = rules(rows[own], answer)
        for name, mean_of in lines[column].items():
            found.setdefault(name, []).append(np.mean([_ridge(rows[own], answer, weights, *line) for line in mean_of], axis=0))
    return {name: np.array(layer) for name, layer in found.items()}


def draw(world: World, seen: list[np.ndarray], archive: list[np.ndarray], budget: int, seed: int) -> dict[str, dict[str, float]] | None:
    "AUROC of every rule after one draw of judged images; nothing if it has fewer than four of a verdict."
    random, classes = np.random.default_rng([seed, budget]), np.unique(world.labels)
    index = np.concatenate([random.choice(np.flatnonzero(world.labels == k), int(0.75 * budget / len(classes)), replace=False) for k in classes])
    rest = np.setdiff1d(np.arange(len(world.labels)), index)
    targets, known = (part[index] for part in review_targets(world.reviews, _criteria_of(world.reviews)))
    said = targets[known[:, 0], 0]
    if min((said > 0.5).sum(), (said <= 0.5).sum()) < 4:
        return None
    scores: dict[str, list[np.ndarray]] = {}
    lines: dict[int, dict[str, list[Line]]] = {}
    for member, every in enumerate(seen):
        middle, scale = every[index].mean(0), every[index].std(0) + 1e-6
        drawn = random.multinomial(len(index), np.full(len(index), 1 / len(index)))
        given = np.concatenate([every[rest], *archive[member:member + 1]])
        for name, layer in fitted((every[index] - middle) / scale, targets, known, drawn, lines).items():
            scores.setdefault(name, []).append(expit((((given - middle) / scale) @ layer[:, :-1].T + layer[:, -1]).min(1)))
    found = {}
    for name, each in scores.items():
        score = np.mean(each, axis=0)
        found[name] = {"fresh": float(roc_auc_score(world.truth[rest], score[:len(rest)]))}
        if world.archive:
            _, labels, sound = world.archive
            found[name]["archive"] = float(np.mean([roc_auc_score(sound[labels == k], score[len(rest):][labels == k]) for k in np.unique(labels)]))
    return found


def of_real_images(images: str) -> tuple[list[TypeNet], list[World]]:
    "Networks that the real images taught, and worlds made of test images."
    parts, _ = _real_parts(StudyConfig(images=images))
    test, n, classes = parts["test"], len(parts["test"]), len(parts["test"].classes)
    worlds = []
    for name, wrong_share, blurred_share, error in (("wrong types", WRONG, 0, 0), ("blur", 0, FAULTY, 0), ("wrong types and blur", WRONG, FAULTY, 0), ("wrong types and blur, noisy", WRONG, FAULTY, 0.1)):
        random = np.random.default_rng(0)
        wrong, blurred, slip = (random.random(n) < share for share in (wrong_share, blurred_share, error))
        labels = np.where(wrong, (test.labels + random.integers(1, classes, n)) % classes, test.labels)
        pictures = np.stack([gaussian_filter(x, (0, BLURRED, BLURRED)) if own else x for x, own in zip(test.images, blurred, strict=True)])
        said = pd.DataFrame({"type": np.where(wrong ^ slip, "no", "yes"), "sharp": np.where(blurred, "no", "yes")})
        said["verdict"] = np.where((said == "no").any(axis=1), "implausible", "plausible")
        worlds.append(World(name, pictures, labels, said, ~(wrong | blurred)))
    last = worlds[-1]
    return fit_reward(last.images, last.labels, last.reviews, parts["train"], members=3, pool_classes=True).nets, worlds


def of_generated(images: str, work: Path, generator: str, judges: Path | None, seed: int) -> tuple[list[TypeNet], list[World]]:
    "The guided pool of a work folder, judged by its giver; what he is unsure of is left out."
    run = Run(Setting(images, work, 4200, generator, judges), seed, 256, 64)
    source, real = run.guided, run.train
    said = run.setting.judges["giver"].review(source.pool.images, source.pool.labels)
    sure = (said["verdict"] != "unsure").to_numpy()
    said, pictures, labels = said[sure].reset_index(drop=True), source.pool.images[sure], source.pool.labels[sure]
    faults = real.attributes["defect"] if real.attributes is not None and "defect" in real.attributes else None
    archive = None if faults is None else (real.images, real.labels, (faults == "none").to_numpy())
    return source.reward.nets, [World("generated", pictures, labels, said, (said["verdict"] == "plausible").to_numpy(), archive)]


def measured(nets: list[TypeNet], worlds: list[World], draws: int) -> Iterator[dict[str, Any]]:
    "A row per world, budget, draw and rule."
    for world in worlds:
        seen = [_mirrored(net, world.images, world.labels).cpu().double().numpy() for net in nets]
        archive = [_mirrored(net, *world.archive[:2]).cpu().double().numpy() for net in nets] if world.archive else []
        for budget in BUDGETS:
            for seed in range(draws):
                for rule, auroc in (draw(world, seen, archive, budget, seed) or {}).items():
                    yield {"world": world.name, "labels": budget, "draw": seed, "rule": rule} | {part: round(value, 4) for part, value in auroc.items()}


def report(rows: pd.DataFrame) -> str:
    "Mean AUROC, and what each rule is above or below ours on the same draws."
    ours, lines = f"counts {FEATURES_COUNT:g}", []
    for part in [name for name in ("fresh", "archive") if name in rows]:
        wide = rows.dropna(subset=[part]).pivot_table(index=["world", "labels", "draw"], columns="rule", values=part, sort=False)
        lines.append(f"AUROC, {part}\n{wide.groupby(['world', 'labels'], sort=False).mean().T.round(3).to_string()}")
        gains = wide.sub(wide[ours], axis=0).drop(columns=ours).groupby(["world", "labels"], sort=False)
        lines.append(f"less {ours!r}, mean and half of a 95 % interval over draws (not over pools or networks)\n{gains.agg(lambda v: f'{v.mean():+.3f} ± {mean_interval(v).high - v.mean():.3f}').T.to_string()}")
    return "\n\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", help="'smear', a folder or table that load_images reads, or an archive of bench/methods.py with --work")
    parser.add_argument("--work", type=Path, help="folder of bench/methods.py: its generated images in place of real ones")
    parser.add_argument("--generator", default="", help="with --work: the generator that it was made with, if one was given")
    parser.add_argument("--judges", type=Path, help="folder with the saved judges of bench/judges.py")
    parser.add_argument("--seed", type=int, default=9, help="of the work folder's pool; by default the one on which its settings were chosen")
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--out", type=Path, help="by default bench/results/ridge-NAME.json")
    parser.add_argument("--table", action="store_true", help="only print what is there")
    given = parser.parse_args()
    name = Path(given.images).name.replace(": ", "-").replace(" ", "-") + "-generated" * bool(given.work)
    out = given.out or Path(__file__).resolve().parent / "results" / f"ridge-{name}.json"
    if not given.table:
        nets, worlds = of_generated(given.images, given.work, given.generator, given.judges, given.seed) if given.work else of_real_images(given.images)
        rows = pd.DataFrame(measured(nets, worlds, given.draws))
        write_json(out, {"date": str(date.today()), "device": f"CPU, {os.environ.get('OMP_NUM_THREADS', 'all')} thread(s)", "images": Path(given.images).name,
                         "seed": given.seed if given.work else None, "draws": given.draws, "rows": rows.to_dict("list")})
    print(report(pd.DataFrame(read_json(out)["rows"])))


if __name__ == "__main__":
    main()
