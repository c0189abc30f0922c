"""What it costs to select from large pools: seconds and memory of every method, and how they grow with the pool.

    python -m benchmarks.gain_scale [--images 1000] [--pools 1000 ... 100000]

Every choice is a process of its own, on one thread, of random gains of 19 classes and random features in groups: one
vector of 64 per image and one per image and class, a gradient embedding of 256. The largest pool is chosen from at full
purchase; for the growth, which is the exponent p of seconds = a * pool^p, a tenth of it is bought from pools of every
size. Seconds are the processor's, which are those of the clock where nothing else runs (`clock` has what passed here).
Making the pool is not timed; its memory counts. `ratio_to_forward` and `ratio_to_baal` are those of the last
`python -m benchmarks.scoring --baal DIR`.
"""

import argparse
import json
import os
import subprocess
import sys
import time

import numpy as np

from benchmarks import results
from pipeline.selection import METHODS, Budget, Candidates, Settings

NAME = "gain_scale"
SCORING = ("ratio_to_forward", "ratio_to_baal")
"""Taken over from benchmarks/scoring.py, so that all that a choice costs is in one file."""
CLASSES, DEPTH, GRADIENT, GROUPS = 19, 64, 256, 200
ROWS = 4096
LEAST = 0.05
"""Seconds below which a choice says nothing of its growth: start-up and rounding."""


def main() -> None:
    """Measure and write docs/results/gain_scale.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000, help="how many are bought from the largest pool")
    parser.add_argument("--pools", type=int, nargs="+", default=[1000, 3000, 10_000, 30_000, 100_000])
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)  # a fresh process: method, pool, images
    given = parser.parse_args()
    if given.one:
        print(json.dumps(choose(given.one[0], int(given.one[1]), int(given.one[2]))))
        return
    largest = max(given.pools)
    asked = [(size, given.images // 10) for size in sorted(given.pools)] + [(largest, given.images)]
    rows = [measure(method, size, images) for method in METHODS for size, images in asked]
    full = [row for row in rows if (row["pool"], row["images"]) == (largest, given.images)]
    slowest = max(full, key=lambda row: row["seconds"])["method"]
    growth = {method: exponent([row for row in rows if row["method"] == method]) for method in METHODS}
    scoring = results.load("scoring")
    content = {
        **{name: scoring[name] for name in SCORING},
        "pool": largest,
        "images": given.images,
        "select_100k_seconds": max(row["seconds"] for row in full),
        "peak_mib": max(row["peak_mib"] for row in full),
        "growth_exponent": growth[slowest],
        "slowest": slowest,
        "growth_exponents": growth,
        "rows": rows,
    }
    table = [
        {
            "method": row["method"],
            f"{given.images} of {largest}, s": f"{row['seconds']:.2f}",
            "peak MiB": f"{row['peak_mib']:.0f}",
            "growth exponent": "-" if growth[row["method"]] is None else f"{growth[row['method']]:.2f}",
        }
        for row in full
    ]
    results.save(NAME, content, table)


def measure(method: str, size: int, images: int) -> dict:
    """One choice, in a fresh process on one thread."""
    words = [sys.executable, "-m", "benchmarks.gain_scale", "--one", method, str(size), str(images)]
    done = subprocess.run(words, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=True)
    row = {"method": method, "pool": size, "images": images, **json.loads(done.stdout)}
    print(row, flush=True)
    return row


def choose(method: str, size: int, images: int) -> dict:
    """Seconds of the processor and by the clock, and the peak memory of this process, pool included."""
    candidates = pool(size)
    clock, processor = time.perf_counter(), time.process_time()
    choice = METHODS[method].make(Settings())(candidates, Budget(images), np.random.default_rng(0))
    seconds = {"seconds": time.process_time() - processor, "clock": time.perf_counter() - clock}
    assert len(set(choice.indices)) == images
    return {**seconds, "peak_mib": results.peak_mib()}


def pool(size: int) -> Candidates:
    """Skewed gains in half of the classes; features around 200 prototypes; no more memory than they take."""
    rng = np.random.default_rng(0)
    parts = rng.gamma(0.3, size=(size, CLASSES)) * (rng.random((size, CLASSES)) < 0.5)
    prototypes = rng.standard_normal((GROUPS, CLASSES, DEPTH), dtype=np.float32)
    by_class = np.empty((size, CLASSES, DEPTH), np.float16)
    for rows in np.array_split(np.arange(size), -(-size // ROWS)):
        noise = rng.standard_normal((len(rows), CLASSES, DEPTH), dtype=np.float32)
        by_class[rows] = prototypes[rng.integers(0, GROUPS, len(rows))] + noise
    features, gradient = (rng.standard_normal((size, d), dtype=np.float32) for d in (DEPTH, GRADIENT))
    holds = (parts / parts.mean(0)).astype(np.float32)
    return Candidates(
        parts.sum(1),
        rng.uniform(3, 20, size),
        parts,
        features,
        by_class,
        gradient,
        holds=holds,
        iou=rng.random(CLASSES),
    )


def exponent(rows: list[dict]) -> float | None:
    """Slope of log seconds over log pool among the choices of as many images; None if they are all too short."""
    fewest = min(row["images"] for row in rows)
    points = [(row["pool"], row["seconds"]) for row in rows if row["images"] == fewest]
    points = [point for point in points if point[1] >= LEAST]
    if len(points) < 2:
        return None
    pools, seconds = np.log(np.array(points)).T
    return float(np.polyfit(pools, seconds, 1)[0])


if __name__ == "__main__":
    main()
