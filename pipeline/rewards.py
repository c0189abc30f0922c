"""Rewards: how good a labelling is, against the truth. Higher is better; the truth scores highest.

A reward is *additive statistics of images, and the value of their sum*. So one image, a batch, the batches of several
processes and a running pool that forgets are one code path: sum the statistics, then take the value. Pixels whose truth
is IGNORE are in no statistic, and a reward without any labelled pixel is not defined (NaN).

    pooled_miou      mean over the classes with K_c. > 0 of IoU_c = K_cc / (K_c. + K_.c - K_cc)
                     Everingham et al. 2015, "The PASCAL Visual Object Classes Challenge: A Retrospective"
    weighted_iou     sum w_c IoU_c / sum w_c over the same classes
    dice             mean over the same classes of 2 K_cc / (K_c. + K_.c)
                     Dice 1945, "Measures of the Amount of Ecologic Association Between Species"
    pixel_accuracy   sum_c K_cc / sum K
                     Long et al. 2015, "Fully Convolutional Networks for Semantic Segmentation"
    expected_cost    - sum_tp costs_tp K_tp / sum K
                     Elkan 2001, "The Foundations of Cost-Sensitive Learning"
    image_miou       mean over images of their own mIoU
                     Csurka et al. 2013, "What is a good evaluation measure for semantic segmentation?"
    boundary_f1      how well the classes' boundaries agree: Csurka et al. 2013
    object_recall    share of the connected areas that are found
    detection        boxes around connected areas: Pinto et al. 2023, pipeline/detection.py

where K is the confusion matrix: K_tp pixels of true class t were labelled p. A *count reward* is a function of K alone,
so the change that relabelling one pixel makes is exact and cheap (pipeline/policy/exact.py). K and with it every other
statistic may be a fraction.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64, UInt8
from torch import Tensor

from pipeline import boundaries, metrics, objects
from pipeline.detection import detection_reward
from pipeline.labels import IGNORE


class Reward(NamedTuple):
    """A reward and what it is made of."""

    total: Float64[Tensor, "*batch"]
    terms: dict[str, Float64[Tensor, "*batch _"]]
    """By name: one value per class, or a single one."""


CountReward = Callable[[Float64[Tensor, "*batch c c"]], Reward]
"""(confusion matrices, rows = truth) -> the reward of each. Counts may be fractions: a memory decays."""
Labels = UInt8[Tensor, "n h w"] | Int64[Tensor, "n h w"]
Statistics = Callable[[Labels, UInt8[Tensor, "n h w"]], Float64[Tensor, "n s"]]
Value = Callable[[Float64[Tensor, "*batch s"]], Reward]
Size = Callable[[Float64[Tensor, "*batch s"]], Float64[Tensor, "*batch"]]
Credit = Callable[[Labels, UInt8[Tensor, "n h w"], Float64[Tensor, " s"]], Float[Tensor, "n h w"]]


class Settings(NamedTuple):
    """What the rewards can be told. Tensors are moved to where the labels are."""

    classes: int
    weights: Float64[Tensor, " c"]
    """Class weights of `weighted_iou` and `detection`, all above 0, of mean 1."""
    costs: Float64[Tensor, "c c"]
    """Of `expected_cost`: what labelling a pixel of the row's true class as the column's costs; 0 on the diagonal."""
    tolerance: int
    """Pixels that a boundary may be off in `boundary_f1`."""
    overlap: float
    """Share of an object's pixels that must be found in `object_recall`, above 0, up to 1."""


