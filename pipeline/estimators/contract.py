"""What every estimator is: logits, a truth and a reward to a loss whose gradient raises the reward.

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
    """What the estimators that draw labellings can be told."""

    samples: int = 2
    """Labellings that are drawn."""
    baseline: Baseline = "leave_one_out"
    """What a labelling's reward is held against."""
    credit: Credit = "image"
    """Whether an image's labels share one advantage, or each pixel has that of the statistics which it can change."""
    clip: float = 0.2
    """Of `ppo`: the ratio counts from 1 - clip to 1 + clip."""


class Problem(NamedTuple):
    """A batch whose reward is to be raised, but for the logits."""

    truth: UInt8[Tensor, "n h w"]
    """Class ids."""
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
    """What one batch says about the reward."""

    loss: Float32[Tensor, ""]
    """To be minimised for its gradient. Of sampled labellings its value says nothing: it is noise around 0."""
    reward: Float64[Tensor, ""]
    """Reward of the memory together with the labelling; NaN where neither has anything to reward."""
    reward_std: Float64[Tensor, ""]
    """Spread of the reward over the images, each by itself."""
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
    """Whether it learns from how drawn labellings were rewarded, and so goes by the settings."""


def counts_of(reward: RewardFunction, estimator: str) -> CountReward:
    """The reward as a function of the confusion matrix.

    Raises:
        ValueError: it is more than that.
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
    """The estimate, with what the labelling was rewarded; `statistics` of the labelling, where they are known."""
    if statistics is None:
        statistics = problem.reward.statistics(labelling, problem.truth)
    together = statistics.sum(0)
    total = problem.reward.value(problem.memory + together).total
    alone = problem.reward.value(statistics).total
    known = alone[~alone.isnan()]  # the others have no label
    return Estimate(
        loss=loss.float(),
        reward=total,
        reward_std=known.std(correction=0) if len(known) else torch.zeros_like(total),
        advantage_std=loss.new_zeros(()) if advantage_std is None else advantage_std.detach().float(),
        statistics=together,
        rollout=rollout,
    )
