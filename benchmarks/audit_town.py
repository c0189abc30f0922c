"""Is the audit right where the truth is known? The demo town over seeds: forecasts against what came, audits per round.

    python -m benchmarks.audit_town [--seeds 1 2 3 4] [--images 20] [--rounds 3] [--town 240 160 80]

Every seed is another town, another source model and other draws, with the rest of params.yaml. The stages run in one
process, each run in its folder under --work; what is there is not made again, so a killed study goes on where it was.
Counted: the rounds whose forecast held the measured mIoU, and those whose audit found a signal in the score.
"""

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

from benchmarks import results
from benchmarks.study import folder, loop, source_model
from pipeline import params_file, paths

NAME = "audit_town"


def main() -> None:
    """Run what is missing, then write the rows and the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--images", type=int, default=20, help="bought in every round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--town", type=int, nargs=3, default=[240, 160, 80], help="images of source, pool and test")
    parser.add_argument("--work", type=Path, default=Path("data/bench/audit_town"))
    given = parser.parse_args()
    work, rows = given.work.resolve(), []
    raw = params_file.read_yaml(results.ROOT / "params.yaml")
    names = [f"r{number:02d}" for number in range(given.rounds + 1)]
    raw["budget"] = {name: {"after": before, "images": given.images} for before, name in itertools.pairwise(names)}
    for seed in given.seeds:
        raw["seed"] = seed
        raw["prepare"]["town"] |= dict(zip(("source", "pool", "test"), given.town, strict=True)) | {"seed": seed}
        settings = params_file.parse(raw, "params.yaml")
        start, here = work / f"start-{seed}", work / f"loop-{seed}"
        with folder(start):
            source_model(settings)
        loop(settings, start, here, "town")
        with folder(here):
            rows += [row(seed, name) for name in names[1:]]
        save(rows)


def row(seed: int, round_name: str) -> dict[str, Any]:
    """One round: what was forecast, what came, what the audit says; runs in the run's folder."""
    forecast, audit, measures = (
        json.loads(path(round_name).read_text()) for path in (paths.forecast, paths.audit, paths.metrics)
    )
    held = forecast["low"] <= measures["miou"] <= forecast["high"]
    wanted = ("predicted", "realised", "through_origin", "slope", "spearman", "p_value", "signal", "calibration_error")
    return {
        "seed": seed,
        "round": round_name,
        **{name: forecast[name] for name in ("miou_before", "expected", "low", "high")},
        "miou": measures["miou"],
        "held": held,
        **{name: audit[name] for name in wanted},
    }


def save(rows: list[dict[str, Any]]) -> None:
    """The rows so far, the counts, and a table with a line per round."""
    held, signals = (sum(row[name] is True for row in rows) for name in ("held", "signal"))
    table = [
        {
            "seed": row["seed"],
            "round": row["round"],
            "forecast": f"{100 * row['low']:.1f} to {100 * row['high']:.1f}",
            "mIoU": f"{100 * row['miou']:.1f}",
            "held": "yes" if row["held"] else "no",
            "gain predicted": f"{row['predicted']:.2f}",
            "realised": f"{row['realised']:.2f}",
            "rank correlation": "-" if row["spearman"] is None else f"{row['spearman']:.2f}",
            "p": f"{row['p_value']:.3f}",
            "signal": {True: "yes", False: "no", None: "-"}[row["signal"]],
        }
        for row in rows
    ]
    results.save(NAME, {"rounds": len(rows), "held": held, "signals": signals, "rows": rows}, table)
    print(f"{held} of {len(rows)} forecasts held, {signals} audits found a signal", flush=True)


if __name__ == "__main__":
    main()