class RewardFunction(NamedTuple):
    """A member of the family."""

    statistics: Statistics
    """(labelling, truth) -> statistics of every image, to be summed over any set of images."""
    value: Value
    """Of summed statistics. Differentiable, and its gradient is finite wherever the reward is defined."""
    size: Size
    """Of summed statistics: how much there is to be counted in the truth, whatever the labelling: pixels, boundary
    pixels, objects or images. It adds up, and the value of k times the statistics is that of the statistics; so what
    one of n equal images can change in the value falls as 1/n, and size says what n is."""
    of_counts: CountReward | None = None
    """Set if the reward is a function of the confusion matrix. Then, unless `per_image`, the statistics are that
    matrix, row after row."""
    per_image: bool = False
    """`of_counts` is applied to every image by itself, and averaged over the images."""
    credit: Credit | None = None
    """(labelling, truth, weights of the statistics) -> for every pixel the weighted sum of those parts of the
    statistics that its label can change. For a policy that draws pixels independently,
    E[grad log p(y_i) * (weights . S(y))] = E[grad log p(y_i) * credit_i(y)]: parts that y_i cannot change have
    expectation 0, and only add noise. 0 at IGNORE."""


def count(
    labelling: UInt8[Tensor, "n h w"] | Int64[Tensor, "n h w"],
    truth: UInt8[Tensor, "n h w"] | Int64[Tensor, "n h w"],
    classes: int,
) -> Float64[Tensor, "c c"]:
    """Confusion matrix of a labelling, as the rewards take it; IGNORE counts nowhere."""
    return metrics.confusion(labelling, truth, classes).double()


# Count rewards.


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
    coefficient = _share(2 * confusion.diagonal(dim1=-2, dim2=-1), confusion.sum(-1) + confusion.sum(-2))
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
    return _share(intersection, confusion.sum(-1) + confusion.sum(-2) - intersection)


def _present(confusion: Float64[Tensor, "*batch c c"]) -> Bool[Tensor, "*batch c"]:
    return confusion.sum(-1) > 0


def _share(part: Float64[Tensor, "*any"], whole: Float64[Tensor, "*any"]) -> Float64[Tensor, "*any"]:
    """Part of the whole; 0 of nothing is 0. Masking the quotient instead would leave NaN in its gradient."""
    return part / torch.where(whole > 0, whole, 1)


def _pooled(settings: Settings, of_counts: CountReward) -> RewardFunction:
    """A count reward of all images together."""
    _refuse_nonsense(settings)
    c = settings.classes

    def statistics(labelling: Labels, truth: UInt8[Tensor, "n h w"]) -> Float64[Tensor, "n s"]:
        return _confusions(labelling, truth, c).flatten(1)

    def value(statistics: Float64[Tensor, "*batch s"]) -> Reward:
        return of_counts(statistics.reshape(*statistics.shape[:-1], c, c))

    def credit(
        labelling: Labels, truth: UInt8[Tensor, "n h w"], weights: Float64[Tensor, " s"]
    ) -> Float64[Tensor, "n h w"]:
        labelling = _masked(labelling, truth, c)
        entry = torch.where(truth == IGNORE, c * c, truth.long() * c + labelling)
        return torch.cat([weights, weights.new_zeros(1)])[entry]

    return RewardFunction(statistics, value, lambda statistics: statistics.sum(-1), of_counts, credit=credit)


def image_miou(settings: Settings) -> RewardFunction:
    """Mean over the images with a labelled pixel of the mIoU over each one's classes, in [0, 1].

    Terms: `iou`, per class, the mean over the images that have it. Csurka et al. 2013, "What is a good evaluation
    measure for semantic segmentation?" The statistics are the sum of the mIoUs and the number of images, then the sum
    of IoUs and the number of images of every class.
    """
    _refuse_nonsense(settings)

    def statistics(labelling: Labels, truth: UInt8[Tensor, "n h w"]) -> Float64[Tensor, "n s"]:
        confusion = _confusions(labelling, truth, settings.classes)
        iou, present = _iou(confusion), _present(confusion).double()
        labelled = present.amax(1, keepdim=True)
        miou = _share(iou.sum(1, keepdim=True), present.sum(1, keepdim=True))
        return torch.cat([miou, labelled, iou, present], dim=1)

    def value(statistics: Float64[Tensor, "*batch s"]) -> Reward:
        c = settings.classes
        miou, images, iou, present = torch.split(statistics, [1, 1, c, c], dim=-1)
        return Reward((miou / images).squeeze(-1), {"iou": _share(iou, present)})

    return RewardFunction(statistics, value, lambda statistics: statistics[..., 1], pooled_miou, per_image=True)


