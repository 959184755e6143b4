"""Evaluation: speed against the `prdc` package, bounded memory, and whether each metric behaves on real cells.

    python bench/evaluate.py speed                                  # 10,000 x 10,000 x 768 against prdc, about 2 minutes on one core
    python bench/evaluate.py large --n 100000 --features 64         # bounded memory, about 5 minutes on one core
    python bench/evaluate.py behave --images ../shared/data/pbc64 --generator FOLDER   # real against real, smears, generated
    python bench/evaluate.py utility --images ../shared/data/pbc64 --generator FOLDER  # usefulness and the scarce type

Each prints a small table and writes it to bench/results/. `speed` needs `pip install prdc`. Every run happens in a process of
its own, pinned to one core where the system allows it, so that memory and threads are the same for both sides.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

os.environ.setdefault("PATHLOOP_QUIET", "1")
RESULTS = Path(__file__).parent / "results"


def save(name: str, result: dict[str, Any]) -> None:
    "Keep a result with what made it."
    RESULTS.mkdir(exist_ok=True)
    given = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv] # No path of one machine
    about = {"date": str(date.today()), "device": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}", "command": "python bench/" + " ".join([Path(given[0]).name, *given[1:]])}
    (RESULTS / f"evaluate-{name}.json").write_text(json.dumps({**about, **result}, indent=1) + "\n", encoding="utf-8")


def one_core() -> None:
    "One core and one thread for everything in this process."
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    one_thread()


def one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def peak_mb() -> float:
    "Largest memory of this process so far."
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def timed(side: str, n: int, d: int, seed: int) -> dict[str, Any]:
    "Seconds, processor seconds and added memory of one side, in this process."
    one_core()
    import numpy as np
    from threadpoolctl import threadpool_limits

    random = np.random.default_rng(seed)
    real, made = random.standard_normal((n, d), np.float32), random.standard_normal((n, d), np.float32)
    with threadpool_limits(1):
        if side.startswith("prdc"):
            from prdc import compute_prdc

            if side == "prdc in float64":
                real, made = real.astype(np.float64), made.astype(np.float64)

            def measure() -> dict[str, Any]:
                return compute_prdc(real, made, 5)
        else:
            from pathloop.neighbours import neighbour_metrics

            def measure() -> dict[str, Any]:
                return {name: e.value for name, e in neighbour_metrics(real, made).items()}
        before, start, busy = peak_mb(), time.perf_counter(), time.process_time()
        values = {name: float(value) for name, value in measure().items()}
        return {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - busy, "memory_mb": peak_mb() - before, "values": values}


def in_process(side: str, n: int, d: int, seed: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "_timed", side, str(n), str(d), str(seed)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout.splitlines()[-1])


def speed(n: int, d: int, repeats: int) -> None:
    "pathloop (eight metrics with intervals) against prdc (four values), turn by turn."
    runs: dict[str, list[dict[str, Any]]] = {"prdc": [], "pathloop": []}
    for seed in range(repeats):
        for side, found in runs.items():
            found.append(in_process(side, n, d, seed))
            print(f"{side:9} {found[-1]['seconds']:7.1f} s  {found[-1]['cpu_seconds']:7.1f} s of processor  {found[-1]['memory_mb']:7.0f} MB")
    def same(theirs: dict[str, Any], ours: dict[str, Any]) -> bool:
        return all(abs(value - ours["values"][name]) < 1e-12 for name, value in theirs["values"].items())

    agrees = []
    for seed, (theirs, ours) in enumerate(zip(*runs.values(), strict=True)): # Where float32 sees a tie, float64 must agree with us
        agrees.append("float32" if same(theirs, ours) else "float64 only" if same(in_process("prdc in float64", n, d, seed), ours) else "no")
    middle = {key: [sorted(run[key] for run in found)[repeats // 2] for found in runs.values()] for key in ("seconds", "cpu_seconds", "memory_mb")}
    ratios = {"faster": middle["seconds"][0] / middle["seconds"][1], "faster_by_processor_time": middle["cpu_seconds"][0] / middle["cpu_seconds"][1],
              "memory_share": middle["memory_mb"][1] / middle["memory_mb"][0], "agrees": agrees}
    print({name: value if name == "agrees" else round(value, 3) for name, value in ratios.items()})
    save("speed", {"n": n, "d": d, "repeats": repeats, "threads": 1, **ratios, "runs": runs})


def large(n: int, d: int) -> None:
    found = in_process("pathloop", n, d, 0)
    print(f"{n:,} x {n:,} x {d}: {found['seconds']:.0f} s, {found['memory_mb']:.0f} MB beyond the features")
    save("large", {"n": n, "d": d, "threads": 1, **found})


def parts(source: str, size: int) -> tuple[Any, Any]:
    "Training and test reals."
    from pathloop.data import load_images, split_by_use

    found = split_by_use(load_images(source, size))
    return found["train"], found["test"]


def generated(folder: str, classes: list[str], per_class: int, steps: int) -> Any:
    "Fresh images of a trained generator as CellImages in the order of `classes`."
    import numpy as np

    from pathloop.data import CellImages
    from pathloop.diffusion import Generator

    generator = Generator.from_pretrained(folder)
    names = np.repeat([generator.classes.index(name) for name in classes], per_class)
    images = generator.sample(names, np.arange(len(names)) + 77_000_000, steps=steps)
    return CellImages(images, np.repeat(np.arange(len(classes)), per_class), list(classes))


FLOOR, DROPPED, REPEATED = "real training images (the floor)", "real, half of the types dropped", "real, one in ten, ten times"
ALL_FALL = ("precision", "density", "coverage", "clipped_density", "clipped_coverage")


def judged(table: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    "What each metric should say of these sets, and whether it does: intervals that do not overlap, or hold a value."

    def apart(key: str, low: str, high: str) -> bool:
        return bool(table[low][key].high < table[high][key].low)

    kernels = [key for key in table[FLOOR] if key.startswith("kernel")]
    said = [(f"{key}: floor around 0 (interval up to below 0.005)", bool(table[FLOOR][key].low <= 0 and table[FLOOR][key].high < 0.005)) for key in kernels]
    said += [(f"{key}: floor < generated < smears", apart(key, FLOOR, "generated") and apart(key, "generated", "smears")) for key in kernels]
    said.append(("Fréchet: floor < generated < smears", apart("Fréchet", FLOOR, "generated") and apart("Fréchet", "generated", "smears")))
    said.append(("realism AUC: floor at or below chance, generated and smears above 0.9", bool(table[FLOOR]["realism AUC"].low <= 0.5 and min(table[name]["realism AUC"].low for name in ("generated", "smears")) > 0.9)))
    said += [(f"{key}: smears below the floor", apart(key, "smears", FLOOR)) for key in ALL_FALL]
    said += [(f"{key}: types dropped, below the floor", apart(key, DROPPED, FLOOR)) for key in ("recall", "coverage", "clipped_coverage", "beta_recall")]
    said += [(f"{key}: types dropped, not below the floor", not apart(key, DROPPED, FLOOR)) for key in ("precision", "density", "clipped_density")]
    said += [(f"{key}: repeated images, below the floor", apart(key, REPEATED, FLOOR)) for key in ("recall", "coverage", "clipped_coverage", "beta_recall", "Vendi")]
    said += [(f"{key}: floor at least 0.85", bool(table[FLOOR][key].value >= 0.85)) for key in ("precision", "recall", "coverage", "clipped_density", "clipped_coverage", "alpha_precision", "beta_recall")]
    said += [("authenticity: 0 for copies of training images", all(table[name]["authenticity"].value == 0 for name in (DROPPED, REPEATED))),
             ("authenticity: generated not below unseen reals", not apart("authenticity", "generated", FLOOR))]
    return [{"should": should, "does": does} for should, does in said]


def behave(source: str, folder: str, size: int, steps: int, work: str) -> None:
    "Each metric on sets whose place is known: unseen reals, smears, generated ones, copies, a dropped type."
    one_thread()
    import numpy as np
    import pandas as pd

    from pathloop.data import CellImages
    from pathloop.features import fit_cell_features, fit_features, fit_texture, rank_agreement
    from pathloop.metrics import frechet_distance, kernel_distance, kernel_width, realism_test, vendi_score
    from pathloop.neighbours import authenticity, neighbour_metrics
    from pathloop.smear import SMEAR_CLASSES, make_smear

    train, test = parts(source, size)
    shared = [name for name in test.classes if name in SMEAR_CLASSES]

    def cut(cells: CellImages, n: int, first: int = 0) -> CellImages:
        rows = np.concatenate([np.flatnonzero(cells.labels == cells.classes.index(name))[first : first + n] for name in shared])
        return CellImages(cells.images[rows], np.array([shared.index(cells.classes[label]) for label in cells.labels[rows]]), shared)

    n = min(min(test.counts()[name] for name in shared), 50)
    reference, again, learnt_from = cut(test, n), cut(train, n), cut(train, 10_000)
    drawn = make_smear(n, size=size, seed=5, classes=shared)
    order = [drawn.classes.index(name) for name in shared]
    smears = CellImages(np.concatenate([drawn.images[drawn.labels == o] for o in order]), np.repeat(np.arange(len(shared)), n), shared)
    kept = again.subset(again.labels < len(shared) // 2)
    dropped = CellImages(np.concatenate([kept.images, cut(train, n, n).subset(again.labels < len(shared) // 2).images]), np.concatenate([kept.labels] * 2), shared)
    Path(work).mkdir(parents=True, exist_ok=True)
    sets = {FLOOR: again, "generated": kept_pool(Path(folder), Path(work), shared, n, steps), "smears": smears, DROPPED: dropped,
            REPEATED: again.subset(np.repeat(np.arange(0, len(again), 10), 10))}
    encoder, cytology, texture = fit_features(train.images, train.labels, len(train.classes)), fit_cell_features(train.images), fit_texture(train.images)
    real, known = encoder(reference.images), encoder(learnt_from.images)
    width, rows = kernel_width(real), {}
    views = {"kernel, learnt": encoder, "kernel, texture": texture, "kernel, cytomorphology": cytology}
    of_real = {name: view(reference.images) for name, view in views.items()}
    for name, cells in sets.items():
        made = encoder(cells.images)
        found = {"Fréchet": frechet_distance(real, made, None, reference.labels, cells.labels)}
        found |= {key: kernel_distance(of_real[key], view(cells.images), None, reference.labels, cells.labels) for key, view in views.items()}
        found |= neighbour_metrics(real, made, 5, None, reference.labels, cells.labels)
        found |= {"Vendi": vendi_score(made, width, labels=cells.labels), "realism AUC": realism_test(reference.images, cells.images)}
        found["authenticity"] = authenticity(known, real if cells is again else made)
        rows[name] = found
        print(name, flush=True)
    values = pd.DataFrame({name: {key: e.value for key, e in found.items()} for name, found in rows.items()})
    print(values.round(3).to_string())
    agreement = rank_agreement({key: values.loc[key].tolist() for key in views})
    print(agreement.round(2).to_string(index=False))
    judgement = judged(rows)
    print(pd.DataFrame(judgement).to_string(index=False))
    save("behave", {"images": "pbc64", "size": size, "n": len(reference), "types": shared, "n_known": len(known), "steps": steps, "interval": "95 %",
                    "table": {name: {key: [round(float(v), 5) for v in e[:3]] for key, e in found.items()} for name, found in rows.items()}, "agreement": agreement.to_dict("records"), "judged": judgement})


def scarce_generator(train: Any, rare: str, keep: int, folder: Path, steps: int) -> Path:
    "A generator that saw only `keep` images of the scarce type, trained once and kept in `folder`."
    import numpy as np

    from pathloop.diffusion import NetworkConfig, TrainConfig, pretrain

    place = folder / f"generator-{rare.replace(' ', '-')}-{keep}-{steps}"
    if not place.exists():
        kind = train.labels == train.classes.index(rare)
        few = np.random.default_rng(0).choice(np.flatnonzero(kind), keep, replace=False) # As `rare_class_gain` chooses
        rows = np.r_[np.flatnonzero(~kind), few]
        pretrain(train.subset(rows), NetworkConfig(size=train.size), TrainConfig(steps=steps), checkpoint=folder / f"{place.name}.pt", device="cpu").save_pretrained(place)
    return place


def kept_pool(folder: Path, place: Path, classes: list[str], per_class: int, steps: int) -> Any:
    "Generated images, sampled once and kept."
    import numpy as np

    from pathloop.data import CellImages

    file = place / f"pool-{Path(folder).name}-{per_class}-{steps}-{len(classes)}.npz"
    if not file.exists():
        made = generated(str(folder), classes, per_class, steps)
        np.savez(file, images=np.round((made.images + 1) * 127.5).astype(np.uint8), labels=made.labels)
    kept = np.load(file)
    return CellImages((kept["images"] / 127.5 - 1).astype(np.float32), kept["labels"], list(classes))


def useful(source: str, folder: str, size: int, steps: int, rare: str, keep: int, seeds: int, work: str, pretrain_steps: int) -> None:
    "What generated images are worth to a classifier, and to a scarce type."
    one_thread()
    from pathloop.utility import rare_class_gain, utility

    train, test = parts(source, size)
    place = Path(work)
    place.mkdir(parents=True, exist_ok=True)
    made = kept_pool(Path(folder), place, train.classes, max(train.counts().values()), steps)
    print(f"{len(made)} generated images", flush=True)
    worth = utility(train, made.images, made.labels, test, shares=(0.1, 0.2, 0.3, 0.5), shots=(8,), seeds=range(seeds), kept=place)
    print(worth.table.round(3).to_string(index=False), flush=True)
    saw_all = rare_class_gain(train, made.images, made.labels, test, rare, keep, seeds=range(seeds), kept=place)
    print(saw_all.round(3).to_string(index=False), flush=True)
    result: dict[str, Any] = {
        "images": "pbc64", "size": size, "interval": "95 %, over seeds and test images; recall: Wilson", "seeds": seeds, "n_train": len(train), "n_test": len(test), "types": train.classes, "rare": rare, "keep": keep,
        "table": worth.table.to_dict("records"), "per_class": worth.per_class.to_dict("records"), "rare, generator saw all images of the type (an upper bound)": saw_all.to_dict("records")}
    save("utility", result)
    scarce = scarce_generator(train, rare, keep, place, pretrain_steps)
    painted = kept_pool(scarce, place, [rare], max(train.counts().values()), steps)
    saw_few = rare_class_gain(train, painted.images, painted.labels + train.classes.index(rare), test, rare, keep, seeds=range(seeds), kept=place)
    print(saw_few.round(3).to_string(index=False), flush=True)
    save("utility", {**result, "pretraining steps of the generator that saw only the few": pretrain_steps, "rare, generator saw only the few": saw_few.to_dict("records")})


def main() -> None:
    if sys.argv[1:2] == ["_timed"]:
        print(json.dumps(timed(sys.argv[2], *map(int, sys.argv[3:6]))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "large", "behave", "utility"])
    parser.add_argument("--n", type=int, default=10_000, help="images a side (speed, large)")
    parser.add_argument("--features", type=int, default=768, help="features an image (speed, large)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each side (speed)")
    parser.add_argument("--images", default="../shared/data/pbc64", help="real images (behave, utility)")
    parser.add_argument("--generator", help="folder of a trained generator of the same types (behave, utility)")
    parser.add_argument("--size", type=int, default=32, help="width of the images in pixels")
    parser.add_argument("--steps", type=int, default=18, help="sampler steps of the generator")
    parser.add_argument("--rare", default="basophil", help="the scarce type (utility)")
    parser.add_argument("--keep", type=int, default=8, help="real images of the scarce type (utility)")
    parser.add_argument("--seeds", type=int, default=5, help="trainings of each arm (utility)")
    parser.add_argument("--work", default="evaluate-work", help="folder for finished parts, so that an interrupted run goes on (behave, utility)")
    parser.add_argument("--pretrain-steps", type=int, default=4200, help="training of the generator that saw only the few (utility)")
    chosen = parser.parse_args()
    if chosen.what in ("behave", "utility") and not chosen.generator:
        parser.error("--generator must name the folder of a trained generator")
    if chosen.what == "speed":
        speed(chosen.n, chosen.features, chosen.repeats)
    elif chosen.what == "large":
        large(chosen.n, chosen.features)
    elif chosen.what == "behave":
        behave(chosen.images, chosen.generator, chosen.size, chosen.steps, chosen.work)
    else:
        useful(chosen.images, chosen.generator, chosen.size, chosen.steps, chosen.rare, chosen.keep, chosen.seeds, chosen.work, chosen.pretrain_steps)


if __name__ == "__main__":
    main()
