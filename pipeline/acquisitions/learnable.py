"""What a class can still be taught, spread over the pixels that show it.

With the number n of its labelled pixels, the IoU of a class rises as a logistic curve in log n,

    dJ / dlog n = k J (1 - J),

slowly where nearly nothing or nearly all of it is found, fast between. So more labels of class c are worth, in points
of mIoU per factor e of labels and up to k, W_c = (100/C) J_c (1 - J_c), with the expected IoU J_c of shortfall.py; and

    gain of pixel i = sum_c W_c p_i(c) / N_c,    N_c = sum_j p_j(c) over the pool

gives it the share that it holds of what the pool shows of c. Over the pool this sums to W_c. Unlike the shortfall, it
is not what an image lacks itself but what it holds to learn from. docs/gain.md has the experiment that it comes from.
"""

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from pipeline.acquisitions.contract import Acquisition, Posterior, Probabilities
from pipeline.acquisitions.shortfall import SHORTFALL, expected_iou


def pixels(statistics: Float64[Tensor, "*m c 3"]) -> Float64[Tensor, "*m c"]:
    """Expected pixels of every class: those claimed, less the wrong ones, and those missed."""
    claimed, doubted, missed = statistics.unbind(-1)
    return claimed - doubted + missed


def per_pixel(pool: Float64[Tensor, "c 3"], smooth: float) -> Float64[Tensor, " c"]:
    """W_c / N_c; 0 of a class that the pool does not show."""
    iou, shown = expected_iou(pool, smooth), pixels(pool)
    return torch.where(shown > 0, 100 / len(pool) * iou * (1 - iou) / shown, 0.0)


def gain(
    statistics: Float64[Tensor, "m c 3"], pool: Float64[Tensor, "c 3"], smooth: float, blend: float = 1.0
) -> Float64[Tensor, "m c"]:
    """W_c times every image's share of class c."""
    return per_pixel(pool, smooth) * pixels(statistics)


def gain_map(
    probabilities: Probabilities,
    pool: Float64[Tensor, "c 3"],
    smooth: float,
    posterior: Posterior | None = None,
    blend: float = 1.0,
) -> Float[Tensor, "n h w"]:
    """The same of every pixel."""
    return torch.einsum("nchw,c->nhw", probabilities, per_pixel(pool, smooth).to(probabilities.dtype))


LEARNABLE = Acquisition(SHORTFALL.statistics, SHORTFALL.observe, gain, gain_map, realised=gain)
