"""What does the sharing audit find, and whom does it accuse wrongly? `python -m bench.sharing --help`

Three parts. `honest`: sets of new smears, never copied, each with real sets of its own (audits that share one pair of real sets are
one draw, not many: where members happen to lie nearer, all of them say so); then the same sets with some images replaced by disguised copies.
`copies`: copies found by disguise, beside the usual practice of a threshold on the plain pixel distance to the nearest training
image, both at the same 1 % of unseen images. `real`: the same and a null on real cells, with `--images DIR` (a folder that
`load_images` reads, with a column `use` or `split`): some unseen real images are audited as if they were synthetic.
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

from pathloop.core import progress, read_json, write_json
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


def spoilt(images: np.ndarray, train: np.ndarray, share: float, seed: int) -> np.ndarray:
    "The same images, some of them replaced by copies of training images, one disguise after the other."
    n = round(share * len(images))
    random = np.random.default_rng(seed)
    copies = disguised_copies(train[random.choice(len(train), n, replace=False)], seed)
    names = [name for name in copies if name != "same pixels"]
    made = images.copy()
    for place, row in enumerate(random.choice(len(images), n, replace=False)):
        made[row] = copies[names[place % len(names)]][place]
    return made


def honest_sets(sets: int, with_copies: int, per_class: int, size: int, shares: tuple[float, ...] = (0.02, 0.05)) -> dict:
    "How many honest sets are called suspicious, or worse; how often each test says p < 0.05; and how many sets with copies are noticed."
    status, flagged, seconds, tests = [], 0, [], []
    noticed: dict[float, list[bool]] = {share: [] for share in shares}
    for k in progress(range(sets), "honest sets"):
        train, unseen, new = (make_smear(per_class, size, 10_000 + 3 * k + part) for part in range(3))
        start = time.monotonic()
        audit = audit_sharing(train, unseen, new.images, new.labels, plant=2)
        seconds.append(time.monotonic() - start)
        status.append(audit.status)
        flagged += int(audit.flagged.sum())
        tests.append(audit.tests["p"].dropna() < 0.05)
        for share, found in noticed.items():
            if k < with_copies:
                made = spoilt(new.images, train.images, share, k)
                found.append(audit_sharing(train, unseen, made, new.labels, plant=2).status != "nothing found")
    counts = {name: status.count(name) for name in ("nothing found", "suspicious", "copies found")}
    table = pd.DataFrame(tests)
    return {"sets": sets, "images a set": per_class * 8, **counts, "wrong": wilson_interval(sets - counts["nothing found"], sets)._asdict(), "stated": 0.05,
            "p < 0.05": {name: wilson_interval(int(table[name].sum()), sets)._asdict() for name in table},
            "flagged": wilson_interval(flagged, sets * per_class * 8)._asdict(),
            "noticed with copies": {str(share): wilson_interval(sum(found), len(found))._asdict() for share, found in noticed.items() if found}, "median seconds an audit": float(np.median(seconds))}


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
    parser.add_argument("--parts", nargs="+", choices=["honest", "copies", "real"], default=["honest", "copies"])
    parser.add_argument("--sets", type=int, default=100, help="honest sets")
    parser.add_argument("--with-copies", type=int, default=40, help="of them also audited with copies in")
    parser.add_argument("--plant", type=int, default=200, help="copies in each disguise")
    parser.add_argument("--images", type=Path, help="real cells, for the part 'real'")
    parser.add_argument("--size", type=int, default=64, help="of the real cells, in pixels")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "sharing.json", help="parts that are not run stay as they are")
    given = parser.parse_args()
    if "real" in given.parts and not given.images:
        parser.error("the part 'real' needs --images")
    os.environ["PATHLOOP_QUIET"] = "1"
    train, unseen = (make_smear(64, 32, seed) for seed in (0, 1))
    result = read_json(given.out) if given.out.exists() else {}
    made = {"date": datetime.now(UTC).date().isoformat(), "device": f"{platform.machine()} CPU, {os.environ.get('OMP_NUM_THREADS', 'all')} thread(s)", "versions": {name: version(name) for name in ("numpy", "scipy")}}
    if "copies" in given.parts:
        result["copies"] = {**made, "command": f"python -m bench.sharing --parts copies --plant {given.plant}", "table": by_disguise("smears, 32 px", train, unseen, given.plant, 0)}
        print(pd.DataFrame(result["copies"]["table"]).round(3).to_string(index=False))
    if "real" in given.parts:
        parts = split_by_use(load_images(given.images, given.size))
        name = f"{given.images.name}, {given.size} px"
        result["real"] = {**made, "command": f"python -m bench.sharing --parts real --plant {given.plant} --images {given.images.name} --size {given.size}",
                          "table": by_disguise(name, parts["train"], parts["test"], given.plant, 0), "unseen real images as if synthetic": real_null(parts["train"], parts["test"], 5)}
        print(pd.DataFrame(result["real"]["table"]).round(3).to_string(index=False), pd.DataFrame(result["real"]["unseen real images as if synthetic"]).round(4).to_string(index=False), sep="\n")
    if "honest" in given.parts:
        result["honest"] = {**made, "command": f"python -m bench.sharing --parts honest --sets {given.sets} --with-copies {given.with_copies}", **honest_sets(given.sets, given.with_copies, 24, 32)}
        print(result["honest"])
    given.out.parent.mkdir(exist_ok=True)
    write_json(given.out, result)


if __name__ == "__main__":
    main()
