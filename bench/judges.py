"""Two judges that share nothing, each giving the full verdict, and what they accept.

    python -m bench.judges pbc64 --size 64 --images ../shared/data/pbc64   # fits both first: about 20 minutes on one core, 5 at 32 px; two hours at 32 px without 16-bit floats
    python -m bench.judges smear --size 64                                 # 15 minutes on one core, 5 at 32 px
    python -m bench.judges pbc64 --size 64 --folder FOLDER                 # keeps the fitted judges in FOLDER, and uses those that it holds

`judge` has a residual body, `giver` a plain one. On pbc64 the judge learns from the parts `expert` and `extra`, the giver from `train`, each
with a family of damage of its own; floors and confidences come from images of their own part that were held out of training, and both are
asked once about `test`. On smears each learns from smears of a seed of its own, sound and with every kind of `inject`; a third, `blind`,
never saw the kinds in HIDDEN.
"""

import argparse
import json
import os
import platform
import tempfile
from dataclasses import replace
from datetime import date
from pathlib import Path

os.environ.setdefault("PATHLOOP_QUIET", "1")

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import cohen_kappa_score, f1_score

from pathloop.data import CellImages, load_images
from pathloop.defects import DEFECTS, inject
from pathloop.evaluate import wilson_interval
from pathloop.experts import DAMAGES, ExpertPathologist, damage_images, fit_expert_pathologist
from pathloop.pathologist import DEFECTS as CORRUPTIONS
from pathloop.pathologist import corrupt_images
from pathloop.smear import make_smear

ATTRIBUTES = ["cell_size", "cell_shape", "nucleus_shape", "nuclear_cytoplasmic_ratio", "chromatin_density", "cytoplasm_vacuole",
              "cytoplasm_texture", "cytoplasm_colour", "granule_type", "granule_colour", "granularity"]
FINDINGS = ["cell_size", "nucleus_shape", "nc_ratio", "chromatin", "cytoplasm_colour", "granules", "inclusions"]
STAGES = ["promyelocyte", "myelocyte", "metamyelocyte", "band neutrophil", "segmented neutrophil"]
HIDDEN = ("two nuclei", "foreign granules", "torn membrane", "colour cast")
PARTS = ("type", "attributes", "sound", "real")


def joined(cells: list[CellImages], classes: list[str]) -> CellImages:
    "One set of several, with labels into `classes`."
    labels = np.concatenate([np.array([classes.index(name) for name in c.classes])[c.labels] for c in cells])
    names, table = [name for c in cells for name in c.names], pd.concat([c.attributes for c in cells], ignore_index=True)
    return CellImages(np.concatenate([c.images for c in cells]), labels, classes, names, table)


def corrupted(real: CellImages, each: int, seed: int) -> CellImages:
    "Copies with every kind of `corrupt_images`, all types equally often."
    parts = []
    for kind in CORRUPTIONS:
        random = np.random.default_rng([seed, CORRUPTIONS.index(kind)])
        share = 1 / np.bincount(real.labels)[real.labels]
        chosen = real.subset(random.choice(len(real), min(each, len(real)), replace=False, p=share / share.sum()))
        parts.append(replace(chosen, images=corrupt_images(chosen, kind, seed), attributes=chosen.attributes[[]]))
    return joined(parts, list(real.classes))


def real_pair(cells: CellImages, steps: int, members: int) -> dict[str, object]:
    "How to fit each judge on pbc64."
    use = cells.attributes["use"].to_numpy()
    expert, train = cells.subset(np.isin(use, ["expert", "extra"])), cells.subset(use == "train")
    return {
        "judge": lambda: fit_expert_pathologist(expert, ATTRIBUTES, steps=steps, members=members),
        "giver": lambda: fit_expert_pathologist(train, ATTRIBUTES, steps=steps, members=members, body="plain", width=20, kinds=(),
                                                broken=corrupted(train, 800, 5), seed=7),
    }


def smear_pair(size: int, steps: int, members: int) -> dict[str, object]:
    "How to fit each judge on smears, and the one that is blind to some kinds."
    def fit(first: int, body: str, width: int, kinds: list[str]) -> ExpertPathologist:
        sound = make_smear(240, size, first)
        broken = joined([inject(kind, 60, size, first + 1) for kind in kinds], list(sound.classes))
        return fit_expert_pathologist(sound, FINDINGS, steps=steps, members=members, body=body, width=width, kinds=DAMAGES if body == "residual" else (),
                                      broken=broken, seed=first)
    every, seen = list(DEFECTS), [kind for kind in DEFECTS if kind not in HIDDEN]
    return {"judge": lambda: fit(101, "residual", 24, every), "giver": lambda: fit(201, "plain", 16, every), "blind": lambda: fit(101, "residual", 24, seen)}


