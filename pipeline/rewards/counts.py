"""Count rewards: functions of the confusion matrix K alone, K_tp pixels of true class t that were labelled p.

What relabelling one pixel does to such a reward can be computed exactly and cheaply. K may hold fractions.
"""

import torch
from jaxtyping import Bool, Float64, Int64, UInt8
from torch import Tensor

from pipeline.evaluation import metrics
from pipeline.images.classes import IGNORE
from pipeline.rewards.contract import (
    CountReward,
    Labels,
    Reward,
    RewardFunction,
    Settings,
    masked,
    refuse_nonsense,
    share,
)


def count(
    labelling: UInt8[Tensor, "n h w"] | Int64[Tensor, "n h w"],
    truth: UInt8[Tensor, "n h w"] | Int64[Tensor, "n h w"],
    classes: int,
) -> Float64[Tensor, "c c"]:
    """Confusion matrix of a labelling, in float64 as the rewards take it; pixels whose truth is IGNORE are left out."""
    return metrics.confusion(labelling, truth, classes).double()


def pooled_miou(confusion: Float64[Tensor, "*batch c c"]) -> Reward:
    """Mean IoU over the classes present in the truth, in [0, 1]. Terms: `iou`, 0 for a class that is absent."""
    iou = _iou(confusion)
    return Reward(iou.sum(-1) / _present(confusion).sum(-1), {"iou": iou})


def weighted_iou(confusion: Float64[Tensor, "*batch c c"], weights: Float64[Tensor, " c"]) -> Reward:
    """Weighted mean IoU over the classes present in the truth, in [0, 1]. Terms: `iou`, not weighted."""
    iou, weights = _iou(confusion), weights.to(confusion)
    return Reward((weights * iou).sum(-1) / (weights * _present(confusion)).sum(-1), {"iou": iou})


def dice(confusion: Float64[Tensor, "*batch c c"]) -> Reward:
    """Mean Dice coefficient (F1) over the classes present in the truth, in [0, 1]. Terms: `dice`, 0 for absent ones."""
    coefficient = share(2 * confusion.diagonal(dim1=-2, dim2=-1), confusion.sum(-1) + confusion.sum(-2))
    return Reward(coefficient.sum(-1) / _present(confusion).sum(-1), {"dice": coefficient})


def pixel_accuracy(confusion: Float64[Tensor, "*batch c c"]) -> Reward:
    """Share of the pixels with their true label, in [0, 1]. Terms: `correct`, the share of each class; they add up."""
    correct = confusion.diagonal(dim1=-2, dim2=-1) / confusion.sum((-2, -1)).unsqueeze(-1)
    return Reward(correct.sum(-1), {"correct": correct})


def expected_cost(confusion: Float64[Tensor, "*batch c c"], costs: Float64[Tensor, "c c"]) -> Reward:
    """Mean cost of a pixel, negative: 0 at the truth. Terms: `cost`, what each true class adds to it."""
    cost = -(confusion * costs.to(confusion)).sum(-1) / confusion.sum((-2, -1)).unsqueeze(-1)
    return Reward(cost.sum(-1), {"cost": cost})


def _iou(confusion: Float64[Tensor, "*batch c c"]) -> Float64[Tensor, "*batch c"]:
    intersection = confusion.diagonal(dim1=-2, dim2=-1)
    return share(intersection, confusion.sum(-1) + confusion.sum(-2) - intersection)


def _present(confusion: Float64[Tensor, "*batch c c"]) -> Bool[Tensor, "*batch c"]:
    return confusion.sum(-1) > 0


def pooled(settings: Settings, of_counts: CountReward) -> RewardFunction:
    """The reward function that applies `of_counts` to the summed confusion matrix of all images."""
    refuse_nonsense(settings)
    c = settings.classes

    def statistics(labelling: Labels, truth: UInt8[Tensor, "n h w"]) -> Float64[Tensor, "n s"]:
        return confusions(labelling, truth, c).flatten(1)

    def value(statistics: Float64[Tensor, "*batch s"]) -> Reward:
        return of_counts(statistics.reshape(*statistics.shape[:-1], c, c))

    def credit(
        labelling: Labels, truth: UInt8[Tensor, "n h w"], weights: Float64[Tensor, " s"]
    ) -> Float64[Tensor, "n h w"]:
        labelling = masked(labelling, truth, c)
        entry = torch.where(truth == IGNORE, c * c, truth.long() * c + labelling)
        return torch.cat([weights, weights.new_zeros(1)])[entry]

    return RewardFunction(statistics, value, lambda statistics: statistics.sum(-1), of_counts, credit=credit)


def image_miou(settings: Settings) -> RewardFunction:
    """Mean over the images with a labelled pixel of the mIoU over each one's classes, in [0, 1].

    Terms: `iou`, per class, the mean over the images that have it. Csurka et al. 2013, "What is a good evaluation
    measure for semantic segmentation?" The statistics are the sum of the mIoUs and the number of images, then the sum
    of IoUs and the number of images of every class.
    """
    refuse_nonsense(settings)

    def statistics(labelling: Labels, truth: UInt8[Tensor, "n h w"]) -> Float64[Tensor, "n s"]:
        confusion = confusions(labelling, truth, settings.classes)
        iou, present = _iou(confusion), _present(confusion).double()
        labelled = present.amax(1, keepdim=True)
        miou = share(iou.sum(1, keepdim=True), present.sum(1, keepdim=True))
        return torch.cat([miou, labelled, iou, present], dim=1)

    def value(statistics: Float64[Tensor, "*batch s"]) -> Reward:
        c = settings.classes
        miou, images, iou, present = torch.split(statistics, [1, 1, c, c], dim=-1)
        return Reward((miou / images).squeeze(-1), {"iou": share(iou, present)})

    return RewardFunction(statistics, value, lambda statistics: statistics[..., 1], pooled_miou, per_image=True)


def confusions(labelling: Labels, truth: UInt8[Tensor, "n h w"], classes: int) -> Float64[Tensor, "n c c"]:
    """Confusion matrix of every image."""
    n, valid = len(truth), truth != IGNORE
    image = torch.arange(n, device=truth.device).view(n, 1, 1)
    entry = (image * classes + truth) * classes + masked(labelling, truth, classes)
    counts = torch.bincount(entry[valid], minlength=n * classes * classes)
    return counts.reshape(n, classes, classes).double()
