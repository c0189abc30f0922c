"""Boundaries of the classes in label maps, and how far a label's influence on them reaches."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float64, UInt8
from torch import Tensor

from pipeline.labels import IGNORE


def find(labels: UInt8[Tensor, "n h w"]) -> Bool[Tensor, "n h w"]:
    """Pixels beside another class, above, below, left or right; IGNORE is none, and has no boundary itself."""
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
    """What is counted of one class's boundaries: matched labelled, labelled, matched true, true."""
    return labelled & grown(true, tolerance), labelled, true & grown(labelled, tolerance), true


def grown(mask: Bool[Tensor, "n h w"], reach: int) -> Bool[Tensor, "n h w"]:
    """Pixels with one of the mask in the square of 2 * reach + 1 around them; rows, then columns."""
    high = F.max_pool2d(mask.float(), (2 * reach + 1, 1), stride=1, padding=(reach, 0))
    return F.max_pool2d(high, (1, 2 * reach + 1), stride=1, padding=(0, reach)) > 0


def window_sum(values: Float64[Tensor, "n h w"], reach: int) -> Float64[Tensor, "n h w"]:
    """Sums over the square of 2 * reach + 1 around every pixel; rows, then columns."""
    high = F.avg_pool2d(values, (2 * reach + 1, 1), stride=1, padding=(reach, 0), divisor_override=1)
    return F.avg_pool2d(high, (1, 2 * reach + 1), stride=1, padding=(0, reach), divisor_override=1)
