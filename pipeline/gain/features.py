"""Feature vectors of images, for selecting diverse ones: weighted means of the features before the last layer.

With f_i the feature of pixel i, a_i its argmax class and p_i its probabilities, two sums per class are kept:

    doubted_c = sum_{a_i = c} (1 - p_i(c)) f_i,        missed_c = sum_{a_i != c} p_i(c) f_i

    by class: (J_c doubted_c + missed_c) / (its weights), the mean feature weighted by the shortfall of class c: the
        factor 1/U_c of `acquisitions` cancels, and J_c, known after the pass, only mixes the two
    gradient: (doubted_c - missed_c) / pixels = mean_i ([a_i = c] - p_i(c)) f_i, the gradient of the last layer's
        weights if the argmax classes were true: Ash et al. 2020, "Deep Batch Active Learning by Diverse, Uncertain
        Gradient Lower Bounds" (BADGE), projected at random (Johnson and Lindenstrauss 1984)
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Float16, Float32, Float64
from torch import Tensor

from pipeline.images.claims import highest

GRADIENT = 256
"""Dimensions of a projected gradient: it keeps distances to about 1 / sqrt(128) of them."""


class Pooled(NamedTuple):
    """The pooled features of every image of a batch."""

    image: Float32[Tensor, "n d"]
    """Mean feature of its pixels."""
    parts: Float16[Tensor, "n c 2 d"]
    """Mean features of every class, weighted by the expected false positives and by the expected false negatives."""
    gradient: Float32[Tensor, "n g"]
    """BADGE's gradient embedding, projected."""
    statistics: Float64[Tensor, "n c 3"]
    """The shortfall's statistics: claimed, doubted and missed pixels. The last two are the weights of `parts`."""


def projection(classes: int, features: int, rng: torch.Generator) -> Float32[Tensor, "cd g"]:
    """Gaussian random matrix, drawn from `rng` on the CPU; projected vectors keep their length on average."""
    matrix: Tensor = torch.randn(classes * features, GRADIENT, generator=rng) / GRADIENT**0.5
    return matrix


def pool(
    features: Float[Tensor, "n d h w"],
    probabilities: Float[Tensor, "n c h w"],
    pixels: Float[Tensor, "h w"],
    projected: Float32[Tensor, "cd g"],
) -> Pooled:
    """Weighted means of the features of every image.

    Args:
        features: of every cell.
        probabilities: of every cell.
        pixels: how many pixels a cell stands for.
        projected: of `projection`.
    """
    _, claim = highest(probabilities)
    own = claim[:, None] == torch.arange(probabilities.shape[1], device=claim.device).view(-1, 1, 1)
    doubt = torch.where(own, 1 - probabilities, 0) * pixels
    miss = torch.where(own, 0, probabilities) * pixels
    weights = torch.stack([doubt, miss], dim=2).flatten(3)  # (n, c, 2, cells)
    cells = features.flatten(2).transpose(1, 2)  # (n, cells, d)
    mass = weights.sum(3)
    sums = (weights.flatten(1, 2) @ cells).reshape(*mass.shape, -1)
    means = sums / torch.where(mass > 0, mass, 1)[..., None]
    gradient = (sums[:, :, 0] - sums[:, :, 1]).flatten(1) / pixels.sum() @ projected
    image = (pixels.flatten() @ cells) / pixels.sum()
    claimed = (own * pixels).sum((2, 3))
    return Pooled(image, means.half(), gradient, torch.cat([claimed[..., None], mass], dim=2).double())


def by_class(
    parts: Float16[Tensor, "m c 2 d"], statistics: Float64[Tensor, "m c 3"], iou: Float64[Tensor, " c"]
) -> Float16[Tensor, "m c d"]:
    """Mean features of every image and class, weighted by the shortfall of the class; zeros where it has none.

    Args:
        parts: of `Pooled`.
        statistics: of `Pooled`.
        iou: expected IoU of every class in the pool, J; not used for a class without a union.
    """
    doubt, miss = iou.where(iou.isfinite(), 0) * statistics[:, :, 1], statistics[:, :, 2]
    total = torch.where(doubt + miss > 0, doubt + miss, 1)
    shares = [(part / total).half()[..., None] for part in (doubt, miss)]
    return shares[0] * parts[:, :, 0] + shares[1] * parts[:, :, 1]