def fitted(makers: dict[str, object], folder: Path) -> dict[str, ExpertPathologist]:
    "The judges of that folder; those that it lacks are fitted and saved."
    judges = {}
    for name, make in makers.items():
        if not (folder / name / "expert.json").exists():
            make().save(folder / name)  # type: ignore[operator]
        judges[name] = ExpertPathologist.load(folder / name)
        print(name, judges[name].card, flush=True)
    return judges


def neighbour_stage(cells: CellImages) -> tuple[np.ndarray, np.ndarray]:
    "Which images are of a maturation stage, and the label of a stage beside it."
    stages, random = [name for name in STAGES if name in cells.classes], np.random.default_rng(0)
    staged = np.flatnonzero(np.isin(np.array(cells.classes)[cells.labels], stages))
    place = np.array([stages.index(cells.classes[label]) for label in cells.labels[staged]])
    step = np.where(place == 0, 1, np.where(place == len(stages) - 1, -1, random.choice([-1, 1], len(place))))
    return staged, np.array([cells.classes.index(stages[i]) for i in place + step])


def asked_of(test: CellImages) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    "The first rows of the table: true, wrong and neighbouring types."
    wrong = (test.labels + np.random.default_rng(0).integers(1, len(test.classes), len(test))) % len(test.classes)
    staged, beside = neighbour_stage(test)
    return {"true type": (test.images, test.labels), "random wrong type": (test.images, wrong), "neighbouring stage": (test.images[staged], beside)}


def acceptance(judges: dict[str, ExpertPathologist], asked: dict[str, tuple[np.ndarray, np.ndarray]]) -> tuple[pd.DataFrame, float]:
    "A row per set and judge: share accepted with its interval, refused by each part. And Cohen's kappa of the first two on true and wrong types."
    rows, said = [], {}
    for name, (images, labels) in asked.items():
        for who, judge in judges.items():
            verdicts = judge.verdicts(images, labels)
            said[name, who] = (verdicts["verdict"] == "plausible").to_numpy()
            interval = wilson_interval(int(said[name, who].sum()), len(labels))
            rows.append({"images": name, "judge": who, "n": len(labels), "accepted": said[name, who].mean(), "low": interval.low, "high": interval.high,
                         **{f"{part}_no": (verdicts[part] == "no").mean() for part in PARTS}})
    both = [np.concatenate([said[name, who] for name in ("true type", "random wrong type")]) for who in list(judges)[:2]]
    return pd.DataFrame(rows).set_index(["images", "judge"]), float(cohen_kappa_score(*both))


def by_class(judges: dict[str, ExpertPathologist], images: np.ndarray, labels: np.ndarray) -> dict[str, dict[str, str]]:
    "Of each type shown, how many each judge accepts: '3 of 16'."
    said = {who: judge.plausible(images, labels) for who, judge in judges.items()}
    return {judges["judge"].classes[k]: {who: f"{int(ok[labels == k].sum())} of {int((labels == k).sum())}" for who, ok in said.items()} for k in np.unique(labels)}


def attribute_table(expert: ExpertPathologist, test: CellImages, majority: dict[str, str], times: int = 500) -> pd.DataFrame:
    "Macro-F1 of each attribute with its bootstrap interval over images, the majority's, and accuracy where it answers."
    said, given = expert.attributes(test.images, abstain=False), expert.attributes(test.images)
    random, rows, draws = np.random.default_rng(0), [], []
    samples = random.integers(0, len(test), (times, len(test)))
    for name in ATTRIBUTES:
        truth = test.attributes[name].astype(str).to_numpy()
        labels = sorted(set(truth))
        code = {value: i for i, value in enumerate(expert.values[name])}
        true, answer = (np.array([code.get(v, -1) for v in values]) for values in (truth, said[name]))
        score = [f1_score(true[s], answer[s], average="macro", labels=np.unique(true), zero_division=0) for s in samples]
        answered = (given[name] != "unsure").to_numpy()
        draws.append(score)
        rows.append({
            "attribute": name, "f1": f1_score(true, answer, average="macro", labels=np.unique(true)), "low": np.quantile(score, 0.025),
            "high": np.quantile(score, 0.975), "majority_f1": f1_score(truth, [majority[name]] * len(truth), average="macro", labels=labels, zero_division=0),
            "answered": answered.mean(), "right_if_answered": (said[name].to_numpy() == truth)[answered].mean(), "right": (said[name] == truth).mean(),
        })
    table = pd.DataFrame(rows).set_index("attribute")
    mean = table.mean()
    mean["low"], mean["high"] = np.quantile(np.mean(draws, 0), [0.025, 0.975])
    return pd.concat([table, mean.rename("mean").to_frame().T])


