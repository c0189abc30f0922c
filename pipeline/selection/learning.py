"""Selection by learning curves: images whose labels raise most the IoU of the classes that can still improve.

With the number n of its labelled pixels, the IoU of a class rises as a logistic curve in log n,

    dJ / dlog n = k J (1 - J),

slowly where nearly nothing or nearly all of it is found, fast between. So labels of class c are worth
W_c = J_c (1 - J_c) per factor e of them, up to k, with the IoU J_c that the model expects in the pool; and a set S of
images is worth

    F(S) = sum_j sum_c W_c n_jc log(1 + N_jc(S)),    N_jc(S) = sum_{x in S u L} n_xc kappa(x, j).

n_xc is what image x holds of class c, counted in average images of the pool: expected pixels, or labelled ones of an
image that is bought already (L). Image j of the pool shares the curve of class c with the labels in images that look
like it: kappa = exp(-d^2 / median d^2) of the distances d between mean features. So near-duplicates teach little after
the first, and images that look otherwise teach something of their own.

A concave function of a sum: monotone and submodular, so that the greedy choice of k images reaches 1 - 1/e of the best
(Nemhauser et al. 1978). That accuracy rises with the logarithm of the labels is found over wide ranges: Sun et al.
2017, "Revisiting Unreasonable Effectiveness of Data in Deep Learning Era". docs/decisions/0012 says how it was found.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64

from pipeline.selection.contract import Budget, Candidates, Choice, Settings, check, compared, expected_number
from pipeline.selection.coverage import ROWS
from pipeline.selection.distances import centred
from pipeline.selection.greedy import greedy, sample_terms

PAIRS = 2000
"""Pairs of images whose median squared distance is the kernel's scale."""


def learning_curve(candidates: Candidates, budget: Budget, rng: np.random.Generator, settings: Settings) -> Choice:
    """The images with the highest F, greedily and under a budget in minutes per predicted minute. Gains play no part.

    Every probability is 1; the generator only draws the terms and the pairs whose distances set the scale.

    Raises:
        ValueError: numbers are out of range, there are no features, or it is not said what images hold.
    """
    check(candidates, budget)
    if len(candidates.gains) * expected_number(candidates, budget) > settings.whole:
        settings = settings._replace(
            terms=settings.terms // 2
        )  # a logarithm and an exponential each, of every candidate
    return greedy(LearningCurves(candidates, settings, rng), candidates, budget, settings, rng)


class Curves(NamedTuple):
    """The terms of one class on which F is evaluated."""

    class_id: int
    vectors: Float32[np.ndarray, "n d"]
    weights: Float64[np.ndarray, " n"]
    before: Float64[np.ndarray, " n"]
    """1 + the labels that each term has already, in average images."""


class LearningCurves:
    """The objective F, with the images chosen so far."""

    def __init__(self, candidates: Candidates, settings: Settings, rng: np.random.Generator) -> None:
        """Take candidates that have features; the generator draws the terms and the pairs.

        Raises:
            ValueError: there are no features, or it is not said what every image holds.
        """
        own, bought = compared(candidates, "features")
        self._holds, known, per_class = _holds(candidates, len(bought))
        self._points, mean = centred(own)
        others = bought.astype(np.float32) - mean
        self._scale = median_square(self._points, rng)
        images, classes, weights = sample_terms(per_class * self._holds, settings.terms, rng)
        self._curves = []
        for c in np.unique(classes):
            own_terms = classes == c
            vectors = self._points[images[own_terms]]
            before = np.ones(own_terms.sum())
            for start in range(0, len(known), ROWS):
                before += known[start : start + ROWS, c] @ self._kernel(others[start : start + ROWS], vectors)
            self._curves.append(Curves(int(c), vectors, weights[own_terms], before))
        self.restart()

    def _kernel(self, rows: Float32[np.ndarray, "s d"], vectors: Float32[np.ndarray, "n d"]) -> np.ndarray:
        squares = np.square(rows).sum(1)[:, None] + np.square(vectors).sum(1) - 2 * (rows @ vectors.T)
        likeness: np.ndarray = np.exp(-np.maximum(squares, 0) / self._scale)
        return likeness

    def restart(self) -> None:
        """Reset to nothing chosen but what is bought."""
        self._held = [curves.before for curves in self._curves]

    def value(self) -> float:
        """The rise of F since nothing was chosen."""
        risen = (c.weights @ np.log(held / c.before) for c, held in zip(self._curves, self._held, strict=True))
        return float(sum(risen))

    def gains(self, indices: Int64[np.ndarray, " s"]) -> Float64[np.ndarray, " s"]:
        """What every one of these images would add to F."""
        added = np.zeros(len(indices))
        for start in range(0, len(indices), ROWS):
            some = indices[start : start + ROWS]
            for curves, held in zip(self._curves, self._held, strict=True):
                more = self._kernel(self._points[some], curves.vectors) * self._holds[some, curves.class_id][:, None]
                added[start : start + ROWS] += np.log(1 + more / held) @ curves.weights  # log1p takes twice as long
        return added

    def add(self, index: int) -> None:
        """Choose an image."""
        point = self._points[index][None]
        self._held = [
            held + self._holds[index, curves.class_id] * self._kernel(point, curves.vectors)[0]
            for curves, held in zip(self._curves, self._held, strict=True)
        ]


def _holds(
    candidates: Candidates, bought: int
) -> tuple[Float[np.ndarray, "m c"], Float[np.ndarray, "b c"], Float64[np.ndarray, " c"]]:
    """(n of the candidates, n of the images bought, W by class), checked.

    Raises:
        ValueError: one is missing, not of these images and classes, negative or not finite.
    """
    own, known, iou = candidates.holds, candidates.bought_holds, candidates.iou
    if own is None or iou is None or (known is None and bought):
        raise ValueError("this method goes by what images hold of every class and its IoU, which are not known")
    known = np.zeros((0, own.shape[1])) if known is None else known
    if own.shape != (len(candidates.gains), len(iou)) or known.shape != (bought, len(iou)):
        raise ValueError(
            f"what images hold is of shape {own.shape} and {known.shape}, but there are {len(candidates.gains)} "
            f"images, {bought} bought ones and the IoU of {len(iou)} classes"
        )
    if not all((np.isfinite(held) & (held >= 0)).all() for held in (own, known)):
        raise ValueError("what images hold must be finite and not negative")
    if not ((iou >= 0) & (iou <= 1)).all():
        raise ValueError(f"the IoU of a class lies in [0, 1], unlike {iou}")
    return own, known, worth(iou)


def worth(iou: Float64[np.ndarray, " c"]) -> Float64[np.ndarray, " c"]:
    """W_c: mIoU points per factor e of labels, and per k."""
    points: np.ndarray = 100 / max(len(iou), 1) * iou * (1 - iou)
    return points


def median_square(points: Float32[np.ndarray, "m d"], rng: np.random.Generator) -> float:
    """Median squared distance over random pairs of different points; 1 where it is 0."""
    if len(points) < 2:
        return 1.0
    first = rng.integers(len(points), size=PAIRS)
    second = (first + rng.integers(1, len(points), size=PAIRS)) % len(points)
    return float(np.median(np.square(points[first] - points[second]).sum(1))) or 1.0
