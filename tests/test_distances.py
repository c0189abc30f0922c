"""Methods that tell images apart by their features, against second implementations."""

from itertools import islice, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.selection import Budget, Candidates
from pipeline.selection.distances import badge, clue, clusters, coreset, kmeanspp, nearest

QUICK = settings(max_examples=30, deadline=None)
SEEDS = st.integers(0, 2**32 - 1)


def pool(vectors: np.ndarray, gains: np.ndarray | None = None, bought: np.ndarray | None = None) -> Candidates:
    gains = np.ones(len(vectors)) if gains is None else gains
    vectors = vectors.astype(np.float32)
    return Candidates(gains, np.ones(len(gains)), gains[:, None], vectors, gradient=vectors, bought_features=bought)


def squares(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    return np.square(points[:, None].astype(float) - centres[None].astype(float)).sum(2)


@QUICK
@given(SEEDS, st.integers(1, 5))
def test_nearest_is_that_of_all_distances(seed: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    points, centres = (rng.normal(size=(n, 3)).astype(np.float32) for n in (700, k))  # more than a block of rows
    labels, found = nearest(points, centres)
    expected = squares(points, centres)
    np.testing.assert_array_equal(labels, expected.argmin(1))
    np.testing.assert_allclose(found, expected.min(1), atol=1e-4)


@QUICK
@given(SEEDS, st.integers(0, 4))
def test_every_step_of_coreset_takes_the_farthest_image(seed: int, bought: int) -> None:
    rng = np.random.default_rng(seed)
    points, known = rng.normal(size=(40, 3)) + 5, (rng.normal(size=(bought, 3)) + 5).astype(np.float32)
    candidates = pool(points, bought=known if bought else None)
    order = coreset(candidates, Budget(12), np.random.default_rng()).indices
    assert bought or order[0] == squares(points, points.mean(0)[None])[:, 0].argmin()
    for step in range(0 if bought else 1, 12):
        centres = np.concatenate([known, points[order[:step]]])
        distances = squares(points, centres).min(1)
        assert distances[order[step]] >= distances.max() - 1e-4


def plain_plus_plus(points: np.ndarray, weights: np.ndarray, first: np.ndarray, drawn: tuple[int, ...]) -> float:
    """Probability that k-means++ draws these points in this order."""
    q = first / first.sum()
    probability = float(q[drawn[0]])
    for step in range(1, len(drawn)):
        q = squares(points, points[list(drawn[:step])]).min(1) * weights
        probability *= float(q[drawn[step]] / q.sum())
    return probability


@pytest.mark.parametrize("stale", [16.0, 0.25])
def test_draws_are_those_of_plain_k_means_plus_plus(stale: float) -> None:
    """All orders of three of six points, with distances that are up to date, and with old ones."""
    rng = np.random.default_rng(3)
    points, weights = rng.normal(size=(6, 2)).astype(np.float32), rng.uniform(0.2, 1, 6)
    first = np.square(points).sum(1)
    orders = {order: plain_plus_plus(points, weights, first, order) for order in permutations(range(6), 3)}
    assert sum(orders.values()) == pytest.approx(1)
    counts = dict.fromkeys(orders, 0)
    for seed in range(1500):
        drawn = islice(kmeanspp(points, weights, first, np.random.default_rng(seed), stale), 3)
        counts[tuple(index for index, _ in drawn)] += 1
    expected = np.array(list(orders.values()))
    found = np.array(list(counts.values())) / 1500
    assert (np.abs(found - expected) <= 4.5 * np.sqrt(expected * (1 - expected) / 1500) + 1e-3).all()


def test_shares_are_those_of_plain_k_means_plus_plus() -> None:
    points = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)
    drawn = list(islice(kmeanspp(points, np.ones(300), np.square(points).sum(1), np.random.default_rng(1)), 60))
    for step in range(1, 60):
        q = squares(points, points[[index for index, _ in drawn[:step]]]).min(1)
        assert drawn[step][1] == pytest.approx(q[drawn[step][0]] / q.sum(), rel=0.15)  # a sixteenth is out of date
    up_to_date = [1, 2, 3, 8, 15]
    for step in up_to_date:
        q = squares(points, points[[index for index, _ in drawn[:step]]]).min(1)
        assert drawn[step][1] == pytest.approx(q[drawn[step][0]] / q.sum(), rel=1e-3)


def test_badge_prefers_long_gradients_and_spreads_over_directions() -> None:
    rng = np.random.default_rng(0)
    long = np.repeat(np.eye(4), 10, axis=0) * 10 + 0.1 * rng.normal(size=(40, 4))
    points = np.concatenate([0.1 * rng.normal(size=(160, 4)), long])
    hits, directions = 0, 0
    for seed in range(50):
        chosen = badge(pool(points), Budget(4), np.random.default_rng(seed)).indices
        hits += (chosen >= 160).sum()
        directions += len(set((chosen[chosen >= 160] - 160) // 10))
    assert hits > 0.75 * 200  # a fifth of the pool; once some are drawn, what is near 0 is far from them, too
    assert directions == hits


def test_points_that_are_all_alike_are_drawn_alike() -> None:
    points = np.zeros((8, 2), np.float32)
    counts = np.zeros(8)
    for seed in range(300):
        choice = badge(pool(points), Budget(2), np.random.default_rng(seed))
        assert len(set(choice.indices)) == 2
        counts[choice.indices] += 1
    assert (np.abs(counts - 75) < 4.5 * np.sqrt(75 * 0.75)).all()


def test_clue_takes_one_image_of_each_planted_cluster() -> None:
    """In nearly every run: k-means from one start of k-means++ ends in a local optimum in 3 of 100."""
    found = []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        cluster = rng.permutation(np.repeat(np.arange(6), 20))
        points = 30 * np.eye(6)[cluster] + rng.normal(size=(120, 6))
        chosen = clue(pool(points, rng.lognormal(size=120)), Budget(6), rng).indices
        found.append(len(set(cluster[chosen])))
    assert min(found) >= 5
    assert found.count(6) >= 95


def test_clue_takes_the_image_nearest_to_the_weighted_centre() -> None:
    points = np.array([[0.0], [1], [2], [3], [100], [101]])
    candidates = pool(points, np.array([1.0, 1, 1, 30, 1, 1]))
    for seed in range(10):
        chosen = clue(candidates, Budget(2), np.random.default_rng(seed)).indices
        assert chosen[0] == 3  # 2.8 is the centre, and its cluster has the most gain
        assert chosen[1] in (4, 5)


def test_clusters_are_a_fixed_point_of_lloyd() -> None:
    rng = np.random.default_rng(0)
    points, weights = rng.normal(size=(200, 3)).astype(np.float32), rng.uniform(0.1, 1, 200)
    labels, distances = clusters(points, weights, 7, rng)
    centres = np.stack([np.average(points[labels == label], 0, weights[labels == label]) for label in range(7)])
    np.testing.assert_array_equal(squares(points, centres).argmin(1), labels)
    np.testing.assert_allclose(squares(points, centres).min(1), distances, atol=1e-4)
