"""Acquisitions: class probabilities to the gain expected from labelling a pixel, a class in an image, or an image.

One pass over the pool sums a few statistics per image and class; everything else follows from those small tables, so
that scores of a pool cost one forward pass and its labels need not be seen twice. Higher gain = label first.

`shortfall`, the expected reward shortfall, is first order in the pooled mIoU. With the claim a_i = argmax_c p_i(c):

    claimed_c = #{a_i = c},   doubted_c = sum_{a_i = c} (1 - p_i(c)),   missed_c = sum_{a_i != c} p_i(c)
    I_c = claimed_c - doubted_c,   U_c = claimed_c + missed_c + smooth * sum_k (claimed_k + missed_k),   J_c = I_c / U_c
    gain of pixel i = (100/C) [ (J_a / U_a) (1 - p_i(a)) + sum_{c != a} p_i(c) / U_c ]      in mIoU points

Once put right, a wrong claim of class a leaves U_a and a pixel of class c joins I_c: J_c gains J_c/U_c and 1/U_c.
Expected intersection over expected union stands in for the expected IoU as in Nowozin 2014, "Optimal Decisions from
Probabilistic Models: the Intersection-over-Union Case"; 1/U_c is the class weight that other methods choose by hand.
The mean runs over all C classes, present or not: `smooth` keeps those that the pool hardly shows from dominating.

Baselines: `entropy` (Shannon 1948; nats), `margin` (Scheffer et al. 2001: 1 - highest + second highest probability),
`random` (every image alike). Their gain is the mean over an image's pixels, in the unit of the score, split by the
claimed class.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int64, UInt8
from torch import Tensor

from pipeline.labels import IGNORE

Probabilities = Float[Tensor, "n c h w"]


class Acquisition(NamedTuple):
    """One way to predict gain. `s` statistics per image and class; the pool's are their sum over its images."""

    statistics: tuple[str, ...]
    """What the s statistics are called."""
    observe: Callable[[Probabilities], Float64[Tensor, "n c s"]]
    """Sums over the pixels of every image."""
    gain: Callable[[Float64[Tensor, "m c s"], Float64[Tensor, "c s"], float], Float64[Tensor, "m c"]]
    """(statistics of images, pool totals, smooth) -> gain of every image, split by class; its sum is the image's."""
    gain_map: Callable[[Probabilities, Float64[Tensor, "c s"], float], Float[Tensor, "n h w"]]
    """(probabilities, pool totals, smooth) -> gain of every pixel; its sum over an image is the image's gain."""


def _claims(probabilities: Probabilities, highest: Float[Tensor, "n h w"]) -> Iterator[Bool[Tensor, "n h w"]]:
    """Class by class, the pixels where it is the most probable: of equal classes the first.

    Comparing with the maximum takes half the time of `max(1)`, which finds its place too.
    """
    free = torch.ones_like(highest, dtype=torch.bool)
    for p in probabilities.unbind(1):
        own = (p == highest) & free
        free ^= own
        yield own


def _sum(pixels: Tensor) -> Float64[Tensor, " n"]:
    # torch adds float32 in a tree: on 2 million pixels the error is 1e-7 of the sum, a tenth of the cost of float64
    return pixels.sum((1, 2)).double()


# -- shortfall ---------------------------------------------------------------------------------------------------------


def _observe_shortfall(probabilities: Probabilities) -> Float64[Tensor, "n c 3"]:
    """Claimed pixels, expected wrong claims and expected missed pixels, of every class."""
    n, c = probabilities.shape[:2]
    confidence, claim = probabilities.max(1)
    image = torch.arange(n, device=claim.device)[:, None, None]
    place = (claim + c * image).flatten()
    claimed = torch.bincount(place, minlength=n * c).view(n, c).double()
    sure = torch.bincount(place, confidence.flatten().double(), minlength=n * c).view(n, c)
    total = probabilities.sum(3).sum(2, dtype=torch.float64)  # float32 along a row, float64 over the rows: 1e-7 of it
    missed = (total - sure).clamp(min=0)  # where all is claimed, the difference may round to just below 0
    return torch.stack([claimed, claimed - sure, missed], dim=2)


def observe_truth(
    prediction: UInt8[Tensor, "n h w"] | Int64[Tensor, "n h w"], truth: UInt8[Tensor, "n h w"], classes: int
) -> Float64[Tensor, "n c 3"]:
    """Statistics of `shortfall` with the truth in the place of probabilities: claimed, wrongly claimed, missed pixels.

    With the totals of the pool, `shortfall.gain` of these is the gain that was really there, to be held against the
    prediction. Pixels whose truth is IGNORE count nowhere.
    """
    valid = truth != IGNORE
    right = valid & (prediction == truth)
    statistics = []
    for c in range(classes):
        claimed, true, hit = (
            _sum(mask & (ids == c)) for mask, ids in ((valid, prediction), (valid, truth), (right, truth))
        )
        statistics.append(torch.stack([claimed, claimed - hit, true - hit], dim=1))
    return torch.stack(statistics, dim=1)


