"""The verdict of an audit: was the gain that a round was bought for real? Known once its labels are back.

For every image that came back, the predicted gain (g_i, calibrated, on its labelled pixels) is compared with the
realised one (r_i, the same formula with the labels in the place of probabilities). Three questions:

- *Level*: the slope through the origin, sum g r / sum g^2 of what was bought, and the line r = a + b g of the whole
  pool, by least squares with the weights 1 / pi_i that undo how the images were drawn (Horvitz and Thompson 1952).
- *Order*: Spearman's rank correlation rho, the only thing that a draw in proportion to gain needs. Images of one round
  are ranked among themselves, since the gains of two rounds are relative to two models.
- *Signal*: a one-sided permutation test of rho > 0. With B random permutations within rounds

      p = (1 + #{rho_b >= rho}) / (1 + B),   Phipson and Smyth 2010, "Permutation p-values should never be zero".

  A score carries a signal if p <= 0.1. Fewer than 6 images give no verdict; they are pooled with the rounds before.

Where the score carries none, drawing by it is a random choice with a bias, and the next round is chosen by `FALLBACK`:
Munjal et al. 2022, "Towards robust and reproducible active learning", and Lüth et al. 2023, "Navigating the pitfalls of
active learning evaluation", find that scores often do worse than a uniform choice, and only an audit can show it.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int64

from pipeline.params import IN_POINTS

if TYPE_CHECKING:
    import pandas as pd

FALLBACK = "class_stratified"
"""The selection method that takes over where the score carries no signal."""
FEWEST = 6
"""Images that a verdict needs: a random order of 6 images is perfect with a probability of 1 in 720."""
LEVEL = 0.1
"""Significance level: the share of scores without a signal that pass the test."""
PERMUTATIONS = 9999

Values = Float64[np.ndarray, " n"]


class Rank(NamedTuple):
    """How well one order agrees with another."""

    spearman: float | None
    """Rank correlation in [-1, 1]; None where one side does not vary."""
    p_value: float
    """Share of random orders that agree as well or better; 1 where one side does not vary."""


class Line(NamedTuple):
    """The level of realised against predicted gain; None where predictions do not vary."""

    through_origin: float | None
    """Realised per predicted gain, of what was bought."""
    slope: float | None
    """The same of the whole pool, with an intercept."""
    intercept: float | None
    """In the gain's unit."""


class Verdict(NamedTuple):
    """Whether a score may go on choosing."""

    rank: Rank
    images: int
    """Number of images that it rests on."""
    rounds: int
    """Number of rounds that they are of: this one and those just before."""
    signal: bool | None
    """None: too few images to tell."""


def fit_line(predicted: Values, realised: Values, probabilities: Values) -> Line:
    """Slope through the origin, and the weighted least-squares line.

    Args:
        predicted: gain of every image that came back.
        realised: the same gain, computed from its labels.
        probabilities: with which each was drawn, in (0, 1].
    """
    squares = float(predicted @ predicted)
    through_origin = float(predicted @ realised) / squares if squares > 0 else None
    weights = 1 / probabilities
    x, y = (values - np.average(values, weights=weights) for values in (predicted, realised))
    spread = float(weights @ x**2)
    if np.ptp(predicted) == 0:
        return Line(through_origin, None, None)
    slope = float(weights @ (x * y)) / spread
    intercept = float(np.average(realised - slope * predicted, weights=weights))
    return Line(through_origin, slope, intercept)


def correlate(
    predicted: Values, realised: Values, rng: np.random.Generator, rounds: Int64[np.ndarray, " n"] | None = None
) -> Rank:
    """Spearman's rank correlation, and its one-sided permutation p-value.

    Args:
        predicted: one side.
        realised: the other side.
        rng: source of the permutations.
        rounds: the group within which each is ranked and permuted; None for one group.
    """
    rounds = np.zeros(len(predicted), np.int64) if rounds is None else rounds
    groups = [np.flatnonzero(rounds == group) for group in np.unique(rounds)]
    left, right = ([_centred_ranks(values[group]) for group in groups] for values in (predicted, realised))
    scale = np.sqrt(sum(part @ part for part in left) * sum(part @ part for part in right))
    if not scale > 0:
        return Rank(None, 1.0)
    found = sum(a @ b for a, b in zip(left, right, strict=True))
    as_good = 0
    for _ in range(PERMUTATIONS):
        by_chance = sum(a @ rng.permutation(b) for a, b in zip(left, right, strict=True))
        as_good += bool(by_chance >= found - 1e-9 * scale)  # equal orders sum to the same but for rounding
    return Rank(float(found / scale), (1 + as_good) / (1 + PERMUTATIONS))


