"""Regions within images: how many of an image to ask about, and which.

An image has to be opened once, whatever is asked about it. So as many regions are asked about as bring most per minute,

    K = argmax_K (g_(1) + ... + g_(K)) / (t_open + K t_answer),      g_(k) the k-th highest gain of a region:

the next region is worth asking about as long as its gain per t_answer is above the ratio so far, the greedy rule for a
cost of opening. Images are then chosen by the methods of `METHODS`, with that gain and those minutes, and in each of
them K regions by one of

    draw        in proportion to gain, without replacement: Kool et al. 2019, Rosén 1972 (pipeline/selection/draws.py)
    best_first  the highest gains
    random      at random
"""

from collections.abc import Callable
from functools import partial

import numpy as np
from jaxtyping import Float64, Int64

from pipeline.selection.contract import Choice, Settings
from pipeline.selection.draws import inclusion, log_shares

RegionMethod = Callable[[Float64[np.ndarray, " m"], int, np.random.Generator], Choice]
"""(gains of an image's regions, how many to choose, rng) -> the chosen. Errors: ValueError where numbers are out of
range, or fewer can be drawn than are asked for."""


def most_per_minute(gains: Float64[np.ndarray, " m"], to_open: float, per_answer: float) -> int:
    """How many of the regions, best first, bring the most gain per minute: at least 1, and all if none has a gain.

    Args:
        gains: of the open regions of an image.
        to_open: minutes to open the image, above 0.
        per_answer: minutes per region.
    """
    ordered = np.sort(gains)[::-1]
    minutes = to_open + per_answer * np.arange(1, len(gains) + 1)
    rate = np.cumsum(ordered) / minutes
    return int(len(rate) - np.argmax(rate[::-1]))  # of equal rates the most regions


def draw(gains: Float64[np.ndarray, " m"], k: int, rng: np.random.Generator, settings: Settings) -> Choice:
    """In proportion to gain, as images are drawn."""
    log_q = log_shares(gains, settings)
    can = int(np.isfinite(log_q).sum())
    if k > can:
        raise ValueError(f"{k} regions are asked for, but only {can} have a gain: set select.uniform_share above 0")
    race = np.argsort(-(log_q + rng.gumbel(size=len(log_q))), kind="stable")[:k]
    return Choice(race, inclusion(log_q, k)[race])


def best_first(gains: Float64[np.ndarray, " m"], k: int, rng: np.random.Generator) -> Choice:
    """The highest gains."""
    return Choice(np.argsort(-gains, kind="stable")[:k], np.ones(k))


def random(gains: Float64[np.ndarray, " m"], k: int, rng: np.random.Generator) -> Choice:
    """Any, each as likely."""
    return Choice(rng.permutation(len(gains))[:k].astype(np.int64), np.full(k, k / len(gains)))


REGION_METHODS: dict[str, Callable[[Settings], RegionMethod]] = {
    "draw": lambda settings: partial(draw, settings=settings),
    "best_first": lambda _: best_first,
    "random": lambda _: random,
}


def top(gains: Float64[np.ndarray, " m"], k: int) -> Int64[np.ndarray, " k"]:
    """The k regions with the highest gains."""
    return np.argsort(-gains, kind="stable")[:k]