def _intersection_and_union(pool: Float64[Tensor, "c 3"], smooth: float) -> tuple[Float64[Tensor, " c"], ...]:
    claimed, doubted, missed = pool.unbind(1)
    union = claimed + missed
    return claimed - doubted, union + smooth * union.sum()


def _derivatives(pool: Float64[Tensor, "c 3"], smooth: float) -> tuple[Float64[Tensor, " c"], Float64[Tensor, " c"]]:
    """MIoU points per wrong claim put right and per missed pixel found, of every class.

    Raises:
        ValueError: a class has no union, because the pool gives it no probability at all and `smooth` is 0.
    """
    intersection, union = _intersection_and_union(pool, smooth)
    if not (union > 0).all():
        raise ValueError(
            f"classes {torch.nonzero(union <= 0).flatten().tolist()} have no union: smooth must be above 0"
        )
    scale = 100 / len(pool)
    return scale * intersection / union**2, scale / union


def _shortfall(
    statistics: Float64[Tensor, "m c 3"], pool: Float64[Tensor, "c 3"], smooth: float
) -> Float64[Tensor, "m c"]:
    per_doubt, per_miss = _derivatives(pool, smooth)
    return per_doubt * statistics[:, :, 1] + per_miss * statistics[:, :, 2]


def _shortfall_map(probabilities: Probabilities, pool: Float64[Tensor, "c 3"], smooth: float) -> Float[Tensor, "n h w"]:
    per_doubt, per_miss = (table.to(probabilities.dtype) for table in _derivatives(pool, smooth))
    confidence, claim = probabilities.max(1)
    # Never below 0: a rounded sum of positive parts is at least its largest part rounded.
    missed = torch.einsum("nchw,c->nhw", probabilities, per_miss) - per_miss[claim] * confidence
    return per_doubt[claim] * (1 - confidence) + missed


def predicted_miou(pool: Float64[Tensor, "c 3"], smooth: float = 0.0) -> float:
    """Expected intersection over expected union, mean over the classes with a union, in [0, 1].

    Args:
        pool: totals of `shortfall`'s statistics.
        smooth: share of all unions added to every union.
    """
    intersection, union = _intersection_and_union(pool, smooth)
    return float((intersection / union)[union > 0].mean())


# -- mean scores -------------------------------------------------------------------------------------------------------


def _entropy(probabilities: Probabilities) -> Float[Tensor, "n h w"]:
    entropy: Tensor = torch.special.entr(probabilities).sum(1)
    return entropy


def _margin(probabilities: Probabilities) -> Float[Tensor, "n h w"]:
    highest, second = probabilities.topk(2, dim=1).values.unbind(1)
    return 1 - (highest - second)


def _alike(probabilities: Probabilities) -> Float[Tensor, "n h w"]:
    return torch.ones_like(probabilities[:, 0])


def _mean(score: Callable[[Probabilities], Float[Tensor, "n h w"]]) -> Acquisition:
    """The acquisition whose gain is the mean of `score` over an image's pixels. Pool and smoothing play no part."""

    def observe(probabilities: Probabilities) -> Float64[Tensor, "n c 2"]:
        """Claimed pixels and their summed score, of every class."""
        scores, masks = score(probabilities), _claims(probabilities, probabilities.amax(1))
        return torch.stack([torch.stack([_sum(own), _sum(scores * own)], dim=1) for own in masks], dim=1)

    def gain(
        statistics: Float64[Tensor, "m c 2"], pool: Float64[Tensor, "c 2"], smooth: float
    ) -> Float64[Tensor, "m c"]:
        claimed, scores = statistics.unbind(2)
        means: Tensor = scores / claimed.sum(1, keepdim=True)
        return means

    def gain_map(probabilities: Probabilities, pool: Float64[Tensor, "c 2"], smooth: float) -> Float[Tensor, "n h w"]:
        return score(probabilities) / probabilities[0, 0].numel()

    return Acquisition(("claimed", "score"), observe, gain, gain_map)


ACQUISITIONS: dict[str, Acquisition] = {
    "shortfall": Acquisition(("claimed", "doubted", "missed"), _observe_shortfall, _shortfall, _shortfall_map),
    "entropy": _mean(_entropy),
    "margin": _mean(_margin),
    "random": _mean(_alike),
}
