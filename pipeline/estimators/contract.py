"""The contract of estimators: (logits, labels, reward) -> a loss whose gradient descent raises the reward.

Losses are in reward per share of the pixels that is relabelled: what is rewarded is the running pool, `memory` + batch,
of which the batch is a part; the factor s = (memory + batch) / batch, in the reward's own measure of size, undoes that,
so that neither the size of the images nor that of the memory changes the size of the gradient.

Nor does what the memory holds change it at all, for a reward that is a mean (image_miou, detection; pixel_accuracy and
expected_cost), once a baseline takes the memory's own part away. A reward of pooled ratios (pooled_miou, weighted_iou,
dice, boundary_f1, object_recall) is what a memory is for: there an image is worth what it changes in the pool, so a
class that the memory has little of weighs more, and one that it has right changes less.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Float32, Float64, Int64, UInt8
from torch import Tensor

from pipeline.rewards import CountReward, RewardFunction

Baseline = Literal["none", "two_sample", "leave_one_out", "other_images", "rolling_mean"]
Credit = Literal["image", "local"]


class Rollout(NamedTuple):
    """Sampled labellings and what they earned."""

    labellings: UInt8[Tensor, "k n h w"]
    log_p: Float32[Tensor, "k n h w"]
    """Log-probability of every unit's label under the policy that drew it, at each of its pixels."""
    advantages: Float32[Tensor, "k n h2 w2"]
    """By image (1 x 1) or by pixel."""


class Settings(NamedTuple):
    """The numbers of `tune.reward` that the sampling estimators take."""

    samples: int = 2
    """Labellings drawn per image."""
    baseline: Baseline = "leave_one_out"
    """What is subtracted from a labelling's reward."""
    credit: Credit = "image"
    """Whether an image's labels share one advantage, or each pixel has that of the statistics which it can change."""
    clip: float = 0.2
    """Of `ppo`: the ratio counts from 1 - clip to 1 + clip."""


class Problem(NamedTuple):
    """All that an estimator is given besides the logits: the batch's labels, the reward, its memory, the randomness."""

    truth: UInt8[Tensor, "n h w"]
    """Class ids and IGNORE."""
    reward: RewardFunction
    memory: Float64[Tensor, " s"]
    """Statistics of the pool before this batch, so that a class is as rare as the pool has it; zeros for none."""
    generator: torch.Generator
    """Draws the labellings, on the device of the logits."""
    segments: Int64[Tensor, "n h w"] | None = None
    """Ids of the units, from 0, anew in each image; None for pixels."""
    rollout: Rollout | None = None
    """Of `ppo`: what was drawn for this batch some steps ago; None draws anew."""


class Estimate(NamedTuple):
    """An estimator's result on one batch: the loss, and what is logged and remembered."""

    loss: Float32[Tensor, ""]
    """To be minimised for its gradient. For the sampling estimators its value means nothing: it is noise around 0."""
    reward: Float64[Tensor, ""]
    """Reward of the memory together with the labelling; NaN where neither has anything to reward."""
    reward_std: Float64[Tensor, ""]
    """Standard deviation of the reward of single images."""
    advantage_std: Float32[Tensor, ""]
    """Root mean square advantage of the sampled labels, in the unit of the loss; 0 where nothing is sampled."""
    statistics: Float64[Tensor, " s"]
    """Of the labelling alone, to be added to the memory."""
    rollout: Rollout | None = None
    """What `ppo` has drawn, for the next steps on the same batch."""


Estimator = Callable[[Float[Tensor, "n c h w"], Problem], Estimate]
"""Errors: ValueError where it is not defined for the reward, or not with these settings."""


class Entry(NamedTuple):
    """A line of `ESTIMATORS`: how a member is made, and what it needs."""

    make: Callable[[Settings], Estimator]
    needs_counts: bool = False
    """Whether the reward must be a function of the confusion matrix."""
    needs_miou: bool = False
    """Whether the reward must be the mIoU, pooled or by image."""
    needs_samples: bool = False
    """Whether it learns from the rewards of sampled labellings, and so uses the settings."""


def counts_of(reward: RewardFunction, estimator: str) -> CountReward:
    """The reward as a function of the confusion matrix.

    Raises:
        ValueError: it depends on more than the confusion matrix.
    """
    if reward.of_counts is None:
        raise ValueError(f"{estimator} needs a reward of pixel counts: take reinforce or ppo for this one")
    return reward.of_counts


def estimate(
    loss: Tensor,
    labelling: UInt8[Tensor, "n h w"],
    problem: Problem,
    advantage_std: Tensor | None = None,
    rollout: Rollout | None = None,
    statistics: Float64[Tensor, "n s"] | None = None,
) -> Estimate:
    """The `Estimate` of a loss and a labelling, whose reward is computed here; `statistics` if known already."""
    if statistics is None:
        statistics = problem.reward.statistics(labelling, problem.truth)
    together = statistics.sum(0)
    total = problem.reward.value(problem.memory + together).total
    alone = problem.reward.value(statistics).total
    known = alone[~alone.isnan()]  # NaN: images without a label
    return Estimate(
        loss=loss.float(),
        reward=total,
        reward_std=known.std(correction=0) if len(known) else torch.zeros_like(total),
        advantage_std=loss.new_zeros(()) if advantage_std is None else advantage_std.detach().float(),
        statistics=together,
        rollout=rollout,
    )
