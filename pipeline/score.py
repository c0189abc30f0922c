"""Stage: the expected reward gain of every pool image that has no label yet, in one pass over the pool."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64
from torch import Tensor

from pipeline import artifacts, batches, costs, datasets, inference, paths, training
from pipeline.acquisitions import ACQUISITIONS
from pipeline.errors import UserError, choose
from pipeline.params import BudgetLine, Compute, Model, Prepare, Score


def run(round_name: str, line: BudgetLine, *, prepare: Prepare, model: Model, score: Score, compute: Compute) -> None:
    """Write scores.csv (gain, its part per class, predicted minutes) and pool.csv (what the gains are relative to).

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
    looks: list[Tensor] = []

    def observe(probabilities: Tensor) -> Tensor:
        looks.append(costs.observe(probabilities))
        return acquisition.observe(probabilities)

    sums = inference.statistics(fabric, results, temperature if score.calibrate else 1.0, observe, total=len(items))
    features = batches.gather(fabric, torch.cat(looks), len(items)).numpy()
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
    if fabric.is_global_zero:
        frame = pd.DataFrame({"key": left["key"].to_numpy(), "gain": gains.sum(1)})
        frame["minutes"] = _minutes(features, bought, score.minutes_per_image)
        frame[list(costs.FEATURES)] = features
        parts = pd.DataFrame(gains, columns=[f"gain_{name}" for name in classes.names])
        artifacts.save_scores(round_name, pd.concat([frame, parts], axis=1))
        artifacts.save_pool(round_name, classes.names, acquisition.statistics, sums.sum(0).numpy())
        print(f"{round_name}: {len(frame)} images scored by {score.acquisition}, {paths.scores(round_name)}")


def _minutes(
    features: Float64[np.ndarray, "m 3"], bought: Sequence[dict[str, Any]], until_known: float
) -> Float64[np.ndarray, " m"]:
    """Predicted minutes, from those of the labels that have come back and what was said of their images before."""
    if not bought:
        return np.full(len(features), until_known)
    seen = []
    for name in dict.fromkeys(row["round"] for row in bought):
        keys = [row["key"] for row in bought if row["round"] == name]
        table = artifacts.load_costs(name).set_index("key")
        lacking = [key for key in keys if key not in table.index]
        if lacking:
            raise UserError(
                f"{paths.scores(name)} lacks {lacking[0]!r}, which {name} bought: run `dvc repro score@{name}`"
            )
        seen.append(pd.DataFrame(table.loc[keys]).assign(minutes=[r["minutes"] for r in bought if r["round"] == name]))
    labelled = pd.concat(seen)
    coefficients = costs.fit(labelled[list(costs.FEATURES)].to_numpy(float), labelled["minutes"].to_numpy(float))
    return costs.predict(features, coefficients)
