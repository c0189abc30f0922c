"""Stage: the expected reward gain of every pool image, or block of one, that has no label yet, in one pass over it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float64

from pipeline import artifacts, ledger, paths, streams
from pipeline.errors import UserError
from pipeline.gain import minutes
from pipeline.gain.pool import Cut, score_pool
from pipeline.gain.scorer import start_scorer
from pipeline.images import blocks
from pipeline.images.blocks import Grid
from pipeline.images.classes import IGNORE, ClassSet
from pipeline.images.items import id_table_of_labels, items_of
from pipeline.images.masks import load_mask
from pipeline.images.seen import seen_boxes
from pipeline.networks import saved
from pipeline.networks.devices import Devices
from pipeline.params import BudgetLine, Compute, Model, Roots, Score


def run(
    round_name: str, line: BudgetLine, *, seed: int, roots: Roots, model: Model, score: Score, compute: Compute
) -> None:
    """Write scores.csv, pool.csv and features.npz.

    Per image left the gain, its part per class and the predicted minutes; the pool's summed statistics, which the gains
    are relative to; the features of the images left and those bought, empty if `score.features` is false.

    Raises:
        UserError: the pool is used up, a gain is not finite, the model cannot have members or features, or what was
            ordered before was of another unit.
    """
    unit: blocks.Unit = score.blocks if score.unit == "block" else score.unit
    blocks.check_unit(unit, [entry.key for entry in ledger.load().entries], str(paths.LEDGER))
    devices = Devices.start(compute)
    classes = ledger.classes()
    bought = artifacts.load_labels(line.after)
    pool = artifacts.load_images(round_name, roots.pool)
    paid = {row["key"] for row in bought}
    units = np.array([blocks.keys(key, score.grid) for key in pool["key"]])  # (images, blocks), of whole images one
    free = np.array([[key not in paid for key in of] for of in units])
    labelled = ~free.any(1)
    left = pool[~labelled]
    if left.empty:
        raise UserError(
            f"{round_name}: all {units.size} {score.unit}s of the pool are labelled: remove its line from the budget"
        )
    seen = pd.concat([left, pool[labelled]]) if score.features else left
    # Without the pool's own masks, which only the oracle may open.
    items = items_of(seen.assign(mask=""), id_table_of_labels(len(classes.names)))

    network, calibration = saved.open_network(line.after, model, classes)
    rounds = len({row["round"] for row in bought})
    scorer = start_scorer(round_name, line.after, network, calibration, score, seed=seed, rounds=rounds)
    cut = None if score.grid is None else _cut(left, free[~labelled], score.grid, model.size)
    features_seed, known = None, None
    if score.features:
        features_seed = streams.seed_of(seed, round_name, "features")
        known = _labelled(pool[labelled], model.size, classes)
    found = score_pool(devices, scorer, items, len(left), model, compute, features_seed, cut, known)
    if devices.is_first:
        keys = units[free].tolist()
        frame = pd.DataFrame({"key": keys, "gain": found.gains.sum(1)})
        if score.grid is not None:
            frame.insert(1, "image", [blocks.image_of(key) for key in keys])
        until_known = score.minutes_per_image * blocks.share(keys[0])
        frame["minutes"] = _minutes(found.effort, bought, artifacts.load_purchases(line.after), until_known)
        frame[list(minutes.FEATURES)] = found.effort
        parts = pd.DataFrame(found.gains, columns=[f"gain_{name}" for name in classes.names])
        artifacts.save_features(round_name, found.features)
        artifacts.save_scores(round_name, pd.concat([frame, parts], axis=1))
        artifacts.save_pool(round_name, classes.names, scorer.acquisition.statistics, found.pool)
        print(f"{round_name}: {len(frame)} {score.unit}s scored by {score.acquisition}, {paths.scores(round_name)}")


def _cut(left: pd.DataFrame, free: Bool[np.ndarray, "m b"], grid: Grid, seen: tuple[int, int]) -> Cut:
    """The boxes of the blocks of the images left, at the network's size, and which of them may be bought."""
    sizes = zip(left["height"], left["width"], strict=True)
    return Cut([seen_boxes(grid, (int(height), int(width)), seen) for height, width in sizes], free)


def _labelled(bought: pd.DataFrame, seen: tuple[int, int], classes: ClassSet) -> Float64[np.ndarray, "b c"]:
    """Labelled pixels by class of each image bought, scaled to the network's size."""
    counts = np.zeros((len(bought), len(classes.names)))
    for row, key in zip(counts, bought["key"], strict=True):
        mask = load_mask(paths.mask(key))
        row += np.bincount(mask.ravel(), minlength=IGNORE + 1)[: len(row)] * (seen[0] * seen[1] / mask.size)
    return counts


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
