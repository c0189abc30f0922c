"""Rewards: how good a labelling is, from the pixel counts that it shares with the truth.

A *count reward* is a function of the confusion matrix K, pooled over any set of images: K_tp pixels of true class t
were labelled p. It knows no images, so the same function serves one image, a batch, or a running pool, and the change
that relabelling one pixel makes is exact and cheap (pipeline/policy.py). Higher is better; the truth scores highest.

    pooled_miou      mean over the classes with K_c. > 0 of K_cc / (K_c. + K_.c - K_cc)
                     Everingham et al. 2015, "The PASCAL Visual Object Classes Challenge: A Retrospective"
    pixel_accuracy   sum_c K_cc / sum K
                     Long et al. 2015, "Fully Convolutional Networks for Semantic Segmentation"
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float64, Int64, UInt8
from torch import Tensor

from pipeline import metrics


class Reward(NamedTuple):
    """A reward and what it is made of."""

    total: Float64[Tensor, "*batch"]
    terms: dict[str, Float64[Tensor, "*batch c"]]
    """By name: one value per class."""


CountReward = Callable[[Float64[Tensor, "*batch c c"]], Reward]
"""(confusion matrices, rows = truth) -> the reward of each. Counts may be fractions: a memory decays."""


def count(
    labelling: UInt8[Tensor, "n h w"] | Int64[Tensor, "n h w"],
    truth: UInt8[Tensor, "n h w"] | Int64[Tensor, "n h w"],
    classes: int,
) -> Float64[Tensor, "c c"]:
    """Confusion matrix of a labelling, as the rewards take it; IGNORE counts nowhere."""
    return metrics.confusion(labelling, truth, classes).double()


def pooled_miou(confusion: Float64[Tensor, "*batch c c"]) -> Reward:
    """Mean IoU over the classes present in the truth, in [0, 1]. Terms: `iou`, 0 for a class that is absent.

    Not defined (NaN) without a counted pixel.
    """
    intersection = confusion.diagonal(dim1=-2, dim2=-1)
    truth = confusion.sum(-1)
    union = truth + confusion.sum(-2) - intersection
    present = truth > 0
    iou = torch.where(present, intersection / union, 0)
    return Reward(iou.sum(-1) / present.sum(-1), {"iou": iou})


def pixel_accuracy(confusion: Float64[Tensor, "*batch c c"]) -> Reward:
    """Share of the pixels with their true label, in [0, 1]. Terms: `correct`, the share of each class; they add up.

    Not defined (NaN) without a counted pixel.
    """
    correct = confusion.diagonal(dim1=-2, dim2=-1) / confusion.sum((-2, -1)).unsqueeze(-1)
    return Reward(correct.sum(-1), {"correct": correct})


REWARDS: dict[str, CountReward] = {"pooled_miou": pooled_miou, "pixel_accuracy": pixel_accuracy}
