"""F against a second implementation, and greedy search against all subsets."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.selection import Budget, Candidates, Settings
from pipeline.selection.coverage import Covering, coverage, drawn_coverage, representative
from pipeline.selection.greedy import lazy, sample_terms

QUICK = settings(max_examples=40, deadline=None)
SEEDS = st.integers(0, 2**32 - 1)


def pool(seed: int, m: int = 14, c: int = 3, d: int = 4, bought: int = 0) -> Candidates:
    """Skewed gains, features that come in groups, classes that are absent here and there."""
    rng = np.random.default_rng(seed)
    parts = rng.lognormal(size=(m, c)) * (rng.random((m, c)) < 0.7)
    groups = rng.normal(size=(4, c, d))
    by_class = groups[rng.integers(0, 4, m + bought)] + 0.5 * rng.normal(size=(m + bought, c, d))
    by_class[rng.random((m + bought, c)) < 0.2] = 0
    by_class = by_class.astype(np.float32)
    minutes = rng.uniform(2, 10, m)
    return Candidates(
        parts.sum(1), minutes, parts, by_class=by_class[:m], bought_by_class=by_class[m:] if bought else None
    )


def terms(candidates: Candidates) -> np.ndarray:
    """g_jc kappa_c(x, j), (x, j, c), the bought last."""
    both = [candidates.by_class]
    if candidates.bought_by_class is not None:
        both.append(candidates.bought_by_class)
    unit = np.concatenate(both).astype(float)
    lengths = np.linalg.norm(unit, axis=2, keepdims=True)
    unit = unit / np.where(lengths > 0, lengths, np.inf)
    cosines = np.einsum("xcd,jcd->xjc", unit, unit[: len(candidates.gains)])
    return np.maximum(cosines, 0) * candidates.parts


def plain(terms: np.ndarray, chosen: list[int], bought: int = 0) -> float:
    """F as it is written."""
    known = [*chosen, *range(len(terms) - bought, len(terms))]
    return float(terms[known].max(0).sum()) if known else 0.0


def covering_of(candidates: Candidates, chosen: list[int]) -> Covering:
    covering = Covering(candidates, Settings(), np.random.default_rng())
    for index in chosen:
        covering.add(index)
    return covering


def choose(candidates: Candidates, seed: int = 0, settings: Settings | None = None, **budget: float) -> list[int]:
    rng = np.random.default_rng(seed)
    return coverage(candidates, Budget(**budget), rng, settings or Settings()).indices.tolist()


@QUICK
@given(SEEDS, st.integers(0, 3), st.integers(0, 6))
def test_value_and_marginal_gains_are_those_of_the_formula(seed: int, bought: int, number: int) -> None:
    candidates = pool(seed, bought=bought)
    chosen = np.random.default_rng(seed).permutation(14)[:number].tolist()
    covering, f = covering_of(candidates, chosen), terms(candidates)
    scale = candidates.parts.max()
    now, everything = plain(f, chosen, bought), plain(f, list(range(14)))
    assert covering.value() * scale == pytest.approx(now, rel=1e-5, abs=1e-9)
    expected = [plain(f, [*chosen, index], bought) - now for index in range(14)]
    np.testing.assert_allclose(covering.gains(np.arange(14)) * scale, expected, atol=1e-5 * everything)


@QUICK
@given(SEEDS, st.integers(0, 3), st.data())
def test_coverage_is_monotone_and_submodular(seed: int, bought: int, data: st.DataObject) -> None:
    candidates = pool(seed, bought=bought)
    order = np.random.default_rng(seed).permutation(14).tolist()
    small = data.draw(st.integers(0, 12))
    large = data.draw(st.integers(small, 12))
    fewer, more = covering_of(candidates, order[:small]), covering_of(candidates, order[:large])
    rest = np.array(order[large:])
    assert (fewer.gains(rest) >= more.gains(rest) - 1e-5).all()
    assert (more.gains(rest) >= 0).all()
    assert more.value() >= fewer.value() - 1e-5
    assert more.gains(np.array(order[:large], dtype=np.int64)) == pytest.approx(0, abs=1e-4)


def shares_of_the_best(budget: Budget) -> np.ndarray:
    """F of the choice in that of the best of all sets, for some pools."""
    shares = []
    for seed in range(12):
        candidates = pool(seed, m=11, bought=seed % 3)
        f = terms(candidates)
        sizes = range(1, 7) if budget.images is None else [budget.images]
        sets = [list(chosen) for size in sizes for chosen in combinations(range(11), size)]
        if budget.minutes is not None:
            sets = [chosen for chosen in sets if candidates.minutes[chosen].sum() <= budget.minutes]
        best = max(plain(f, chosen, seed % 3) for chosen in sets)
        chosen = coverage(candidates, budget, np.random.default_rng(), Settings()).indices.tolist()
        assert sorted(chosen) in sets
        shares.append(plain(f, chosen, seed % 3) / best)
    return np.array(shares)


@pytest.mark.parametrize("budget", [Budget(1), Budget(3), Budget(5), Budget(minutes=12.0), Budget(minutes=22.0)])
def test_the_choice_is_within_a_hundredth_of_the_best_set(budget: Budget) -> None:
    shares = shares_of_the_best(budget)
    assert (shares <= 1 + 1e-6).all()
    assert (shares >= 0.99).all(), shares


@pytest.mark.parametrize("by_minutes", [False, True])
def test_lazy_search_finds_what_plain_greedy_finds(by_minutes: bool) -> None:
    for seed in range(5):
        candidates = pool(seed, m=300, c=2, d=6)
        budget = Budget(minutes=120.0) if by_minutes else Budget(20)
        costs = candidates.minutes if by_minutes else np.ones(300)
        found = lazy(covering_of(candidates, []), costs, candidates.minutes, budget)
        covering, order, left = covering_of(candidates, []), [], budget.limit
        while budget.images is None or len(order) < budget.images:
            added = covering.gains(np.arange(300)) / costs
            added[order] = -1
            added[candidates.minutes > left] = -1
            if added.max() < 0:
                break
            order.append(int(added.argmax()))
            covering.add(order[-1])
            left -= candidates.minutes[order[-1]]
        assert found == order


def test_lazy_search_looks_at_few_candidates_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    candidates, looks, gains = pool(0, m=1000, c=2, d=6), [], Covering.gains

    def counted(self: Covering, indices: np.ndarray) -> np.ndarray:
        looks.append(len(indices))
        return gains(self, indices)

    monkeypatch.setattr(Covering, "gains", counted)
    choose(candidates, images=50)
    assert sum(looks) < 0.3 * 1000 * 50


def test_search_by_samples_is_nearly_as_good() -> None:
    lost = []
    for seed in range(5):
        candidates = pool(seed, m=400, c=3, d=6)
        f = terms(candidates)
        whole, sampled = (plain(f, choose(candidates, seed, Settings(whole=n), images=40)) for n in (10**9, 0))
        lost.append(1 - sampled / whole)
    assert 0 < np.mean(lost) < 0.05
    assert choose(candidates, 1, Settings(whole=0), images=40) != choose(candidates, 2, Settings(whole=0), images=40)


def test_terms_are_drawn_so_that_every_sum_is_unbiased() -> None:
    parts = np.random.default_rng(0).lognormal(sigma=2, size=(60, 4)) * (np.arange(4) > 0)
    sums = np.zeros(parts.shape)
    for seed in range(600):
        images, classes, weights = sample_terms(parts, 40, np.random.default_rng(seed))
        assert len(weights) <= 40
        assert weights.sum() * parts.max() == pytest.approx(parts.sum())
        sums[images, classes] += weights * parts.max() / 600
    step = parts.sum() / 40
    assert (np.abs(sums - parts) <= 4.5 * step / 2 / 600**0.5).all()  # each is one of two neighbouring multiples of it
    np.testing.assert_allclose(sample_terms(parts, 180, np.random.default_rng())[2] * parts.max(), parts[parts > 0])


def test_of_duplicates_one_is_taken() -> None:
    """Ten images stand in the pool twice, their copies with a little more gain than any other image."""
    rng = np.random.default_rng(0)
    by_class = rng.normal(size=(30, 2, 64)).astype(np.float32)
    by_class[20:] = by_class[:10]
    parts = np.where(np.arange(30)[:, None] % 20 < 10, 1.1, 1.0) * np.ones((30, 2))
    candidates = Candidates(parts.sum(1), np.ones(30), parts, by_class=by_class)
    chosen = choose(candidates, images=20)
    assert sorted(index % 20 for index in chosen) == list(range(20))
    bought = candidates._replace(bought_by_class=by_class[:5])  # bought already: neither it nor its copy
    assert not {index % 20 for index in choose(bought, images=10)} & set(range(5))
    twice = 0
    for seed in range(30):
        drawn = drawn_coverage(candidates, Budget(10), np.random.default_rng(seed), Settings(uniform_share=0.0))
        twice += 10 - len({index % 20 for index in drawn.indices.tolist()})
    assert twice <= 15  # 300 images; of a draw without coverage it would be some 50


def test_minutes_buy_many_quick_images_or_one_slow_one_whichever_covers_more() -> None:
    by_class = np.eye(6, dtype=np.float32)[:, None, :]
    minutes = np.array([10.0, 2, 2, 2, 2, 2])
    for gain, expected in ((3.0, [1, 2, 3, 4, 5]), (30.0, [0])):
        parts = np.array([gain, 1, 1, 1, 1, 1])[:, None]
        candidates = Candidates(parts[:, 0], minutes, parts, by_class=by_class)
        assert sorted(choose(candidates, minutes=10.0)) == expected


def test_what_shows_nothing_of_a_class_cannot_be_covered_in_it() -> None:
    candidates = pool(0, bought=2)._replace(by_class=np.zeros((14, 3, 4)), bought_by_class=np.ones((2, 3, 4)))
    assert covering_of(candidates, [1, 2]).value() == 0
    assert len(choose(candidates, images=5)) == 5


@pytest.mark.parametrize("weighted", [False, True])
def test_representative_is_the_weighted_k_medoids_by_cosine(weighted: bool) -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        features = rng.standard_normal((9, 3)).astype(np.float32)
        bought = rng.standard_normal((2, 3)).astype(np.float32)
        gains = rng.gamma(0.5, size=9) if weighted else np.ones(9)
        candidates = Candidates(gains, np.ones(9), rng.random((9, 4)), features, bought_features=bought)

        def value(chosen: tuple[int, ...], features=features, bought=bought, gains=gains) -> float:
            near = np.concatenate([features[list(chosen)], bought]).astype(float)
            cosines = near @ features.T / np.linalg.norm(near, axis=1)[:, None] / np.linalg.norm(features, axis=1)
            return float(gains @ np.maximum(cosines, 0).max(0))

        choice = representative(candidates, Budget(3), np.random.default_rng(0), Settings())
        best = max(value(chosen) for chosen in combinations(range(9), 3))
        assert value(tuple(choice.indices)) >= 0.99 * best


def test_representative_without_features_is_a_sentence() -> None:
    with pytest.raises(ValueError, match=r"compares images by features, .* score\.features: true"):
        representative(
            Candidates(np.ones(3), np.ones(3), np.ones((3, 2))), Budget(1), np.random.default_rng(0), Settings()
        )
