"""The metrics: IoU and accuracy from a pooled confusion matrix, and the calibration error.

    IoU_c = K_cc / (sum_j K_cj + sum_i K_ic - K_cc),   mIoU = mean of IoU_c over the classes present in the truth

where K_tp counts the pixels of true class t that were given class p: Everingham et al. 2015, "The PASCAL Visual Object
Classes Challenge: A Retrospective". Counting is kept apart from dividing: counts add up over batches, processes and
images, ratios do not, and the mean of per-image IoUs is another number that is never meant here.

    ECE = sum_b (n_b / n) |correct_b - confidence_b|     Naeini et al. 2015; Guo et al. 2017, bins of equal width.
"""

import torch
from jaxtyping import Float, Float64, Int64, Real, UInt8
from torch import Tensor

from pipeline.images.claims import highest
from pipeline.images.classes import IGNORE


def confusion(
    prediction: UInt8[Tensor, "n h w"] | Int64[Tensor, "n h w"],
    truth: UInt8[Tensor, "n h w"] | Int64[Tensor, "n h w"],
    classes: int,
) -> Int64[Tensor, "c c"]:
    """Pixel counts by true class (row) and predicted class (column); pixels whose truth is IGNORE are left out.

    Raises:
        ValueError: an id among the counted pixels is not below `classes`.
    """
    valid = truth != IGNORE
    rows, columns = truth[valid].long(), prediction[valid].long()
    for name, ids in (("truth", rows), ("prediction", columns)):
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < classes:
            raise ValueError(f"{name} holds class {int(ids.max())}, but there are {classes} classes")
    return torch.bincount(rows * classes + columns, minlength=classes * classes).reshape(classes, classes)


def iou(confusion: Real[Tensor, "c c"]) -> Float64[Tensor, " c"]:
    """Intersection over union of every class, in [0, 1]; NaN for a class that the truth does not hold."""
    counts = confusion.double()
    intersection, truth, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
    union = truth + predicted - intersection
    return torch.where(truth > 0, intersection / union.clamp(min=torch.finfo(torch.float64).tiny), torch.nan)


def miou(confusion: Real[Tensor, "c c"]) -> float:
    """Mean IoU over the classes present in the truth, in [0, 1].

    Raises:
        ValueError: no pixel was counted.
    """
    _refuse_empty(confusion)
    return float(iou(confusion).nanmean())


def pixel_accuracy(confusion: Real[Tensor, "c c"]) -> float:
    """Share of the labelled pixels that were given their true class, in [0, 1].

    Raises:
        ValueError: no pixel was counted.
    """
    _refuse_empty(confusion)
    return float(confusion.diagonal().sum() / confusion.sum())


def reliability(
    probabilities: Float[Tensor, "n c h w"], truth: UInt8[Tensor, "n h w"] | Int64[Tensor, "n h w"], bins: int
) -> Float64[Tensor, "bins 3"]:
    """Sums per confidence bin, additive over batches: pixels, confidence, correct pixels. IGNORE is left out.

    Bin b holds the pixels whose highest probability lies in [b / bins, (b + 1) / bins); the last one also holds 1.
    """
    valid = truth != IGNORE
    best, claimed = highest(probabilities)
    confidence = best[valid].double()
    index = (confidence * bins).long().clamp(max=bins - 1)
    correct = (claimed == truth)[valid].double()
    values = torch.stack([torch.ones_like(confidence), confidence, correct], dim=1)
    return values.new_zeros(bins, 3).index_add_(0, index, values)


def expected_calibration_error(reliability: Float64[Tensor, "bins 3"]) -> float:
    """Mean distance between confidence and accuracy over the bins, weighted by their pixels, in [0, 1].

    Raises:
        ValueError: no pixel was counted.
    """
    pixels, confidence, correct = reliability.unbind(1)
    _refuse_empty(pixels)
    return float((confidence - correct).abs().sum() / pixels.sum())


def _refuse_empty(counts: Tensor) -> None:
    if not counts.sum() > 0:
        raise ValueError("no labelled pixel was counted, so there is nothing to measure")
