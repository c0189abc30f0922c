"""The estimators `reinforce` and `ppo`: policy gradients from the rewards of sampled labellings."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Float64, UInt8
from torch import Tensor

from pipeline.estimators.contract import Baseline, Estimate, Problem, Rollout, Settings, estimate
from pipeline.estimators.units import field, sample, segment_sums, sizes
from pipeline.images.classes import IGNORE

OTHER_IMAGES = 0.1
"""Weight of the other images' reward in the baseline of the slides."""


def reinforce(logits: Float[Tensor, "n c h w"], problem: Problem, settings: Settings) -> Estimate:
    """Loss = - (1/N) sum_n s_n (1/K) sum_k sum_i A log p_i(y_i): every image is rewarded by itself, within the pool.

    Baselines, none of which depends on the sampled label that it is subtracted from, so that none adds a bias:

        none             0
        two_sample       the reward of a second labelling of the image; only the first one is learnt from (the paper's)
        leave_one_out    the mean reward of the image's other labellings (Kool et al. 2019)
        other_images     0.1 times the mean reward of the batch's other images (the slides')
        rolling_mean     the reward of the memory

    With local credit a pixel's advantage is what the statistics that it can change are worth, w . S with w = dR/dS at
    the pool: to first order in the pool the same gradient, with the noise of a neighbourhood instead of an image's.

    Raises:
        ValueError: the baseline needs more samples or images, or local credit is not defined for it or for the reward.
    """
    found = _policy_gradient(logits, problem, settings, lambda log_p, drawn: drawn.advantages * log_p)
    return found._replace(rollout=None)  # on-policy only: after a step these labellings are off-policy


def ppo(logits: Float[Tensor, "n c h w"], problem: Problem, settings: Settings) -> Estimate:
    """Loss = - (1/N) sum_n s_n (1/K) sum_k sum_i min(q A, clip(q, 1 - clip, 1 + clip) A), q = p_i(y_i) / p_i,old(y_i).

    At the first step on a sample all ratios are 1 and the gradient is that of `reinforce`.

    Raises:
        ValueError: as of `reinforce`.
    """

    def clipped(log_p: Tensor, drawn: Rollout) -> Tensor:
        ratio = (log_p - drawn.log_p).exp()
        bounded = ratio.clamp(1 - settings.clip, 1 + settings.clip)
        return torch.minimum(ratio * drawn.advantages, bounded * drawn.advantages)

    return _policy_gradient(logits, problem, settings, clipped)


def _policy_gradient(
    logits: Tensor, problem: Problem, settings: Settings, surrogate: Callable[[Tensor, Rollout], Tensor]
) -> Estimate:
    log_p = field(logits, problem.segments).log_softmax(1)
    drawn = problem.rollout or _roll_out(log_p.detach(), problem, settings)
    chosen = log_p[None].expand(len(drawn.labellings), -1, -1, -1, -1).gather(2, drawn.labellings[:, :, None].long())
    valid = problem.truth != IGNORE
    # A segment's label was drawn once, so its pixels share one log-probability.
    weight = valid / sizes(problem.segments, valid)
    loss = -(surrogate(chosen[:, :, 0], drawn) * weight).sum() / len(drawn.labellings)
    spread = (drawn.advantages.expand_as(drawn.log_p).square() * valid).sum() / len(drawn.labellings)
    return estimate(loss, drawn.labellings[0], problem, (spread * valid.sum()).sqrt(), drawn)


def _roll_out(log_p: Float[Tensor, "n c h w"], problem: Problem, settings: Settings) -> Rollout:
    """Draw labellings and compute their advantages."""
    least = 2 if settings.baseline in ("two_sample", "leave_one_out") else 1
    if settings.samples < least:
        raise ValueError(f"the baseline {settings.baseline} needs at least {least} samples, not {settings.samples}")
    labellings = torch.stack([sample(log_p, problem.generator, problem.segments) for _ in range(settings.samples)])
    statistics = torch.stack([problem.reward.statistics(one, problem.truth) for one in labellings])  # k n s
    advantages = _BY_CREDIT[settings.credit](labellings, statistics, problem, settings.baseline)
    if settings.baseline == "two_sample":
        labellings, advantages = labellings[:1], advantages[:1]
    chosen = log_p[None].expand(len(labellings), -1, -1, -1, -1).gather(2, labellings[:, :, None].long())
    return Rollout(labellings, chosen[:, :, 0].float(), advantages.float())


def _by_image(
    labellings: UInt8[Tensor, "k n h w"], statistics: Float64[Tensor, "k n s"], problem: Problem, baseline: Baseline
) -> Float64[Tensor, "k n 1 1"]:
    mass = _mass(problem)
    seen = mass > 0
    rewards = problem.reward.value(problem.memory + statistics).total
    rewards = torch.where(seen, rewards, 0)
    images = seen.sum().clamp(min=1)
    match baseline:
        case "none":
            expected = torch.zeros_like(rewards)
        case "two_sample":
            expected = rewards.roll(-1, 0)
        case "leave_one_out":
            expected = (rewards.sum(0) - rewards) / (len(rewards) - 1)
        case "other_images":
            if images < 2:
                raise ValueError("the baseline other_images needs at least 2 labelled images in a batch")
            expected = OTHER_IMAGES * (rewards.sum(1, keepdim=True) - rewards) / (images - 1)
        case "rolling_mean":
            if not problem.memory.any():
                expected = torch.zeros_like(rewards)  # the first step
            else:
                expected = problem.reward.value(problem.memory).total.expand_as(rewards)
    share = torch.where(seen, (problem.reward.size(problem.memory) + mass) / mass, 0)
    return (share * (rewards - expected) / images)[..., None, None]


def _mass(problem: Problem) -> Float64[Tensor, " n"]:
    """The reward's size of each image, which does not depend on the sample."""
    return problem.reward.size(problem.reward.statistics(problem.truth, problem.truth))


def _by_pixel(
    labellings: UInt8[Tensor, "k n h w"], statistics: Float64[Tensor, "k n s"], problem: Problem, baseline: Baseline
) -> Float64[Tensor, "k n h w"]:
    credit = problem.reward.credit
    if credit is None:
        raise ValueError("this reward knows no local credit: set credit to image")
    if problem.segments is not None and problem.reward.of_counts is None:
        raise ValueError("local credit of this reward is by pixels: set unit to pixel, or credit to image")
    if baseline not in ("none", "two_sample", "leave_one_out"):
        raise ValueError(f"the baseline {baseline} knows no local credit: take leave_one_out")
    pool = (problem.memory + statistics.sum(1).mean(0)).requires_grad_()
    with torch.enable_grad():
        total = problem.reward.value(pool).total
        (worth,) = torch.autograd.grad(total, pool)
    worth = torch.where(total.isnan(), 0, worth)  # the reward is not defined: no advantage
    mass = _mass(problem).sum()
    worth = worth * (problem.reward.size(problem.memory) + mass) / mass.clamp(min=1e-9)
    parts = torch.stack([credit(one, problem.truth, worth) for one in labellings]).double()
    if problem.segments is not None:
        parts = torch.stack([segment_sums(one[:, None], problem.segments)[:, 0] for one in parts])
    match baseline:
        case "two_sample":
            return parts - parts.roll(-1, 0)
        case "leave_one_out":
            return parts - (parts.sum(0) - parts) / (len(parts) - 1)
    return parts


_BY_CREDIT = {"image": _by_image, "local": _by_pixel}
