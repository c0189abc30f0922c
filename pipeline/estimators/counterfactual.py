"""The estimator `counterfactual`: for rewards of pixel counts, every pixel's own credit, exactly."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor

from pipeline.estimators.contract import Estimate, Problem, counts_of, estimate
from pipeline.estimators.units import CHUNK, field, pixels, sample
from pipeline.images.classes import IGNORE
from pipeline.rewards import CountReward, count

ENTRIES = 2**22
"""Entries of the confusion matrices whose rewards are computed at once: 32 MB."""


def counterfactual(logits: Float[Tensor, "n c h w"], problem: Problem) -> Estimate:
    """Policy gradient of a reward of counts, from one sampled labelling and every pixel's own credit.

    With K the confusion matrix of the pool with the sampled labelling y in it, relabelling pixel i of true class t
    changes the reward by

        R_i(c) = R(K - e[t,y_i] + e[t,c]) - R(K),     so R_i(y_i) = 0,
        loss   = - s sum_i sum_c p_i(c) R_i(c),   R_i held constant.

    Its gradient is that of the advantages A_i(c) = R_i(c) - sum_k p_i(k) R_i(k), since a softmax is blind to a
    constant: COMA with pixels as agents, Foerster et al. 2018, "Counterfactual Multi-Agent Policy Gradients". What
    noise is left comes from the other pixels' labels inside K. Of a segment, its pixels' credits are added up, which is
    exact to first order.

    Raises:
        ValueError: the reward is more than counts.
    """
    of_counts = counts_of(problem.reward, "counterfactual")
    classes = logits.shape[1]
    labelled_by = field(logits, problem.segments)
    labelling = sample(labelled_by.detach(), problem.generator, problem.segments)
    statistics = problem.reward.statistics(labelling, problem.truth)
    if problem.reward.per_image:
        tables = [
            torch.zeros(classes, classes, classes, device=logits.device)
            if (truth == IGNORE).all()
            else _gain_table(of_counts, count(one[None], truth[None], classes))
            for one, truth in zip(labelling, problem.truth, strict=True)
        ]
        seen = max(1, sum(bool((truth != IGNORE).any()) for truth in problem.truth))
        gains = torch.stack(tables) / seen
    else:
        batch = statistics.sum(0).reshape(classes, classes)
        pool = problem.memory.reshape(classes, classes) + batch
        share = pool.sum() / batch.sum().clamp(min=1)
        gains = _gain_table(of_counts, batch, pool)[None] * share.float()
    gains = F.pad(gains, (0, 0, 0, 0, 0, 1))  # IGNORE is one more true class, without any gain
    row = torch.where(problem.truth == IGNORE, classes, problem.truth.long()) * classes + labelling
    if problem.reward.per_image:
        row += torch.arange(len(row), device=row.device)[:, None, None] * (classes + 1) * classes
    total, squares = _Expectation.apply(pixels(labelled_by), gains.flatten(0, 2), row.flatten())
    valid = (problem.truth != IGNORE).sum().clamp(min=1)
    spread = (squares * valid).sqrt()  # in the unit of the loss: reward per share of the pixels
    return estimate(-total, labelling, problem, spread, statistics=statistics)


class _Expectation(torch.autograd.Function):
    """Sum over pixels of the expected gain e_i = sum_c p_i(c) G_i(c), and of its squares, with p = softmax(logits).

    The gradient, p_i(c) (G_i(c) - e_i), is made along with it, chunk by chunk, since a softmax, a gather, a product and
    their gradients, each of the size of all logits, take as long as half a training step on the CPU. The sampled
    label has gain 0, so -e_i is its advantage.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Float[Tensor, "m c"], gains: Float[Tensor, "rows c"], row: Int64[Tensor, " m"]
    ) -> tuple[Float32[Tensor, ""], Float32[Tensor, ""]]:
        gradient = torch.empty_like(logits)
        total, squares = torch.zeros(2, dtype=torch.float64, device=logits.device)
        for some, rows, out in zip(*(torch.split(each, CHUNK) for each in (logits, row, gradient)), strict=True):
            p, gain = some.softmax(1), gains[rows]
            expected = torch.einsum("mc,mc->m", p, gain)
            torch.mul(p, gain - expected[:, None], out=out)
            total += expected.sum()
            squares += expected.square().sum()
        ctx.gradient = gradient
        ctx.mark_non_differentiable(squares)
        return total.float(), squares.float()

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, None, None]:
        gradient, ctx.gradient = ctx.gradient, None  # changed in place, so there is only one
        if gradient is None:
            raise RuntimeError("the gradient of an expectation is used up: ask the estimator again")
        return gradient.mul_(outputs[0]), None, None


def _gain_table(
    of_counts: CountReward, batch: Float64[Tensor, "c c"], pool: Float64[Tensor, "c c"] | None = None
) -> Float32[Tensor, "c c c"]:
    return relabelling_gains(batch if pool is None else pool, batch, of_counts).float()


def relabelling_gains(
    pool: Float64[Tensor, "c c"], batch: Float64[Tensor, "c c"], reward: CountReward
) -> Float64[Tensor, "c c c"]:
    """What relabelling one pixel does to the reward, exactly, by (true class, label, new label).

    Args:
        pool: all counts.
        batch: the part of them that can be relabelled; pairs of true class and label that it lacks are left at 0.
        reward: of counts, from `pipeline.rewards`.
    """
    classes = len(pool)
    gains = torch.zeros((classes,) * 3, dtype=pool.dtype, device=pool.device)
    new = torch.eye(classes, dtype=pool.dtype, device=pool.device)
    for pairs in torch.split(torch.nonzero(batch), max(1, ENTRIES // classes**3)):
        truth, label = pairs.unbind(1)
        which = torch.arange(len(pairs), device=pool.device)
        relabelled = pool.repeat(len(pairs), classes, 1, 1)
        relabelled[which, :, truth, label] -= 1
        relabelled[which, :, truth] += new
        gains[truth, label] = reward(relabelled).total - reward(pool).total
    return gains
