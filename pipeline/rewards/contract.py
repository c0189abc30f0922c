"""The contract of rewards: additive statistics of images, and the value of their sum."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64, UInt8
from torch import Tensor

from pipeline.images.classes import IGNORE


class Reward(NamedTuple):
    """The value of a reward, and the terms that it is made of."""

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
    """The numbers that rewards take. Tensors are moved to the labels' device."""

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
    """A member of the family, made for its settings."""

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


class Entry(NamedTuple):
    """A line of `REWARDS`: how a member is made, and what it needs."""

    make: Callable[[Settings], RewardFunction]
    """Errors: ValueError if the settings are nonsense."""
    needs_weights: bool = False
    """Whether it uses the class weights."""


def refuse_nonsense(settings: Settings) -> None:
    """Check the settings, also those that this reward does not use.

    Raises:
        ValueError: one sentence that says which number is wrong.
    """
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


def masked(labelling: Labels, truth: UInt8[Tensor, "n h w"], classes: int) -> UInt8[Tensor, "n h w"]:
    """The labelling with IGNORE where the truth is IGNORE, so that its labels there have no effect.

    Raises:
        ValueError: an id elsewhere is not below `classes`.
    """
    valid = truth != IGNORE
    for name, ids in (("truth", truth), ("labelling", labelling)):
        if (valid & ((ids < 0) | (ids >= classes))).any():
            raise ValueError(f"{name} holds class {int(ids[valid].max())}, but there are {classes} classes")
    return labelling.to(torch.uint8).where(valid, IGNORE)


def share(part: Float64[Tensor, "*any"], whole: Float64[Tensor, "*any"]) -> Float64[Tensor, "*any"]:
    """Part of the whole; 0 of nothing is 0. Masking the quotient instead would leave NaN in its gradient."""
    return part / torch.where(whole > 0, whole, 1)


def on_cpu(*maps: UInt8[Tensor, "n h w"]) -> list[tuple[UInt8[np.ndarray, "h w"], ...]]:
    """For each image of the batch its maps, as arrays on the CPU."""
    return list(zip(*(each.cpu().numpy() for each in maps), strict=True))
