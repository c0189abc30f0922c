"""F against its formula, and greedy search against all subsets."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.selection import Budget, Candidates, Options
from pipeline.selection.learning import LearningCurves, learning_curve

QUICK = settings(max_examples=40, deadline=None)
SEEDS = st.integers(0, 2**32 - 1)


def pool(seed: int, m: int = 12, c: int = 4, *, labelled: bool = True) -> Candidates:
    """Skewed gains, classes that are absent here and there."""
    rng = np.random.default_rng(seed)
    parts = rng.lognormal(sigma=2, size=(m, c)) * (rng.random((m, c)) < 0.5)
    return Candidates(
        parts.sum(1), rng.uniform(2, 10, m), parts, labelled=rng.exponential(size=c) if labelled else None
    )


def plain(candidates: Candidates, chosen: list[int]) -> float:
    """F(S) - F({}) as it is written, in units of the largest gain."""
    total = 0.0
    for of, labelled in zip(candidates.parts.T, candidates.labelled, strict=True):
        if of.sum() > 0:
            before = labelled + 1 / len(of)
            total += of.sum() * np.log((before + sum(of[x] for x in chosen) / of.sum()) / before)
    return total / max(candidates.parts.max(), 1e-300)


def choose(candidates: Candidates, images: int | None = None, minutes: float | None = None) -> list[int]:
    choice = learning_curve(candidates, Budget(images, minutes), Options(), np.random.default_rng(0))
    assert (choice.probabilities == 1).all()
    return choice.indices.tolist()


@QUICK
@given(seed=SEEDS, size=st.integers(0, 5))
def test_value_and_gains_are_those_of_the_formula(seed: int, size: int) -> None:
    candidates = pool(seed)
    chosen = np.random.default_rng(seed).permutation(12)[:size].tolist()
    curves = LearningCurves(candidates)
    for index in chosen:
        curves.add(index)
    assert curves.value() == pytest.approx(plain(candidates, chosen), rel=1e-9, abs=1e-12)
    added = [plain(candidates, [*chosen, x]) - plain(candidates, chosen) for x in range(12)]
    np.testing.assert_allclose(curves.gains(np.arange(12)), added, rtol=1e-6, atol=1e-9)
    curves.restart()
    assert curves.value() == 0


@QUICK
@given(seed=SEEDS, images=st.integers(1, 4))
def test_greedy_is_within_one_percent_of_the_best_set(seed: int, images: int) -> None:
    candidates = pool(seed, m=10)
    best = max(plain(candidates, list(chosen)) for chosen in combinations(range(10), images))
    assert plain(candidates, choose(candidates, images)) >= 0.99 * best


@QUICK
@given(seed=SEEDS, minutes=st.floats(5, 25))
def test_minutes_are_kept_and_well_spent(seed: int, minutes: float) -> None:
    candidates = pool(seed, m=9)
    chosen = choose(candidates, minutes=minutes)
    assert candidates.minutes[chosen].sum() <= minutes * (1 + 1e-9)
    fit = [
        plain(candidates, list(of))
        for k in range(10)
        for of in combinations(range(9), k)
        if candidates.minutes[list(of)].sum() <= minutes
    ]
    assert plain(candidates, chosen) >= 0.97 * max(fit)


def test_a_class_that_is_labelled_already_is_bought_last() -> None:
    """Four images of each of three classes, the same gain everywhere."""
    parts = np.kron(np.eye(3), np.ones((4, 1)))
    candidates = Candidates(np.ones(12), np.ones(12), parts)
    assert sorted(index // 4 for index in choose(candidates, 3)) == [0, 1, 2]
    known = candidates._replace(labelled=np.array([0.0, 1.0, 0.0]))
    assert sorted(index // 4 for index in choose(known, 4)) == [0, 0, 2, 2]


def test_a_class_with_more_to_gain_is_bought_more_often() -> None:
    parts = np.kron(np.diag([4.0, 1.0]), np.ones((6, 1)))
    chosen = choose(Candidates(parts.sum(1), np.ones(12), parts), 5)
    assert sum(index < 6 for index in chosen) == 4


@pytest.mark.parametrize("scale", [1e-300, 1e300])
def test_the_unit_of_the_gain_plays_no_part(scale: float) -> None:
    candidates = pool(3)
    scaled = candidates._replace(gains=candidates.gains * scale, parts=candidates.parts * scale)
    assert choose(scaled, 5) == choose(candidates, 5)


def test_nothing_labelled_is_the_same_as_not_saying_so() -> None:
    candidates = pool(5, labelled=False)
    assert choose(candidates._replace(labelled=np.zeros(4)), 5) == choose(candidates, 5)


@pytest.mark.parametrize(
    ("labelled", "said"),
    [(np.zeros(3), "of 3 classes, gains are of 4"), (np.full(4, np.nan), "finite"), (np.full(4, -1.0), "negative")],
)
def test_what_is_labelled_must_be_a_number_of_every_class(labelled: np.ndarray, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        choose(pool(0)._replace(labelled=labelled), 1)
