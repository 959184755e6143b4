"""How many verdicts does the reward model need, and which images should be asked about? `python -m bench.reward STUDY [STUDY ...]`

A STUDY is a folder that `pathloop run` made. Its pathologist judges the pool of round 1, without and with `--noise` (a share of
verdicts turned over); reward models learn from some of these verdicts and are measured on fresh images of the untouched generator
against two judges, the pathologist without noise and the independent judge, and on images of both finetuned generators. Cells of the grid
are kept in `--out` as they are made; a run that was stopped goes on. `--table` prints what is there.
"""

import argparse
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pathloop.ask import RULES, ask_next
from pathloop.core import read_json, write_json
from pathloop.loop import Study
from pathloop.reward import fit_reward, score_metrics

FRESH = ("untouched", "real-only", "reward-weighted")


def material(folder: Path, cache: Path) -> dict[str, Any]:
    "Real images, the pool with its reviews, and fresh pools with the verdicts of both judges (kept in `cache`)."
    study = Study(folder, say=lambda line: None)
    file = cache / f"{folder.name}.pickle"
    if not file.exists():
        cache.mkdir(parents=True, exist_ok=True)
        asked = study.pool()
        said: dict[str, Any] = {"reviews": study.pathologist.review(asked.images, asked.labels)}
        for name in FRESH:
            pool = study.pool(name)
            reviews = study.pathologist.review(pool.images, pool.labels)
            said[name] = {"pathologist": reviews["verdict"].to_numpy(), "judge": np.where(study.judge.plausible(pool.images, pool.labels), "plausible", "implausible")}
        pd.to_pickle(said, file)
    return {"name": folder.name, "real": study.real("train"), "pool": study.pool(), "fresh": {name: study.pool(name) for name in FRESH}, **pd.read_pickle(file)}


def noisy(reviews: pd.DataFrame, share: float, seed: int) -> pd.DataFrame:
    "Reviews with a share of the sure verdicts turned over; the criteria stay."
    turned = {"plausible": "implausible", "implausible": "plausible"}
    hit = (np.random.default_rng([seed, 77]).random(len(reviews)) < share) & (reviews["verdict"] != "unsure")
    return reviews.assign(verdict=reviews["verdict"].where(~hit, reviews["verdict"].map(turned)))


def measure(model: Any, stuff: dict[str, Any]) -> list[dict[str, Any]]:
    "AUROC, ECE and mean score on each fresh pool against each judge."
    rows = []
    for pool_name, pool in stuff["fresh"].items():
        score = model.score(pool.images, pool.labels)
        for judge, verdict in stuff[pool_name].items():
            sure = verdict != "unsure"
            truth = (verdict[sure] == "plausible").astype(int)
            metrics = score_metrics(score[sure], truth, resamples=200)
            rows.append({"pool": pool_name, "judge": judge, "n": int(sure.sum()), "plausible": float(truth.mean()), "mean score": float(score[sure].mean()),
                         **{f"{name} {part}": metrics[name][part] for name in ("auroc", "ece", "brier") for part in ("value", "low", "high")}})
    return rows


def fit(stuff: dict[str, Any], index: np.ndarray, reviews: pd.DataFrame, seed: int, options: dict[str, Any]) -> Any:
    pool = stuff["pool"]
    return fit_reward(pool.images[index], pool.labels[index], reviews.iloc[index].reset_index(drop=True), stuff["real"], seed=seed, **options)


