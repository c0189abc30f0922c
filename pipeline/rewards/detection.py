"""The detection reward of Pinto et al. 2023, "Tuning computer vision models with task rewards", arXiv 2302.08242.

For one image, with predicted boxes i and true boxes j that both have confidence, of the same class, and an IoU above a
threshold,

    j(i)    = the true box that i overlaps most
    i(j)    = among the predicted boxes with j(i) = j, the one that overlaps j most: a match; the others are duplicates
    reward  = sum over matched j of w_class(j)  -  nms_weight * sum over duplicates i of w_class(i)

averaged over the thresholds. The first of equals wins, a box has one j(i) only, and an unmatched box costs nothing.
The class weights w are those of `pipeline.training.losses.class_weights` with the boxes of every class as counts.

It does what the published code does (big_vision, reward_tune/detection_reward.py), and so does one thing that the paper
does not say. That code keeps its results under the threshold's name with one decimal, so the last threshold of a name
replaces the others: given 0.5, 0.55, ... 0.95 it averages over 0.5, 0.6, 0.6, 0.7, 0.7, 0.85, 0.85, 0.85, 0.95, 0.95.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int64, Real, UInt8
from torch import Tensor

from pipeline.rewards import objects
from pipeline.rewards.contract import Labels, Reward, RewardFunction, Settings, masked, on_cpu, refuse_nonsense

THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
"""Those of the paper and of COCO's average precision."""
TERMS = ("reward", "num_matches", "nms_penalty")


class DetectionReward(NamedTuple):
    """The reward of every image, and its terms."""

    total: Float[Tensor, " n"]
    terms: dict[str, Float[Tensor, " n"]]
    """`reward`, `num_matches`, `nms_penalty`: averaged over thresholds; and each of a threshold, as in `reward-0.5`."""
    correct: Int64[Tensor, "n m"]
    """Of every predicted box: 2 with, 1 without a true box above `correct_threshold`, 0 if it does not exist."""
    match_iou: Float[Tensor, "n m"]
    """IoU of every predicted box with that true box, duplicates too; 0 without."""


def detection_reward(
    boxes_pred: Float[Tensor, "n m 4"],
    labels_pred: Int64[Tensor, "n m"],
    conf_pred: Real[Tensor, "n m"],
    boxes_gt: Float[Tensor, "n k 4"],
    labels_gt: Int64[Tensor, "n k"],
    conf_gt: Real[Tensor, "n k"],
    weights: Float[Tensor, " c"],
    thresholds: Sequence[float] = THRESHOLDS,
    nms_weight: float = 0.3,
    correct_threshold: float = 0.5,
    as_published: bool = True,
) -> DetectionReward:
    """Weighted matches minus penalised duplicates, for every image. It computes in the type of the boxes.

    Args:
        boxes_pred: predicted boxes, two opposite corners y, x, y, x each.
        labels_pred: their class ids.
        conf_pred: their confidence; only whether it is above 0 matters.
        boxes_gt: true boxes.
        labels_gt: their class ids.
        conf_gt: above 0 for boxes that exist.
        weights: of the classes.
        thresholds: IoUs that a match must exceed.
        nms_weight: what a duplicate costs, as a share of the class's weight.
        correct_threshold: the one of the thresholds that `correct` and `match_iou` are for.
        as_published: among thresholds that are equal when rounded to one decimal, only the last one counts, as often as
            there are; else every threshold counts once.

    Raises:
        ValueError: `correct_threshold` is none of the thresholds.
    """
    if correct_threshold not in thresholds:
        raise ValueError(f"correct_threshold {correct_threshold} is none of the thresholds {tuple(thresholds)}")
    names = [f"{threshold:.1f}" if as_published else f"{threshold:g}" for threshold in thresholds]
    last = dict(zip(names, thresholds, strict=True))
    levels = torch.tensor([last[name] for name in names], dtype=boxes_pred.dtype, device=boxes_pred.device)

    iou = box_iou(boxes_pred, boxes_gt)
    possible = (labels_pred.unsqueeze(2) == labels_gt.unsqueeze(1)) & (conf_pred > 0).unsqueeze(2)
    iou = torch.where(possible & (conf_gt > 0).unsqueeze(1), iou, 0)
    iou = F.pad(iou, (0, 1, 0, 1))  # images without boxes: one more on either side, last and without overlap

    # A threshold removes small overlaps. The largest of a row or a column stays the largest, or none is left, so who
    # matches whom is settled before any threshold.
    best, chosen = iou.max(2)
    single = torch.zeros_like(iou).scatter_(2, chosen.unsqueeze(2), best.unsqueeze(2))
    winning, winner = single.max(1)
    beaten = winner.gather(1, chosen) != torch.arange(iou.shape[1], device=iou.device)
    best, beaten, winning = best[:, :-1], beaten[:, :-1], winning[:, :-1]

    matched = winning > levels.view(-1, 1, 1)
    duplicate = beaten & (best > levels.view(-1, 1, 1))
    penalty = (duplicate * weights[labels_pred]).sum(2)
    found = {
        "reward": (matched * weights[labels_gt]).sum(2) - nms_weight * penalty,
        "num_matches": matched.sum(2).to(penalty),
        "nms_penalty": penalty,
    }
    terms = {f"{key}-{name}": values[t] for key, values in found.items() for t, name in enumerate(names)}
    terms |= {key: values.mean(0) for key, values in found.items()}

    match_iou = torch.where(best > torch.tensor(correct_threshold).to(best), best, 0)
    correct = torch.where(conf_pred > 0, 1 + (match_iou > 0).long(), 0)
    return DetectionReward(terms["reward"], terms, correct, match_iou)


