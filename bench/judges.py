"""The judge learned from experts, on real images: attributes, abstention, and what it accepts.

    python bench/judges.py --images ../shared/data/pbc64                    # trains first: 8 to 15 minutes on one core
    python bench/judges.py --images ../shared/data/pbc64 --saved FOLDER     # one that was trained before, 2 minutes

Learns from the parts `expert` and `extra`, is asked once about `test`. The settings were fixed beforehand; floors and confidences come
from images of `expert` and `extra` that were held out of training.
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
import torch
from sklearn.metrics import f1_score

from pathloop.data import CellImages, load_images
from pathloop.evaluate import wilson_interval
from pathloop.experts import DAMAGES, ExpertPathologist, damage_images, fit_expert_pathologist
from pathloop.pathologist import DEFECTS, corrupt_images

ATTRIBUTES = ["cell_size", "cell_shape", "nucleus_shape", "nuclear_cytoplasmic_ratio", "chromatin_density", "cytoplasm_vacuole",
              "cytoplasm_texture", "cytoplasm_colour", "granule_type", "granule_colour", "granularity"]
STAGES = ["promyelocyte", "myelocyte", "metamyelocyte", "band neutrophil", "segmented neutrophil"]


def annotated(cells: CellImages) -> np.ndarray:
    "Which images experts described."
    return cells.attributes["cell_size"].replace("", None).notna().to_numpy()


def attribute_table(expert: ExpertPathologist, test: CellImages, known: CellImages, times: int = 500) -> pd.DataFrame:
    "Macro-F1 of each attribute with its bootstrap interval over images, the majority's, and accuracy where it answers."
    said, given = expert.attributes(test.images, abstain=False), expert.attributes(test.images)
    random, rows, draws = np.random.default_rng(0), [], []
    samples = random.integers(0, len(test), (times, len(test)))
    for name in ATTRIBUTES:
        truth = test.attributes[name].astype(str).to_numpy()
        labels = sorted(set(truth))
        code = {value: i for i, value in enumerate(expert.values[name])}
        true, answer = (np.array([code.get(v, -1) for v in values]) for values in (truth, said[name]))
        score = [f1_score(true[s], answer[s], average="macro", labels=np.unique(true)) for s in samples]
        majority = known.attributes[name][annotated(known)].mode()[0]
        answered = (given[name] != "unsure").to_numpy()
        draws.append(score)
        rows.append({
            "attribute": name, "f1": f1_score(true, answer, average="macro", labels=np.unique(true)), "low": np.quantile(score, 0.025),
            "high": np.quantile(score, 0.975), "majority_f1": f1_score(truth, [majority] * len(truth), average="macro", labels=labels, zero_division=0),
            "answered": answered.mean(), "right_if_answered": (said[name].to_numpy() == truth)[answered].mean(), "right": (said[name] == truth).mean(),
        })
    table = pd.DataFrame(rows).set_index("attribute")
    low, high = np.quantile(np.mean(draws, 0), [0.025, 0.975])
    mean = table.mean()
    mean["low"], mean["high"] = low, high
    return pd.concat([table, mean.rename("mean").to_frame().T])


def acceptance_table(expert: ExpertPathologist, test: CellImages) -> pd.DataFrame:
    "Share accepted, and refused by each part of the verdict."
    random = np.random.default_rng(0)
    mature = annotated(test)
    wrong = (test.labels + random.integers(1, len(test.classes), len(test))) % len(test.classes)
    staged = np.flatnonzero(np.isin(np.array(test.classes)[test.labels], STAGES))
    place = np.array([STAGES.index(test.classes[label]) for label in test.labels[staged]])
    step = np.where(place == 0, 1, np.where(place == len(STAGES) - 1, -1, random.choice([-1, 1], len(place))))
    neighbour = np.array([test.classes.index(STAGES[i]) for i in place + step])
    asked = [("true type", test.images, test.labels), ("true type, six annotated types", test.images[mature], test.labels[mature]),
             ("random wrong type", test.images, wrong), ("neighbouring stage", test.images[staged], neighbour)]
    third = test.subset(np.arange(len(test))[::3])
    asked += [(f"damaged, trained on: {kind}", damage_images(third.images, kind, 1), third.labels) for kind in DAMAGES]
    asked += [(f"damaged, never seen: {kind}", corrupt_images(third, kind, 1), third.labels) for kind in DEFECTS]
    rows = []
    for name, images, labels in asked:
        verdicts = expert.verdicts(images, labels)
        accepted = int((verdicts["verdict"] == "plausible").sum())
        interval = wilson_interval(accepted, len(labels))
        rows.append({"images": name, "n": len(labels), "accepted": accepted / len(labels), "low": interval.low, "high": interval.high,
                     **{f"{part}_no": float((verdicts[part] == "no").mean()) for part in ("type", "attributes", "sound")}})
    return pd.DataFrame(rows).set_index("images")


def main() -> None:
    "Train or load, measure, print, save."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", default="../shared/data/pbc64", help="folder with labels.csv that has a column `use` and the attributes")
    parser.add_argument("--saved", help="folder of an expert that was saved before")
    parser.add_argument("--save", help="folder to save the trained expert to")
    parser.add_argument("--steps", type=int, default=1400)
    given = parser.parse_args()
    torch.set_num_threads(1)
    cells = load_images(given.images, 64)
    use = cells.attributes["use"].to_numpy()
    test, known = cells.subset(use == "test"), cells.subset(np.isin(use, ["expert", "extra"]))
    expert = ExpertPathologist.load(given.saved) if given.saved else fit_expert_pathologist(known, ATTRIBUTES, steps=given.steps)
    if given.save:
        expert.save(given.save)
    mature = test.subset(annotated(test))
    attributes, accepted = attribute_table(expert, mature, known), acceptance_table(expert, test)
    pd.set_option("display.width", 200, "display.max_columns", 20)
    print(f"attributes, n = {len(mature)} test images\n{attributes.round(3)}\n\naccepted\n{accepted.round(3)}")
    result = {"date": str(date.today()), "device": f"{platform.machine()}, 1 thread", "command": "python bench/judges.py --images ../shared/data/pbc64",
              "card": expert.card, "n_attributes": len(mature), "attributes": attributes.round(4).to_dict("index"),
              "accepted": accepted.round(4).to_dict("index")}
    (Path(__file__).resolve().parent / "results" / "judges-experts-pbc64.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
