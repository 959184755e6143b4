"""A folder of many images: opened as a stream, and loaded whole. Seconds, images a second, memory, as ratios in one run.

    python -m bench.data                      # 100,000 images of 64 px, made in a temporary folder
    python -m bench.data --images 10000       # fewer
    python -m bench.data --near FOLDER        # how far copies lie from their originals, and other images from each other
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import date
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

RESULTS = Path(__file__).parent / "results"


def make_folder(folder: Path, n: int, size: int) -> None:
    "n different JPEG files in ten classes, cheaply: 200 pictures, each stamped with its number in the corner pixels."
    random = np.random.default_rng(0)
    coarse = random.integers(60, 250, (200, 8, 8, 3), dtype=np.uint8)
    base = [np.asarray(Image.fromarray(c).resize((size, size), Image.Resampling.BICUBIC)).copy() for c in coarse]
    for i in range(n):
        place = folder / f"type {i % 10}"
        if i < 10:
            place.mkdir()
        picture = base[i % 200]
        picture[:8, :24] = np.unpackbits(np.array([i >> 16, (i >> 8) & 255, i & 255], np.uint8)).repeat(8).reshape(24, 8).T[..., None] * 200
        Image.fromarray(picture).save(place / f"{i:06d}.jpg", quality=90)


def peak_mib() -> float:
    "Peak memory of this process in MiB (Linux counts KiB, macOS bytes)."
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def one_way(way: str, folder: Path, cache: Path, size: int, batches: int) -> dict[str, float]:
    "Open the folder one way and draw random batches of 128, in this process."
    import torch

    from pathloop.data import load_images, open_images
    from pathloop.diffusion import pretrain
    from pathloop.training import TrainConfig

    start = time.perf_counter()
    cells = load_images(folder, size) if way == "whole" else open_images(folder, size, cache=cache)
    opened = time.perf_counter() - start
    random = torch.Generator().manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, stride=4), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.LazyLinear(10))
    rate = {}
    for name in ("first pass", "second pass"):
        start = time.perf_counter()
        for _ in range(batches):
            index = torch.randint(len(cells), (128,), generator=random).numpy()
            network(torch.from_numpy(cells.images[index])).sum().backward()
        rate[name] = 128 * batches / (time.perf_counter() - start)
        if way == "stream" and name == "first pass":
            cells.images.fill()
    found = {"opening s": opened, **{f"{name} images/s": value for name, value in rate.items()}, "peak MiB": peak_mib()}
    if way == "stream":
        pretrain(cells, settings=TrainConfig(steps=10))
        found["peak MiB, generator trained"] = peak_mib()
    return found


def compare(n: int, size: int, batches: int) -> None:
    "Both ways, each in a process of its own."
    rows = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "images"
        folder.mkdir()
        start = time.perf_counter()
        make_folder(folder, n, size)
        print(f"made {n} images in {time.perf_counter() - start:.0f} s")
        for way in ("stream", "whole"):
            command = [sys.executable, "-m", "bench.data", "--one", way, "--folder", str(folder), "--size", str(size), "--batches", str(batches)]
            done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent, env={**os.environ, "PATHLOOP_QUIET": "1"})
            if done.returncode:
                rows[way] = {"failed": done.returncode}
                print(f"{way}: stopped with {done.returncode}\n{done.stderr[-400:]}")
            else:
                rows[way] = json.loads(done.stdout)
    print(f"{'':26s}{'stream':>12s}{'whole':>12s}{'stream / whole':>16s}")
    for name in rows["stream"]:
        stream, whole = rows["stream"][name], rows["whole"].get(name, float("nan"))
        print(f"{name:26s}{stream:12.1f}{whole:12.1f}{stream / whole:16.3f}")
    about = {"date": str(date.today()), "device": f"{platform.machine()}, {os.cpu_count()} cores", "images": n, "size": size,
             "command": f"python -m bench.data --images {n} --size {size} --batches {batches}", "rows": rows}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "data.json").write_text(json.dumps(about, indent=1) + "\n")


def near(source: Path, size: int, every: int) -> None:
    "Distances of copies to their originals, and between different images."
    from pathloop.data import from_uint8, load_images, to_uint8
    from pathloop.duplicates import fingerprints, near_duplicates

    cells = load_images(source, size)
    prints = fingerprints(cells.images)
    pairs = near_duplicates(prints, 12.0)
    print(f"{len(cells)} images; pairs within 6: {(pairs.apart <= 6).sum()}, within 12: {len(pairs.apart)}")
    some = to_uint8(cells.images)[::every]

    def resaved(pixels: np.ndarray, quality: int) -> np.ndarray:
        file = BytesIO()
        Image.fromarray(pixels).save(file, "jpeg", quality=quality)
        return np.asarray(Image.open(file))

    def halved(pixels: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(pixels).resize((size // 2,) * 2).resize((size, size)))

    changed = {f"jpeg {q}": [resaved(p, q) for p in some] for q in (95, 75, 50, 30)} | {"halved": [halved(p) for p in some]}
    for name, copies in changed.items():
        apart = np.sqrt(((fingerprints(from_uint8(np.stack(copies))) - prints[::every]) ** 2).mean((1, 2, 3)))
        print(f"{name:10s} n={len(some)} median {np.median(apart):.2f} largest {apart.max():.2f}")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--images", type=int, default=100_000)
    options.add_argument("--size", type=int, default=64)
    options.add_argument("--batches", type=int, default=200, help="random batches of 128 in each pass")
    options.add_argument("--near", type=Path, help="a source that load_images reads")
    options.add_argument("--every", type=int, default=10, help="with --near: every so many images are copied")
    options.add_argument("--one", choices=("stream", "whole"), help=argparse.SUPPRESS)
    options.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.one:
        print(json.dumps(one_way(given.one, given.folder, given.folder.parent / "cache", given.size, given.batches)))
    elif given.near:
        near(given.near, given.size, given.every)
    else:
        compare(given.images, given.size, given.batches)


if __name__ == "__main__":
    main()
