"""What every selection method must hold to."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.selection import METHODS, Choice

QUICK = settings(max_examples=40, deadline=None)
SEEDS = st.integers(0, 2**32 - 1)
Method = Callable[..., Choice]
every = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


@st.composite
def pools(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    m = draw(st.integers(0, 25))
    gains = draw(hnp.arrays(np.float64, m, elements=st.floats(0, 1e300)))
    return gains, draw(hnp.arrays(np.float64, m, elements=st.floats(1e-3, 1e3)))


def choose(method: Method, gains: np.ndarray, minutes: np.ndarray, seed: int = 0, **budget: float | None) -> Choice:
    whole = {"images": None, "minutes_budget": None, "power": 1.0, "uniform_share": 0.1} | budget
    return method(gains, minutes, rng=np.random.default_rng(seed), **whole)


@every
@QUICK
@given(pool=pools(), seed=SEEDS, data=st.data(), power=st.floats(0, 1e6), share=st.floats(0.01, 1))
def test_images_are_filled_exactly(
    method: Method, pool: tuple[np.ndarray, np.ndarray], seed: int, data: st.DataObject, power: float, share: float
) -> None:
    images = data.draw(st.integers(0, len(pool[0])))
    choice = choose(method, *pool, seed, images=images, power=power, uniform_share=share)
    assert len(choice.indices) == len(set(choice.indices)) == len(choice.probabilities) == images
    assert ((choice.probabilities > 0) & (choice.probabilities <= 1)).all()
    with pytest.raises(ValueError, match="can be drawn"):
        choose(method, *pool, seed, images=len(pool[0]) + 1)


@every
@QUICK
@given(pool=pools(), seed=SEEDS, budget=st.floats(0, 1e4))
def test_minutes_are_never_exceeded(
    method: Method, pool: tuple[np.ndarray, np.ndarray], seed: int, budget: float
) -> None:
    gains, minutes = pool
    choice = choose(method, gains, minutes, seed, minutes_budget=budget)
    spent = minutes[choice.indices].sum()
    assert len(choice.indices) == len(set(choice.indices))
    assert spent <= budget * (1 + 1e-9)
    left = np.setdiff1d(np.arange(len(gains)), choice.indices)
    assert len(left) == 0 or spent + minutes[left].max() > budget * (1 - 1e-9)  # stops only at one that does not fit


@every
@QUICK
@given(pool=pools(), seed=SEEDS)
def test_the_generator_decides_and_the_input_stays(
    method: Method, pool: tuple[np.ndarray, np.ndarray], seed: int
) -> None:
    before = [values.copy() for values in pool]
    first, second = (choose(method, *pool, seed, minutes_budget=50.0) for _ in range(2))
    assert first.indices.tolist() == second.indices.tolist()
    assert first.probabilities.tolist() == second.probabilities.tolist()
    assert all(np.array_equal(a, b) for a, b in zip(pool, before, strict=True))


@every
@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0])
def test_bad_values_are_refused(method: Method, bad: float) -> None:
    fine = np.ones(3)
    broken = np.array([1, bad, 1])
    with pytest.raises(ValueError, match="gains must be finite and not negative"):
        choose(method, broken, fine, images=1)
    with pytest.raises(ValueError, match="minutes must be finite and above 0"):
        choose(method, fine, broken, images=1)
    with pytest.raises(ValueError, match="budget"):
        choose(method, fine, fine, minutes_budget=bad)


@every
def test_a_budget_is_in_images_or_in_minutes(method: Method) -> None:
    for budget in ({}, {"images": 1, "minutes_budget": 1.0}, {"images": -1}):
        with pytest.raises(ValueError, match="budget"):
            choose(method, np.ones(3), np.ones(3), **budget)


@pytest.mark.parametrize("method", [METHODS["draw"], METHODS["best_first"]], ids=["draw", "best_first"])
def test_gain_is_what_is_looked_for(method: Method) -> None:
    gains = np.array([1.0] * 20 + [100.0] * 5)
    found = np.concatenate([choose(method, gains, np.ones(25), seed, images=5).indices for seed in range(50)])
    assert (found >= 20).mean() > 0.7