# Rewards of shapes.


def boundary_f1(settings: Settings) -> RewardFunction:
    """F1 of the boundaries of every class, mean over the classes that have one in the truth, in [0, 1].

    A pixel of a class is on its boundary if one of its four neighbours is of another class; the edge of the image and
    IGNORE are no other class. P_c is the share of the labelling's boundary that is at most `tolerance` pixels from the
    true boundary of the same class, R_c the share of the true one that is as near to the labelling's, and
    F1_c = 2 P_c R_c / (P_c + R_c). Terms: `f1`, `precision`, `recall`, by class. Not defined (NaN) for a truth without
    a boundary. Every labelling whose boundaries are near enough scores 1, not only the truth.

    Csurka et al. 2013, "What is a good evaluation measure for semantic segmentation?", with two departures: counts are
    pooled over the images before P and R are taken, where theirs is a mean over images; and distance is the larger of
    that in rows and that in columns, where theirs is Euclidean. The statistics of a class are those counts: matched
    labelled, labelled, matched true, true.
    """
    _refuse_nonsense(settings)
    c, tolerance = settings.classes, settings.tolerance

    def statistics(labelling: Labels, truth: UInt8[Tensor, "n h w"]) -> Float64[Tensor, "n s"]:
        labelling = _masked(labelling, truth, c)
        at, wanted = boundaries.find(labelling), boundaries.find(truth)
        counts = []
        for number in range(c):  # one by one: the maps of all classes at once would be large
            maps = boundaries.matches(at & (labelling == number), wanted & (truth == number), tolerance)
            counts += [each.sum((1, 2)) for each in maps]
        return torch.stack(counts, dim=1).double()

    def value(statistics: Float64[Tensor, "*batch s"]) -> Reward:
        hit, labelled, met, true = statistics.reshape(*statistics.shape[:-1], c, 4).unbind(-1)
        f1 = _share(2 * hit * met, hit * true + met * labelled)  # 2PR / (P + R), and 0 where nothing matches
        terms = {"f1": f1, "precision": _share(hit, labelled), "recall": _share(met, true)}
        return Reward(f1.sum(-1) / (true > 0).sum(-1), terms)

    def credit(
        labelling: Labels, truth: UInt8[Tensor, "n h w"], weights: Float64[Tensor, " s"]
    ) -> Float64[Tensor, "n h w"]:
        labelling = _masked(labelling, truth, c)
        at, wanted = boundaries.find(labelling), boundaries.find(truth)
        weighted = torch.zeros(truth.shape, dtype=weights.dtype, device=truth.device)
        for number, (hit, labelled, met, _) in enumerate(weights.reshape(c, 4)):
            maps = boundaries.matches(at & (labelling == number), wanted & (truth == number), tolerance)
            for weight, each in zip((hit, labelled, met), maps[:3], strict=True):
                weighted += weight * each
        # A label makes its neighbours boundaries, and those match true boundaries within the tolerance.
        return boundaries.window_sum(weighted, tolerance + 1).where(truth != IGNORE, 0)

    return RewardFunction(statistics, value, lambda statistics: statistics[..., 3::4].sum(-1), credit=credit)