def _centred_ranks(values: Float[np.ndarray, " n"]) -> Values:
    """Ranks (ties get their mean rank) divided by the number of values, minus their mean."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2
    centred: np.ndarray = (ranks[place] - (len(values) + 1) / 2) / max(len(values), 1)
    return centred


def judge(
    audits: Sequence[tuple[Float64[np.ndarray, " _"], Float64[np.ndarray, " _"]]], rng: np.random.Generator
) -> Verdict:
    """The verdict on the last audit; earlier ones are pooled with it until there are enough images.

    Args:
        audits: (predicted, realised) gains of each round's images, oldest round first.
        rng: source of the permutations.
    """
    pooled: list[tuple[Values, Values]] = []
    images = 0
    for predicted, realised in reversed(audits):
        if images >= FEWEST:
            break
        pooled.append((predicted, realised))
        images += len(predicted) if len(predicted) > 1 else 0  # one image has no order
    rounds = np.repeat(np.arange(len(pooled)), [len(predicted) for predicted, _ in pooled])
    predicted, realised = (np.concatenate(side) for side in zip(*pooled, strict=True))
    rank = correlate(predicted, realised, rng, rounds)
    signal = None if images < FEWEST else (rank.spearman or 0) > 0 and rank.p_value <= LEVEL
    return Verdict(rank, images, len(pooled), signal)


def method(wanted: str, signal: bool | None, fallback: bool) -> str:
    """The selection method of a round, by the verdict of the round before.

    Args:
        wanted: `select.method`.
        signal: of the last audited round; None where there is no verdict.
        fallback: `select.fallback`.
    """
    return FALLBACK if fallback and signal is False else wanted


def conclude(
    earlier: list[list[list[float]]], frame: "pd.DataFrame", rng: np.random.Generator, acquisition: str
) -> dict[str, Any]:
    """The content of audit.json: sums, line, verdict; with gains of earlier rounds if the table has too few images."""
    if "realised" not in frame.columns:
        why = f"no verdict on {acquisition}: the statistics that it sums over the pool do not give the realised gain"
        return {"signal": None, "conclusion": why, "judged": earlier}
    predicted, realised, probability = (frame[c].to_numpy(float) for c in ("predicted", "realised", "probability"))
    before = [(np.array(predicted), np.array(realised)) for predicted, realised in earlier]
    verdict = judge([*before, (predicted, realised)], rng)
    content: dict[str, Any] = {"predicted": float(predicted.sum()), "realised": float(realised.sum())}
    if acquisition in IN_POINTS:
        content |= fit_line(predicted, realised, probability)._asdict()
    content |= {"spearman": verdict.rank.spearman, "p_value": verdict.rank.p_value}
    content |= {"tested_images": verdict.images, "tested_rounds": verdict.rounds, "signal": verdict.signal}
    content |= {"conclusion": _sentence(verdict, content, acquisition)}
    own = [[float(f"{value:.9g}") for value in side] for side in (predicted, realised)]  # as the table has them
    return content | {"judged": [*earlier, own][-verdict.rounds :]}  # later verdicts never need older rounds


def _sentence(verdict: Verdict, content: dict[str, Any], acquisition: str) -> str:
    level = f"gain in points of mIoU {content['predicted']:.2f} predicted, {content['realised']:.2f} realised; "
    rank = "nothing to rank" if verdict.rank.spearman is None else f"rank correlation {verdict.rank.spearman:.2f}"
    found = {True: "a signal", False: "no signal", None: f"no verdict below {FEWEST} images"}[verdict.signal]
    over = f"{verdict.images} images" + (f" of {verdict.rounds} rounds" if verdict.rounds > 1 else "")
    return (
        f"{level if acquisition in IN_POINTS else ''}{rank} over {over} "
        f"(p = {verdict.rank.p_value:.2g}): {found} in {acquisition}"
    )
