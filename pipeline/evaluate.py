"""Stage: measures a round's model on the test set, at the labels' own size. Nothing is chosen or tuned here."""

from pathlib import Path

import torch

from pipeline import artifacts, batches, datasets, inference, metrics, training
from pipeline.params import Compute, Evaluate, Model, Prepare


def run(round_name: str, *, prepare: Prepare, model: Model, evaluate: Evaluate, compute: Compute) -> None:
    """Write the metrics of a round and its confusion matrix."""
    fabric = training.start(compute)
    classes = datasets.class_set(prepare.classes)
    table = datasets.table(prepare.test.dataset, Path(prepare.test.root), classes)
    items = batches.items(artifacts.load_manifest("test"), table)
    network, temperature = training.open_network(round_name, model, classes)
    confusion = torch.zeros((len(classes.names),) * 2, dtype=torch.int64)
    reliability = torch.zeros((evaluate.calibration_bins, 3), dtype=torch.float64)
    for out in inference.outputs(fabric, network, items, model.size, compute, f"evaluate {round_name}"):
        for logits, mask in zip(out.logits, out.batch.masks, strict=True):
            if mask is None:
                raise AssertionError("prepare lets no test image without a mask pass")
            full = inference.upsample(logits, (mask.shape[0], mask.shape[1]))[None]
            truth = mask[None].to(full.device)
            confusion += metrics.confusion(full.argmax(1), truth, len(classes.names)).cpu()
            probabilities = (full / temperature).softmax(1)
            reliability += metrics.reliability(probabilities, truth, evaluate.calibration_bins).cpu()
    confusion, reliability = training.total(fabric, confusion), training.total(fabric, reliability)
    if fabric.is_global_zero:
        miou = metrics.miou(confusion)
        iou = zip(classes.names, metrics.iou(confusion).tolist(), strict=True)
        content = {
            "miou": miou,
            "accuracy": metrics.pixel_accuracy(confusion),
            "calibration_error": metrics.expected_calibration_error(reliability),
            "iou": {name: value for name, value in iou if value == value},  # absent from the test set: NaN
        }
        artifacts.save_metrics(round_name, content, classes.names, confusion.numpy())
        print(f"{round_name}: mIoU {100 * miou:.1f} on {len(items)} test images")
