"""Stage: the expected reward gain of every pool image that has no label yet, in one pass over the pool."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64
from torch import Tensor

from pipeline import artifacts, batches, costs, datasets, inference, paths, scoring, training
from pipeline.errors import UserError
from pipeline.features import Pooled
from pipeline.params import BudgetLine, Compute, Model, Prepare, Score


def run(
    round_name: str, line: BudgetLine, *, seed: int, prepare: Prepare, model: Model, score: Score, compute: Compute
) -> None:
    """Write scores.csv (gain, its part per class, predicted minutes) and pool.csv (what the gains are relative to).

    And features.npz: of the images left and of those bought before, or of none if `score.features` is false.

    Raises:
        UserError: the pool is used up, a gain is not finite, or the model cannot have members or features.
    """
    fabric = training.start(compute)
    classes = datasets.class_set(prepare.classes)
    bought = artifacts.load_labels(line.after)
    pool = artifacts.load_manifest("pool")
    labelled = pool["key"].isin({row["key"] for row in bought})
    left = pool[~labelled]
    if left.empty:
        raise UserError(
            f"{round_name}: all {len(pool)} images of the pool are labelled: remove its line from the budget"
        )
    table = datasets.table(prepare.pool.dataset, Path(prepare.pool.root), classes)
    seen = pd.concat([left, pool[labelled]]) if score.features else left
    items = batches.items(seen.assign(mask=""), table)  # the pool's own masks are none of the model's business

    network, temperature = training.open_network(line.after, model, classes)
    rounds = len({row["round"] for row in bought})
    scorer = scoring.start(round_name, line.after, network, temperature, score, seed=seed, rounds=rounds)
    of_pixel = None
    if scorer.acquisition.worth:
        of_pixel = scoring.sampled_worth(fabric, scorer, items[: len(left)], model, compute)
    grid = scorer.acquisition.members or score.features
    results = inference.outputs(fabric, network, items, model.size, compute, f"score {round_name}", grid)
    pooled: list[Pooled] = []
    if score.features:
        results = scoring.pooling(fabric, scorer, results, len(classes.names), seed, pooled)
    work: list[Tensor] = []
    sums = scorer.statistics(fabric, results, items, of_pixel, lambda p: work.append(costs.observe(p)))[: len(left)]
    gains = scorer.gain(sums).numpy()
    effort = batches.gather(fabric, torch.cat(work), len(items)).numpy()[: len(left)]
    vectors = scoring.vectors(fabric, pooled, list(seen["key"]), len(left), score.smooth) if pooled else None
    if fabric.is_global_zero:
        frame = pd.DataFrame({"key": left["key"].to_numpy(), "gain": gains.sum(1)})
        frame["minutes"] = _minutes(effort, bought, score.minutes_per_image)
        frame[list(costs.FEATURES)] = effort
        parts = pd.DataFrame(gains, columns=[f"gain_{name}" for name in classes.names])
        artifacts.save_features(round_name, vectors or artifacts.Features.none())
        artifacts.save_scores(round_name, pd.concat([frame, parts], axis=1))
        artifacts.save_pool(round_name, classes.names, scorer.acquisition.statistics, sums.sum(0).numpy())
        print(f"{round_name}: {len(frame)} images scored by {score.acquisition}, {paths.scores(round_name)}")


def _minutes(
    effort: Float64[np.ndarray, "m 3"], bought: Sequence[dict[str, Any]], until_known: float
) -> Float64[np.ndarray, " m"]:
    """Predicted minutes, from those of the labels that have come back and what was said of their images before."""
    if not bought:
        return np.full(len(effort), until_known)
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
    return costs.predict(effort, coefficients)
