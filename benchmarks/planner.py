"""How often the planner's intervals hold on rounds that were really run.

    python -m benchmarks.planner

Every run of docs/results/gain_{camvid,imagenet,town}.json bought 4, 8, 16, 32 and 64 images and measured each; the runs
with all labels, of the same seed, are one more point far off. The planner is fitted to the first three or four of a run
(images in place of minutes: every image took the same), and says what a later one will measure. *Held*: the share of
runs whose measurement lies in the interval, which says 80 %; that is also the share whose amount lies in the interval
of what it takes to reach what they measured, since the two are one statement. *Amount*: what the planner expects that
it takes, over what it took; the median of the runs, never counted as infinite. Nothing is trained. The prior's numbers
are averages of the same studies (pipeline/evaluation/planner.py), so the town's and CamVid's rows are no fresh proof.
Runs whose first rounds do not rise cannot be told, and are counted.
"""

import argparse
import itertools
import statistics
from typing import Any

import numpy as np

from benchmarks import results
from pipeline.evaluation import planner

STUDIES = ("gain_camvid", "gain_imagenet", "gain_town")
AHEAD = ((3, 4), (3, 5), (4, 5), (3, 6), (5, 6))
"""(Rounds fitted to, the round that is foretold); the sixth is all labels."""


def runs(study: str) -> dict[tuple[str, int], list[tuple[int, float]]]:
    """By method and seed: images and mIoU in points, all labels last where there are such runs of the seed."""
    rows = sorted(results.load(study)["rows"], key=lambda row: row["images"])
    found: dict[tuple[str, int], list[tuple[int, float]]] = {}
    for row in rows:
        if row["acquisition"] != "all":
            found.setdefault((row["acquisition"], row["seed"]), []).append((row["images"], 100 * row["miou"]))
    every = {row["seed"]: (row["images"], 100 * row["miou"]) for row in rows if row["acquisition"] == "all"}
    return {of: [*run, every[of[1]]] if of[1] in every else run for of, run in found.items()}


def foretold(run: list[tuple[int, float]], rounds: int, at: int) -> dict[str, Any]:
    """What the first rounds say of a later one."""
    (images, points), (then, measured) = zip(*run[:rounds], strict=True), run[at - 1]
    row = {"fitted": rounds, "images": then, "measured": measured}
    try:
        curves = planner.fit(images, points)
    except ValueError:
        return row | {"told": False}
    low, expected, high = curves.measured(np.array([float(then)]))[:, 0].tolist()
    need = planner.plan(curves, measured)
    held = low <= measured <= high
    amount = need.expected / then if np.isfinite(need.expected) else None
    return row | {"told": True, "low": low, "expected": expected, "high": high, "held": held, "amount": amount}


def main() -> None:
    """Write docs/results/planner.json."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    rows = [
        {"study": study, "method": method, "seed": seed, **foretold(run, rounds, at)}
        for study in STUDIES
        for (method, seed), run in runs(study).items()
        for rounds, at in AHEAD
        if at <= len(run)
    ]
    table = []
    for (study, rounds, images), group in itertools.groupby(
        sorted(rows, key=lambda row: (row["study"], row["images"], row["fitted"])),
        lambda row: (row["study"], row["fitted"], row["images"]),
    ):
        every = [*group]
        told = [row for row in every if row["told"]]
        errors = [row["measured"] - row["expected"] for row in told]
        amounts = [np.inf if row["amount"] is None else row["amount"] for row in told]
        table.append(
            {
                "study": study,
                "fitted to": f"{rounds} rounds",
                "foretold": f"{images} images",
                "runs": len(told),
                "not told": len(every) - len(told),
                "held, of 80 %": f"{100 * statistics.mean(row['held'] for row in told):.0f} %",
                "mean error, points": f"{statistics.mean(errors):+.1f}",
                "mean absolute": f"{statistics.mean(map(abs, errors)):.1f}",
                "width of the interval": f"{statistics.mean(row['high'] - row['low'] for row in told):.1f}",
                "amount, expected over true": f"{statistics.median(amounts):.2f}",
            }
        )
    results.save("planner", {"table": table, "rows": rows}, table)
    for line in table:
        print(line)


if __name__ == "__main__":
    main()
