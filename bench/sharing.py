"""What does the sharing audit find, and whom does it accuse wrongly? `python -m bench.sharing --sets 20`

Three tables. (1) False alarms: honest sets (new smears, never copied) audited one after the other. (2) Copies found by disguise,
beside the usual practice of a threshold on the plain pixel distance to the nearest training image, both at the same 1 % of unseen
images. (3) The same and a null on real cells, with `--images DIR` (a folder that `load_images` reads, with a column `use` or
`split`): some unseen real images are audited as if they were synthetic, with the others as yardstick.
"""

import argparse
import os
import platform
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd

from pathloop.core import write_json
from pathloop.data import CellImages, load_images, split_by_use
from pathloop.evaluate import wilson_interval
from pathloop.sharing import CopyFinder, audit_sharing, disguised_copies, fit_yardstick
from pathloop.smear import make_smear


def plain_distances(images: np.ndarray, train: np.ndarray) -> np.ndarray:
    "Distance in plain pixels to the nearest training image: no symmetry, colour as it is."
    rows, known = images.reshape(len(images), -1), train.reshape(len(train), -1)
    return np.sqrt(np.maximum(((rows**2).sum(1)[:, None] + (known**2).sum(1)[None] - 2 * rows @ known.T).min(1), 0))


def by_disguise(name: str, train: CellImages, unseen: CellImages, n: int, seed: int) -> list[dict]:
    "Share of planted copies found, ours and plain."
    chosen = train.images[np.random.default_rng(seed).choice(len(train), n, replace=False)]
    finder = CopyFinder(train.images)
    yardstick, limit = fit_yardstick(finder(unseen.images)), np.quantile(plain_distances(unseen.images, train.images), 0.01)
    rows = []
    for disguise, copies in disguised_copies(chosen, seed).items():
        ours = wilson_interval(int((yardstick.score(finder(copies)) < yardstick.limit).sum()), n)
        plain = wilson_interval(int((plain_distances(copies, train.images) < limit).sum()), n)
        rows.append({"images": name, "disguise": disguise, "n": n, "found": ours.value, "low": ours.low, "high": ours.high, "plain pixels": plain.value, "plain low": plain.low, "plain high": plain.high})
    return rows


def honest_sets(sets: int, per_class: int, size: int) -> dict:
    "How many honest sets are called suspicious, or worse; and how many of their images are flagged."
    train, unseen = (make_smear(per_class, size, seed) for seed in (0, 1))
    status, flagged, seconds = [], 0, []
    for k in range(sets):
        new = make_smear(per_class, size, 100 + k)
        start = time.monotonic()
        audit = audit_sharing(train, unseen, new.images, new.labels, plant=4)
        seconds.append(time.monotonic() - start)
        status.append(audit.status)
        flagged += int(audit.flagged.sum())
    counts = {name: status.count(name) for name in ("nothing found", "suspicious", "copies found")}
    share = wilson_interval(flagged, sets * len(train))
    wrong = wilson_interval(sets - counts["nothing found"], sets)
    return {"sets": sets, "images a set": len(train), **counts, "wrong": wrong._asdict(), "flagged": share._asdict(), "median seconds an audit": float(np.median(seconds))}


def real_null(train: CellImages, unseen: CellImages, sets: int) -> list[dict]:
    "Half of the unseen images audited as if they were synthetic: nothing may be found."
    rows = []
    for seed in range(sets):
        order = np.random.default_rng(seed).permutation(len(unseen))
        as_made, yardstick = unseen.subset(order[: len(order) // 2]), unseen.subset(order[len(order) // 2 :])
        audit = audit_sharing(train, yardstick, as_made.images, as_made.labels, plant=4)
        attack = audit.tests.loc["attack with the images: AUC"]
        rows.append({"seed": seed, "status": audit.status, "flagged": int(audit.flagged.sum()), "n": len(as_made), "p": audit.tests.loc["flagged", "p"],
                     "C_T": audit.tests.loc["C_T", "value"], "C_T p": audit.tests.loc["C_T", "p"], "AUC": attack.value, "AUC p": attack.p, "exact": int(audit.table["exact"].sum())})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", type=int, default=20)
    parser.add_argument("--plant", type=int, default=200)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "sharing.json")
    given = parser.parse_args()
    os.environ["PATHLOOP_QUIET"] = "1"
    train, unseen = (make_smear(64, 32, seed) for seed in (0, 1))
    found = by_disguise("smears, 32 px", train, unseen, given.plant, 0)
    null: list[dict] = []
    if given.images:
        parts = split_by_use(load_images(given.images, given.size))
        found += by_disguise(f"{given.images.name}, {given.size} px", parts["train"], parts["test"], given.plant, 0)
        null = real_null(parts["train"], parts["test"], max(1, given.sets // 4))
    honest = honest_sets(given.sets, 64, 32)
    print(pd.DataFrame(found).round(3).to_string(index=False), honest, sep="\n\n")
    if null:
        print("", pd.DataFrame(null).round(4).to_string(index=False), sep="\n")
    command = f"python -m bench.sharing --sets {given.sets} --plant {given.plant}" + (f" --images {given.images.name} --size {given.size}" if given.images else "")
    given.out.parent.mkdir(exist_ok=True)
    write_json(given.out, {"command": command, "date": datetime.now(UTC).date().isoformat(), "device": f"{platform.machine()} CPU, {os.environ.get('OMP_NUM_THREADS', 'all')} thread(s)",
                           "versions": {name: version(name) for name in ("numpy", "scipy")}, "copies": found, "honest sets": honest, "unseen real images as if synthetic": null})


if __name__ == "__main__":
    main()
