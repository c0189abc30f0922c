"""Ranking methods: the images of highest gain, deterministically. Every inclusion probability is 1."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float64

from pipeline.selection.contract import Budget, Candidates, Choice, check, take


def best_first(candidates: Candidates, budget: Budget, rng: np.random.Generator) -> Choice:
    """The images with the highest gains, equal ones in their order. The generator plays no part.

    Raises:
        ValueError: numbers are out of range.
    """
    check(candidates, budget)
    indices = take(np.argsort(-candidates.gains, kind="stable").tolist(), candidates.minutes, budget)
    return Choice(indices, np.ones(len(indices)))


def class_balanced(candidates: Candidates, budget: Budget, rng: np.random.Generator) -> Choice:
    """The images with the highest gains after every class is weighted down by what has been chosen of it.

        next image = argmax_i sum_c w_c g_ic,   w_c = 1 / (mean g + sum_{chosen} g_jc)

    the greedy ascent of sum_c log(chosen gain of c), which is largest where the classes share equally. Classes are
    weighted by their predicted presence in Cai et al. 2021, "Revisiting Superpixels for Active Learning in Semantic
    Segmentation with Realistic Annotation Costs", and balanced in the chosen set in Aggarwal et al. 2020, "Active
    Learning for Imbalanced Datasets". The generator plays no part.

    Raises:
        ValueError: numbers are out of range, or there is no gain by class.
    """
    check(candidates, budget, classes=True)
    indices = take(_balanced(candidates.parts), candidates.minutes, budget)
    return Choice(indices, np.ones(len(indices)))


def _balanced(parts: Float64[np.ndarray, "m c"]) -> Iterator[int]:
    scaled = parts / parts.max() if parts.any() else parts  # a sum of large doubles is no double
    totals = np.full(parts.shape[1], scaled.mean() if parts.any() else 1.0)
    chosen = np.zeros(len(parts), bool)
    for _ in parts:
        index = int(np.where(chosen, -1.0, scaled @ (1 / totals)).argmax())
        chosen[index] = True
        totals += scaled[index]
        yield index
