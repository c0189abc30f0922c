"""Stage: forecasts the mIoU that the round will end with, before it is paid for.

Only this stage reads the test set's mIoU of the rounds before; selection, training and early stopping never do. Labels
are counted in images; a block counts as its share of one, regions as the share of their image's pixels that they cover.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from pipeline import artifacts, ledger, paths, storage
from pipeline.errors import counted
from pipeline.evaluation import curve
from pipeline.evaluation.curve import Round
from pipeline.images import blocks, region_maps
from pipeline.params import IN_POINTS, BudgetLine, Score


def run(round_name: str, line: BudgetLine, *, score: Score) -> None:
    """Write forecast.json: expected mIoU after the round, and an interval that holds it with a probability of 0.8."""
    labels = artifacts.load_labels(line.after)
    names = [paths.SOURCE_ROUND, *dict.fromkeys(row["round"] for row in labels)]
    asked = {order.key: order.regions for order in ledger.load().orders}
    each = [sum(_share(row["key"], asked) for row in labels if row["round"] == name) for name in names[1:]]
    bought = [0.0, *itertools.accumulate(each)]
    measured = artifacts.load_measured(line.after) | {line.after: artifacts.load_miou_share(line.after)}
    miou_points = [100 * measured[name] for name in names]
    purchases = artifacts.load_purchases(line.after)

    def gain_points(gains: Iterable[float]) -> float:
        return float(np.sum([*gains])) if score.acquisition in IN_POINTS else 0.0

    rounds = [
        Round(before, after, gain_points(purchases[row["key"]]["gain"] for row in labels if row["round"] == name))
        for name, (before, after) in zip(names[1:], itertools.pairwise(bought), strict=True)
    ]
    changes = [after - before for before, after in itertools.pairwise(miou_points)]
    selection = artifacts.load_selection(round_name)
    keys = selection["key"]
    images = len(keys)
    to_ask = {key: blocks.numbers(text) for key, text in zip(keys, selection["regions"], strict=True)}
    more = sum(_share(key, to_ask) for key in keys)
    following = Round(bought[-1], bought[-1] + more, gain_points(selection["gain"].astype(float)))
    found = curve.forecast(list(zip(rounds, changes, strict=True)), following, miou_points[-1])
    shares = {name.removesuffix("_points"): value / 100 for name, value in found._asdict().items()}
    content = {"round": round_name, "images": images, "miou_before": miou_points[-1] / 100, **shares}
    storage.save_json(paths.forecast(round_name), content | {"level": curve.LEVEL, "measured": measured})
    print(
        f"{round_name}: {counted(images, 'more label')}; mIoU {miou_points[-1]:.1f} now, "
        f"{found.expected_points:.1f} expected, {found.low_points:.1f} to {found.high_points:.1f} with a probability "
        f"of {curve.LEVEL:g}"
    )


def _share(key: str, regions: Mapping[str, Sequence[int]]) -> float:
    """How much of an image a label covers; that of some regions by their map."""
    return region_maps.share(blocks.image_of(key), regions[key]) if blocks.is_of_regions(key) else blocks.share(key)
