"""How many verdicts does the reward model need, which images should be asked about, and does it still hold when the generator moves?

    python -m bench.reward smear --work runs/smear
    python -m bench.reward ../shared/data/pbc64 --work runs/pbc64 --judges runs/judges

Two judges that share nothing, as in `bench/methods.py`, whose work folder this one shares: the `giver`, who gives the feedback, and the
`judge`. A reward model learns from the giver's verdicts on a part of one large pool and is measured on fresh images of the untouched generator and
of finetuned ones, against the giver without noise and against the judge. Noise: a `Rater` who finds 80 % of what is implausible and passes
90 % of what is plausible. Each seed draws other labels from the pool and trains other networks; the fresh images are the same for all.
Cells of the grid are kept in `--out` as they are made; a run that was stopped goes on. `--table` prints what is there.
"""

import argparse
import os
import time
from datetime import date
from pathlib import Path
from typing import Any

os.environ.setdefault("PATHLOOP_QUIET", "1")

import numpy as np
import pandas as pd
from scipy.stats import t as student
from sklearn.metrics import roc_auc_score

from bench.methods import Run, Setting, kept, quick, read
from pathloop.ask import RULES, ask_next
from pathloop.core import image_hashes, read_json, write_json
from pathloop.diffusion import Pool, sample_pool
from pathloop.raters import Rater
from pathloop.reward import RewardModel, fit_reward, score_metrics

SIZES, NOISY_SIZES = (16, 32, 64, 128, 256, 512, 1024, 2048), (64, 256, 1024)
STATES = ("untouched", "untouched, guided", "reward-weighted", "kto") # Of the generator that paints the fresh images
FIRST, MORE = 64, 64 # Labels before a rule chooses, and labels that it chooses
LIGHT = {"members": 3, "steps": 300, "min_per_verdict": 2, "pool_classes": True}
SCRATCH = {"body": "scratch", "steps": 120} # The paper's way: no network that real images have taught first
CHANGES = { # Each against the light model with as many labels
    "as it is": {}, "verdicts equally often": {"balance": "verdict"}, "classes equally often": {"balance": "class"}, "smoothing 0.05": {"smoothing": 0.05},
    "isotonic": {"calibration": "isotonic"}, "one network": {"members": 1}, "five networks": {"members": 5}, "from scratch": SCRATCH,
    "from scratch, half of the wrong classes hard": SCRATCH | {"hard": 0.5}, "from scratch, no real images": SCRATCH | {"real_share": 0.0},
    "from scratch, half real": SCRATCH | {"real_share": 0.5}, "from scratch, five networks, 300 steps": SCRATCH | {"members": 5, "steps": 300},
}
CHANGED_AT, LONG = 256, (64, 256, 1024) # Labels of the changes, and of the network from scratch that is given five times the steps
PARTS = ("clean curve", "clean unjudged", "noisy curve", "clean scratch", "clean long", "clean rule", "noisy rule", "clean change")
RATER = {"sensitivity": 0.8, "specificity": 0.9}


class Material:
    "Everything that the cells share: a judged pool, and fresh images with both judges' verdicts."

    def __init__(self, setting: Setting, pool_per_class: int, fresh_per_class: int) -> None:
        self.setting, self.folder = setting, setting.work / "reward"
        self.real = setting.real["train"]
        self.pool = kept(self.folder / "pool", lambda: quick(sample_pool, setting.generator, pool_per_class, 7_000_000))
        self.truth = self._table("truth", lambda: setting.judges["giver"].review(self.pool.images, self.pool.labels))
        self.fresh = {state: kept(self.folder / f"fresh {state}", lambda state=state: self._paint(state, fresh_per_class)) for state in STATES}
        self.said = {state: self._verdicts(state, pool) for state, pool in self.fresh.items()}
        self.taught: dict[int, RewardModel] = {} # By seed: the networks that real images taught, the same for all cells of a seed

    def _table(self, name: str, make: Any) -> pd.DataFrame:
        path = self.folder / f"{name}.parquet"
        if not path.exists():
            make().to_parquet(path)
        return pd.read_parquet(path)

    def _paint(self, state: str, per_class: int) -> Pool:
        run, labels = Run(self.setting, 1, 256, 64), np.repeat(np.arange(len(self.real.classes)), per_class)
        generator = run.generator if state.startswith("untouched") else run.tuned(state)
        return run.at(generator, labels, 8_000_000 + np.arange(len(labels)), **(self.setting.best if state.endswith("guided") else {}))

    def _verdicts(self, state: str, pool: Pool) -> dict[str, np.ndarray]:
        found = read(self.folder / f"said of {state}.json", lambda: {
            who: np.asarray(judge.plausible(pool.images, pool.labels)).astype(int).tolist() for who, judge in self.setting.judges.items()})
        return {who: np.array(said) for who, said in found.items()}

    def reviews(self, noise: bool, seed: int) -> pd.DataFrame:
        "What the giver says of the whole pool; with noise, what a person with that eye says."
        if not noise:
            return self.truth
        return Rater(None, seed=seed, **RATER).rate(self.truth, image_hashes(self.pool.images))

    def fit(self, rows: np.ndarray, reviews: pd.DataFrame, seed: int, **changes: Any) -> RewardModel:
        pool, settings = self.pool, LIGHT | changes
        plain = settings["members"] == LIGHT["members"] and "body" not in settings
        model = fit_reward(pool.images[rows], pool.labels[rows], reviews.iloc[rows].reset_index(drop=True), self.real, seed=seed, seeds=pool.seeds[rows],
                           start=self.taught.get(seed) if plain else None, **settings)
        if plain:
            self.taught.setdefault(seed, model)
        return model

    def measure_unjudged(self, model: RewardModel) -> list[dict[str, Any]]:
        "AUROC of what real images alone taught the model's networks."
        return [{"state": state, "judge": who, "n": len(truth), "auroc": round(float(roc_auc_score(truth, model.typicality(pool.images, pool.labels))), 4)}
                for state, pool in self.fresh.items() for who, truth in self.said[state].items() if 0 < truth.mean() < 1]

    def measure(self, model: RewardModel) -> list[dict[str, Any]]:
        "AUROC, ECE, Brier score and mean score on each fresh pool against each judge; AUROC is nothing where a judge says one thing only."
        rows = []
        for state, pool in self.fresh.items():
            score = model.score(pool.images, pool.labels)
            for who, truth in self.said[state].items():
                row = {"state": state, "judge": who, "n": len(truth), "plausible": float(truth.mean()), "mean score": float(score.mean())}
                if 0 < truth.mean() < 1:
                    metrics = score_metrics(score, truth, resamples=100)
                    row |= {name: metrics[name]["value"] for name in ("auroc", "ece", "brier")} | {"base brier": metrics["brier"]["reference"]}
                rows.append({key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()})
        return rows


