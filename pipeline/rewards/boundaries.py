"""The reward `boundary_f1`: boundaries of the classes in label maps, and which of them a pixel's label can change."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float64, UInt8
from torch import Tensor

from pipeline.images.classes import IGNORE
from pipeline.rewards.contract import Labels, Reward, RewardFunction, Settings, masked, refuse_nonsense, share


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
    refuse_nonsense(settings)
    c, tolerance = settings.classes, settings.tolerance

    def statistics(labelling: Labels, truth: UInt8[Tensor, "n h w"]) -> Float64[Tensor, "n s"]:
        labelling = masked(labelling, truth, c)
        at, wanted = find(labelling), find(truth)
        counts = []
        for number in range(c):  # one by one: the maps of all classes at once would be large
            maps = matches(at & (labelling == number), wanted & (truth == number), tolerance)
            counts += [each.sum((1, 2)) for each in maps]
        return torch.stack(counts, dim=1).double()

    def value(statistics: Float64[Tensor, "*batch s"]) -> Reward:
        hit, labelled, met, true = statistics.reshape(*statistics.shape[:-1], c, 4).unbind(-1)
        f1 = share(2 * hit * met, hit * true + met * labelled)  # 2PR / (P + R), and 0 where nothing matches
        terms = {"f1": f1, "precision": share(hit, labelled), "recall": share(met, true)}
        return Reward(f1.sum(-1) / (true > 0).sum(-1), terms)

    def credit(
        labelling: Labels, truth: UInt8[Tensor, "n h w"], weights: Float64[Tensor, " s"]
    ) -> Float64[Tensor, "n h w"]:
        labelling = masked(labelling, truth, c)
        at, wanted = find(labelling), find(truth)
        weighted = torch.zeros(truth.shape, dtype=weights.dtype, device=truth.device)
        for number, (hit, labelled, met, _) in enumerate(weights.reshape(c, 4)):
            maps = matches(at & (labelling == number), wanted & (truth == number), tolerance)
            for weight, each in zip((hit, labelled, met), maps[:3], strict=True):
                weighted += weight * each
        # A label can turn its neighbours into boundaries, which match true boundaries within the tolerance.
        return window_sum(weighted, tolerance + 1).where(truth != IGNORE, 0)

    return RewardFunction(statistics, value, lambda statistics: statistics[..., 3::4].sum(-1), credit=credit)


def find(labels: UInt8[Tensor, "n h w"]) -> Bool[Tensor, "n h w"]:
    """Boundary pixels: another class is above, below, left or right; IGNORE neither counts as one nor has any."""
    found = torch.zeros_like(labels, dtype=torch.bool)
    for dim in (1, 2):
        size = labels.shape[dim] - 1
        first, second = labels.narrow(dim, 0, size), labels.narrow(dim, 1, size)
        differ = (first != second) & (first != IGNORE) & (second != IGNORE)
        found.narrow(dim, 0, size).logical_or_(differ)
        found.narrow(dim, 1, size).logical_or_(differ)
    return found


def matches(
    labelled: Bool[Tensor, "n h w"], true: Bool[Tensor, "n h w"], tolerance: int
) -> tuple[Bool[Tensor, "n h w"], ...]:
    """Masks of one class's boundary pixels: matched labelled, labelled, matched true, true."""
    return labelled & grown(true, tolerance), labelled, true & grown(labelled, tolerance), true


def grown(mask: Bool[Tensor, "n h w"], reach: int) -> Bool[Tensor, "n h w"]:
    """The mask dilated by a square of side 2 * reach + 1, separably: rows, then columns."""
    high = F.max_pool2d(mask.float(), (2 * reach + 1, 1), stride=1, padding=(reach, 0))
    return F.max_pool2d(high, (1, 2 * reach + 1), stride=1, padding=(0, reach)) > 0


def window_sum(values: Float64[Tensor, "n h w"], reach: int) -> Float64[Tensor, "n h w"]:
    """Sums over the square of side 2 * reach + 1 around every pixel, separably: rows, then columns."""
    high = F.avg_pool2d(values, (2 * reach + 1, 1), stride=1, padding=(reach, 0), divisor_override=1)
    return F.avg_pool2d(high, (1, 2 * reach + 1), stride=1, padding=(0, reach), divisor_override=1)
