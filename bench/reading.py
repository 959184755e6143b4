"""Which interval for a share read by several readers holds the truth? `python -m bench.reading --trials 300`

Readers and images are drawn from normal habits and looks on the logit scale, and every reader reads every image. Each method
makes a 95 % interval; counted is how often it holds the share among all readers and images, and how wide it is. Also measured:
how often planned studies reach their power. Needs statsmodels. About five minutes on one core at 300 trials.
"""

import argparse
import platform
import time
import warnings
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import statsmodels.api as sm
from scipy.special import expit
from scipy.stats import t as student
from statsmodels.genmod.bayes_mixed_glm import BinomialBayesMixedGLM

from pathloop.core import write_json
from pathloop.evaluate import mcnemar, wilson_interval
from pathloop.reading import (
    clustered_difference,
    clustered_share,
    noninferior,
    paired_power,
    plan_noninferiority,
    plan_pairs,
)

SCENES = [  # readers, images, mean logit, spread of readers, spread of images
    (5, 100, 0.0, 0.5, 0.8), (3, 100, 0.0, 0.5, 0.8), (5, 100, 1.5, 0.6, 1.0), (10, 60, 0.0, 0.3, 1.2), (5, 100, 0.0, 0.0, 0.0), (5, 100, 0.0, 0.0, 1.2),
]


def read(readers: int, images: int, mean: float, of_readers: float, of_images: float, random: np.random.Generator) -> pd.DataFrame:
    "One study: a row per reading."
    p = expit(mean + random.normal(0, of_readers, readers)[:, None] + random.normal(0, of_images, images)[None])
    return pd.DataFrame({"y": random.random(p.shape).ravel() < p.ravel(), "reader": np.repeat(np.arange(readers), images), "image": np.tile(np.arange(images), readers)})


def naive(d: pd.DataFrame) -> tuple[float, float]:
    return wilson_interval(int(d.y.sum()), len(d))[1:3]


def ours(d: pd.DataFrame) -> tuple[float, float]:
    return clustered_share(d.y, d.reader, d.image).estimate[1:3]


def two_way_statsmodels(d: pd.DataFrame) -> tuple[float, float]:
    fit = sm.GLM(d.y.astype(float), np.ones(len(d)), family=sm.families.Binomial()).fit(cov_type="cluster", cov_kwds={"groups": d[["reader", "image"]].to_numpy()})
    return _logit(fit, student.ppf(0.975, d.reader.nunique() - 1))


def gee(d: pd.DataFrame, kind: str, quantile: float) -> tuple[float, float]:
    model = sm.GEE(d.y.astype(float), np.ones(len(d)), groups=d.reader, family=sm.families.Binomial(), cov_struct=sm.cov_struct.Exchangeable())
    return _logit(model.fit(cov_type=kind), quantile)


def bayes(d: pd.DataFrame) -> tuple[float, float]:
    fit = BinomialBayesMixedGLM.from_formula("y ~ 1", {"reader": "0 + C(reader)", "image": "0 + C(image)"}, d.astype({"y": float})).fit_vb()
    others = np.random.default_rng(0).normal(size=2000) * np.sqrt((np.exp(fit.vcp_mean) ** 2).sum())
    low, high = (expit(fit.fe_mean[0] + side * 1.96 * fit.fe_sd[0] + others).mean() for side in (-1, 1))
    return float(low), float(high)


def _logit(fit, quantile: float) -> tuple[float, float]:
    b, s = np.asarray(fit.params)[0], np.asarray(fit.bse)[0]
    return expit(b - quantile * s), expit(b + quantile * s)


METHODS = {
    "answers independent (Wilson)": naive,
    "pathloop.reading.clustered_share": ours,
    "statsmodels GLM, two-way clusters, t": two_way_statsmodels,
    "statsmodels GEE by reader, robust": lambda d: gee(d, "robust", 1.96),
    "statsmodels GEE by reader, bias reduced, t": lambda d: gee(d, "bias_reduced", student.ppf(0.975, d.reader.nunique() - 1)),
    "statsmodels BinomialBayesMixedGLM, variational": bayes,
}


def coverage(trials: int, seed: int) -> list[dict]:
    rows = []
    for scene in SCENES:
        random = np.random.default_rng([seed, SCENES.index(scene)])
        truth = expit(np.random.default_rng(9).normal(scene[2], np.hypot(scene[3], scene[4]), 1_000_000)).mean()
        found: dict[str, list] = {name: [] for name in METHODS}
        for k in range(trials):
            d = read(*scene, random)
            for name, method in METHODS.items():
                if name.endswith("variational") and k >= trials // 3:
                    continue  # A hundred times slower than the rest
                low, high = method(d)
                found[name].append((low <= truth <= high, high - low))
        for name, values in found.items():
            share = wilson_interval(sum(v[0] for v in values), len(values))
            rows.append({"readers": scene[0], "images": scene[1], "mean logit": scene[2], "reader spread": scene[3], "image spread": scene[4], "method": name,
                         "coverage": share.value, "low": share.low, "high": share.high, "n": share.n, "width": float(np.mean([v[1] for v in values]))})
    return rows


def power(trials: int, seed: int) -> list[dict]:
    "Planned studies, simulated and analysed with the functions that a study would use."
    random, rows = np.random.default_rng([seed, 99]), []
    for gained, lost in ((0.15, 0.05), (0.10, 0.05), (0.3, 0.1)):
        n = plan_pairs(gained, lost)
        drawn = random.choice(3, (trials, n), p=[gained, lost, 1 - gained - lost])
        hits = sum(mcnemar(d == 1, d == 0).p < 0.05 for d in drawn)
        rows.append({"plan": f"McNemar, {gained:g} gained, {lost:g} lost", "n": n, "planned": paired_power(n, gained, lost), **_share(hits, trials)})
    for synthetic, real, margin in ((0.95, 0.95, 0.05), (0.85, 0.85, 0.1), (0.88, 0.9, 0.1)):
        n = plan_noninferiority(synthetic, real, margin)
        who, what = np.zeros(2 * n), np.arange(2 * n)
        one = what < n
        hits = 0
        for _ in range(trials):
            values = random.random(2 * n) < np.where(one, synthetic, real)
            hits += noninferior(clustered_difference(values, one, who, what), margin).shown
        rows.append({"plan": f"non-inferiority, {synthetic:g} against {real:g}, margin {margin:g}", "n": n, "planned": 0.8, **_share(hits, trials)})
    return rows


def _share(hits: int, trials: int) -> dict:
    found = wilson_interval(int(hits), trials)
    return {"reached": found.value, "low": found.low, "high": found.high, "trials": trials}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "reading.json")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    start = time.monotonic()
    held, reached = coverage(given.trials, given.seed), power(5 * given.trials, given.seed)
    print(pd.DataFrame(held).round(3).to_string(index=False), pd.DataFrame(reached).round(3).to_string(index=False), sep="\n\n")
    given.out.parent.mkdir(exist_ok=True)
    write_json(given.out, {"command": f"python -m bench.reading --trials {given.trials} --seed {given.seed}", "date": datetime.now(UTC).date().isoformat(),
                           "device": f"{platform.machine()} CPU, one thread", "versions": {n: version(n) for n in ("numpy", "scipy", "statsmodels")},
                           "seconds": round(time.monotonic() - start), "coverage": held, "power": reached})


if __name__ == "__main__":
    main()
