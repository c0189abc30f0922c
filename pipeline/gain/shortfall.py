"""The expected reward shortfall: what the pooled mIoU lacks because argmax classes are wrong, to first order.

With the claim a_i = argmax_c p_i(c) of pixel i, *doubted* are expected false positives, *missed* false negatives:

    claimed_c = #{a_i = c},   doubted_c = sum_{a_i = c} (1 - p_i(c)),   missed_c = sum_{a_i != c} p_i(c)
    I_c = claimed_c - doubted_c,   U_c = claimed_c + missed_c + smooth * sum_k (claimed_k + missed_k),   J_c = I_c / U_c
    gain of pixel i = (100/C) [ (J_a / U_a) (1 - p_i(a)) + sum_{c != a} p_i(c) / U_c ]      in mIoU points

Correcting a false positive of class a takes a pixel out of U_a, which raises J_a by J_a/U_a; a false negative of c that
is found joins I_c, which raises J_c by 1/U_c. With smooth 0 that is exact to first order. Above 0 gains stay below it:
of a class that has the share q of all unions, 1/U_c is 1 / (1 + smooth/q) of what it would be and J_c/U_c the square of
that; at the default of 0.01 that takes 3 % and 6 % from a class with a third of the unions, and a third and more than
half from one with a fiftieth.
Expected intersection over expected union stands in for the expected IoU as in Nowozin 2014, "Optimal Decisions from
Probabilistic Models: the Intersection-over-Union Case"; 1/U_c is the class weight that other methods choose by hand.
The mean runs over all C classes, present or not: `smooth` keeps those that the pool hardly shows from dominating.
"""

from functools import partial

import torch
from jaxtyping import Float, Float64, Int64, UInt8
from torch import Tensor

from pipeline.gain.contract import Acquisition, Posterior, Probabilities, Settings, Units, Worth, total
from pipeline.images.claims import highest
from pipeline.images.classes import IGNORE


def observe(
    probabilities: Probabilities, posterior: Posterior | None = None, units: Units | None = None
) -> Float64[Tensor, "u c 3"]:
    """The statistics of every class: claimed pixels, expected false positives (doubted), false negatives (missed)."""
    n, c = probabilities.shape[:2]
    confidence, claim = highest(probabilities)
    if units is not None:
        claimed, sure = units.sums(c, claim), units.sums(c, claim, confidence)
        place = units.of.flatten()
        mass = torch.stack(
            [
                torch.bincount(place, of_class.flatten().double(), minlength=units.number)
                for of_class in probabilities.unbind(1)
            ],
            dim=1,
        )
        return torch.stack([claimed, (claimed - sure).clamp(min=0), (mass - sure).clamp(min=0)], dim=2)
    image = torch.arange(n, device=claim.device)[:, None, None]
    place = (claim + c * image).flatten()
    claimed = torch.bincount(place, minlength=n * c).view(n, c).double()
    sure = torch.bincount(place, confidence.flatten().double(), minlength=n * c).view(n, c)
    mass = probabilities.sum(3).sum(2, dtype=torch.float64)  # float32 along a row, float64 over the rows: 1e-7 of it
    missed = (mass - sure).clamp(min=0)  # a difference of 0 may round to just below
    return torch.stack([claimed, claimed - sure, missed], dim=2)


def observe_truth(
    prediction: UInt8[Tensor, "n h w"] | Int64[Tensor, "n h w"], truth: UInt8[Tensor, "n h w"], classes: int
) -> Float64[Tensor, "n c 3"]:
    """The statistics of `observe` with the truth in place of probabilities: claimed, false positive, false negative.

    `gain` of these, with the totals of the pool, is the realised gain that the audit compares with the predicted one.
    Pixels whose truth is IGNORE are not counted.
    """
    valid = truth != IGNORE
    right = valid & (prediction == truth)
    statistics = []
    for c in range(classes):
        claimed, true, hit = (
            total(mask & (ids == c)) for mask, ids in ((valid, prediction), (valid, truth), (right, truth))
        )
        statistics.append(torch.stack([claimed, claimed - hit, true - hit], dim=1))
    return torch.stack(statistics, dim=1)