def cell(stuff: Material, rows: np.ndarray, reviews: pd.DataFrame, seed: int, **changes: Any) -> dict[str, Any]:
    "One model, fitted and measured; or why it would not be fitted."
    counts = {"labels": len(rows), "implausible": int((reviews["verdict"].iloc[rows] == "implausible").sum())}
    start = time.monotonic()
    try:
        model = stuff.fit(rows, reviews, seed, **changes)
    except ValueError as error:
        return counts | {"refused": str(error)}
    return counts | {"seconds": time.monotonic() - start, "fresh": stuff.measure(model)}


def all_cells(stuff: Material, seeds: int) -> dict[str, Any]:
    "Name of each cell -> how to make it, in the order in which they are made."
    pool = stuff.pool
    found: dict[str, Any] = {}

    def stratified(n: int, seed: int) -> np.ndarray:
        return ask_next(pool.images, pool.labels, n, "stratified", seed=seed)

    def chosen(rule: str, reviews: pd.DataFrame, seed: int) -> dict[str, Any]:
        first = stratified(FIRST, seed)
        try:
            model = None if rule in ("random", "stratified") else stuff.fit(first, reviews, seed)
        except ValueError as error:
            return {"labels": FIRST, "refused": str(error)}
        return cell(stuff, np.concatenate([first, ask_next(pool.images, pool.labels, MORE, rule, first, model, seed)]), reviews, seed)

    def unjudged(seed: int) -> dict[str, Any]:
        return {"labels": 0, "implausible": 0, "fresh": stuff.measure_unjudged(stuff.taught.get(seed) or stuff.fit(stratified(CHANGED_AT, seed), stuff.truth, seed))}

    for seed in range(seeds):
        found[f"clean|unjudged|0|{seed}"] = lambda seed=seed: unjudged(seed)
        for n in LONG:
            found[f"clean|long|{n}|{seed}"] = lambda n=n, seed=seed: cell(stuff, stratified(n, seed), stuff.truth, seed, **SCRATCH | {"steps": 600})
        for noise in (False, True):
            reviews, kind = stuff.reviews(noise, seed), "noisy" if noise else "clean"
            for n in NOISY_SIZES if noise else SIZES:
                found[f"{kind}|curve|{n}|{seed}"] = lambda n=n, reviews=reviews, seed=seed: cell(stuff, stratified(n, seed), reviews, seed)
                if not noise:
                    found[f"{kind}|scratch|{n}|{seed}"] = lambda n=n, reviews=reviews, seed=seed: cell(stuff, stratified(n, seed), reviews, seed, **SCRATCH)
            for rule in RULES:
                found[f"{kind}|rule|{rule}|{seed}"] = lambda rule=rule, reviews=reviews, seed=seed: chosen(rule, reviews, seed)
        for name, change in CHANGES.items():
            found[f"clean|change|{name}|{seed}"] = lambda change=change, seed=seed: cell(stuff, stratified(CHANGED_AT, seed), stuff.truth, seed, **change)
    return found


def flat(cells: dict[str, Any]) -> pd.DataFrame:
    "A row per cell, state of the generator and judge."
    rows = []
    for name, made in cells.items():
        noise, kind, what, seed = name.split("|")
        rows += [{"noise": noise, "kind": kind, "what": what, "seed": int(seed), "labels": made["labels"], "implausible": made["implausible"], **fresh} for fresh in made.get("fresh", [])]
    return pd.DataFrame(rows)


