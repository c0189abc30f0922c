"""Stage: measures a round's model on the test set, at the labels' own size. Nothing is chosen or tuned on it.

Both decoders are measured, so that what tuning brings and what decoding brings are not taken for each other.
"""

import numpy as np
import torch

from pipeline import artifacts, batches, decoding, inference, metrics, paths, training
from pipeline.claims import highest
from pipeline.errors import UserError
from pipeline.params import Compute, Evaluate, Model, Roots


def run(round_name: str, *, roots: Roots, model: Model, evaluate: Evaluate, compute: Compute) -> None:
    """Write the metrics of a round and its confusion matrix.

    Raises:
        UserError: the model gives no probabilities.
    """
    fabric = training.start(compute)
    classes = artifacts.load_classes()
    table = artifacts.load_ids("test", classes)
    items = batches.items(artifacts.load_manifest("test", roots.test), table)
    network, calibration = training.open_network(round_name, model, classes)
    # The pool's own masks are none of the model's business.
    pool = artifacts.load_images(round_name, roots.pool).assign(mask="")
    places = np.linspace(0, len(pool) - 1, min(evaluate.decode_images, len(pool))).round().astype(int)
    seen = batches.items(pool.iloc[places], table)
    pixels = inference.probabilities(fabric, network, seen, model.size, compute, calibration)
    try:
        decoder = decoding.fit(pixels)
    except ValueError as error:
        raise UserError(f"{paths.model(round_name)}: {error}: train it with a lower lr, or in 32-true") from None
    confusions = {
        name: torch.zeros((len(classes.names),) * 2, dtype=torch.int64) for name in ("argmax", "expected_iou")
    }
    reliability = torch.zeros((evaluate.calibration_bins, 3), dtype=torch.float64)
    for out in inference.outputs(fabric, network, items, model.size, compute, f"evaluate {round_name}"):
        for logits, mask in zip(out.logits, out.batch.masks, strict=True):
            if mask is None:
                raise AssertionError("prepare lets no test image without a mask pass")
            full = inference.upsample(logits, (mask.shape[0], mask.shape[1]))[None]
            truth = mask[None].to(full.device)
            probabilities = calibration.apply(full).softmax(1)
            # The network's own labels: a bias that was fitted to the model before must not change what is measured.
            labellings = {"argmax": highest(full)[1], "expected_iou": decoding.decode(probabilities, decoder)}
            for name, prediction in labellings.items():
                confusions[name] += metrics.confusion(prediction, truth, len(classes.names)).cpu()
            reliability += metrics.reliability(probabilities, truth, evaluate.calibration_bins).cpu()
    confusions = {name: training.total(fabric, counts) for name, counts in confusions.items()}
    reliability = training.total(fabric, reliability)
    if fabric.is_global_zero:
        confusion = confusions[evaluate.decode]
        miou = metrics.miou(confusion)
        iou = zip(classes.names, metrics.iou(confusion).tolist(), strict=True)
        content = {
            "miou": miou,
            **{f"miou_{name}": metrics.miou(counts) for name, counts in confusions.items()},
            "accuracy": metrics.pixel_accuracy(confusion),
            "calibration_error": metrics.expected_calibration_error(reliability),
            "iou": {name: value for name, value in iou if value == value},  # absent from the test set: NaN
        }
        artifacts.save_metrics(round_name, content, classes.names, confusion.numpy())
        print(f"{round_name}: mIoU {100 * miou:.1f} on {len(items)} test images")
