"""F against its formula, and greedy search against all subsets."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.selection import Budget, Candidates, Settings
from pipeline.selection.learning import LearningCurves, learning_curve, median_square

QUICK = settings(max_examples=40, deadline=None)
SEEDS = st.integers(0, 2**32 - 1)


def pool(seed: int, m: int = 12, c: int = 4, bought: int = 2) -> Candidates:
    """Classes that are absent here and there, images of three looks."""
    rng = np.random.default_rng(seed)
    looks = rng.normal(size=(3, 5))[rng.integers(0, 3, m + bought)] + 0.3 * rng.normal(size=(m + bought, 5))
    looks = looks.astype(np.float32)
    holds = rng.lognormal(sigma=2, size=(m + bought, c)) * (rng.random((m + bought, c)) < 0.5)
    return Candidates(
        np.ones(m),
        rng.uniform(2, 10, m),
        np.ones((m, 1)),
        features=looks[:m],
        bought_features=looks[m:],
        holds=holds[:m],
        bought_holds=holds[m:],
        iou=rng.random(c),
    )


def plain(candidates: Candidates, chosen: list[int]) -> float:
    """F(S) - F({}) as it is written, in units of its largest weight."""
    worth = [100 / 4 * j * (1 - j) for j in candidates.iou]
    weights = candidates.holds * worth
    looks = candidates.features.astype(float)
    scale = median_square(candidates.features, np.random.default_rng(0))
    total = 0.0
    for j, c in np.ndindex(candidates.holds.shape):
        known = 1.0
        for look, held in zip(candidates.bought_features, candidates.bought_holds, strict=True):
            known += held[c] * np.exp(-((look - looks[j]) ** 2).sum() / scale)
        more = sum(candidates.holds[x, c] * np.exp(-((looks[x] - looks[j]) ** 2).sum() / scale) for x in chosen)
        total += weights[j, c] * np.log((known + more) / known)
    return total / max(weights.max(), 1e-300)


def curves_of(candidates: Candidates) -> LearningCurves:
    return LearningCurves(candidates, Settings(), np.random.default_rng(0))


def value(candidates: Candidates, chosen: list[int]) -> float:
    curves = curves_of(candidates)
    for index in chosen:
        curves.add(index)
    return curves.value()


def alike(holds: np.ndarray, iou: np.ndarray) -> Candidates:
    """Images that look the same; nothing is bought."""
    ones = np.ones(len(holds))
    return Candidates(ones, ones, ones[:, None], features=np.ones((len(holds), 2)), holds=holds, iou=iou)


def choose(candidates: Candidates, images: int | None = None, minutes: float | None = None) -> list[int]:
    choice = learning_curve(candidates, Budget(images, minutes), np.random.default_rng(0), Settings())
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
    """Four images of each of three classes."""
    candidates = alike(3 * np.kron(np.eye(3), np.ones((4, 1))), np.full(3, 0.5))
    assert sorted(index // 4 for index in choose(candidates, 3)) == [0, 1, 2]
    known = candidates._replace(bought_features=np.ones((1, 2)), bought_holds=np.array([[0.0, 9.0, 0.0]]))
    assert sorted(index // 4 for index in choose(known, 4)) == [0, 0, 2, 2]


@pytest.mark.parametrize("iou", [[0.5, 0.07], [0.5, 0.93]])
def test_a_class_that_can_be_taught_is_bought_more_often(iou: list[float]) -> None:
    """Than one of which nearly nothing, or nearly all, is found."""
    chosen = choose(alike(2 * np.kron(np.eye(2), np.ones((6, 1))), np.array(iou)), 5)
    assert sum(index < 6 for index in chosen) == 4


@pytest.mark.parametrize("iou", [0.0, 1.0])
def test_where_nothing_can_be_taught_anything_is_bought(iou: float) -> None:
    assert len(choose(alike(np.ones((6, 2)), np.full(2, iou)), 3)) == 3


def test_a_near_duplicate_is_bought_after_what_looks_otherwise() -> None:
    """The images of one look hold a little more, but they teach each other."""
    looks = np.eye(2)[[0, 0, 0, 1, 1, 1]]
    candidates = alike(1 + 0.02 * looks[:, :1], np.full(1, 0.5))._replace(features=looks)
    assert sorted(index >= 3 for index in choose(candidates, 2)) == [False, True]
    known = candidates._replace(bought_features=looks[:1], bought_holds=np.full((1, 1), 9.0))
    assert choose(known, 1)[0] >= 3


def test_gains_play_no_part() -> None:
    candidates = pool(3)
    assert choose(candidates._replace(gains=np.arange(12.0)), 5) == choose(candidates, 5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"holds": None}, "not known"),
        ({"iou": None}, "not known"),
        ({"bought_holds": None}, "not known"),
        ({"holds": np.ones((12, 3))}, r"\(12, 3\) .* the IoU of 4 classes"),
        ({"bought_holds": np.ones((3, 4))}, "2 bought ones"),
        ({"holds": np.full((12, 4), np.nan)}, "finite"),
        ({"bought_holds": np.full((2, 4), -1.0)}, "negative"),
        ({"iou": np.array([0.5, 0.5, np.nan, 0.5])}, r"lies in \[0, 1\]"),
    ],
)
def test_what_images_hold_must_be_known(changes: dict[str, np.ndarray | None], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        choose(pool(0)._replace(**changes), 1)