def object_recall(settings: Settings) -> RewardFunction:
    """Share of the true objects that are found, mean over the classes that have any, in [0, 1]: recall over the set.

    An object is a connected area of one class in the truth (pipeline/objects.py). It is found if at least the share
    `overlap` of its pixels is labelled with its class. Small objects count as much as large ones; false alarms cost
    nothing, so a class that is everywhere has recall 1. Terms: `recall`, by class. The statistics of a class are its
    found objects and its objects. Objects are searched for on the CPU.
    """
    _refuse_nonsense(settings)
    c = settings.classes

    def found(labelling: UInt8[np.ndarray, "h w"], true: objects.Objects) -> Bool[np.ndarray, " k"]:
        inside = true.ids >= 0
        own = true.ids[inside]
        sizes = np.bincount(own, minlength=len(true.labels))
        right = np.bincount(own, labelling[inside] == true.labels[own], minlength=len(true.labels))
        return np.asarray(right / sizes >= settings.overlap)

    def statistics(labelling: Labels, truth: UInt8[Tensor, "n h w"]) -> Float64[Tensor, "n s"]:
        rows = []
        for labels, truth_labels in _on_cpu(_masked(labelling, truth, c), truth):
            true = objects.find(truth_labels)
            hits = np.bincount(true.labels, found(labels, true), minlength=c)
            rows.append(np.stack([hits, np.bincount(true.labels, minlength=c)], axis=1).ravel())
        return torch.from_numpy(np.stack(rows)).double().to(truth.device)

    def value(statistics: Float64[Tensor, "*batch s"]) -> Reward:
        hits, all_objects = statistics.reshape(*statistics.shape[:-1], c, 2).unbind(-1)
        recall = _share(hits, all_objects)
        return Reward(recall.sum(-1) / (all_objects > 0).sum(-1), {"recall": recall})

    def credit(
        labelling: Labels, truth: UInt8[Tensor, "n h w"], weights: Float64[Tensor, " s"]
    ) -> Float64[Tensor, "n h w"]:
        of_class = weights.reshape(c, 2)[:, 0].cpu().numpy()
        maps = []
        for labels, truth_labels in _on_cpu(_masked(labelling, truth, c), truth):
            true = objects.find(truth_labels)
            of_object = of_class[true.labels] * found(labels, true)
            maps.append(np.append(of_object, 0)[true.ids])  # IGNORE's id is -1: the last
        return torch.from_numpy(np.stack(maps)).to(weights)

    return RewardFunction(statistics, value, lambda statistics: statistics[..., 1::2].sum(-1), credit=credit)


def detection(settings: Settings) -> RewardFunction:
    """The detection reward of the boxes around connected areas, mean over the images with a labelled pixel.

    Pinto et al. 2023, with the thresholds and the weight of duplicates of the published code: pipeline/detection.py.
    Predicted and true boxes are the bounding boxes of the objects of the labelling and of the truth, all with
    confidence 1. At most the sum of the class weights of an image's objects. That is what the truth gets: were there
    two objects of one class with the very same box, it would pay for a duplicate, but two areas that both reach from
    side to side and from top to bottom of one box meet. Terms: `reward`, `num_matches`, `nms_penalty`, averaged over
    thresholds.

    The statistics are the sums of the terms and the number of images.
    """
    _refuse_nonsense(settings)
    weights = settings.weights.cpu()

    def boxes(labels: UInt8[np.ndarray, "h w"]) -> Int64[np.ndarray, "k 5"]:
        found = objects.find(labels)
        rows: np.ndarray = np.unique(np.column_stack([found.labels, found.boxes]), axis=0)
        return rows  # sorted, as the first of equal overlaps wins and OpenCV's order of the areas is its own

    def of_image(labels: UInt8[np.ndarray, "h w"], truth: UInt8[np.ndarray, "h w"]) -> Float64[Tensor, " s"]:
        total = torch.zeros(4, dtype=torch.float64)
        predicted, true = (torch.from_numpy(boxes(each)) for each in (labels, truth))
        for number in torch.unique(true[:, 0]):  # classes do not meet, and sampled labels have very many small areas
            pairs = [each[each[:, 0] == number].unsqueeze(0) for each in (predicted, true)]
            sides = [(each[..., 1:].double(), each[..., 0], torch.ones_like(each[..., 0])) for each in pairs]
            terms = detection_reward(*sides[0], *sides[1], weights).terms
            total[:3] += torch.cat([terms[name] for name in DETECTION_TERMS])
        total[3] = len(true) > 0
        return total

    def statistics(labelling: Labels, truth: UInt8[Tensor, "n h w"]) -> Float64[Tensor, "n s"]:
        pairs = _on_cpu(_masked(labelling, truth, settings.classes), truth)
        return torch.stack([of_image(*pair) for pair in pairs]).to(truth.device)

    def value(statistics: Float64[Tensor, "*batch s"]) -> Reward:
        means = statistics[..., :3] / statistics[..., 3:]
        return Reward(means[..., 0], dict(zip(DETECTION_TERMS, torch.split(means, 1, dim=-1), strict=True)))

    return RewardFunction(statistics, value, lambda statistics: statistics[..., 3])


