"""Estimators: how a reward becomes a gradient for the network that labels.

A segmentation network draws every pixel's label for itself, P(y) = prod_i p_i(y_i), so the expected reward is linear in
each p_i, and its derivative is a counterfactual: what the reward would be if pixel i had label c,

    dE[R] / dp_i(c) = E_{y_-i} [ R(y_-i, y_i = c) ].

Three ways to come by it, and three that do without; all minimise `Estimate.loss`:

    counterfactual    a reward of counts gives all of them exactly, from one sampled labelling
    reinforce         - sum_k A_k log P(y_k) over sampled labellings: Williams 1992; Pinto et al. 2023, "Tuning computer
                      vision models with task rewards". It works for every reward, and drowns in noise: for an image of
                      1024 pixels the cosine of 8 samples to the true gradient was 0.06, of one counterfactual 0.999
    ppo               the same with the ratio to the policy that drew the sample, clipped, so that a sample serves
                      several steps: Schulman et al. 2017, "Proximal Policy Optimization Algorithms"
    soft_iou          - R(expected counts): Rahman and Wang 2016, "Optimizing Intersection-Over-Union in Deep Neural
                      Networks for Image Segmentation", for every reward of counts
    lovasz            the Lovasz extension of 1 - IoU: Berman et al. 2018, "The Lovasz-Softmax loss"
    reward_weighted   r times cross-entropy, r = (1 - R_x) - 0.1 mean of the other images' (1 - R): what the slides in
                      which this project began did. No policy gradient: its labels are the truth, not samples

A *unit* is what has one label of its own: a pixel, or a segment (patch, superpixel) whose logits are averaged first.
"""

from functools import partial

from pipeline.estimators import counterfactual
from pipeline.estimators.contract import Entry, Estimate, Estimator, Problem, Rollout, Settings
from pipeline.estimators.sampling import ppo, reinforce
from pipeline.estimators.surrogates import lovasz, reward_weighted, soft_iou

__all__ = ["ESTIMATORS", "Entry", "Estimate", "Estimator", "Problem", "Rollout", "Settings"]

ESTIMATORS: dict[str, Entry] = {
    "counterfactual": Entry(lambda _: counterfactual.counterfactual, needs_counts=True),
    "reinforce": Entry(lambda settings: partial(reinforce, settings=settings), needs_samples=True),
    "ppo": Entry(lambda settings: partial(ppo, settings=settings), needs_samples=True),
    "soft_iou": Entry(lambda _: soft_iou, needs_counts=True),
    "lovasz": Entry(lambda _: lovasz, needs_miou=True),
    "reward_weighted": Entry(lambda _: reward_weighted),
}