def real_cells(given: argparse.Namespace, folder: Path) -> dict[str, object]:
    "Everything about pbc64."
    cells = load_images(given.images, given.size)
    use = cells.attributes["use"].to_numpy()
    test = cells.subset(use == "test")
    judges = fitted(real_pair(cells, given.steps, given.members), folder)
    some = test.subset(np.arange(len(test))[::5])
    asked = asked_of(test)
    asked |= {f"damaged: {kind}": (damage_images(some.images, kind, 1), some.labels) for kind in DAMAGES}
    asked |= {f"corrupted: {kind}": (corrupt_images(some, kind, 1), some.labels) for kind in CORRUPTIONS}
    accepted, kappa = acceptance(judges, asked)
    described = test.subset(test.attributes["cell_size"].replace("", None).notna().to_numpy())
    known = cells.subset(use == "expert").attributes
    attributes = {who: attribute_table(judge, described, {name: known[name].mode()[0] for name in ATTRIBUTES}) for who, judge in judges.items()}
    for who, table in attributes.items():
        print(f"\nattributes, {who}, n = {len(described)} test images\n{table.round(3)}")
    return {"accepted": accepted, "kappa": kappa, "n_attributes": len(described), "attributes": {w: t.round(4).to_dict("index") for w, t in attributes.items()},
            "cards": {who: judge.card for who, judge in judges.items()}}


def smears(given: argparse.Namespace, folder: Path) -> dict[str, object]:
    "Everything about smears."
    judges = fitted(smear_pair(given.size, given.steps, given.members), folder)
    asked = asked_of(make_smear(50, given.size, 921))
    for kind in DEFECTS:
        cells = joined([inject(kind, 16, given.size, 922)], judges["judge"].classes)
        asked[f"injected: {kind}"] = (cells.images, cells.labels)
    accepted, kappa = acceptance(judges, asked)
    by_type = {name: by_class(judges, *given_as) for name, given_as in asked.items() if name.startswith("injected")}
    return {"accepted": accepted, "kappa": kappa, "by_type": by_type, "hidden_from_blind": list(HIDDEN), "cards": {who: judge.card for who, judge in judges.items()}}


def main() -> None:
    "Fit or load, measure, print, save."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images_of", choices=["pbc64", "smear"])
    parser.add_argument("--size", type=int, default=64, help="pixels a side")
    parser.add_argument("--images", default="../shared/data/pbc64", help="folder with labels.csv that has a column `use` and the attributes")
    parser.add_argument("--folder", help="where fitted judges are kept")
    parser.add_argument("--steps", type=int, help="batches per network; by default 1,400 on pbc64 and 1,000 on smears")
    parser.add_argument("--members", type=int, default=2, help="networks per judge")
    given = parser.parse_args()
    given.steps = given.steps or (1400 if given.images_of == "pbc64" else 1000)
    torch.set_num_threads(1)
    pd.set_option("display.width", 200, "display.max_columns", 20)
    with tempfile.TemporaryDirectory() as spare:
        result = (real_cells if given.images_of == "pbc64" else smears)(given, Path(given.folder or spare))
    accepted = result["accepted"]
    print(f"\naccepted; kappa of judge and giver on true and wrong types {result['kappa']:.2f}\n{accepted.round(3).to_string()}")  # type: ignore[attr-defined]
    result["accepted"] = [{"images": a, "judge": b} | row for (a, b), row in accepted.round(4).to_dict("index").items()]  # type: ignore[attr-defined]
    command = f"python -m bench.judges {given.images_of} --size {given.size} --steps {given.steps} --members {given.members}"
    result = {"date": str(date.today()), "device": f"{platform.machine()}, 1 thread", "command": command, **result}
    target = Path(__file__).resolve().parent / "results" / f"judges-{given.images_of}-{given.size}.json"
    target.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
