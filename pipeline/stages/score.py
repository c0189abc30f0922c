"""Stage: the expected reward gain of what has no label yet, in one pass: of pool images, blocks of them, or regions."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float64

from pipeline import artifacts, ledger, paths, streams
from pipeline.errors import UserError
from pipeline.gain import minutes
from pipeline.gain.pool import Cut, Parts, Scored, score_pool
from pipeline.gain.scorer import start_scorer
from pipeline.images import blocks, region_maps, region_scores
from pipeline.images.blocks import Grid
from pipeline.images.classes import IGNORE, ClassSet
from pipeline.images.items import id_table_of_labels, items_of
from pipeline.images.masks import load_mask
from pipeline.images.region_scores import RegionScores
from pipeline.images.seen import seen_boxes
from pipeline.ledger import candidates
from pipeline.ledger.entries import Order
from pipeline.networks import saved
from pipeline.networks.devices import Devices
from pipeline.params import IN_POINTS, BudgetLine, Compute, Model, Roots, Score


def run(
    round_name: str, line: BudgetLine, *, seed: int, roots: Roots, model: Model, score: Score, compute: Compute
) -> None:
    """Write scores.csv, pool.csv, features.npz and regions.npz.

    Per image left the gain, its part per class and the predicted minutes; the pool's summed statistics, which the gains
    are relative to; the features of the images left and those bought, empty if `score.features` is false; the gains of
    the regions left, empty if `score.unit` is another.

    Raises:
        UserError: the pool is used up, a gain is not finite, the model cannot have members or features, or what was
            ordered before was of another unit.
    """
    book = ledger.load()
    unit: blocks.Unit = "region" if score.unit == "region" else score.grid or "image"
    blocks.check_unit(unit, [entry.key for entry in book.entries], str(paths.LEDGER))
    devices = Devices.start(compute)
    classes = ledger.classes()
    bought = artifacts.load_labels(line.after)
    pool = artifacts.load_images(round_name, roots.pool)
    regions = score.unit == "region"
    paid = {row["key"] for row in bought}
    orders = [order for order in book.orders if order.key in paid]
    answered = candidates.regions(orders)
    free = _free(pool, answered) if regions else _unpaid(pool, score.grid, paid)
    labelled = np.array([not of.any() for of in free])
    left = pool[~labelled]
    if left.empty:
        number = sum(map(len, free))
        raise UserError(
            f"{round_name}: all {number} {score.unit}s of the pool are labelled: remove its line from the budget"
        )
    seen = pd.concat([left, pool[labelled]]) if score.features else left
    # Without the pool's own masks, which only the oracle may open.
    items = items_of(seen.assign(mask=""), id_table_of_labels(len(classes.names)))

    network, calibration = saved.open_network(line.after, model, classes)
    rounds = len({row["round"] for row in bought})
    scorer = start_scorer(round_name, line.after, network, calibration, score, seed=seed, rounds=rounds)
    cut: Cut | None = None
    if regions:
        cut = _into_regions(seen, answered, model.size)
    elif score.grid is not None:
        cut = _into_blocks(left, [of for of in free if of.any()], score.grid, model.size)
    features_seed, known = None, None
    if score.features:
        features_seed = streams.seed_of(seed, round_name, "features")
        known = _labelled(pool[labelled]["key"], [row["key"] for row in bought], model.size, classes)
    found = score_pool(devices, scorer, items, len(left), model, compute, features_seed, cut, known)
    if not devices.is_first:
        return
    of_regions = RegionScores.none()
    if regions:
        of_regions = _of_regions(found, model.size, score, orders, bought)
        frame = _by_image(of_regions, left, classes)
    else:
        units = [blocks.keys(key, score.grid) for key in left["key"]]
        keys = [units[image][part] for image, part in zip(found.image, found.part, strict=True)]
        frame = pd.DataFrame({"key": keys, "gain": found.gains.sum(1)})
        if score.grid is not None:
            frame.insert(1, "image", [blocks.image_of(key) for key in keys])
        until_known = score.minutes_per_image * blocks.share(keys[0])
        frame["minutes"] = _minutes(found.effort, bought, artifacts.load_purchases(line.after), until_known)
        frame[list(minutes.FEATURES)] = found.effort
        parts = pd.DataFrame(found.gains, columns=[f"gain_{name}" for name in classes.names])
        frame = pd.concat([frame, parts], axis=1)
    artifacts.save_features(round_name, found.features)
    region_scores.save(round_name, of_regions)
    artifacts.save_scores(round_name, frame)
    artifacts.save_pool(round_name, classes.names, scorer.acquisition.statistics, found.pool)
    print(f"{round_name}: {len(found.part)} {score.unit}s scored by {score.acquisition}, {paths.scores(round_name)}")


def _unpaid(pool: pd.DataFrame, grid: Grid | None, paid: set[str]) -> list[Bool[np.ndarray, " b"]]:
    """Which blocks of every image may be bought; of whole images the one."""
    return [np.array([key not in paid for key in blocks.keys(image, grid)]) for image in pool["key"]]


def _free(pool: pd.DataFrame, answered: Mapping[str, set[int]]) -> list[Bool[np.ndarray, " b"]]:
    """Which regions of every image may be bought; of an image without an answer only that there are some."""
    return [
        _open(region_maps.load(key), answered[key]) if key in answered else np.ones(1, np.bool_) for key in pool["key"]
    ]


def _open(regions: np.ndarray, answered: set[int]) -> Bool[np.ndarray, " b"]:
    """Which regions of a map are without an answer."""
    return ~np.isin(np.arange(int(regions.max()) + 1), list(answered))


def _into_blocks(left: pd.DataFrame, free: Sequence[Bool[np.ndarray, " b"]], grid: Grid, seen: tuple[int, int]) -> Cut:
    """How the images left are cut into blocks, of which some may be bought."""
    sizes = list(zip(left["height"].astype(int), left["width"].astype(int), strict=True))

    def cut(place: int) -> Parts:
        boxes = seen_boxes(grid, sizes[place], seen)
        of = np.zeros(seen, np.int64)
        for part, box in enumerate(boxes):
            of[box.top : box.bottom, box.left : box.right] = part
        return Parts(of, free[place], boxes)

    return cut


def _into_regions(images: pd.DataFrame, answered: Mapping[str, set[int]], seen: tuple[int, int]) -> Cut:
    """How images are cut into regions; maps are read when they are needed, since all at once may not fit."""

    def cut(place: int) -> Parts:
        row = images.iloc[place]
        regions = region_maps.load(row["key"], (int(row["height"]), int(row["width"])))
        return Parts(region_maps.enlarged(regions, seen), _open(regions, answered.get(row["key"], set())))

    return cut


def _of_regions(
    found: Scored,
    seen: tuple[int, int],
    score: Score,
    orders: Sequence[Order],
    bought: Sequence[dict[str, Any]],
) -> RegionScores:
    """Gains of regions as sums over their pixels, and what an answer costs."""
    gains = found.gains
    if score.acquisition not in IN_POINTS:  # means over the pixels of a unit: to the region's share of the image's
        gains = gains * (found.pixels / (seen[0] * seen[1]))[:, None]
    asked = {order.key: len(order.regions) for order in orders}
    times = np.array([(asked[row["key"]], row["minutes"]) for row in bought], float).reshape(-1, 2)
    prior = np.array([score.seconds_to_open, score.seconds_per_answer]) / 60
    price = minutes.fit_answers(times[:, 0], times[:, 1], prior)
    return RegionScores(
        found.image, found.part, found.pixels, gains.sum(1), gains.astype(np.float32), found.claim, price
    )


def _by_image(regions: RegionScores, left: pd.DataFrame, classes: ClassSet) -> pd.DataFrame:
    """A row for each image left: the sums over its regions, and the minutes that all of them would take."""
    images = len(left)
    number = np.bincount(regions.image, minlength=images)
    frame = pd.DataFrame({"key": left["key"].to_numpy()})
    frame["gain"] = np.bincount(regions.image, regions.gain, minlength=images)
    frame["minutes"] = regions.price[0] + regions.price[1] * number
    frame[list(minutes.FEATURES)] = np.stack([number, np.zeros(images), np.zeros(images)], axis=1)
    for place, name in enumerate(classes.names):
        frame[f"gain_{name}"] = np.bincount(regions.image, regions.parts[:, place], minlength=images)
    return frame


def _labelled(
    images: "pd.Series", bought: Sequence[str], seen: tuple[int, int], classes: ClassSet
) -> Float64[np.ndarray, "b c"]:
    """Labelled pixels by class of each of the images, all of which is bought, scaled to the network's size."""
    counts = pd.DataFrame(0.0, index=pd.Index(images), columns=range(len(classes.names)))
    for key in bought:
        if (image := blocks.image_of(key)) in counts.index:
            mask = load_mask(paths.mask(key))
            shown = np.bincount(mask.ravel(), minlength=IGNORE + 1)[: len(classes.names)]
            counts.loc[image] += shown * (seen[0] * seen[1] / mask.size)
    table: np.ndarray = counts.to_numpy()
    return table


def _minutes(
    effort: Float64[np.ndarray, "m 3"],
    bought: Sequence[dict[str, Any]],
    purchases: Mapping[str, Mapping[str, Any]],
    until_known: float,
) -> Float64[np.ndarray, " m"]:
    """Predicted minutes: fitted to the minutes of the labels that came back, by what was predicted of their images."""
    if not bought:
        return np.full(len(effort), until_known)
    for row in bought:
        key, name = row["key"], row["round"]
        if key not in purchases:
            raise UserError(
                f"{paths.purchases(name)} lacks {key!r}, which {name} bought: run `dvc repro -s -f annotate@{name}`, "
                f"then `dvc repro`"
            )
        if not purchases[key].keys() >= {*minutes.FEATURES}:
            raise UserError(
                f"{paths.scores(name)} lacks {key!r}, which {name} bought: run `dvc repro -s -f score@{name}`, "
                f"then `dvc repro`"
            )
    said = np.array([[purchases[row["key"]][name] for name in minutes.FEATURES] for row in bought], float)
    coefficients = minutes.fit(said, np.array([row["minutes"] for row in bought], float))
    return minutes.predict(effort, coefficients)
