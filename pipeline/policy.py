"""Estimators: how a reward becomes a gradient for the network that labels.

A segmentation network draws every pixel's label for itself, P(y) = prod_i p_i(y_i), so the expected reward is linear in
each p_i, and its derivative is a counterfactual: what the reward would be if pixel i had label c,

    dE[R] / dp_i(c) = E_{y_-i} [ R(y_-i, y_i = c) ].

REINFORCE (Williams 1992; Pinto et al. 2023, "Tuning computer vision models with task rewards") estimates the same
gradient from R(y) alone and drowns it in noise: for an image of 1024 pixels the cosine of 8 samples to the true
gradient was 0.06. A count reward (pipeline/rewards.py) gives the counterfactuals exactly. With one sampled labelling y
and K the confusion matrix of the pool with y in it, relabelling pixel i of true class t changes the reward by

    R_i(c) = R(K - e[t,y_i] + e[t,c]) - R(K),     so R_i(y_i) = 0,
    loss   = - s sum_i sum_c p_i(c) R_i(c),   R_i held constant, s = pixels counted in K / valid pixels of the batch.

Its gradient is that of the advantages A_i(c) = R_i(c) - sum_k p_i(k) R_i(k), since a softmax is blind to a constant:
COMA with pixels as agents, Foerster et al. 2018, "Counterfactual Multi-Agent Policy Gradients". What noise is left
comes from the other pixels' labels inside K.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Float32, Float64, UInt8
from torch import Tensor

from pipeline.labels import IGNORE
from pipeline.rewards import CountReward, count

CHUNK = 2**22
"""Entries of the confusion matrices that are valued at once: 32 MB."""


class Estimate(NamedTuple):
    """What one batch says about the reward."""

    loss: Float32[Tensor, ""]
    """To be minimised for its gradient. Its value says nothing: it is noise around 0."""
    reward: Float64[Tensor, ""]
    """Reward of the memory together with the sampled labelling."""
    advantage_std: Float32[Tensor, ""]
    """Root mean square advantage of the sampled labels, in the unit of the loss: 0 once the policy is certain."""
    confusion: Float64[Tensor, "c c"]
    """Counts of the sampled labelling alone, to be added to the memory."""


Estimator = Callable[
    [Float[Tensor, "n c h w"], UInt8[Tensor, "n h w"], CountReward, Float64[Tensor, "c c"], torch.Generator], Estimate
]


def counterfactual(
    logits: Float[Tensor, "n c h w"],
    truth: UInt8[Tensor, "n h w"],
    reward: CountReward,
    memory: Float64[Tensor, "c c"],
    generator: torch.Generator,
) -> Estimate:
    """Policy gradient of a count reward, from one sampled labelling and every pixel's own credit.

    The loss is in reward per share of the pixels that is relabelled: the factor s keeps it independent of the size of
    the images and of how much the memory holds. IGNORE pixels add nothing; a batch without any other has a loss of 0.

    Args:
        logits: of the network that is tuned.
        truth: class ids.
        reward: from `pipeline.rewards`.
        memory: confusion counts of the pool before this batch, so that a class is as rare as the pool has it; zeros
            reward the batch by itself.
        generator: draws the labelling, on the device of the logits.

    Raises:
        ValueError: neither the batch nor the memory has a labelled pixel.
    """
    classes = logits.shape[1]
    probabilities = logits.float().softmax(1)
    labelling = sample(probabilities.detach(), generator)
    batch = count(labelling, truth, classes)
    pool = memory + batch
    if not pool.sum() > 0:
        raise ValueError("neither the batch nor the memory has a labelled pixel: there is nothing to reward")

    valid = batch.sum().clamp(min=1)
    gains = (pool.sum() * relabelling_gains(pool, batch, reward)).float()
    gains = torch.cat([gains, gains.new_zeros(1, classes, classes)])  # IGNORE is one more true class, without any gain
    row = torch.where(truth == IGNORE, classes, truth.long()) * classes + labelling
    gain = gains.flatten(0, 1)[row].permute(0, 3, 1, 2).contiguous()  # the same layout makes the rest twice as fast
    expected = torch.linalg.vecdot(probabilities, gain, dim=1)  # the sampled label's advantage, negative
    spread = (expected.detach().square().sum() / valid).sqrt().float()
    return Estimate(-expected.sum() / valid, reward(pool).total, spread, batch)


ESTIMATORS: dict[str, Estimator] = {"counterfactual": counterfactual}


def sample(probabilities: Float[Tensor, "n c h w"], generator: torch.Generator) -> UInt8[Tensor, "n h w"]:
    """One label per pixel, drawn by inverting the cumulative distribution: one uniform number per pixel."""
    n, classes, height, width = probabilities.shape
    left = torch.rand((n, height, width), generator=generator, device=probabilities.device)
    labelling = torch.zeros_like(left, dtype=torch.uint8)
    for c in range(classes - 1):
        left -= probabilities[:, c]
        labelling += left >= 0
    return labelling


def relabelling_gains(
    pool: Float64[Tensor, "c c"], batch: Float64[Tensor, "c c"], reward: CountReward
) -> Float64[Tensor, "c c c"]:
    """What relabelling one pixel does to the reward, exactly, by (true class, label, new label).

    Args:
        pool: all counts.
        batch: the part of them that can be relabelled; pairs of true class and label that it lacks are left at 0.
        reward: from `pipeline.rewards`.
    """
    classes = len(pool)
    gains = torch.zeros((classes,) * 3, dtype=pool.dtype, device=pool.device)
    new = torch.eye(classes, dtype=pool.dtype, device=pool.device)
    for pairs in torch.split(torch.nonzero(batch), max(1, CHUNK // classes**3)):
        truth, label = pairs.unbind(1)
        which = torch.arange(len(pairs), device=pool.device)
        relabelled = pool.repeat(len(pairs), classes, 1, 1)
        relabelled[which, :, truth, label] -= 1
        relabelled[which, :, truth] += new
        gains[truth, label] = reward(relabelled).total - reward(pool).total
    return gains
