"""Coverage: images that resemble what the pool gains by, class by class, and do not resemble each other.

    F(S) = sum_j sum_c g_jc max_{x in S u L} kappa_c(x, j),   kappa_c = max(0, cos) of features pooled over class c

Labelling x teaches what x shows, and what it shows of class c teaches image j as far as the two look alike in c; L is
bought already. Facility location per class: monotone and submodular, so that the greedy choice of k images reaches
1 - 1/e of the best (Nemhauser et al. 1978). Gain of a class that j shows nothing of (no vector) is covered by no image.

F is a sum over terms (j, c). Of more than `terms` of them it is evaluated on a sample drawn in proportion to g_jc,
evenly spaced along their cumulated sum, each hit counting the same: an unbiased estimate for every S.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64

from pipeline.selection.contract import Budget, Candidates, Choice, Settings, check, compared, expected_number, take
from pipeline.selection.draws import log_shares, stepwise
from pipeline.selection.greedy import greedy, sample_size, sample_terms

ROWS = 256
"""Candidates compared with the terms at a time."""
DRAWN_FROM = 128
"""Each step draws from at least so many candidates."""


def coverage(candidates: Candidates, budget: Budget, rng: np.random.Generator, settings: Settings) -> Choice:
    """The images that together cover most gain, under a budget in minutes per predicted minute; see `greedy`.

    Every probability is 1; the generator only draws the samples.

    Raises:
        ValueError: numbers are out of range, or there are no features by class.
    """
    check(candidates, budget, classes=True)
    return greedy(Covering(candidates, settings, rng), candidates, budget, settings, rng)


def drawn_coverage(candidates: Candidates, budget: Budget, rng: np.random.Generator, settings: Settings) -> Choice:
    """Draw images in proportion to the coverage that they add to those drawn before, to the power `power`.

    Between `draw`, which buys near-duplicates as often as their gain says, and `coverage`, which trusts gains and
    features to the letter. Each step draws among a random (m/k) ln(1/epsilon) of the candidates, at least 128, where
    `uniform_share` is spread evenly. The probabilities are those of `stepwise`.

    Raises:
        ValueError: numbers are out of range, there are no features by class, or nothing is left to cover while
            `uniform_share` is 0.
    """
    check(candidates, budget, classes=True)
    covering = Covering(candidates, settings, rng)
    m = len(candidates.gains)
    left = np.arange(m)
    size = max(DRAWN_FROM, sample_size(m, expected_number(candidates, budget), settings.epsilon))
    shares: list[float] = []

    def order() -> Iterator[int]:
        nonlocal left
        while len(left):
            some = rng.choice(len(left), min(size, len(left)), replace=False, shuffle=False)
            log_q = log_shares(covering.gains(left[some]), settings)
            best = int(np.argmax(log_q + rng.gumbel(size=len(some))))
            shares.append(float(np.exp(log_q[best])) * len(some) / len(left))
            index = int(left[some[best]])
            yield index
            covering.add(index)
            left = np.delete(left, some[best])

    indices = take(order(), candidates.minutes, budget)
    return Choice(indices, stepwise(shares[: len(indices)]))


def representative(candidates: Candidates, budget: Budget, rng: np.random.Generator, settings: Settings) -> Choice:
    """The images that the others resemble most: `coverage` by the mean feature of whole images, not class by class.

        F(S) = sum_j g_j max_{x in S u L} max(0, cos(f_x, f_j))

    k-medoids by cosine, weighted by gain; with the acquisition `random` every image counts the same. Facility location
    on one vector per image: Wei et al. 2015, "Submodularity in Data Subset Selection and Active Learning". That few
    labels are best spent on typical images, many on doubtful ones, is found by Hacohen et al. 2022, "Active Learning
    on a Budget: Opposite Strategies Suit High and Low Budgets".

    Raises:
        ValueError: numbers are out of range, or there are no features.
    """
    check(candidates, budget)
    own, bought = compared(candidates, "features")
    as_one_class = {"by_class": own[:, None], "bought_by_class": bought[:, None], "parts": candidates.gains[:, None]}
    return coverage(candidates._replace(**as_one_class), budget, rng, settings)


class Terms(NamedTuple):
    """The terms of one class on which F is evaluated."""

    class_id: int
    vectors: Float32[np.ndarray, "n d"]
    """Of length 1, or 0."""
    weights: Float32[np.ndarray, " n"]
    bought: Float32[np.ndarray, " n"]
    """How well each is covered by the images bought."""


class Covering:
    """The objective F, with the images chosen so far."""

    def __init__(self, candidates: Candidates, settings: Settings, rng: np.random.Generator) -> None:
        """Take candidates that have features by class; the generator draws the terms."""
        self._by_class, bought = compared(candidates, "by_class")
        images, classes, weights = sample_terms(candidates.parts, settings.terms, rng)
        self._terms = []
        for c in np.unique(classes):
            own = classes == c
            vectors = _unit(self._by_class[images[own], c])
            covered = np.zeros(own.sum(), np.float32)
            for start in range(0, len(bought), ROWS):
                rows = _unit(bought[start : start + ROWS, c])
                covered = np.maximum(covered, (rows @ vectors.T).max(0))
            self._terms.append(Terms(int(c), vectors, weights[own].astype(np.float32), covered))
        self.restart()

    def restart(self) -> None:
        """Reset to nothing chosen but what is bought."""
        self._covered = [terms.bought for terms in self._terms]

    def value(self) -> float:
        """F of what is chosen and bought."""
        return float(sum(t.weights @ covered for t, covered in zip(self._terms, self._covered, strict=True)))

    def gains(self, indices: Int64[np.ndarray, " s"]) -> Float64[np.ndarray, " s"]:
        """What every one of these images would add to F."""
        added = np.zeros(len(indices))
        for start in range(0, len(indices), ROWS):
            rows = self._by_class[indices[start : start + ROWS]]
            for terms, covered in zip(self._terms, self._covered, strict=True):
                more = _unit(rows[:, terms.class_id]) @ terms.vectors.T
                more -= covered
                np.maximum(more, 0, out=more)
                added[start : start + ROWS] += more @ terms.weights
        return added

    def add(self, index: int) -> None:
        """Choose an image."""
        self._covered = [
            np.maximum(covered, terms.vectors @ _unit(self._by_class[index, terms.class_id]))
            for terms, covered in zip(self._terms, self._covered, strict=True)
        ]


def _unit(vectors: Float[np.ndarray, "*n d"]) -> Float32[np.ndarray, "*n d"]:
    """The vectors scaled to length 1; zero vectors stay zero."""
    single = vectors.astype(np.float32)
    lengths = np.linalg.norm(single, axis=-1, keepdims=True)
    single /= np.where(lengths > 0, lengths, 1)
    return single
