"""Calibration: one temperature that makes confidence match accuracy.

    T = argmin sum_i v_i (-log softmax(z_i / T)_{t_i})      Guo et al. 2017, "On Calibration of Modern Neural Networks"

The weights v_i undo how the pixels were chosen: 1 / (probability that their image was selected), Horvitz and Thompson
1952. The loss is convex in b = 1/T, its derivative sum_i v_i (E_{c ~ softmax(b z_i)}[z_i(c)] - z_i(t_i)) rises with b,
and a bisection on its sign cannot miss the minimum.
"""

import math

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

COLDEST, HOTTEST = 0.25, 8.0
"""Range of T. A fit at its end says that logits and truth have little to do with each other, or agree everywhere."""


def fit_temperature(
    logits: Float[Tensor, "n c"],
    truth: UInt8[Tensor, " n"] | Int64[Tensor, " n"],
    weights: Float[Tensor, " n"] | None = None,
) -> float:
    """Temperature T in [0.25, 8] that minimises the weighted negative log-likelihood of softmax(logits / T).

    Args:
        logits: of n labelled pixels.
        truth: their classes, none of them IGNORE.
        weights: of the pixels, not negative, in any unit; None for equal ones.

    Raises:
        ValueError: no pixel, a value that is not finite, a weight below 0 or no weight above it, a class that the
            logits do not have.
    """
    weights = torch.ones(len(logits), device=logits.device) if weights is None else weights
    if not (logits.isfinite().all() and weights.isfinite().all() and (weights >= 0).all() and weights.sum() > 0):
        raise ValueError("a temperature needs pixels with finite logits and finite weights that are not all 0")
    if int(truth.max()) >= logits.shape[1] or int(truth.min()) < 0:
        raise ValueError(f"truth holds class {int(truth.max())}, but the logits have {logits.shape[1]} classes")
    scores, mass = logits.float(), weights.double() / weights.double().sum()
    observed = mass @ scores.gather(1, truth.long().unsqueeze(1)).squeeze(1).double()

    low, high = math.log(COLDEST), math.log(HOTTEST)
    for _ in range(24):  # halves the range of log T to 2e-7
        middle = (low + high) / 2
        expected = mass @ ((scores / math.exp(middle)).softmax(1) * scores).sum(1).double()
        low, high = (low, middle) if expected < observed else (middle, high)
    return math.exp((low + high) / 2)