def box_iou(first: Float[Tensor, "n m 4"], second: Float[Tensor, "n k 4"]) -> Float[Tensor, "n m k"]:
    """Intersection over union of all pairs, a / (a_1 + a_2 - a + 1e-9); boxes without area have 0."""
    y0, x0, y1, x1 = first.unsqueeze(2).unbind(3)
    v0, u0, v1, u1 = second.unsqueeze(1).unbind(3)
    high = (torch.minimum(y1, v1) - torch.maximum(y0, v0)).clamp(min=0)
    wide = (torch.minimum(x1, u1) - torch.maximum(x0, u0)).clamp(min=0)
    shared = high * wide
    areas = ((y1 - y0) * (x1 - x0)).abs() + ((v1 - v0) * (u1 - u0)).abs()
    return shared / (areas - shared + 1e-9)


def detection(settings: Settings) -> RewardFunction:
    """The detection reward of the boxes around connected areas, mean over the images with a labelled pixel.

    Pinto et al. 2023, with the thresholds and the weight of duplicates of the published code.
    Predicted and true boxes are the bounding boxes of the objects of the labelling and of the truth, all with
    confidence 1. At most the sum of the class weights of an image's objects. That is what the truth gets: were there
    two objects of one class with the very same box, it would pay for a duplicate, but two areas that both reach from
    side to side and from top to bottom of one box meet. Terms: `reward`, `num_matches`, `nms_penalty`, averaged over
    thresholds.

    The statistics are the sums of the terms and the number of images.
    """
    refuse_nonsense(settings)
    weights = settings.weights.cpu()

    def boxes(labels: UInt8[np.ndarray, "h w"]) -> Int64[np.ndarray, "k 5"]:
        found = objects.find(labels)
        rows: np.ndarray = np.unique(np.column_stack([found.labels, found.boxes]), axis=0)
        return rows  # sorted: the first of equal overlaps wins, and OpenCV's order of the areas is arbitrary

    def of_image(labels: UInt8[np.ndarray, "h w"], truth: UInt8[np.ndarray, "h w"]) -> Float64[Tensor, " s"]:
        total = torch.zeros(4, dtype=torch.float64)
        predicted, true = (torch.from_numpy(boxes(each)) for each in (labels, truth))
        for number in torch.unique(true[:, 0]):  # class by class: sampled labels have very many small areas
            pairs = [each[each[:, 0] == number].unsqueeze(0) for each in (predicted, true)]
            sides = [(each[..., 1:].double(), each[..., 0], torch.ones_like(each[..., 0])) for each in pairs]
            terms = detection_reward(*sides[0], *sides[1], weights).terms
            total[:3] += torch.cat([terms[name] for name in TERMS])
        total[3] = len(true) > 0
        return total

    def statistics(labelling: Labels, truth: UInt8[Tensor, "n h w"]) -> Float64[Tensor, "n s"]:
        pairs = on_cpu(masked(labelling, truth, settings.classes), truth)
        return torch.stack([of_image(*pair) for pair in pairs]).to(truth.device)

    def value(statistics: Float64[Tensor, "*batch s"]) -> Reward:
        means = statistics[..., :3] / statistics[..., 3:]
        return Reward(means[..., 0], dict(zip(TERMS, torch.split(means, 1, dim=-1), strict=True)))

    return RewardFunction(statistics, value, lambda statistics: statistics[..., 3])
