"""Eight raters at once on one store: is anything lost or given out twice, and how long until a label is on disk?

`python -m bench.feedback --seconds 60` starts one program for each rater, on a SQLite file and on a PostgreSQL server of its own
(Debian's postgresql; `--postgresql URL` takes another, empty database). Every rater takes work from one list in sittings of
20 and answers it; timed is each `record`, from the call to the acknowledgement, commit on disk included. Two paces: `human` is
five keys a second on average, with pauses at random, far above what people do; `flat out` is as fast as programs can. Beside
them, in the same run and flat out, SQLite without the line that writers stand in. About five minutes at 60 s.
"""

import argparse
import contextlib
import multiprocessing
import platform
import signal
import sqlite3
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd

from pathloop import database
from pathloop.assignments import Design, Worklist, make_worklist
from pathloop.checklist import load_checklist
from pathloop.core import write_json
from pathloop.feedback import FeedbackStore

CHECKLIST = load_checklist()
CLASSES = ["lymphocyte", "monocyte"]


def rate(url: str, rater: str, seconds: float, pause: float, in_line: bool, ready, said) -> None:
    "One rater: take, answer, pause; report every acknowledged event and how long it took."
    if not in_line:
        database._turn = lambda path, timeout: contextlib.nullcontext()
    random = np.random.default_rng(int(rater.split()[1]))
    store = FeedbackStore(url)
    worklist, acknowledged, times = Worklist(store, "load"), [], []
    answers = dict.fromkeys(CHECKLIST.criteria_names, "yes")
    ready.wait()
    end = time.monotonic() + seconds
    while time.monotonic() < end and (pieces := worklist.take(rater, 20)):
        for piece in pieces:
            event = {"rater": rater, "source": "human", "image": piece.image, "shown_as": piece.cell_type, "generator": piece.generator, "assignment": piece.id, "answers": answers}
            start = time.perf_counter()
            uuid = store.record(event, CHECKLIST)
            times.append(time.perf_counter() - start)
            acknowledged.append((uuid, piece.image))
            time.sleep(random.exponential(pause))
            if time.monotonic() > end:
                break
    said.put((acknowledged, times))
    store.close()


def scene(url: str, raters: int, seconds: float, pause: float, in_line: bool = True) -> dict:
    "Everybody at once; what came of it."
    images = int(seconds * (10 * raters if pause else 600))  # More than can be judged
    pixels = np.random.default_rng(0).uniform(-1, 1, (images, 3, 2, 2)).astype(np.float32)
    store = FeedbackStore(url)
    make_worklist(store, "load", pixels, np.arange(images) % 2, CLASSES, "generator-0", Design())
    context = multiprocessing.get_context("spawn")
    ready, said = context.Barrier(raters), context.Queue()
    programs = [context.Process(target=rate, args=(url, f"rater {i}", seconds, pause, in_line, ready, said)) for i in range(raters)]
    for program in programs:
        program.start()
    answers = [said.get() for _ in programs]
    for program in programs:
        program.join()
    acknowledged = [pair for part, _ in answers for pair in part]
    milliseconds = 1000 * np.concatenate([times for _, times in answers])
    events = store.events()
    faults = set(store.check()["fault"]) - {""}
    store.close()
    slow = int((milliseconds > 50).sum())
    return {
        "labels": len(acknowledged), "per_second": round(len(acknowledged) / seconds, 1), "lost": len({uuid for uuid, _ in acknowledged} - set(events["uuid"])),
        "doubled": int(events["uuid"].duplicated().sum()) + len(events) - len(acknowledged), "given_twice": len(acknowledged) - len({image for _, image in acknowledged}),
        "broken_chains": len(faults), "p50_ms": round(float(np.median(milliseconds)), 1), "p95_ms": round(float(np.quantile(milliseconds, 0.95)), 1),
        "p95_low": round(interval(milliseconds)[0], 1), "p95_high": round(interval(milliseconds)[1], 1), "p99_ms": round(float(np.quantile(milliseconds, 0.99)), 1),
        "max_ms": round(float(milliseconds.max()), 1), "over_50_ms": slow,
    }


def interval(values: np.ndarray) -> tuple[float, float]:
    "95 % interval of the 95th percentile, by resampling in blocks of 20: a slow moment hits neighbours too."
    blocks = values[: len(values) // 20 * 20].reshape(-1, 20) if len(values) >= 400 else values[:, None]
    random = np.random.default_rng(0)
    found = [np.quantile(blocks[random.integers(0, len(blocks), len(blocks))], 0.95) for _ in range(500)]
    return float(np.quantile(found, 0.025)), float(np.quantile(found, 0.975))


def servers(given: str | None):
    "A PostgreSQL server as a context that gives the addresses of empty databases, or None with a reason."
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
    from postgresql_server import PrivateServer, postgresql_missing

    if given or not postgresql_missing():
        return contextlib.nullcontext() if given else contextlib.closing(PrivateServer())
    print(f"without PostgreSQL: {postgresql_missing()}", file=sys.stderr)
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="of each scene; flat out takes a third of it")
    parser.add_argument("--raters", type=int, default=8)
    parser.add_argument("--pause", type=float, default=0.2, help="mean seconds between a rater's answers at human pace")
    parser.add_argument("--postgresql", help="address of an empty database, instead of a server of its own; only the human pace is run")
    parser.add_argument("--folder", type=Path, help="where the SQLite files lie (a local disk); a temporary folder if left out")
    parser.add_argument("--save", type=Path, help="JSON file for the results")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # So that the server is stopped then too
    rows = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        rows["SQLite, human"] = scene(f"{folder}/human.db", options.raters, options.seconds, options.pause)
        rows["SQLite, flat out"] = scene(f"{folder}/flat.db", options.raters, options.seconds / 3, 0)
        rows["SQLite, flat out, no line"] = scene(f"{folder}/without.db", options.raters, options.seconds / 3, 0, in_line=False)
    server = servers(options.postgresql)
    if server is not None:
        with server as running:
            rows["PostgreSQL, human"] = scene(options.postgresql or running.new_database(), options.raters, options.seconds, options.pause)
            if running:
                rows["PostgreSQL, flat out"] = scene(running.new_database(), options.raters, options.seconds / 3, 0)
    table = pd.DataFrame(rows).T
    print(table.to_string())
    if options.save:
        about = {"command": f"python -m bench.feedback --seconds {options.seconds:g} --raters {options.raters} --pause {options.pause:g}", "date": datetime.now(UTC).date().isoformat(),
                 "device": f"{multiprocessing.cpu_count()} CPU cores, {platform.system()}", "python": platform.python_version(), "sqlite": sqlite3.sqlite_version}
        write_json(options.save, about | {"raters": options.raters, "seconds": options.seconds, "scenes": rows})


if __name__ == "__main__":
    main()
