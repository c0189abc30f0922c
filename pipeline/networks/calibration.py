"""Calibration: what makes confidence match accuracy, fitted on labelled pixels that the network has not learnt from.

    logits' = scale * logits + bias                         Guo et al. 2017, "On Calibration of Modern Neural Networks"

    temperature    one scale 1/T for all classes, no bias: the most probable class stays the most probable one
    vector         a scale w_c > 0 and a bias b_c of every class, held to the temperature by a penalty

Both minimise sum_i v_i (-log softmax(logits'_i)_{t_i}), which is convex in scale and bias. The weights v_i undo how the
pixels were chosen: 1 / (probability that their image was selected), Horvitz and Thompson 1952.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64, UInt8
from torch import Tensor

COLDEST, HOTTEST = 0.25, 8.0
"""Range of T, and of 1/w_c. A fit at its end says that logits and truth have little to do with each other, or agree
everywhere."""
SHRINKAGE = 10_000.0
"""Of `vector`, in pixels: so many pixels must a class be labelled more often than predicted to gain a bias of 1 nat."""
AGREEMENT = 1e-5
"""The fit of `vector` has converged when no component of the gradient exceeds this share of the pixels."""
STEPS = 1000
"""Iterations of L-BFGS, at most."""


class Calibration(NamedTuple):
    """Scale and bias of the logits: one scale and no bias for all classes together, or one of each for every class."""

    scale: tuple[float, ...]
    bias: tuple[float, ...] = ()
    """In nats; empty for none."""

    @classmethod
    def of_lists(cls, content: Mapping[str, Sequence[float]]) -> "Calibration":
        """From what `lists` gives, as it is kept in files."""
        return cls(tuple(content["scale"]), tuple(content["bias"]))

    def lists(self) -> dict[str, list[float]]:
        """For files."""
        return {"scale": list(self.scale), "bias": list(self.bias)}

    def apply(self, logits: Float[Tensor, "*n c h w"], out: Tensor | None = None) -> Float[Tensor, "*n c h w"]:
        """The calibrated logits, written into `out` if it is given: the logits' own tensor for in place."""
        if not self.bias:
            return torch.mul(logits, self.scale[0], out=out)
        scale, bias = (logits.new_tensor(values).view(-1, 1, 1) for values in self)
        return torch.addcmul(bias, logits, scale, out=out)


NONE = Calibration((1.0,))
"""Leaves logits as they are."""


def of_temperature(temperature: float) -> Calibration:
    """The calibration that divides all logits by one temperature."""
    return Calibration((1 / temperature,))


Fit = Callable[[Tensor, Tensor, Tensor | None], Calibration]
"""(logits n c, truth n, weights n or None) -> what minimises the weighted negative log-likelihood.

Logits of n labelled pixels; their classes, none of them IGNORE; weights not negative, in any unit, None for equal ones.
Errors: ValueError for no pixel, a value that is not finite, a weight below 0 or no weight above it, a class that the
logits do not have.
"""


def fit_temperature(
    logits: Float[Tensor, "n c"],
    truth: UInt8[Tensor, " n"] | Int64[Tensor, " n"],
    weights: Float[Tensor, " n"] | None = None,
) -> Calibration:
    """One temperature T in [0.25, 8]; arguments and errors as `Fit`.

    The derivative of the loss by b = 1/T, sum_i v_i (E_{c ~ softmax(b z_i)}[z_i(c)] - z_i(t_i)), rises with b, and a
    bisection on its sign cannot miss the minimum.
    """
    scores, mass = logits.float(), _mass(logits, truth, weights)
    observed = mass @ scores.gather(1, truth.long().unsqueeze(1)).squeeze(1).double()
    low, high = math.log(COLDEST), math.log(HOTTEST)
    for _ in range(24):  # halves the range of log T to 2e-7
        middle = (low + high) / 2
        expected = mass @ ((scores / math.exp(middle)).softmax(1) * scores).sum(1).double()
        low, high = (low, middle) if expected < observed else (middle, high)
    return of_temperature(math.exp((low + high) / 2))


