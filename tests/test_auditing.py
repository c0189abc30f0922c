import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pipeline.evaluation import verdict

QUICK = settings(max_examples=15, deadline=None)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def pairs(n: int, noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    predicted = rng(seed).lognormal(size=n)
    return predicted, predicted * np.exp(noise * rng(seed + 1).normal(size=n))


@QUICK
@given(st.integers(3, 12), st.integers(0, 2**32 - 1))
def test_correlation_is_scipys_whatever_is_tied(n: int, seed: int) -> None:
    predicted, realised = rng(seed).integers(0, 5, (2, n)).astype(float)
    found = verdict.correlate(predicted, realised, rng())
    if np.ptp(predicted) == 0 or np.ptp(realised) == 0:
        assert found == verdict.Rank(None, 1.0)
    else:
        assert found.spearman == pytest.approx(float(stats.spearmanr(predicted, realised).statistic), abs=1e-12)


@pytest.mark.parametrize("n", [5, 6])
def test_p_value_is_that_of_all_permutations(n: int) -> None:
    predicted, realised = pairs(n, 1.0, seed=n)

    def correlation(x: np.ndarray) -> float:
        return float(stats.spearmanr(x, realised).statistic)

    exact = stats.permutation_test(
        (predicted,), correlation, permutation_type="pairings", alternative="greater", n_resamples=np.inf
    )
    assert verdict.correlate(predicted, realised, rng()).p_value == pytest.approx(exact.pvalue, abs=0.02)


def test_perfect_and_reversed_orders() -> None:
    values = np.arange(1.0, 9)
    assert verdict.correlate(values, np.exp(values), rng()).spearman == pytest.approx(1)
    assert verdict.correlate(values, np.exp(values), rng()).p_value < 1e-3
    assert verdict.correlate(values, -values, rng()).spearman == pytest.approx(-1)
    assert verdict.correlate(values, -values, rng()).p_value == 1


def test_images_are_ranked_within_their_round() -> None:
    """Two rounds of which the later has less gain, predicted and realised, but no order inside either."""
    predicted, realised = np.array([1.0, 2, 3, 4, 11, 12, 13, 14]), np.array([3.0, 1, 4, 2, 13, 11, 14, 12])
    rounds = np.repeat([1, 0], 4)
    assert verdict.correlate(predicted, realised, rng()).spearman > 0.7
    assert verdict.correlate(predicted, realised, rng(), rounds).spearman == pytest.approx(0)


def test_a_score_of_noise_passes_as_often_as_stated() -> None:
    passed = [verdict.judge([(rng(s).random(8), rng(s + 1000).random(8))], rng(s)).signal for s in range(50)]
    assert 1 <= sum(map(bool, passed)) <= 12  # 5 are expected, 99.8 % of such counts lie between
    assert None not in passed


def test_line_known_answers() -> None:
    x, p = np.array([1.0, 2, 3]), np.array([0.5, 1.0, 0.25])
    assert verdict.fit_line(x, 2 * x, p) == pytest.approx((2, 2, 0))
    assert verdict.fit_line(x, 2 * x + 1, p) == pytest.approx((34 / 14, 2, 1))
    assert verdict.fit_line(np.ones(3), x, p) == verdict.Line(pytest.approx(2), None, None)
    assert verdict.fit_line(np.zeros(3), x, p) == verdict.Line(None, None, None)


def test_line_is_numpys_weighted_least_squares() -> None:
    x, y = pairs(30, 0.5)
    p = rng(3).uniform(0.05, 1, 30)
    slope, intercept = np.polyfit(x, y, 1, w=np.sqrt(1 / p))
    assert verdict.fit_line(x, y, p)[1:] == pytest.approx((slope, intercept))


def test_weights_give_the_line_of_the_whole_pool() -> None:
    """Drawn by gain, a bent relation looks otherwise than it does in the pool."""
    x = rng().lognormal(sigma=1, size=20_000)
    y = np.sqrt(x)
    p = np.minimum(1, 0.2 * x / x.mean())
    chosen = rng(1).random(len(x)) < p
    pool = float(np.polyfit(x, y, 1)[0])
    of = verdict.fit_line(x[chosen], y[chosen], p[chosen]).slope
    plain = verdict.fit_line(x[chosen], y[chosen], np.ones(chosen.sum())).slope
    assert of == pytest.approx(pool, rel=0.1)
    assert plain is not None
    assert abs(plain - pool) > 2 * abs(of - pool)


def test_too_few_images_are_pooled_with_the_rounds_before_as_far_as_needed() -> None:
    good, bad = (np.arange(3.0), np.arange(3.0)), (np.arange(3.0), -np.arange(3.0))
    assert verdict.judge([good], rng())[1:] == (3, 1, None)
    assert verdict.judge([good, good], rng())[1:] == (6, 2, True)
    assert verdict.judge([bad, good, good], rng())[1:] == (6, 2, True)
    assert verdict.judge([good, good, bad, bad], rng())[1:] == (6, 2, False)
    one = (np.array([1.0]), np.array([1.0]))
    assert verdict.judge([one] * 9, rng())[1:] == (0, 9, None)  # nine rounds of one image have no order
    assert verdict.judge([good, one, good], rng())[1:] == (6, 3, True)


def test_anti_correlated_and_constant_scores_carry_no_signal() -> None:
    predicted, realised = pairs(20, 0.1)
    assert verdict.judge([(predicted, realised)], rng()).signal is True
    assert verdict.judge([(predicted, 1 / realised)], rng()).signal is False
    assert verdict.judge([(np.ones(20), realised)], rng()) == ((None, 1.0), 20, 1, False)


def test_the_same_generator_gives_the_same_verdict() -> None:
    assert verdict.judge([pairs(9, 1.0)], rng(4)) == verdict.judge([pairs(9, 1.0)], rng(4))


@pytest.mark.parametrize("signal", [True, None, False])
@pytest.mark.parametrize("fallback", [True, False])
def test_only_a_verdict_of_no_signal_changes_the_method(signal: bool | None, fallback: bool) -> None:
    expected = verdict.FALLBACK if fallback and signal is False else "best_first"
    assert verdict.method("best_first", signal, fallback) == expected