def _intersection_and_union(pool: Float64[Tensor, "c 3"], smooth: float) -> tuple[Float64[Tensor, " c"], ...]:
    claimed, doubted, missed = pool.unbind(1)
    union = claimed + missed
    return claimed - doubted, union + smooth * union.sum()


def worth(pool: Float64[Tensor, "c s"], smooth: float) -> Worth:
    """MIoU points per false positive removed and per false negative found, of every class.

    Args:
        pool: totals of claimed, doubted and missed pixels; further columns are not used.
        smooth: share of all unions added to every union.

    Raises:
        ValueError: a class has no union, because the pool gives it no probability at all and `smooth` is 0.
    """
    intersection, union = _intersection_and_union(pool[:, :3], smooth)
    if not (union > 0).all():
        raise ValueError(
            f"classes {torch.nonzero(union <= 0).flatten().tolist()} have no union: smooth must be above 0"
        )
    scale = 100 / len(pool)
    return Worth(scale * intersection / union**2, scale / union)


def gain(statistics: Float64[Tensor, "m c s"], pool: Float64[Tensor, "c s"], smooth: float) -> Float64[Tensor, "m c"]:
    """Shortfall of every image by class, that of its false positives and false negatives. Errors as `worth`."""
    per_doubt, per_miss = worth(pool, smooth)
    return per_doubt * statistics[:, :, 1] + per_miss * statistics[:, :, 2]


def gain_map(probabilities: Probabilities, pool: Float64[Tensor, "c s"], smooth: float) -> Float[Tensor, "n h w"]:
    """Shortfall of every pixel. Errors as `worth`."""
    per_doubt, per_miss = (table.to(probabilities.dtype) for table in worth(pool, smooth))
    confidence, claim = highest(probabilities)
    claim = claim.long()
    # Not negative even after rounding: a rounded sum of positive parts is at least its largest part, rounded.
    missed = torch.einsum("nchw,c->nhw", probabilities, per_miss) - per_miss[claim] * confidence
    return per_doubt[claim] * (1 - confidence) + missed


STATISTICS = ("claimed", "doubted", "missed")


def shortfall(settings: Settings) -> Acquisition:
    """The acquisition `shortfall`: all that the mIoU lacks, whether or not it can be learnt."""

    def of_pixels(
        probabilities: Probabilities, pool: Float64[Tensor, "c s"], posterior: Posterior | None = None
    ) -> Float[Tensor, "n h w"]:
        return gain_map(probabilities, pool, settings.smooth)

    return Acquisition(STATISTICS, observe, partial(gain, smooth=settings.smooth), of_pixels)


def oracle(truth: Float64[Tensor, "m c 3"], smooth: float) -> Float64[Tensor, "m c"]:
    """The shortfall with the truth in place of probabilities, in images and pool: an upper bound for the formula.

    For benchmarks only: it needs the truth of the whole pool.

    Args:
        truth: statistics of all images of the pool, from `observe_truth`.
        smooth: share of all unions added to every union.

    Raises:
        ValueError: as `worth`.
    """
    return gain(truth, truth.sum(0), smooth)


def expected_iou(pool: Float64[Tensor, "c s"], smooth: float = 0.0) -> Float64[Tensor, " c"]:
    """Expected intersection over expected union of every class, in [0, 1]; NaN where there is no union.

    Args:
        pool: totals of claimed, doubted and missed pixels; further columns are not used.
        smooth: share of all unions added to every union.
    """
    intersection, union = _intersection_and_union(pool[:, :3], smooth)
    return intersection / union


def predicted_miou(pool: Float64[Tensor, "c s"], smooth: float = 0.0) -> float:
    """Mean of `expected_iou` over the classes with a union, in [0, 1]; arguments as there."""
    iou = expected_iou(pool, smooth)
    return float(iou[~iou.isnan()].mean())
