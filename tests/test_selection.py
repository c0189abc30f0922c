import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.selection import Budget, Candidates, Choice, Settings
from pipeline.selection.draws import class_stratified, draw, inclusion, stepwise
from pipeline.selection.rankings import best_first, class_balanced

QUICK = settings(max_examples=50, deadline=None)
SEEDS = st.integers(0, 2**32 - 1)
GAINS = hnp.arrays(np.float64, st.integers(1, 30), elements=st.floats(0, 1e6))


def scored(gains: list[float] | np.ndarray, minutes: list[float] | np.ndarray | float = 1.0) -> Candidates:
    gains = np.asarray(gains, float)
    return Candidates(gains, np.broadcast_to(np.asarray(minutes, float), gains.shape).copy(), gains[:, None])


def classed(parts: list[list[float]] | np.ndarray) -> Candidates:
    parts = np.asarray(parts, float)
    return Candidates(parts.sum(1), np.ones(len(parts)), parts)


def drawn(
    gains: list[float] | np.ndarray,
    images: int | None,
    minutes: float | None = None,
    power: float = 1.0,
    uniform_share: float = 0.0,
    seed: int = 0,
) -> Choice:
    return draw(scored(gains), Budget(images, minutes), np.random.default_rng(seed), Settings(power, uniform_share))


def best(candidates: Candidates, images: int | None, minutes: float | None = None) -> list[int]:
    choice = best_first(candidates, Budget(images, minutes), np.random.default_rng())
    assert (choice.probabilities == 1).all()
    return choice.indices.tolist()


