"""How many planted errors are among the labels of lowest quality: in the demo town, by its models.

    make demo; python -m benchmarks.label_quality [--rounds r00 r01] [--seeds 10]

Of 100 random labels of the pool, 10 get one error: a whole connected area of .5 to 10 % of the image has another class,
drawn at random. A model that has trained on at most 20 of the pool's 160 labels judges them, calibrated, as the stage
`audit` does. Found: the share of the 10 that are among the 10 (20) ranked worst; by chance 10 (20) %.
"""

import argparse
from typing import Any

import cv2
import numpy as np

from benchmarks import results
from pipeline import artifacts, params_file
from pipeline.evaluation import label_quality
from pipeline.images.claims import highest
from pipeline.images.classes import IGNORE
from pipeline.images.items import items_of
from pipeline.networks import inference, saved
from pipeline.networks.devices import Devices

NAME = "label_quality"
LABELS, PLANTED = 100, 10
SMALLEST, LARGEST = 0.005, 0.1
"""Share of the image that an error covers."""
TEMPERATURES = (0.01, 0.03, 0.1, 0.3)
PERCENT = ("accuracy", "worst_10", "sd_10", "worst_20", "sd_20")


def plant(mask: np.ndarray, classes: int, rng: np.random.Generator) -> np.ndarray:
    """The mask with one area in a wrong class; the same if it has none of that size."""
    areas = []
    for number in np.unique(mask[mask != IGNORE]):
        _, numbered, stats, _ = cv2.connectedComponentsWithStats((mask == number).astype(np.uint8), connectivity=8)
        of_size = np.flatnonzero((stats[:, 4] >= SMALLEST * mask.size) & (stats[:, 4] <= LARGEST * mask.size))
        areas += [(number, numbered == place) for place in of_size if place]
    if not areas:
        return mask
    number, where = areas[rng.integers(len(areas))]
    wrong = mask.copy()
    wrong[where] = rng.choice([other for other in range(classes) if other != number])
    return wrong


def found(data: list[tuple[np.ndarray, np.ndarray]], seed: int) -> dict[str, tuple[float, float]]:
    """By ranking, the shares of the planted errors among the worst 10 % and 20 %."""
    rng, classes = np.random.default_rng(seed), data[0][0].shape[0]
    ranks: dict[str, list[float]] = {}
    judged, planted = [], set()
    for place, index in enumerate(rng.permutation(len(data))[:LABELS]):
        probabilities, mask = data[index]
        given = plant(mask, classes, rng) if place < PLANTED else mask
        planted |= {place} if (given != mask).any() else set()
        own = np.take_along_axis(probabilities, np.minimum(given, classes - 1)[None].astype(int), 0)[0]
        claim, best = probabilities.argmax(0).astype(np.uint8), probabilities.max(0)
        judged.append(label_quality.judge(classes, given, claim, own, best))
        for temperature in TEMPERATURES:
            quality = label_quality.softmin(own[given != IGNORE], temperature)
            ranks.setdefault(f"softmin, T = {temperature:g}", []).append(quality)
    limits = label_quality.thresholds(np.sum([one.sums for one in judged], 0))
    for one in judged:
        suspected = label_quality.suspected(one.contradicted, limits)
        areas = label_quality.areas(suspected)
        ranks.setdefault("share suspected", []).append(-len(suspected.place) / one.pixels)
        ranks.setdefault("doubt of the greatest area", []).append(-areas[0].doubt if areas else 0.0)
    worst = {name: np.argsort(values, kind="stable") for name, values in ranks.items()}
    return {
        name: tuple(len(planted & set(order[:most].tolist())) / len(planted) for most in (PLANTED, 2 * PLANTED))
        for name, order in worst.items()
    }


def main() -> None:
    """Measure and write docs/results/label_quality.*."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", nargs="+", default=["r01", "r00"])
    parser.add_argument("--seeds", type=int, default=10)
    given = parser.parse_args()
    params, classes = params_file.load(), artifacts.load_classes()
    devices = Devices.start(params.compute)
    items = items_of(artifacts.load_manifest("pool", params.roots.pool), artifacts.load_ids("pool", classes))
    rows: list[dict[str, Any]] = []
    for name in given.rounds:
        network, calibration = saved.open_network(name, params.model, classes)
        data, right = [], []
        for out in inference.outputs(devices, network, items, params.model.size, params.compute, name):
            probabilities = calibration.apply(out.logits).softmax(1)
            masks = inference.small_masks(out.batch, params.model.size)
            right.append((highest(probabilities)[1].cpu() == masks)[masks != IGNORE].float().mean().item())
            data += zip(probabilities.cpu().numpy(), masks.numpy(), strict=True)
        each = [found(data, 1000 + seed) for seed in range(given.seeds)]
        for ranking in each[0]:
            shares = np.array([one[ranking] for one in each])
            mean, spread = shares.mean(0), shares.std(0, ddof=1)
            rows.append(
                {"model": name, "accuracy": float(np.mean(right)), "ranking": ranking, "seeds": given.seeds}
                | {"worst_10": float(mean[0]), "sd_10": float(spread[0])}
                | {"worst_20": float(mean[1]), "sd_20": float(spread[1])}
            )
        table = [{k: f"{100 * v:.0f}" if k in PERCENT else v for k, v in row.items()} for row in rows]
        results.save(NAME, {"rows": rows}, table)


if __name__ == "__main__":
    main()
