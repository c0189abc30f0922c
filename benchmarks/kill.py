"""Kills the loop at random moments and compares what it ends with to an undisturbed run (tests/kill.py).

`python -m benchmarks.kill --kills 50` runs the loop of two rounds on a tiny town once undisturbed, then in an equal
project where `dvc repro` and all that it started are killed (SIGKILL) again and again: as often in each stage, at a
moment drawn evenly from the stage's duration, DVC's own work after it included. Then `annotate`, the stage that
spends, is killed by itself in the moments after it has ordered.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np

from benchmarks import results
from tests import kill


def main() -> None:
    """Run both studies and write docs/results/kill.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50, help="of `dvc repro`; as many again of `annotate`")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--unit", choices=("image", "region"), default="image", help="of what is bought")
    given = parser.parse_args()
    rng = np.random.default_rng(given.seed)
    with tempfile.TemporaryDirectory(prefix="regain-kill-") as folder:
        reference = kill.undisturbed(Path(folder) / "undisturbed", 2, threads=None, unit=given.unit)
        studies = {
            "dvc repro": kill.study(reference, Path(folder) / "killed", given.kills, rng),
            "annotate": kill.annotate_study(reference.project, given.kills, rng),
        }
    table = [
        {
            "killed": name,
            "kills": sum(count for where, count in done.kills.items() if not where.startswith("nowhere")),
            "labels lost": len(done.lost),
            "bought twice": len(done.bought_twice),
            "files different in the end": len(done.different),
            "DVC's own files cut short": ", ".join(done.cut_short) or "none",
            "trainings resumed": done.resumed,
        }
        for name, done in studies.items()
    ]
    content = {
        **kill.totals(studies["dvc repro"]),
        "seed": given.seed,
        "unit": given.unit,
        "seconds": reference.seconds,
        "studies": {n: s._asdict() for n, s in studies.items()},
    }
    results.save("kill" if given.unit == "image" else f"kill_{given.unit}", content, table)
    print(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
