"""The planner: what it takes to reach an mIoU, from the rounds so far, with an interval over families of curves.

The mIoU in points over the amount bought (minutes of annotators' time), of the rounds that bought something; the source
model has not seen the target and is on no curve of those that have. Four families, three of them those of Mahmood et
al. 2022, "How Much More Data Do I Need?" (arXiv 2207.01725): few rounds cannot tell which is right, and they differ in
what they say of far ones. Each is a rising function g with a shape s on a grid; u is the amount over the last one's:

    mIoU = level + slope scale (g(u; s) - g(1; s)) + noise,     noise ~ N(0, sigma^2)

where `scale` makes slope the points per factor e from the first round to the last. Given s and sigma this is linear and
normal, so evidence and posterior are closed forms (Gelman et al. 2013, "Bayesian Data Analysis", section 14.8). Draws
from the posterior over all of them, falling curves left out, give the intervals: of what a round would *measure*, noise
included, so that they can be held against the rounds that come (docs/results/planner.md).

The prior: lines over log amounts in docs/results/{loop_camvid,gain_camvid,gain_town,gain_imagenet}.json have mean
slopes of 4.6, 3.9, 3.7, 6.6 and residuals of 0.5, 2.3, 1.0, 2.7 points; the mean of the slopes, its spread doubled for
other data and networks, and the median of the residuals, worth three rounds. Nothing is known of the level.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from pipeline import streams
from pipeline.evaluation.curve import LEVEL

MEAN, SD = np.array([50.0, 4.7]), np.array([50.0, 2.6])
"""Prior of level (points) and slope (points per factor e)."""
SPREAD, DOF = 1.6, 3.0
"""1 / sigma^2 ~ Gamma(DOF / 2, DOF SPREAD^2 / 2), sigma in points, on the grid SIGMAS."""
SIGMAS = SPREAD * np.geomspace(0.25, 8, 14)
PRIOR = -DOF * (np.log(SIGMAS) + (SPREAD / SIGMAS) ** 2 / 2)
LEAST = 3
"""Measured rounds below which nothing can be told: two points lie on a curve of every family."""
FAR = 1000.0
"""More than so many times what is bought is as good as never."""
DRAWS = 8000
QUANTILES = (0.5 - LEVEL / 2, 0.5, 0.5 + LEVEL / 2)
Array = Float64[np.ndarray, "..."]


class Family(NamedTuple):
    """A rising function g(u, shape), its inverse (infinite where it levels off below), its end, and the shapes."""

    g: Callable[[Array, float], Array]
    inverse: Callable[[Array, float], Array]
    end: float
    shapes: tuple[float, ...]


_POWERS, _AT, _SHIFTS = (tuple(np.geomspace(*ends, 24).tolist()) for ends in ((0.1, 2.5), (0.05, 4.0), (0.01, 1.0)))
FAMILIES = {
    "power law": Family(lambda u, s: -(u**-s), lambda v, s: np.maximum(-v, 0) ** (-1 / s), 0.0, _POWERS),
    "logarithm": Family(lambda u, s: np.log(u + s), lambda v, s: np.exp(v) - s, np.inf, _SHIFTS),
    "exponential": Family(lambda u, s: -np.exp(-u / s), lambda v, s: -s * np.log(np.maximum(-v, 0)), 0.0, _AT),
    "arctan": Family(lambda u, s: -np.arctan(s / u), lambda v, s: s / np.tan(np.clip(-v, 0, np.pi / 2)), 0.0, _AT),
}


class Draws(NamedTuple):
    """Curves `level + slope g(u, shape)` that the rounds leave possible, and what a round would measure beside them."""

    family: str
    shape: float
    level: Float64[np.ndarray, " d"]
    slope: Float64[np.ndarray, " d"]
    noise: Float64[np.ndarray, " d"]

    def points(self, u: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, "d n"]:
        """Their mIoU without noise."""
        return np.asarray(self.level[:, None] + self.slope[:, None] * FAMILIES[self.family].g(u, self.shape))


class Curves(NamedTuple):
    """The posterior; `bought` is the amount of the last round."""

    bought: float
    draws: tuple[Draws, ...]

    def measured(self, amounts: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, "3 n"]:
        """Low end, median and high end of what rounds with these amounts would measure, points in [0, 100]."""
        every = np.concatenate([one.points(amounts / self.bought) + one.noise[:, None] for one in self.draws])
        return np.asarray(np.clip(np.quantile(every, QUANTILES, axis=0), 0, 100))

    def by_family(self, amounts: Float64[np.ndarray, " n"]) -> dict[str, Float64[np.ndarray, " n"]]:
        """The median curve of each family, points."""
        every: dict[str, list[Array]] = {}
        for one in self.draws:
            every.setdefault(one.family, []).append(one.points(amounts / self.bought))
        return {name: np.median(np.concatenate(points), axis=0) for name, points in every.items()}


class Plan(NamedTuple):
    """The amount, in all, with which a round measures the target: median, and interval of LEVEL; infinite is never."""

    low: float
    expected: float
    high: float
    never: float
    ends: dict[str, float]
    """By family, the mIoU in points that it levels off at (median); infinite for the logarithm."""


def fit(amounts: Sequence[float], miou_points: Sequence[float]) -> Curves:
    """The curves that the measured rounds leave possible; `amounts` are what was bought up to each, in one unit.

    Raises:
        ValueError: fewer than LEAST rounds, amounts that do not rise, or an mIoU that does not rise with them.
    """
    n, y = np.asarray(amounts, float), np.asarray(miou_points, float)
    if len(n) < LEAST or not (np.isfinite([*n, *y]).all() and 0 < n[0] < n[-1] and (np.diff(n) >= 0).all()):
        raise ValueError(f"a plan needs {LEAST} measured rounds, each with more bought than before, not {[*amounts]}")
    if np.polyfit(np.log(n), y, 1)[0] <= 0:
        raise ValueError("the mIoU does not rise with what is bought")
    u, found, evidence, draws = n / n[-1], [], [], []
    for name, shape in ((name, shape) for name, family in FAMILIES.items() for shape in family.shapes):
        g = FAMILIES[name].g(u, shape)
        scale = np.log(1 / u[0]) / (g[-1] - g[0])
        x = np.stack([np.ones_like(u), (g - g[-1]) * scale], 1)
        posterior = np.diag(SD**-2) + x.T @ x / SIGMAS[:, None, None] ** 2
        mean = np.linalg.solve(posterior, (MEAN / SD**2 + y @ x / SIGMAS[:, None] ** 2)[..., None])[..., 0]
        squares = ((y - mean @ x.T) ** 2).sum(1) / SIGMAS**2 + (((mean - MEAN) / SD) ** 2).sum(1)
        evidence.append(PRIOR - len(y) * np.log(SIGMAS) - (np.linalg.slogdet(posterior)[1] + squares) / 2)
        found.append((name, shape, scale, g[-1], mean, np.linalg.cholesky(np.linalg.inv(posterior))))
    weights = np.exp(np.array(evidence) - np.max(evidence))
    rng = streams.rng(0, "planner")  # the same rounds, the same plan
    counts = rng.multinomial(DRAWS, (weights / weights.sum()).ravel()).reshape(weights.shape)
    for count, (name, shape, scale, now, mean, root) in zip(counts, found, strict=True):
        of = np.repeat(np.arange(len(SIGMAS)), count)
        level, slope = (mean[of] + np.einsum("dij,dj->di", root[of], rng.normal(size=(len(of), 2)))).T
        rises, noise = slope > 0, SIGMAS[of] * rng.normal(size=len(of))
        if rises.any():
            draws.append(Draws(name, shape, (level - slope * scale * now)[rises], (slope * scale)[rises], noise[rises]))
    return Curves(float(n[-1]), tuple(draws))


def plan(curves: Curves, target_points: float) -> Plan:
    """When a target is measured that was not with the last round."""
    needs, ends = list[Array](), dict[str, list[Array]]()
    for one in curves.draws:
        with np.errstate(divide="ignore", over="ignore"):
            value = (target_points - one.level - one.noise) / one.slope
            needs.append(FAMILIES[one.family].inverse(value, one.shape))
        ends.setdefault(one.family, []).append(one.level + one.slope * FAMILIES[one.family].end)
    need = np.maximum(np.concatenate(needs), 1)
    need[need > FAR] = np.inf
    medians = {name: float(np.median(np.concatenate(several))) for name, several in ends.items()}
    low, expected, high = (curves.bought * np.quantile(need, QUANTILES, method="inverted_cdf")).tolist()
    return Plan(low, expected, high, float(np.isinf(need).mean()), medians)
