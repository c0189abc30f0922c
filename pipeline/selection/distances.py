"""Diversity methods: images that differ from each other, by the distances of one feature vector per image."""

from collections.abc import Iterator
from itertools import islice

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64

from pipeline.selection.contract import Budget, Candidates, Choice, check, compared, expected_number, take
from pipeline.selection.draws import stepwise

ITERATIONS = 100
"""Iterations of Lloyd's algorithm, at most; it usually converges before."""
WORK = 500_000_000
"""Distances that Lloyd's algorithm computes, at most; five iterations it always has, after which few points change."""
ROWS = 512
"""Images whose distances to all centres are computed at a time."""
STALE = 16.0
"""Distances are brought up to date whenever a sixteenth more centres have been drawn."""


def coreset(candidates: Candidates, budget: Budget, rng: np.random.Generator) -> Choice:
    """The image farthest from all that are chosen or bought, again and again: greedy k-centre.

    Sener and Savarese 2018, "Active Learning for Convolutional Neural Networks: A Core-Set Approach", with its 2-
    approximation. With nothing bought the first is the one nearest to the pool's mean. Deterministic: gains and
    generator play no part, and every probability is 1.

    Raises:
        ValueError: numbers are out of range, or there are no features.
    """
    check(candidates, budget)
    indices = take(_farthest(*compared(candidates, "features")), candidates.minutes, budget)
    return Choice(indices, np.ones(len(indices)))


def _farthest(features: Float[np.ndarray, "m d"], bought: Float[np.ndarray, "b d"]) -> Iterator[int]:
    points, mean = centred(features)
    lengths = np.einsum("md,md->m", points, points)
    squares = nearest(points, bought.astype(np.float32) - mean)[1] if len(bought) else None
    for _ in points:
        index = int(lengths.argmin() if squares is None else squares.argmax())
        yield index
        new = lengths + lengths[index] - 2 * (points @ points[index])
        squares = new if squares is None else np.minimum(squares, new)
        squares[index] = -np.inf  # chosen


def badge(candidates: Candidates, budget: Budget, rng: np.random.Generator) -> Choice:
    """Draw images by k-means++ on gradient embeddings: in proportion to squared distance from those drawn.

    Ash et al. 2020, "Deep Batch Active Learning by Diverse, Uncertain Gradient Lower Bounds". The gradient is long
    where the model is unsure, and its distances tell images apart. The first is drawn in proportion to its squared
    length. Gains play no part. The probabilities are those of `stepwise`.

    Raises:
        ValueError: numbers are out of range, or there are no gradient embeddings.
    """
    check(candidates, budget)
    points = compared(candidates, "gradient")[0].astype(np.float32)
    shares: list[float] = []

    def order() -> Iterator[int]:
        for index, share in kmeanspp(points, np.ones(len(points)), np.square(points).sum(1), rng):
            shares.append(share)
            yield index

    indices = take(order(), candidates.minutes, budget)
    return Choice(indices, stepwise(shares[: len(indices)]))


def clue(candidates: Candidates, budget: Budget, rng: np.random.Generator) -> Choice:
    """Cluster the images by k-means with their gains as weights, and take the one nearest to each centre.

    Prabhu et al. 2021, "Active Domain Adaptation via Clustering Uncertainty-weighted Embeddings", with the gain in the
    place of entropy. As many clusters as images are asked for, or fit the minutes on average; clusters of more gain
    come first, images of more gain fill up what empty clusters or small images leave. k-means starts from k-means++;
    as it is no draw with known probabilities, every probability is 1.

    Raises:
        ValueError: numbers are out of range, or there are no features.
    """
    check(candidates, budget)
    points, _ = centred(compared(candidates, "features")[0])
    m = len(candidates.gains)
    k = min(m, int(np.ceil(expected_number(candidates, budget))))
    if not k:
        return Choice(np.zeros(0, np.int64), np.zeros(0))
    weights = candidates.gains / candidates.gains.max() if candidates.gains.any() else np.ones(m)
    labels, squares = clusters(points, weights, k, rng)
    by_distance = np.lexsort((squares, labels))
    representatives = by_distance[np.diff(labels[by_distance], prepend=-1) > 0]
    mass = np.bincount(labels, weights, k)[labels[representatives]]
    representatives = representatives[np.argsort(-mass, kind="stable")]
    rest = np.setdiff1d(np.arange(m), representatives)
    rest = rest[np.argsort(-weights[rest], kind="stable")]
    indices = take([*representatives.tolist(), *rest.tolist()], candidates.minutes, budget)
    return Choice(indices, np.ones(len(indices)))