def fit_vector(
    logits: Float[Tensor, "n c"],
    truth: UInt8[Tensor, " n"] | Int64[Tensor, " n"],
    weights: Float[Tensor, " n"] | None = None,
    shrinkage: float = SHRINKAGE,
) -> Calibration:
    """A scale and a bias of every class, near the temperature T of `fit_temperature`; arguments and errors as `Fit`.

        sum_i v_i (-log softmax(w z_i + b)_{t_i}) + (shrinkage / 2) sum_c [ (T w_c - 1)^2 + b_c^2 ],   mean v_i = 1

    At the minimum, shrinkage * b_c = labelled - predicted pixels of class c: a class that has been seen on a few pixels
    only stays where the temperature puts it. w_c stays in [1/8, 4]. Labels count in pixels, though those of an image
    are alike: hence a shrinkage of about ten images (of `inference.PIXELS_PER_IMAGE` each).

    Raises:
        ValueError: also, the fit does not converge.
    """
    from scipy.optimize import minimize  # takes 2 s to import; whoever only applies a calibration is spared it

    (base,), count = fit_temperature(logits, truth, weights).scale, len(truth)
    share = _mass(logits, truth, weights)[:, None]
    cooled, held = logits.double() * base, shrinkage / count
    classes = cooled.shape[1]
    hit = truth.long().unsqueeze(1)

    def objective(x: Float64[np.ndarray, " p"]) -> tuple[float, Float64[np.ndarray, " p"]]:
        scale, bias = torch.from_numpy(x).to(cooled.device).view(2, classes)
        log_p = torch.addcmul(bias, cooled, scale).log_softmax(1)
        loss = -(share * log_p.gather(1, hit)).sum()
        excess = log_p.exp_().scatter_add_(1, hit, -torch.ones_like(share)).mul_(share)  # predicted - labelled
        moved = torch.stack([scale - 1, bias])
        slope = torch.stack([(excess * cooled).sum(0), excess.sum(0)]) + held * moved
        return float(loss + held / 2 * moved.square().sum()), slope.flatten().cpu().numpy()

    start = np.repeat([1.0, 0.0], classes)
    bounds = [(1 / (base * HOTTEST), 1 / (base * COLDEST))] * classes + [(-np.inf, np.inf)] * classes
    options = {"maxiter": STEPS, "maxfun": 2 * STEPS, "ftol": 0.0, "gtol": AGREEMENT / 10}
    found = minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    lower, upper = np.array(bounds).T
    slope = found.x - np.clip(found.x - found.jac, lower, upper)  # at a bound, only what leads back inside counts
    if not np.abs(slope).max() <= AGREEMENT:
        raise ValueError(f"class-wise scaling of {count} pixels did not converge: {found.message}")
    scale, bias = found.x.reshape(2, classes)
    return Calibration(tuple((scale * base).tolist()), tuple(bias.tolist()))


def _mass(logits: Tensor, truth: Tensor, weights: Tensor | None) -> Float64[Tensor, " n"]:
    """The weights, summing to 1; raises what `Fit` says."""
    weights = torch.ones(len(logits), device=logits.device) if weights is None else weights
    if not (logits.isfinite().all() and weights.isfinite().all() and (weights >= 0).all() and weights.sum() > 0):
        raise ValueError("a calibration needs pixels with finite logits and finite weights that are not all 0")
    if int(truth.max()) >= logits.shape[1] or int(truth.min()) < 0:
        raise ValueError(f"truth holds class {int(truth.max())}, but the logits have {logits.shape[1]} classes")
    return weights.double() / weights.double().sum()


CALIBRATIONS: dict[str, Fit] = {"temperature": fit_temperature, "vector": fit_vector}
