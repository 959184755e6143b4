"""What several raters make of the truth: consensus against drift and shared difficulty, and the learner that is taught by them.

    python -m bench.raters          # about 2 minutes on one core

Truth is known: in the first table answers are made up, in the second images are sound smears and smears with a defect. Means over panels of people
(`make_raters`, seeds 0, 1, ...) with the 95 % interval of that mean.
"""

import argparse
import json
import os
import platform
from datetime import date
from pathlib import Path

os.environ.setdefault("PATHLOOP_QUIET", "1")

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pathloop.agreement import agreement, consensus
from pathloop.core import image_hashes
from pathloop.data import CellImages
from pathloop.defects import DEFECTS, inject
from pathloop.features import texture_features
from pathloop.raters import make_raters, rate_all
from pathloop.smear import make_smear

SETTINGS = {
    "steady, independent luck": {"shared": 0.0}, "steady": {"shared": 0.3}, "drift each their own way": {"shared": 0.3, "drift_spread": 0.6},
    "all drift to leniency": {"shared": 0.3, "drift": 0.6}, "tiring": {"shared": 0.3, "fatigue": 3.0}, "a fifth unsure": {"shared": 0.3, "unsure": 0.2},
}


def made_up(n: int, seed: int) -> tuple[pd.DataFrame, list[str]]:
    "A truth of one criterion, half of it bad, and hashes."
    random = np.random.default_rng([seed, 5])
    bad = random.random(n) < 0.5
    table = pd.DataFrame({"sound": np.where(bad, "no", "yes"), "verdict": np.where(bad, "implausible", "plausible")})
    return table, [f"{i:012x}" for i in random.integers(16**12, size=n)]


def mean_of(values: list[float]) -> dict[str, float]:
    "Mean and its 95 % interval over panels."
    half = 1.96 * np.std(values, ddof=1) / np.sqrt(len(values))
    return {"right": float(np.mean(values)), "low": float(np.mean(values) - half), "high": float(np.mean(values) + half)}


def consensus_table(panels: int, n: int) -> pd.DataFrame:
    "Share of verdicts that are right (unsure is not), by setting, number of raters and method."
    rows = []
    for name, settings in SETTINGS.items():
        right: dict[tuple[int, str], list[float]] = {}
        alphas = []
        for panel in range(panels):
            truth, hashes = made_up(n, panel)
            verdicts = rate_all(make_raters(None, 5, seed=panel, sensitivity=0.85, specificity=0.85, **settings), truth, hashes, ["cell"] * n)
            alphas.append(agreement(verdicts, resamples=1).loc["verdict", "alpha"])
            for count, method in ((1, "majority"), (3, "majority"), (5, "majority"), (5, "dawid-skene")):
                some = verdicts[verdicts["rater"].isin([f"rater-{i + 1}" for i in range(count)])]
                settled = consensus(some, method, sure=0.5).loc[hashes, "verdict"].to_numpy()
                right.setdefault((count, method), []).append(float((settled == truth["verdict"]).mean()))
        for (count, method), values in right.items():
            rows.append({"raters": name, "alpha of five": np.mean(alphas), "count": count, "method": method, "panels": panels, "images": n, **mean_of(values)})
    return pd.DataFrame(rows)


def smears(per_class: int, per_defect: int, seed: int) -> tuple[CellImages, np.ndarray]:
    "Sound smears and smears with each defect at 32 px, and which are sound."
    sound = make_smear(per_class, 32, seed)
    broken = [inject(kind, per_defect, 32, seed + 1) for kind in DEFECTS]
    images = np.concatenate([sound.images, *(cells.images for cells in broken)])
    labels = np.concatenate([[c.classes[k] for k in c.labels] for c in (sound, *broken)])
    codes = np.array([sound.classes.index(name) for name in labels])
    cells = CellImages(images, codes, list(sound.classes), [str(i) for i in range(len(images))], pd.DataFrame(index=range(len(images))))
    return cells, np.arange(len(images)) < len(sound)


def learning_table(panels: int) -> pd.DataFrame:
    "Share right on new smears, by teacher and number of images; raters at 0.75 and 0.75."
    cells, sound = smears(120, 9, 10)
    new, answer = smears(60, 4, 20)
    shown, asked = texture_features(cells.images), texture_features(new.images)
    truth = pd.DataFrame({"sound": np.where(sound, "yes", "no"), "verdict": np.where(sound, "plausible", "implausible")})
    hashes, names = image_hashes(cells.images), [cells.classes[k] for k in cells.labels]
    right: dict[tuple[str, int], list[float]] = {}
    for panel in range(panels):
        verdicts = rate_all(make_raters(None, 5, seed=panel, sensitivity=0.75, specificity=0.75), truth, hashes, names)
        taught = {"the truth": truth["verdict"].to_numpy()}
        for count in (1, 3, 5):
            some = verdicts[verdicts["rater"].isin([f"rater-{i + 1}" for i in range(count)])]
            taught[f"{count} raters by majority"] = consensus(some).loc[hashes, "verdict"].to_numpy()
        order = np.random.default_rng(panel).permutation(len(cells))
        for n in (100, 400, 1600):
            for teacher, words in taught.items():
                learner = make_pipeline(StandardScaler(), LogisticRegression(C=0.05, max_iter=500))
                learner.fit(shown[order[:n]], words[order[:n]] == "plausible")
                right.setdefault((teacher, n), []).append(float((learner.predict(asked) == answer).mean()))
    return pd.DataFrame([{"taught by": teacher, "images": n, "panels": panels, "asked": len(new), **mean_of(v)} for (teacher, n), v in right.items()])


def main() -> None:
    "Measure, print, save."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--panels", type=int, default=10, help="panels of people")
    parser.add_argument("--images", type=int, default=2000, help="images each person judges in the first table")
    given = parser.parse_args()
    tables = {"consensus": consensus_table(given.panels, given.images), "learning": learning_table(given.panels)}
    for table in tables.values():
        print(f"\n{table.round(3).to_string(index=False)}")
    result = {"date": str(date.today()), "device": f"{platform.machine()}", "command": f"python -m bench.raters --panels {given.panels} --images {given.images}"}
    result |= {name: table.round(4).to_dict("records") for name, table in tables.items()}  # type: ignore[assignment]
    (Path(__file__).resolve().parent / "results" / "raters.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