def mean_interval(values: pd.Series) -> pd.Series:
    "Mean over seeds with Student's 95 % interval: chance of labels and networks, not of the fresh images."
    values = values.dropna()
    half = student.ppf(0.975, len(values) - 1) * values.std() / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return pd.Series({"mean": values.mean(), "low": values.mean() - half, "high": values.mean() + half, "seeds": len(values)})


def summary(rows: pd.DataFrame, state: str = "untouched") -> pd.DataFrame:
    "AUROC and ECE by cell and judge, mean over seeds."
    own = rows[rows["state"] == state]
    groups = own.groupby(["noise", "kind", "what", "judge"], sort=False)
    parts = {name: groups[name].apply(mean_interval).unstack() for name in ("auroc", "ece") if name in own}
    counts = groups[["labels", "implausible"]].mean()
    counts.columns = pd.MultiIndex.from_product([["mean of"], counts.columns])
    return pd.concat([counts, pd.concat(parts, axis=1)], axis=1)


def rule_gains(rows: pd.DataFrame) -> pd.DataFrame:
    "AUROC of each rule less that of `random` with the same seed, against the giver on fresh images."
    own = rows[(rows["kind"] == "rule") & (rows["state"] == "untouched") & (rows["judge"] == "giver")].pivot_table(index=["noise", "seed"], columns="what", values="auroc")
    gains = own.sub(own["random"], axis=0).drop(columns="random")
    return gains.groupby("noise").apply(lambda part: part.apply(mean_interval).T)


def report(out: Path) -> None:
    rows = flat(read_json(out)["cells"])
    with pd.option_context("display.width", 220, "display.max_rows", 400, "display.max_columns", 40):
        print(summary(rows).round(3).to_string())
        if (rows["kind"] == "rule").any():
            print("\nAUROC above random, same seeds\n" + rule_gains(rows).round(3).to_string())
        moved = rows[(rows["kind"] == "change") & (rows["what"].isin(["as it is", "from scratch"]))]
        if len(moved):
            print("\nwhen the generator moves\n" + moved.groupby(["what", "state", "judge"], sort=False)[["n", "plausible", "mean score", "auroc", "ece", "brier", "base brier"]].mean().round(3).to_string())


def between_judges(stuff: Material) -> dict[str, Any]:
    "How far one judge's verdicts rank the other's: what no reward taught by the one can be asked to pass by much."
    found = {}
    for state, said in stuff.said.items():
        giver, judge = said["giver"], said["judge"]
        found[state] = {"n": len(judge), "giver": float(giver.mean()), "judge": float(judge.mean()), "agree": float((giver == judge).mean()),
                        "giver's verdict as a score": float(roc_auc_score(judge, giver)) if 0 < judge.mean() < 1 else None}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", help="'smear', or a folder or table that load_images reads")
    parser.add_argument("--work", type=Path, help="where pool, networks and judges are kept; may be that of bench/methods.py")
    parser.add_argument("--generator", default="", help="a saved generator; without it one is pretrained")
    parser.add_argument("--judges", type=Path, help="folder with the saved judges of bench/judges.py; smears need none")
    parser.add_argument("--pretrain-steps", type=int, default=4200)
    parser.add_argument("--pool-per-class", type=int, default=256)
    parser.add_argument("--fresh-per-class", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", nargs="+", default=PARTS, choices=PARTS, metavar="PART", help=f"of {', '.join(PARTS)}; a name with a blank is quoted")
    parser.add_argument("--out", type=Path, help="by default bench/results/reward-NAME.json")
    parser.add_argument("--table", action="store_true", help="only print what is there")
    given = parser.parse_args()
    out = given.out or Path(__file__).resolve().parent / "results" / f"reward-{Path(given.images).name}.json"
    if given.table:
        return report(out)
    if not given.work:
        parser.error("--work must name a folder where pool, networks and judges are kept")
    stuff = Material(Setting(given.images, given.work, given.pretrain_steps, given.generator, given.judges), given.pool_per_class, given.fresh_per_class)
    found = read_json(out) if out.exists() else {"cells": {}}
    found |= {"date": str(date.today()), "device": f"CPU, {os.environ.get('OMP_NUM_THREADS', 'all')} thread(s)", "command": f"python -m bench.reward {Path(given.images).name} --seeds {given.seeds}",
              "pool": len(stuff.pool), "pool_plausible": float((stuff.truth["verdict"] == "plausible").mean()), "rater": RATER, "light": LIGHT, "between_judges": between_judges(stuff)}
    for name, make in all_cells(stuff, given.seeds).items():
        if name not in found["cells"] and " ".join(name.split("|")[:2]) in given.only:
            made = found["cells"][name] = make()
            write_json(out, found)
            print(f"{name}: {made.get('refused') or [round(row.get('auroc', np.nan), 2) for row in made['fresh'][:2]]}, {made.get('seconds', 0):.0f} s", flush=True)
    report(out)


if __name__ == "__main__":
    main()
