"""The estimators `soft_iou`, `lovasz` and `reward_weighted`: surrogate losses, which sample nothing."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, UInt8
from torch import Tensor

from pipeline.estimators.contract import Estimate, Problem, counts_of, estimate
from pipeline.estimators.sampling import OTHER_IMAGES
from pipeline.estimators.units import field
from pipeline.images.claims import highest
from pipeline.images.classes import IGNORE
from pipeline.rewards.counts import pooled_miou


def soft_iou(logits: Float[Tensor, "n c h w"], problem: Problem) -> Estimate:
    """Loss = - s R(K), K the expected counts: a pixel of true class t adds p_i to row t.

    Raises:
        ValueError: the reward is more than counts.
    """
    of_counts = counts_of(problem.reward, "soft_iou")
    probabilities = field(logits, problem.segments).softmax(1)
    counts = torch.stack([_expected_counts(p, t) for p, t in zip(probabilities, problem.truth, strict=True)])
    if problem.reward.per_image:
        seen = counts.detach().sum((1, 2)) > 0
        loss = -of_counts(counts[seen]).total.sum() / seen.sum().clamp(min=1)
    else:
        pool = problem.memory.reshape(counts.shape[1:]) + counts.sum(0)
        share = pool.detach().sum() / counts.detach().sum().clamp(min=1)
        loss = -share * of_counts(pool).total if counts.detach().any() else 0 * logits.sum().double()
    return estimate(loss, highest(probabilities.detach())[1], problem)


def _expected_counts(p: Float[Tensor, "c h w"], truth: UInt8[Tensor, "h w"]) -> Float64[Tensor, "c c"]:
    valid = truth != IGNORE
    rows = F.one_hot(truth[valid].long(), len(p)).to(p.dtype)
    return (rows.T @ p[:, valid].T).double()


def lovasz(logits: Float[Tensor, "n c h w"], problem: Problem) -> Estimate:
    """Mean over the batch's classes of the Lovasz extension of 1 - IoU at the errors |[t_i = c] - p_i(c)|.

    Of the batch by itself: the extension needs every pixel's error, so a memory of counts is of no use to it.

    Raises:
        ValueError: the reward is not an unweighted mIoU.
    """
    if problem.reward.of_counts is not pooled_miou:
        raise ValueError("lovasz is made for pooled_miou and image_miou: take another estimator for this reward")
    probabilities = field(logits, problem.segments).softmax(1)
    whole = (probabilities, problem.truth)
    pieces = zip(*whole, strict=True) if problem.reward.per_image else [(probabilities.transpose(0, 1), problem.truth)]
    losses = [_lovasz_softmax(p.flatten(1), t.flatten()) for p, t in pieces if (t != IGNORE).any()]
    loss = torch.stack(losses).mean() if losses else 0 * logits.sum()
    return estimate(loss, highest(probabilities.detach())[1], problem)


def _lovasz_softmax(p: Float[Tensor, "c m"], truth: UInt8[Tensor, " m"]) -> Float[Tensor, ""]:
    valid = truth != IGNORE
    p, truth = p[:, valid], truth[valid]
    losses = []
    for c in torch.nonzero(torch.bincount(truth.long())).flatten().tolist():
        true = (truth == c).to(p.dtype)
        errors, order = (true - p[c]).abs().sort(descending=True)
        hits = true[order]
        intersection = hits.sum() - hits.cumsum(0)
        union = hits.sum() + (1 - hits).cumsum(0)
        steps = 1 - intersection / union
        losses.append(torch.dot(errors, torch.diff(steps, prepend=steps.new_zeros(1))))
    return torch.stack(losses).mean()


def reward_weighted(logits: Float[Tensor, "n c h w"], problem: Problem) -> Estimate:
    """Loss = mean_n r_n CE_n, r_n = (1 - R_n) - 0.1 mean_{m != n} (1 - R_m), R of each image's argmax labels."""
    pooled = field(logits, problem.segments)
    labelling = highest(pooled.detach())[1]
    valid = (problem.truth != IGNORE).sum((1, 2))
    best, is_now = (
        problem.reward.value(problem.reward.statistics(labels, problem.truth)).total
        for labels in (problem.truth, labelling)
    )
    seen = (valid > 0) & ~best.isnan()  # NaN although there are labels: one class only, so no boundary to reward
    lack = torch.where(seen, best - is_now, 0)
    others = (lack.sum() - lack) / (seen.sum() - 1).clamp(min=1)
    weight = (lack - OTHER_IMAGES * others).float()
    loss = F.cross_entropy(pooled, problem.truth.long(), ignore_index=IGNORE, reduction="none").sum((1, 2))
    total = (weight * loss / valid.clamp(min=1) * seen).sum() / seen.sum().clamp(min=1)
    return estimate(total, labelling, problem)
