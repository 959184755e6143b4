"""How many embedded cells a second: one process, two processes, and their ratio; with and without a defect.

    python bench/smear.py                # about 20 seconds on 2 cores
    python bench/smear.py --per-class 50 --size 32

Wall time of whole calls, pool start included, the fastest of a few rounds; beside it the processor time of this process and
its workers, which other work on the machine changes less. The images are compared too: they must not depend on the number of processes.
"""

import argparse
import json
import os
import platform
import resource
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

os.environ.setdefault("PATHLOOP_QUIET", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pandas as pd

from pathloop.data import CellImages
from pathloop.defects import inject
from pathloop.smear import make_smear

RESULTS = Path(__file__).resolve().parent / "results"


def processor_seconds() -> float:
    "Of this process and of its workers that have ended."
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def fastest(draw: Callable[[], CellImages], rounds: int) -> tuple[float, float, CellImages]:
    "Images a second of the clock and of processor time, and the images."
    walls, own = [], []
    for _ in range(rounds):
        wall, processor = time.perf_counter(), processor_seconds()
        cells = draw()
        walls.append(len(cells) / (time.perf_counter() - wall))
        own.append(len(cells) / (processor_seconds() - processor))
    return max(walls), max(own), cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--per-class", type=int, default=150, help="images of each of the eight types")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=4)
    given = parser.parse_args()
    make_smear(1, given.size)  # The texture sheets are made once
    one, one_own, alone = fastest(lambda: make_smear(given.per_class, given.size, workers=1), given.rounds)
    two, two_own, shared = fastest(lambda: make_smear(given.per_class, given.size, workers=2), given.rounds)
    if alone.hashes != shared.hashes:
        raise SystemExit("images depend on the number of workers")
    broken, broken_own, _ = fastest(lambda: inject("wrong chromatin", given.per_class, given.size, classes=alone.classes[:3]), given.rounds)
    table = pd.DataFrame({"images/s": [one, two, broken], "images per second of processor time": [one_own, two_own, broken_own]},
                         index=["1 worker", "2 workers", "defect, 1 worker"])
    print(table.round(0).to_string(), f"\n2 workers / 1 worker: {two / one:.2f}")
    found = {"images_per_second": {"1 worker": one, "2 workers": two}, "ratio": two / one, "images_per_processor_second": {"1 worker": one_own, "2 workers": two_own, "a defect, 1 worker": broken_own},
             "n": len(alone), "rounds": given.rounds, "size": given.size, "load_average_1_min": os.getloadavg()[0], "cores": os.cpu_count(),
             "device": f"{platform.machine()} CPU", "date": date.today().isoformat(),
             "command": f"python bench/smear.py --per-class {given.per_class} --size {given.size} --rounds {given.rounds}"}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"smear-{given.size}.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
