"""Stage: the expected reward gain of every pool image that has no label yet, in one pass over the pool."""

from pathlib import Path

import pandas as pd

from pipeline import artifacts, batches, datasets, inference, paths, training
from pipeline.acquisitions import ACQUISITIONS
from pipeline.errors import UserError, choose
from pipeline.params import BudgetLine, Compute, Model, Prepare, Score


def run(round_name: str, line: BudgetLine, *, prepare: Prepare, model: Model, score: Score, compute: Compute) -> None:
    """Write scores.csv (gain, its parts, minutes), pool.csv (what gains are relative to), features.npz.

    Raises:
        UserError: the pool is used up, or a gain is not finite.
    """
    acquisition = choose("score.acquisition", ACQUISITIONS, score.acquisition)
    fabric = training.start(compute)
    classes = datasets.class_set(prepare.classes)
    bought = artifacts.load_labels(line.after)
    pool = artifacts.load_manifest("pool")
    left = pool[~pool["key"].isin({row["key"] for row in bought})]
    if left.empty:
        raise UserError(
            f"{round_name}: all {len(pool)} images of the pool are labelled: remove its line from the budget"
        )
    table = datasets.table(prepare.pool.dataset, Path(prepare.pool.root), classes)
    items = batches.items(left.assign(mask=""), table)  # the pool's own masks are none of the model's business

    network, temperature = training.open_network(line.after, model, classes)
    results = inference.outputs(fabric, network, items, model.size, compute, f"score {round_name}")
    sums = inference.statistics(
        fabric, results, temperature if score.calibrate else 1.0, acquisition.observe, total=len(items)
    )
    broken = ~sums.flatten(1).isfinite().all(1)
    if broken.any():
        raise UserError(
            f"{round_name}: the probabilities that {paths.model(line.after)} gives for "
            f"{left['key'].iloc[int(broken.nonzero()[0])]!r} are not finite: train it with a lower lr, or in 32-true"
        )
    try:
        gains = acquisition.gain(sums, sums.sum(0), score.smooth).numpy()
    except ValueError as error:
        raise UserError(f"{round_name}: score.smooth is {score.smooth:g}: {error}") from None
    minutes = [row["minutes"] for row in bought]
    if fabric.is_global_zero:
        frame = pd.DataFrame({"key": left["key"].to_numpy(), "gain": gains.sum(1)})
        frame["minutes"] = sum(minutes) / len(minutes) if minutes else score.minutes_per_image
        parts = pd.DataFrame(gains, columns=[f"gain_{name}" for name in classes.names])
        artifacts.save_scores(round_name, pd.concat([frame, parts], axis=1))
        artifacts.save_pool(round_name, classes.names, acquisition.statistics, sums.sum(0).numpy())
        artifacts.save_features(round_name, artifacts.Features.none())
        print(f"{round_name}: {len(frame)} images scored by {score.acquisition}, {paths.scores(round_name)}")
