"""Value of information: the part of the shortfall that can be learnt, where dropout-ensemble members disagree.

Labelling a pixel a whose truth is c is worth u(a, c) = [a = c] / U_c - [a != c] J_a / U_a to the pooled mIoU, times
100/C in points. With the members' probabilities p^m and their mean p,

    EVPI_i = mean_m max_a u(a, .) p_i^m  -  max_a u(a, .) p_i,    u(a, .) p = (1 / U_a + J_a / U_a) p(a) - J_a / U_a

is the expected value of perfect information (Raiffa and Schlaifer 1961, "Applied Statistical Decision Theory") about
the member: not negative by Jensen's inequality, 0 where members agree, however unsure each is, and never above the
shortfall of p. With utility log p it would be BALD.
"""

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from pipeline.gain import shortfall
from pipeline.gain.contract import Acquisition, Posterior, Probabilities, Settings, Units, asked, by_claim

STATISTICS = (*shortfall.STATISTICS, "evpi")


def information(posterior: Posterior) -> Float[Tensor, "n h2 w2"]:
    """EVPI of one pixel in each cell, mIoU points.

    Raises:
        ValueError: the posterior comes without its worth.
    """
    if posterior.worth is None:
        raise ValueError("the value of information needs the worth of right and wrong claims: give `Posterior.worth`")
    doubt, miss = (table.to(posterior.members).view(-1, 1, 1) for table in posterior.worth)

    def best(probabilities: Float[Tensor, "*k n c h2 w2"]) -> Float[Tensor, "*k n h2 w2"]:
        return (probabilities * (miss + doubt)).sub_(doubt).amax(-3)

    # The exact value is not negative; rounding may leave it just below 0.
    return (best(posterior.members).mean(0) - best(posterior.members.mean(0))).clamp(min=0)


def annealed(rounds: int, end: float, over: int) -> float:
    """The blend after so many rounds: falls linearly from 1 to `end` over `over` rounds, and then stays."""
    return 1 - (1 - end) * min(rounds / over, 1)


def evpi(settings: Settings) -> Acquisition:
    """The acquisition `evpi`: the part of the shortfall that can be learnt. It uses none of the settings."""
    return Acquisition(STATISTICS, _observe, _evpi, _evpi_map)


def gain(settings: Settings) -> Acquisition:
    """The acquisition `gain`: evpi + blend (shortfall - evpi).

    By class: the EVPI of the pixels that it claims, the shortfall of its false positives and false negatives.
    """

    def by_class(statistics: Float64[Tensor, "m c 4"], pool: Float64[Tensor, "c 4"]) -> Float64[Tensor, "m c"]:
        lacking = shortfall.gain(statistics, pool, settings.smooth)
        return torch.lerp(_evpi(statistics, pool), lacking, settings.blend)

    def of_pixels(
        probabilities: Probabilities, pool: Float64[Tensor, "c 4"], posterior: Posterior | None = None
    ) -> Float[Tensor, "n h w"]:
        lacking = shortfall.gain_map(probabilities, pool, settings.smooth)
        return torch.lerp(_evpi_map(probabilities, pool, posterior), lacking, settings.blend)

    return Acquisition(STATISTICS, _observe, by_class, of_pixels)


def _observe(
    probabilities: Probabilities, posterior: Posterior | None = None, units: Units | None = None
) -> Float64[Tensor, "u c 4"]:
    """The shortfall's three statistics, and the EVPI summed by the argmax class of the members' mean."""
    given = asked(posterior, "the value of information")
    learnt = by_claim(given.members.mean(0), information(given), given, units)[:, :, 1:]
    return torch.cat([shortfall.observe(probabilities, None, units), learnt], dim=2)


def _evpi(statistics: Float64[Tensor, "m c 4"], pool: Float64[Tensor, "c 4"]) -> Float64[Tensor, "m c"]:
    return statistics[:, :, 3]


def _evpi_map(
    probabilities: Probabilities, pool: Float64[Tensor, "c 4"], posterior: Posterior | None = None
) -> Float[Tensor, "n h w"]:
    given = asked(posterior, "the value of information")
    return given.spread(information(given))
