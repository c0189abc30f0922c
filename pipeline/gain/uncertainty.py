"""Uncertainty baselines: a score per pixel, whose mean over an image is its gain; neither pool nor settings matter."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64
from torch import Tensor

from pipeline.gain.contract import Acquisition, Posterior, Probabilities, Settings, Units, asked, by_claim
from pipeline.images.claims import highest

REGION = 3
"""Height and width in pixels of the region of `ripu`."""


def entropy(probabilities: Probabilities) -> Float[Tensor, "n h w"]:
    """Shannon entropy -sum_c p log p, nats."""
    entropies: Tensor = torch.special.entr(probabilities).sum(1)
    return entropies


def margin(probabilities: Probabilities) -> Float[Tensor, "n h w"]:
    """1 - (highest - second highest probability)."""
    first, second = probabilities.topk(2, dim=1).values.unbind(1)
    return 1 - (first - second)


def least_confidence(probabilities: Probabilities) -> Float[Tensor, "n h w"]:
    """1 - highest probability."""
    return 1 - probabilities.amax(1)


def alike(probabilities: Probabilities) -> Float[Tensor, "n h w"]:
    """The same score everywhere: the random baseline."""
    return torch.ones_like(probabilities[:, 0])


def ripu(probabilities: Probabilities) -> Float[Tensor, "n h w"]:
    """Region impurity times prediction uncertainty: Xie et al. 2022, "Towards Fewer Annotations".

        impurity = -sum_c q_c log q_c,  q_c = share of pixels of argmax class c in the region around the pixel
        uncertainty = mean entropy of the region's pixels

    Both in nats: the paper's code divides by log C, which gives the same order. At the border, the region is cut off at
    the image's edge. The paper ranks regions to buy; here, the mean over the image ranks images.
    """

    def region(maps: Tensor) -> Tensor:
        return F.avg_pool2d(maps, REGION, stride=1, padding=REGION // 2, count_include_pad=False)

    impurity = torch.zeros_like(probabilities[:, 0])
    _, claim = highest(probabilities)
    for c in range(probabilities.shape[1]):
        impurity += torch.special.entr(region((claim == c).to(probabilities.dtype)))
    return impurity * region(entropy(probabilities))


def bald(members: Float[Tensor, "k n c h w"]) -> Float[Tensor, "n h w"]:
    """Entropy of the members' mean less the members' mean entropy: mutual information of class and member, nats."""
    apart = torch.special.entr(members).sum(2).mean(0)
    information: Tensor = torch.special.entr(members.mean(0)).sum(1) - apart
    return information.clamp(min=0)  # not negative by Jensen's inequality; rounding may leave it just below 0


def of_pixels(
    score: Callable[[Probabilities], Float[Tensor, "n h w"]],
) -> Callable[[Settings], Acquisition]:
    """A factory of the acquisition whose gain is the mean of `score` over an image's pixels; it uses no setting."""

    def observe(
        probabilities: Probabilities, posterior: Posterior | None = None, units: Units | None = None
    ) -> Float64[Tensor, "u c 2"]:
        return by_claim(probabilities, score(probabilities), None, units)

    def gain_map(
        probabilities: Probabilities, pool: Float64[Tensor, "c 2"], posterior: Posterior | None = None
    ) -> Float[Tensor, "n h w"]:
        return score(probabilities) / probabilities[0, 0].numel()

    return lambda _: Acquisition(("claimed", "score"), observe, _mean, gain_map)


def of_members(
    score: Callable[[Float[Tensor, "k n c h w"]], Float[Tensor, "n h w"]],
) -> Callable[[Settings], Acquisition]:
    """The same for a `score` of the ensemble's members, split by the argmax class of their mean."""
    name = getattr(score, "__name__", "score")

    def observe(
        probabilities: Probabilities, posterior: Posterior | None = None, units: Units | None = None
    ) -> Float64[Tensor, "u c 2"]:
        given = asked(posterior, name)
        return by_claim(given.members.mean(0), score(given.members), given, units)

    def gain_map(
        probabilities: Probabilities, pool: Float64[Tensor, "c 2"], posterior: Posterior | None = None
    ) -> Float[Tensor, "n h w"]:
        given = asked(posterior, name)
        return given.spread(score(given.members)) / probabilities[0, 0].numel()

    return lambda _: Acquisition(("claimed", "score"), observe, _mean, gain_map)


def _mean(statistics: Float64[Tensor, "m c 2"], pool: Float64[Tensor, "c 2"]) -> Float64[Tensor, "m c"]:
    claimed, scores = statistics.unbind(2)
    means: Tensor = scores / claimed.sum(1, keepdim=True)
    return means
