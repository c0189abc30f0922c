"""The forecast: mIoU on the test set after the next purchase, with an interval, before it is paid for.

A Bayesian linear model of what each round so far has changed, in points of mIoU. With the labels n before and n' after
a round, x = log((n' + OFFSET) / (n + OFFSET)), and g the gain that was predicted for its images,

    change = beta x + gamma g + noise,     noise ~ N(0, sigma^2 x)

A learning curve that is linear in the logarithm of the labels; its noise grows with x as in a random walk: the first
labels change much, and differently from run to run. Divided by sqrt(x), this is ordinary regression with the conjugate
prior

    (beta, gamma) ~ N(MEAN, sigma^2 (SD / SPREAD)^2),     1 / sigma^2 ~ Gamma(DOF / 2, DOF SPREAD^2 / 2)

and the next change has a Student t distribution in closed form (Gelman et al. 2013, "Bayesian Data Analysis", sections
14.2 and 14.8).

Where the prior's numbers come from: CamVid from the rendered town, docs/results/loop_camvid.json, three rounds of six
runs. OFFSET = 0.1 is where rounds after the first lie on the line through all (mean residual 0.0); there beta is 4.5,
1.1 from run to run, widened to 2 for other data and networks; the residuals over sqrt(x) have a spread of 2.1, taken
for as many degrees of freedom as there are runs. Nothing is known of gamma: 0, with a spread of 0.1 points per
predicted point, so that one surprising round is not attributed to the score. The demo town was not used for these.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

OFFSET = 0.1
"""Labels that the source model is worth."""
MEAN = np.array([4.5, 0.0])
"""Prior of beta (points per factor e of labels) and gamma (points per predicted point)."""
SD = np.array([2.0, 0.1])
SPREAD = 2.1
"""Prior of sigma: points over the root of x."""
DOF = 6.0
LEVEL = 0.8
"""Probability with which the interval should hold the mIoU."""


class Round(NamedTuple):
    """One purchase."""

    before: float
    """Labels before it, in images."""
    after: float
    """Labels after it."""
    gain_points: float
    """Gain predicted for its images, points of mIoU; 0 if the score has another unit."""


class Forecast(NamedTuple):
    """The mIoU after the next purchase, in points (0 to 100)."""

    expected_points: float
    low_points: float
    high_points: float
    """End of the interval that holds the mIoU with probability LEVEL."""


def forecast(history: Sequence[tuple[Round, float]], following: Round, miou_points: float) -> Forecast:
    """Expected mIoU after a round and its interval, clipped to [0, 100].

    Args:
        history: earlier rounds and by how many points each has changed the mIoU.
        following: the round that is to be bought.
        miou_points: the mIoU before it, as measured last.

    Raises:
        ValueError: a round adds no label, or a number is not finite.
    """
    from scipy.special import stdtrit  # slow to import

    rows = np.array([_row(of) for of, _ in history] + [_row(following)])
    changes = np.array([change for _, change in history])
    if not (np.isfinite(rows).all() and np.isfinite(changes).all() and np.isfinite(miou_points)):
        raise ValueError("a forecast needs rounds that add labels, and finite gains and changes")
    spread = np.sqrt(rows[:, 0])  # standard deviation of the noise, in units of sigma
    x, y = rows[:-1] / spread[:-1, None], changes / spread[:-1]
    precision = np.diag((SPREAD / SD) ** 2)
    posterior = precision + x.T @ x
    mean = np.linalg.solve(posterior, precision @ MEAN + x.T @ y)
    dof = DOF + len(y)
    squares = DOF * SPREAD**2 + y @ y + MEAN @ precision @ MEAN - mean @ posterior @ mean
    now = rows[-1]
    scale = np.sqrt(squares / dof * (spread[-1] ** 2 + now @ np.linalg.solve(posterior, now)))
    expected = miou_points + now @ mean
    reach = stdtrit(dof, (1 + LEVEL) / 2) * scale
    cut = np.clip([expected, expected - reach, expected + reach], 0, 100)
    return Forecast(*map(float, cut))


def _row(bought: Round) -> tuple[float, float]:
    if not bought.after > bought.before >= 0:
        raise ValueError(f"a forecast needs rounds that add labels, not one from {bought.before} to {bought.after}")
    return float(np.log((bought.after + OFFSET) / (bought.before + OFFSET))), bought.gain_points