def clusters(
    points: Float32[np.ndarray, "m d"], weights: Float64[np.ndarray, " m"], k: int, rng: np.random.Generator
) -> tuple[Int64[np.ndarray, " m"], Float32[np.ndarray, " m"]]:
    """Weighted k-means (Lloyd 1982) from k-means++: the cluster of every point, and its squared distance to the centre.

    A centre that loses all weight stays where it was.
    """
    seeds = [index for index, _ in islice(kmeanspp(points, weights, weights, rng), k)]
    centres = points[seeds]
    labels, squares = nearest(points, centres)
    for _ in range(max(5, min(ITERATIONS, WORK // max(len(points) * k, 1)))):
        mass = np.bincount(labels, weights, k)
        sums = np.stack([np.bincount(labels, weights * column, k) for column in points.T], axis=1)
        centres = np.where(mass[:, None] > 0, sums / np.where(mass > 0, mass, 1)[:, None], centres).astype(np.float32)
        former = labels
        labels, squares = nearest(points, centres)
        if np.array_equal(labels, former):
            break
    return labels, squares


def kmeanspp(
    points: Float32[np.ndarray, "m d"],
    weights: Float64[np.ndarray, " m"],
    first: Float[np.ndarray, " m"],
    rng: np.random.Generator,
    stale: float = STALE,
) -> Iterator[tuple[int, float]]:
    """Draw points in proportion to weight times squared distance to the nearest drawn one, each with its share.

    k-means++, Arthur and Vassilvitskii 2007, "The Advantages of Careful Seeding", without replacement; the first point
    is drawn in proportion to `first`. Distances only fall, so that stale ones are upper bounds: a point drawn by those
    is accepted with probability new / old, and otherwise drawn again, which is exactly a draw by the new ones
    (rejection sampling). So all distances are updated seldom, for many centres in one matrix product; the share is
    that in the last total, a little too small. Where all distances are 0, every point left is equally likely.
    """
    free = np.ones(len(points), bool)
    squares = np.full(len(points), np.inf, np.float32)
    old = np.asarray(first, float)
    drawn = 0
    while free.any():
        old = np.where(free, old, 0.0)
        old = old if old.any() else free.astype(float)
        total = np.cumsum(old)
        pending: list[int] = []
        while len(pending) * stale <= drawn:
            index = int(np.searchsorted(total, (1 - rng.random()) * total[-1]))
            fall = 1.0
            if pending:
                new = np.square(points[pending] - points[index]).sum(1).min()
                fall = min(1.0, float(new / squares[index])) if squares[index] > 0 else 0.0
                if rng.random() >= fall:
                    break
            yield index, float(old[index] / total[-1]) * fall
            free[index] = False
            pending.append(index)
            drawn += 1
        squares = np.minimum(squares, nearest(points, points[pending])[1])
        old = squares * weights


def centred(features: Float[np.ndarray, "m d"]) -> tuple[Float32[np.ndarray, "m d"], Float32[np.ndarray, " d"]]:
    """(features minus their mean, mean): squared distances in single precision lose digits far from 0."""
    points = np.asarray(features, np.float32)
    mean = points.mean(0) if len(points) else np.zeros(points.shape[1], np.float32)
    return points - mean, mean


def nearest(
    points: Float32[np.ndarray, "m d"], centres: Float32[np.ndarray, "k d"]
) -> tuple[Int64[np.ndarray, " m"], Float32[np.ndarray, " m"]]:
    """(index of the nearest centre, squared distance to it) of every point; of equal ones the first."""
    labels, squares = np.zeros(len(points), np.int64), np.empty(len(points), np.float32)
    offset = np.square(centres).sum(1) / 2
    for start in range(0, len(points), ROWS):
        rows = points[start : start + ROWS]
        closeness = rows @ centres.T
        closeness -= offset
        best = closeness.argmax(1)
        labels[start : start + ROWS] = best
        lengths = np.einsum("md,md->m", rows, rows)
        squares[start : start + ROWS] = lengths - 2 * closeness[np.arange(len(rows)), best]
    return labels, np.maximum(squares, 0)