@pytest.mark.parametrize(
    ("gains", "power", "uniform_share", "expected"),
    [
        ([4, 3, 2, 1, 0], 1.0, 0.0, [0.4, 0.3, 0.2, 0.1, 0]),
        ([0, 1, 2, 3, 4], 1.0, 0.0, [0, 0.1, 0.2, 0.3, 0.4]),  # the order of the images plays no part
        ([4, 3, 2, 1, 0], 1.0, 0.5, [0.3, 0.25, 0.2, 0.15, 0.1]),
        ([4, 3, 2, 1, 0], 2.0, 0.0, [16 / 30, 9 / 30, 4 / 30, 1 / 30, 0]),
        ([4, 3, 2, 1, 0], 0.0, 0.0, [0.2, 0.2, 0.2, 0.2, 0.2]),
        ([0, 0, 0, 0, 0], 1.0, 0.1, [0.2, 0.2, 0.2, 0.2, 0.2]),
    ],
)
def test_draws_follow_the_gain(gains: list[float], power: float, uniform_share: float, expected: list[float]) -> None:
    """Of 600 images per gain only a few are drawn at a time, so that every draw is nearly a first one."""
    pool = np.repeat(np.array(gains, float), 600)
    choices = [drawn(pool, 40, power=power, uniform_share=uniform_share, seed=seed).indices for seed in range(50)]
    shares = np.bincount(np.concatenate(choices) // 600, minlength=5) / 2000
    assert (np.abs(shares - expected) <= 4.5 * np.sqrt(np.array(expected) * 0.95 / 2000)).all(), shares


def test_later_draws_follow_the_gain_among_the_rest() -> None:
    q = np.array([0.5, 0.3, 0.2])
    pairs = sum(q[i] * q[j] / (1 - q[i]) * np.eye(3)[[i, j]].sum(0) for i in range(3) for j in range(3) if i != j)
    choices = [drawn([5, 3, 2], 2, seed=seed).indices for seed in range(700)]
    found = np.bincount(np.concatenate(choices), minlength=3) / 700
    assert (np.abs(found - pairs) <= 4.5 * np.sqrt(pairs * (1 - pairs) / 700)).all(), (found, pairs)


@pytest.mark.parametrize(
    ("gains", "k", "tolerance"),
    [
        (np.linspace(1, 10, 100), 20, 0.01),
        (np.random.default_rng(0).lognormal(sigma=1, size=200), 30, 0.01),
        (np.random.default_rng(0).lognormal(sigma=1, size=200), 5, 0.015),
        (np.array([5.0, 3, 2]), 1, 0.06),  # the worst: few images, one draw
    ],
)
def test_inclusion_probabilities_hold_in_a_simulation(gains: np.ndarray, k: int, tolerance: float) -> None:
    q, rng = gains / gains.sum(), np.random.default_rng(1)
    counted = np.zeros(len(q))
    for _ in range(20):
        races = rng.exponential(size=(2000, len(q))) / q
        counted += np.bincount(np.argpartition(races, k - 1, axis=1)[:, :k].ravel(), minlength=len(q))
    assert np.abs(inclusion(np.log(q), k) - counted / 40_000).max() < tolerance + 4.5 * 0.5 / 40_000**0.5


@QUICK
@given(GAINS, st.floats(0, 1000), st.floats(0, 1), st.data())
def test_inclusion_probabilities_sum_to_the_number_drawn(
    gains: np.ndarray, power: float, uniform_share: float, data: st.DataObject
) -> None:
    q = np.where(gains > 0, gains, 0) + (0 if gains.any() else 1)
    with np.errstate(divide="ignore"):
        log_q = power * np.log(q / q.max()) if power else np.zeros(len(q))
    log_q -= np.log(np.exp(log_q).sum())
    log_q = np.logaddexp(log_q + np.log(2 - uniform_share) - np.log(2), np.log(uniform_share / 2 / len(q) + 1e-300))
    k = data.draw(st.integers(0, len(q)))
    probabilities = inclusion(log_q, k)
    assert probabilities.sum() == pytest.approx(k, rel=1e-6)
    assert ((probabilities >= 0) & (probabilities <= 1)).all()
    assert (np.diff(probabilities[np.argsort(log_q, kind="stable")]) >= -1e-12).all()


def test_weights_from_the_probabilities_undo_the_choice() -> None:
    """Horvitz-Thompson: a mean over the chosen, weighted by 1 / probability, is the mean over all."""
    rng = np.random.default_rng(0)
    gains = rng.lognormal(size=150)
    values = gains + rng.normal(size=150)  # what is measured grows with the gain
    plain, weighted = [], []
    for seed in range(300):
        choice = drawn(gains, 30, uniform_share=0.1, seed=seed)
        plain.append(values[choice.indices].mean())
        weighted.append((values[choice.indices] / choice.probabilities).sum() / 150)
    assert np.mean(weighted) == pytest.approx(values.mean(), abs=5 * np.std(weighted) / 300**0.5)
    assert np.mean(plain) > 1.2 * values.mean()


@QUICK
@given(GAINS, SEEDS)
def test_a_large_power_is_best_first_and_none_overflows(gains: np.ndarray, seed: int) -> None:
    gains = np.unique(np.round(gains, 3)) + 1  # far enough apart
    images = (len(gains) + 1) // 2
    choice = drawn(gains, images, power=1e12, seed=seed)
    assert choice.indices.tolist() == best(scored(gains), images)
    np.testing.assert_allclose(choice.probabilities, 1)


@pytest.mark.parametrize("scale", [1e-300, 1e-5, 1, 1e300])
def test_the_unit_of_the_gain_does_not_matter(scale: float) -> None:
    expected, choice = drawn([1, 2, 3, 4], 2), drawn(np.array([1, 2, 3, 4]) * scale, 2)
    assert choice.indices.tolist() == expected.indices.tolist()
    np.testing.assert_allclose(choice.probabilities, expected.probabilities)


def test_gains_of_any_ratio_can_be_drawn() -> None:
    assert drawn([1e-300, 1e300, 1e-320], 3).indices.tolist() == [1, 0, 2]


def test_images_without_gain_are_never_drawn() -> None:
    choice = drawn([0, 1, 0, 2, 0], None, minutes=100.0)
    assert sorted(choice.indices) == [1, 3]
    assert choice.probabilities.tolist() == [1, 1]
    with pytest.raises(ValueError, match="3 images are asked for, but only 2 can be drawn"):
        drawn([0, 1, 0, 2, 0], 3)
    with pytest.raises(ValueError, match="every gain is 0"):
        drawn([0, 0], 1)
    assert len(drawn([0, 0], 1, power=0.0).indices) == 1


def test_best_first_known_answer() -> None:
    candidates = scored([1.0, 3, 2, 3], [5.0, 5, 10, 5])
    assert best(candidates, 3) == [1, 3, 2]
    # 1 and 3 take 10 minutes, 2 does not fit, and 0 is not slipped in behind it
    assert best(candidates, None, 16.0) == [1, 3]


def test_minutes_that_add_up_to_the_budget_fit() -> None:
    assert len(drawn(np.ones(5), None, minutes=3.0).indices) == 3
    assert len(best(scored(np.ones(3), 0.1), None, 0.3)) == 3  # 0.1 + 0.1 + 0.1 > 0.3 in floating point


@pytest.mark.parametrize(
    ("power", "uniform_share"), [(-1.0, 0.0), (np.nan, 0.0), (1.0, -0.1), (1.0, 1.1), (1.0, np.nan)]
)
def test_settings_out_of_range_are_refused(power: float, uniform_share: float) -> None:
    with pytest.raises(ValueError, match="power"):
        drawn([1, 2], 1, power=power, uniform_share=uniform_share)


def stratified(candidates: Candidates, images: int, seed: int = 0) -> Choice:
    return class_stratified(candidates, Budget(images), np.random.default_rng(seed))


def test_class_stratified_takes_images_of_rare_classes() -> None:
    """Of 100 images two hold what little there is of class 2, and one has no gain at all."""
    parts = np.zeros((100, 3))
    parts[:60, 0], parts[60:97, 1], parts[97:99] = 5.0, 3.0, [1.0, 1.0, 0.1]
    for seed in range(20):
        choice = stratified(classed(parts), 8, seed)
        counts = np.histogram(choice.indices, [0, 60, 97, 99, 100])[0]
        assert sorted(counts) == [1, 2, 2, 3], counts
        assert counts[2] == 2
        assert counts[3] == 1
        np.testing.assert_allclose(choice.probabilities[choice.indices >= 97], 1)
        np.testing.assert_allclose(choice.probabilities[choice.indices < 60], 2.5 / 60)


def test_class_stratified_draws_as_often_as_it_says() -> None:
    parts = np.repeat(np.eye(4), [9, 5, 3, 1], axis=0)
    counted, said = np.zeros(18), np.zeros(18)
    for seed in range(700):
        choice = stratified(classed(parts), 7, seed)
        counted[choice.indices] += 1
        said[choice.indices] = choice.probabilities
    assert (np.abs(counted / 700 - said) <= 4.5 * np.sqrt(said * (1 - said) / 700) + 1e-9).all()


def test_class_balanced_known_answer() -> None:
    candidates = classed([[9, 0], [8, 0], [0, 1], [0, 2], [0.5, 0.5]])
    choice = class_balanced(candidates, Budget(5), np.random.default_rng())
    # weights 1/2.1 each; then 1/11.1 and 1/2.1; 1/11.1 and 1/4.1; 1/19.1 and 1/4.1; ...
    assert choice.indices.tolist() == [0, 3, 1, 2, 4]


@QUICK
@given(SEEDS)
def test_class_balanced_is_more_even_than_best_first(seed: int) -> None:
    parts = np.random.default_rng(seed).lognormal(size=(60, 4)) * [30, 3, 1, 0.3]
    even = class_balanced(classed(parts), Budget(10), np.random.default_rng())
    totals, greedy = (parts[chosen].sum(0) for chosen in (even.indices, best(classed(parts), 10)))
    assert np.log(totals).sum() > np.log(greedy).sum()


def test_stepwise_known_answers() -> None:
    np.testing.assert_allclose(stepwise([0.5, 1.0]), [0.75, 1.0])
    assert stepwise([]).shape == (0,)
