"""Stage: measures a round's model on the test set, at the labels' own size. Nothing is chosen or tuned on it.

Both decoders are measured, so that the effect of tuning can be told from that of decoding. So is the reward that
`tune.reward.reward` names, of the argmax labels at the network's size, where `tune` rewards them: that of pooled_miou
therefore differs a little from `miou_argmax`.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pipeline import artifacts, paths
from pipeline.errors import UserError, choose
from pipeline.evaluation import metrics
from pipeline.images import reading
from pipeline.images.claims import highest
from pipeline.images.classes import IGNORE
from pipeline.images.items import Item, items_of
from pipeline.networks import decoding, inference, saved
from pipeline.networks.devices import Devices
from pipeline.params import Compute, Evaluate, Model, Roots, Tune
from pipeline.rewards import REWARDS
from pipeline.training import losses, reward_tuning

CLASS_SMOOTH = 0.05
"""Smoothing of the class weights that `weighted_iou` and `detection` have here. They come from the pixels of the test
set, so that they are the same for every round, whatever `tune` weighs by, and rounds can be compared."""


def run(round_name: str, *, roots: Roots, model: Model, tune: Tune, evaluate: Evaluate, compute: Compute) -> None:
    """Write the metrics of a round and its confusion matrix.

    Raises:
        UserError: the model gives no probabilities, or the reward is unknown.
    """
    devices = Devices.start(compute)
    classes = artifacts.load_classes()
    table = artifacts.load_ids("test", classes)
    items = items_of(artifacts.load_manifest("test", roots.test), table)
    network, calibration = saved.open_network(round_name, model, classes)
    # Without the pool's own masks, which only the oracle may open.
    pool = artifacts.load_images(round_name, roots.pool).assign(mask="")
    places = np.linspace(0, len(pool) - 1, min(evaluate.decode_images, len(pool))).round().astype(int)
    seen = items_of(pool.iloc[places], table)
    pixels = inference.sampled_probabilities(devices, network, seen, model.size, compute, calibration)
    try:
        decoder = decoding.fit(pixels)
    except ValueError as error:
        raise UserError(f"{paths.model(round_name)}: {error}: train it with a lower lr, or in 32-true") from None
    confusions = {
        name: torch.zeros((len(classes.names),) * 2, dtype=torch.int64) for name in ("argmax", "expected_iou")
    }
    reliability = torch.zeros((evaluate.calibration_bins, 3), dtype=torch.float64)
    pixels_by_class = torch.ones(len(classes.names), dtype=torch.int64)
    if choose("tune.reward.reward", REWARDS, tune.reward.reward).needs_weights:
        pixels_by_class = _pixels(devices, items, len(classes.names))  # reads every mask once more
    weights = losses.class_weights(pixels_by_class, CLASS_SMOOTH)
    reward = reward_tuning.reward_function(tune.reward, weights, classes)
    rewarded = reward_tuning.nothing(reward)
    for out in inference.outputs(devices, network, items, model.size, compute, f"evaluate {round_name}"):
        rewarded = rewarded + reward_tuning.seen(reward, out, model.size)
        for logits, mask in zip(out.logits, out.batch.masks, strict=True):
            if mask is None:
                raise AssertionError("prepare lets no test image without a mask pass")
            full = inference.upsample(logits, (mask.shape[0], mask.shape[1]))[None]
            truth = mask[None].to(full.device)
            probabilities = calibration.apply(full).softmax(1)
            # Argmax of the uncalibrated logits: a bias fitted to the model before must not change what is measured.
            labellings = {"argmax": highest(full)[1], "expected_iou": decoding.decode(probabilities, decoder)}
            for name, prediction in labellings.items():
                confusions[name] += metrics.confusion(prediction, truth, len(classes.names)).cpu()
            reliability += metrics.reliability(probabilities, truth, evaluate.calibration_bins).cpu()
    confusions = {name: devices.total(counts) for name, counts in confusions.items()}
    reliability = devices.total(reliability)
    rewarded = devices.total(rewarded)
    if devices.is_first:
        confusion = confusions[evaluate.decode]
        miou = metrics.miou(confusion)
        iou = zip(classes.names, metrics.iou(confusion).tolist(), strict=True)
        content = {
            "miou": miou,
            **{f"miou_{name}": metrics.miou(counts) for name, counts in confusions.items()},
            "accuracy": metrics.pixel_accuracy(confusion),
            "calibration_error": metrics.expected_calibration_error(reliability),
            **_measured(f"reward_{tune.reward.reward}", reward.value(rewarded).total),
            "iou": {name: value for name, value in iou if value == value},  # absent from the test set: NaN
        }
        artifacts.save_metrics(round_name, content, classes.names, confusion.numpy())
        print(f"{round_name}: mIoU {100 * miou:.1f} on {len(items)} test images")


def _pixels(devices: Devices, items: Sequence[Item], classes: int) -> Tensor:
    """Labelled pixels of the test set by class, summed over all processes."""
    counts = torch.zeros(classes, dtype=torch.int64)
    for item in items[devices.rank :: devices.processes]:
        for path in item.masks:
            mask = reading.read_mask(path, item.table)
            counts += torch.from_numpy(np.bincount(mask.ravel(), minlength=IGNORE + 1)[:classes])
    return devices.total(counts)


def _measured(name: str, value: Tensor) -> dict[str, float]:
    """The measure under its name; nothing where it is NaN, because the test set has, for instance, no boundary."""
    return {} if math.isnan(value) else {name: float(value)}
