"""Learning curves: images that add most to what is labelled of every class, on curves that rise with its logarithm.

    F(S) = sum_c G_c log(n_c + sum_{x in S} g_xc / G_c),    G_c = sum of g_jc over the pool

g_xc / G_c is the share that image x holds of the pool's gain of class c, and n_c what is labelled of c already, in the
same unit: the first image with a class adds most, the tenth little. Monotone and submodular (a concave function of a
sum), so that the greedy choice of k images reaches 1 - 1/e of the best (Nemhauser et al. 1978). That accuracy rises
with the logarithm of the labels is found over wide ranges: Sun et al. 2017, "Revisiting Unreasonable Effectiveness of
Data in Deep Learning Era".

Made for the acquisition `learnable`, whose G_c is what a class gains per factor e of labels.
"""

import numpy as np
from jaxtyping import Float64, Int64

from pipeline.selection.contract import Budget, Candidates, Choice, Options, check
from pipeline.selection.coverage import greedy


def learning_curve(candidates: Candidates, budget: Budget, options: Options, rng: np.random.Generator) -> Choice:
    """The images with the highest F, greedily; under a budget in minutes as `coverage`. Every probability is 1.

    Raises:
        ValueError: numbers are out of range, there is no gain by class, or what is labelled is no such number.
    """
    check(candidates, budget, classes=True)
    return greedy(LearningCurves(candidates), candidates, budget, options, rng)


class LearningCurves:
    """F, and what is chosen so far."""

    def __init__(self, candidates: Candidates) -> None:
        """Of a class without gain there is no curve. As if one more image of the pool's average were labelled.

        Raises:
            ValueError: what is labelled is not of these classes, negative or not finite.
        """
        parts, labelled = candidates.parts, candidates.labelled
        if labelled is None:
            labelled = np.zeros(parts.shape[1])
        if labelled.shape != parts.shape[1:]:
            raise ValueError(f"what is labelled is of {len(labelled)} classes, gains are of {parts.shape[1]}")
        if not (np.isfinite(labelled) & (labelled >= 0)).all():
            raise ValueError(f"what is labelled must be finite and not negative, not {labelled}")
        scaled = parts / parts.max() if parts.any() else parts  # a sum of large doubles is no double
        self._curves = scaled.sum(0)
        self._shares = np.divide(scaled, self._curves, out=np.zeros_like(scaled), where=self._curves > 0)
        self._before: Float64[np.ndarray, " c"] = labelled + 1 / max(len(parts), 1)
        self.restart()

    def restart(self) -> None:
        """Nothing is chosen."""
        self._held = self._before

    def value(self) -> float:
        """By how much F has risen."""
        return float(self._curves @ np.log(self._held / self._before))

    def gains(self, indices: Int64[np.ndarray, " s"]) -> Float64[np.ndarray, " s"]:
        """What every one of these images would add to F."""
        added: np.ndarray = np.log1p(self._shares[indices] / self._held) @ self._curves
        return added

    def add(self, index: int) -> None:
        """Choose an image."""
        self._held = self._held + self._shares[index]