DETECTION_TERMS = ("reward", "num_matches", "nms_penalty")

REWARDS: dict[str, Callable[[Settings], RewardFunction]] = {
    "pooled_miou": lambda settings: _pooled(settings, pooled_miou),
    "weighted_iou": lambda settings: _pooled(settings, partial(weighted_iou, weights=settings.weights)),
    "dice": lambda settings: _pooled(settings, dice),
    "pixel_accuracy": lambda settings: _pooled(settings, pixel_accuracy),
    "expected_cost": lambda settings: _pooled(settings, partial(expected_cost, costs=settings.costs)),
    "image_miou": image_miou,
    "boundary_f1": boundary_f1,
    "object_recall": object_recall,
    "detection": detection,
}


def _refuse_nonsense(settings: Settings) -> None:
    c, weights, costs = settings.classes, settings.weights, settings.costs
    if not 0 < c < IGNORE:
        raise ValueError(f"there are {c} classes: a reward needs from 1 to {IGNORE - 1}")
    if weights.shape != (c,) or not ((weights > 0) & weights.isfinite()).all() or abs(weights.mean() - 1) > 1e-5:
        raise ValueError(f"weights are {weights.tolist()}: give {c} numbers above 0 with mean 1")
    if costs.shape != (c, c) or not ((costs >= 0) & costs.isfinite()).all() or costs.diagonal().any():
        raise ValueError(f"costs are {costs.tolist()}: give {c} x {c} numbers, none below 0, and 0 on the diagonal")
    if settings.tolerance < 0:
        raise ValueError(f"tolerance is {settings.tolerance}: give a number of pixels, 0 for exact boundaries")
    if not 0 < settings.overlap <= 1:
        raise ValueError(f"overlap is {settings.overlap}: give a share above 0, up to 1 for every pixel of an object")


def _masked(labelling: Labels, truth: UInt8[Tensor, "n h w"], classes: int) -> UInt8[Tensor, "n h w"]:
    """The labelling with IGNORE where the truth has it, so that what stands there changes nothing.

    Raises:
        ValueError: an id elsewhere is not below `classes`.
    """
    valid = truth != IGNORE
    for name, ids in (("truth", truth), ("labelling", labelling)):
        if (valid & ((ids < 0) | (ids >= classes))).any():
            raise ValueError(f"{name} holds class {int(ids[valid].max())}, but there are {classes} classes")
    return labelling.to(torch.uint8).where(valid, IGNORE)


def _confusions(labelling: Labels, truth: UInt8[Tensor, "n h w"], classes: int) -> Float64[Tensor, "n c c"]:
    """Confusion matrix of every image."""
    n, valid = len(truth), truth != IGNORE
    image = torch.arange(n, device=truth.device).view(n, 1, 1)
    entry = (image * classes + truth) * classes + _masked(labelling, truth, classes)
    counts = torch.bincount(entry[valid], minlength=n * classes * classes)
    return counts.reshape(n, classes, classes).double()


def _on_cpu(*maps: UInt8[Tensor, "n h w"]) -> list[tuple[UInt8[np.ndarray, "h w"], ...]]:
    """The maps of one image after the other."""
    return list(zip(*(each.cpu().numpy() for each in maps), strict=True))
