"""F against its formula, and greedy search against all subsets."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.selection import Budget, Candidates, Options
from pipeline.selection.learning import LearningCurves, learning_curve, median_square

QUICK = settings(max_examples=40, deadline=None)
SEEDS = st.integers(0, 2**32 - 1)


def pool(seed: int, m: int = 12, c: int = 4, bought: int = 2) -> Candidates:
    """Skewed gains, classes that are absent here and there, images of three looks."""
    rng = np.random.default_rng(seed)
    parts = rng.lognormal(sigma=2, size=(m, c)) * (rng.random((m, c)) < 0.5)
    looks = rng.normal(size=(3, 5))[rng.integers(0, 3, m + bought)] + 0.3 * rng.normal(size=(m + bought, 5))
    looks = looks.astype(np.float32)
    holds = rng.exponential(size=(m + bought, c))
    return Candidates(
        parts.sum(1),
        rng.uniform(2, 10, m),
        parts,
        features=looks[:m],
        bought_features=looks[m:],
        holds=holds[:m],
        bought_holds=holds[m:],
    )


def plain(candidates: Candidates, chosen: list[int]) -> float:
    """F(S) - F({}) as it is written, in units of the largest gain."""
    looks = candidates.features.astype(float)
    scale = median_square(candidates.features, np.random.default_rng(0))
    total = 0.0
    for j, c in np.ndindex(candidates.parts.shape):
        known = 1.0
        for look, held in zip(candidates.bought_features, candidates.bought_holds, strict=True):
            known += held[c] * np.exp(-((look - looks[j]) ** 2).sum() / scale)
        more = sum(candidates.holds[x, c] * np.exp(-((looks[x] - looks[j]) ** 2).sum() / scale) for x in chosen)
        total += candidates.parts[j, c] * np.log((known + more) / known)
    return total / max(candidates.parts.max(), 1e-300)


def curves_of(candidates: Candidates) -> LearningCurves:
    return LearningCurves(candidates, Options(), np.random.default_rng(0))


def value(candidates: Candidates, chosen: list[int]) -> float:
    curves = curves_of(candidates)
    for index in chosen:
        curves.add(index)
    return curves.value()


def alike(parts: np.ndarray, holds: np.ndarray) -> Candidates:
    """Images that look the same; nothing is bought."""
    return Candidates(parts.sum(1), np.ones(len(parts)), parts, features=np.ones((len(parts), 2)), holds=holds)


def choose(candidates: Candidates, images: int | None = None, minutes: float | None = None) -> list[int]:
    choice = learning_curve(candidates, Budget(images, minutes), Options(), np.random.default_rng(0))
    assert (choice.probabilities == 1).all()
    return choice.indices.tolist()


@QUICK
@given(seed=SEEDS, size=st.integers(0, 5))
def test_value_and_gains_are_those_of_the_formula(seed: int, size: int) -> None:
    candidates = pool(seed)
    chosen = np.random.default_rng(seed).permutation(12)[:size].tolist()
    curves = curves_of(candidates)
    for index in chosen:
        curves.add(index)
    assert curves.value() == pytest.approx(plain(candidates, chosen), rel=1e-5, abs=1e-9)
    added = [plain(candidates, [*chosen, x]) - plain(candidates, chosen) for x in range(12)]
    np.testing.assert_allclose(curves.gains(np.arange(12)), added, rtol=1e-4, atol=1e-6)
    curves.restart()
    assert curves.value() == 0


@QUICK
@given(seed=SEEDS, images=st.integers(1, 4))
def test_greedy_is_within_one_percent_of_the_best_set(seed: int, images: int) -> None:
    candidates = pool(seed, m=10)
    best = max(value(candidates, list(chosen)) for chosen in combinations(range(10), images))
    assert value(candidates, choose(candidates, images)) >= 0.99 * best


@QUICK
@given(seed=SEEDS, minutes=st.floats(5, 25))
def test_minutes_are_kept_and_well_spent(seed: int, minutes: float) -> None:
    candidates = pool(seed, m=9)
    chosen = choose(candidates, minutes=minutes)
    assert candidates.minutes[chosen].sum() <= minutes * (1 + 1e-9)
    fit = [
        value(candidates, list(of))
        for k in range(10)
        for of in combinations(range(9), k)
        if candidates.minutes[list(of)].sum() <= minutes
    ]
    assert value(candidates, chosen) >= 0.97 * max(fit)


def test_a_class_that_is_labelled_already_is_bought_last() -> None:
    """Four images of each of three classes, the same gain everywhere."""
    parts = np.kron(np.eye(3), np.ones((4, 1)))
    candidates = alike(parts, 3 * parts)
    assert sorted(index // 4 for index in choose(candidates, 3)) == [0, 1, 2]
    known = candidates._replace(bought_features=np.ones((1, 2)), bought_holds=np.array([[0.0, 9.0, 0.0]]))
    assert sorted(index // 4 for index in choose(known, 4)) == [0, 0, 2, 2]


def test_a_class_with_more_to_gain_is_bought_more_often() -> None:
    shows = np.kron(np.eye(2), np.ones((6, 1)))
    chosen = choose(alike(shows * [4.0, 1.0], 2 * shows), 5)
    assert sum(index < 6 for index in chosen) == 4


def test_a_near_duplicate_is_bought_after_what_looks_otherwise() -> None:
    """The images of one look have a little more to gain, but they teach each other."""
    looks, one = np.eye(2)[[0, 0, 0, 1, 1, 1]], np.ones((6, 1))
    candidates = alike(one + 0.1 * looks[:, :1], one)._replace(features=looks)
    assert sorted(index >= 3 for index in choose(candidates, 2)) == [False, True]
    known = candidates._replace(bought_features=looks[:1], bought_holds=np.full((1, 1), 9.0))
    assert choose(known, 1)[0] >= 3


@pytest.mark.parametrize("scale", [1e-300, 1e300])
def test_the_unit_of_the_gain_plays_no_part(scale: float) -> None:
    candidates = pool(3)
    scaled = candidates._replace(gains=candidates.gains * scale, parts=candidates.parts * scale)
    assert choose(scaled, 5) == choose(candidates, 5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"holds": None}, "not known"),
        ({"bought_holds": None}, "not known"),
        ({"holds": np.ones((12, 3))}, r"gains are of \(12, 4\)"),
        ({"bought_holds": np.ones((3, 4))}, "2 images are bought"),
        ({"holds": np.full((12, 4), np.nan)}, "finite"),
        ({"bought_holds": np.full((2, 4), -1.0)}, "negative"),
    ],
)
def test_what_images_hold_must_be_known(changes: dict[str, np.ndarray | None], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        choose(pool(0)._replace(**changes), 1)