def cells_of(stuff: dict[str, Any], noise: float, seed: int, args: argparse.Namespace, done: dict[str, Any], keep: Any) -> None:
    "All cells of one study, noise and seed that are not made yet."
    pool, options = stuff["pool"], {"members": args.members, "steps": args.steps, "min_per_verdict": 2}
    reviews = noisy(stuff["reviews"], noise, seed)

    def key(kind: str, what: object) -> str:
        return f"{stuff['name']}|{noise}|{seed}|{kind}|{what}"

    def make(name: str, index: np.ndarray) -> None:
        start = time.monotonic()
        try:
            keep(name, {"labels": len(index), "implausible": int((reviews["verdict"].iloc[index] == "implausible").sum()),
                        "fresh": measure(fit(stuff, index, reviews, seed, options), stuff), "seconds": time.monotonic() - start})
        except ValueError as error:
            keep(name, {"labels": len(index), "refused": str(error)})

    for n in args.sizes:
        if n <= len(pool) and key("curve", n) not in done:
            make(key("curve", n), ask_next(pool.images, pool.labels, n, "stratified", seed=seed))
    missing = [rule for rule in RULES if key("rule", rule) not in done]
    if not (missing and args.rules):
        return
    first = ask_next(pool.images, pool.labels, args.first, "stratified", seed=seed)
    try:
        start = fit(stuff, first, reviews, seed, options)
    except ValueError as error:
        return print(f"no rule can be tried: {error}")
    for rule in missing:
        make(key("rule", rule), np.concatenate([first, ask_next(pool.images, pool.labels, args.more, rule, first, start, seed)]))


def table(cells: dict[str, Any]) -> pd.DataFrame:
    "A row per cell and judge, on fresh images of the untouched generator."
    rows = []
    for name, cell in cells.items():
        study, noise, seed, kind, what = name.split("|")
        for fresh in cell.get("fresh", []):
            rows.append({"study": study, "noise": float(noise), "seed": int(seed), "kind": kind, "what": what, "labels": cell["labels"], "implausible": cell["implausible"], **fresh})
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="*", type=Path, help="folders made by `pathloop run`")
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 128, 512], help="labels of the learning curve; up to the pool's size")
    parser.add_argument("--noise", type=float, nargs="+", default=[0.0, 0.15], help="shares of verdicts turned over")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--first", type=int, default=64, help="labels before the rules choose")
    parser.add_argument("--more", type=int, default=64, help="labels that the rules choose")
    parser.add_argument("--members", type=int, default=3)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--out", type=Path, default=Path("bench/results/reward.json"))
    parser.add_argument("--cache", type=Path, default=Path("build/bench-reward"))
    parser.add_argument("--rules", action=argparse.BooleanOptionalAction, default=True, help="compare the rules, or only the learning curve")
    parser.add_argument("--table", action="store_true", help="only print what is there")
    args = parser.parse_args()
    os.environ["PATHLOOP_QUIET"] = "1"
    kept = read_json(args.out) if args.out.exists() else {"cells": {}}
    settings = {name: getattr(args, name) for name in ("members", "steps", "first", "more")}
    if kept.setdefault("settings", settings) != settings and not args.table:
        raise SystemExit(f"{args.out} holds cells made with {kept['settings']}; asked {settings}. Name another --out")

    def keep(name: str, cell: dict[str, Any]) -> None:
        kept["cells"][name] = cell
        kept.update({"date": datetime.now(UTC).isoformat(timespec="minutes"), "device": f"CPU, {os.cpu_count()} cores shared, {os.environ.get('OMP_NUM_THREADS', 'all')} thread(s)", "command": f"python -m bench.reward STUDY ... --members {args.members} --steps {args.steps}"})
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.out, kept)
        print(f"{name}: {cell.get('refused') or round(cell['fresh'][0]['auroc value'], 3)}", flush=True)

    if not args.table:
        stuffs = [material(folder, args.cache) for folder in args.studies]
        for seed in range(args.seeds):
            for noise in args.noise:
                for stuff in stuffs:
                    cells_of(stuff, noise, seed, args, kept["cells"], keep)
    rows = table(kept["cells"])
    if len(rows):
        fresh = rows[rows["pool"] == "untouched"]
        order = fresh.groupby(["study", "noise", "kind", "what", "judge"])[["labels", "implausible", "auroc value", "auroc low", "auroc high", "ece value"]]
        print(order.mean().join(order.size().rename("seeds")).round(3).to_string())


if __name__ == "__main__":
    main()
