"""The planner: curves that are known are found, intervals hold as often as they say, what cannot be told is not."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.evaluation import planner
from pipeline.evaluation.planner import DOF, FAMILIES, LEVEL, MEAN, SD, SPREAD
from tests.conftest import ROOT

ROUNDS = np.array([40.0, 80, 120, 200, 320, 520])
TRUE = {
    "power law": lambda n: 60 - 90 * n**-0.4,
    "logarithm": lambda n: 10 + 6 * np.log(n + 20),
    "exponential": lambda n: 55 - 30 * np.exp(-n / 300),
    "arctan": lambda n: 20 + 25 * np.arctan(n / 200),
}
"""Known curves; their shapes are not on the grid."""


@pytest.mark.parametrize("name", FAMILIES)
def test_g_rises_to_its_end_and_the_inverse_undoes_it(name: str) -> None:
    family, u = FAMILIES[name], np.geomspace(0.01, 30, 50)
    for shape in family.shapes:
        value = family.g(u, shape)
        rises = value < family.end - 1e-9  # further on the digits are used up
        assert (np.diff(value[rises]) > 0).all()
        assert family.inverse(value[rises], shape) == pytest.approx(u[rises], rel=1e-4)
        if np.isfinite(family.end):
            assert family.g(np.array([1e300]), shape) == pytest.approx(family.end, abs=1e-9)
            with np.errstate(divide="ignore"):
                assert np.isinf(family.inverse(np.array([family.end, family.end + 1]), shape)).all()


@pytest.mark.parametrize("name", TRUE)
@pytest.mark.parametrize("ahead", [1.5, 3.0])
def test_points_of_a_known_curve_say_what_it_takes(name: str, ahead: float) -> None:
    """Many rounds without noise: by the curve's own inverse."""
    n = np.geomspace(20, 600, 40)
    curves = planner.fit(n.tolist(), TRUE[name](n).tolist())
    need = ahead * n[-1]
    found = planner.plan(curves, float(TRUE[name](need)))
    assert found.low < need < found.high
    assert curves.measured(np.array([need]))[1, 0] == pytest.approx(TRUE[name](need), abs=0.6)
    best = min(curves.by_family(n).items(), key=lambda one: np.abs(one[1] - TRUE[name](n)).max())
    assert np.abs(best[1] - TRUE[name](n)).max() < 0.35


def test_few_rounds_are_enough_near_by_and_say_that_they_are_not_far_off() -> None:
    for name, true in TRUE.items():
        curves = planner.fit(ROUNDS[:3].tolist(), true(ROUNDS[:3]).tolist())
        low, middle, high = curves.measured(np.array([160.0, 2000.0]))
        assert middle[0] == pytest.approx(true(160), abs=3), name
        assert high[1] - low[1] > 2.5 * (high[0] - low[0])


def test_noise_widens_the_interval() -> None:
    signs, found = np.array([1, -1, 1, -1, 1, -1]), []
    for noise in (0.0, 1.5, 3.0):
        curves = planner.fit(ROUNDS.tolist(), (TRUE["logarithm"](ROUNDS) + noise * signs).tolist())
        low, _, high = curves.measured(np.array([600.0]))[:, 0]
        found.append((high - low, planner.plan(curves, 52.0)))
    for (width, less), (wider, more) in itertools.pairwise(found):
        assert width < wider
        assert more.low < less.low
        assert less.never < more.never


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(20, 60), min_size=3, max_size=6), st.floats(0.01, 1e3))
def test_more_takes_more_whatever_was_measured_and_whatever_the_unit(points: list[float], unit: float) -> None:
    n = ROUNDS[: len(points)]
    try:
        curves = planner.fit(n.tolist(), points)
    except ValueError:
        assert np.polyfit(np.log(n), points, 1)[0] <= 0
        return
    plans = [planner.plan(curves, target) for target in (45.0, 55.0, 65.0, 99.0)]
    for lower, higher in itertools.pairwise(plans):
        assert all(a <= b for a, b in zip(lower[:4], higher[:4], strict=True))
    for one in plans:
        assert n[-1] <= one.low <= one.expected <= one.high
    ahead = curves.measured(np.geomspace(n[-1], 50 * n[-1], 20))
    assert (np.diff(ahead) >= 0).all()
    assert (np.diff(ahead, axis=0) >= 0).all()
    scaled = planner.plan(planner.fit((n * unit).tolist(), points), 55.0)
    assert scaled[:3] == pytest.approx([unit * one for one in plans[1][:3]], rel=1e-6)
    assert scaled.ends == pytest.approx(plans[1].ends, rel=1e-6)


def test_a_plateau_below_the_target_is_found() -> None:
    n = np.geomspace(20, 2000, 30)
    curves = planner.fit(n.tolist(), (45 - 25 * np.exp(-n / 200)).tolist())
    found = planner.plan(curves, 60.0)
    assert found.never > 0.95
    assert np.isinf([found.low, found.high]).all()
    assert found.ends["exponential"] == pytest.approx(45, abs=0.5)
    assert np.isinf(found.ends.get("logarithm", np.inf))
    assert planner.plan(curves, 44.0).never < 0.5


@pytest.mark.parametrize("rounds", [3, 5])
def test_eight_of_ten_intervals_hold_where_the_model_is_true(rounds: int) -> None:
    """Curves, shapes and noise from the prior; 80 % +- 4 standard errors of what is measured next lies inside."""
    rng, held, n = np.random.default_rng(rounds), [], 250
    u = ROUNDS[: rounds + 1] / ROUNDS[rounds - 1]
    while len(held) < n:
        family = FAMILIES[rng.choice([*FAMILIES])]
        shape = rng.choice(family.shapes)
        sigma = np.sqrt(SPREAD**2 * DOF / rng.chisquare(DOF))
        level, slope = MEAN + SD * rng.normal(size=2)
        if slope < 0:
            continue
        g = family.g(u, shape)
        y = level + slope * np.log(1 / u[0]) * (g - g[-2]) / (g[-2] - g[0]) + sigma * rng.normal(size=rounds + 1)
        try:
            curves = planner.fit(ROUNDS[:rounds].tolist(), y[:-1].tolist())
        except ValueError:
            continue  # it does not rise; the others hold as often
        every = np.concatenate([one.points(u[-1:])[:, 0] + one.noise for one in curves.draws])
        held.append(0.1 <= (every < y[-1]).mean() <= 0.9)  # before it is cut to what an mIoU can be
    assert abs(np.mean(held) - LEVEL) < 4 * (LEVEL * (1 - LEVEL) / n) ** 0.5


def test_intervals_of_what_it_takes_hold_about_as_often_as_they_say_for_noisy_known_curves() -> None:
    """Four rounds with noise of 1.5 points, and what the sixth measures, with 2.6 times as much, as the target."""
    rng, held = np.random.default_rng(7), {}
    for name, true in TRUE.items():
        hits = []
        for _ in range(60):
            y = true(ROUNDS) + 1.5 * rng.normal(size=6)
            found = planner.plan(planner.fit(ROUNDS[:4].tolist(), y[:4].tolist()), float(y[5]))
            hits.append(found.low <= ROUNDS[5] <= found.high)
        held[name] = float(np.mean(hits))
    assert LEVEL - 0.04 < np.mean([*held.values()]) < 0.97
    assert min(held.values()) > 0.7


@pytest.mark.parametrize(
    ("amounts", "points", "says"),
    [
        ([40.0, 80.0], [30.0, 35.0], "needs 3 measured rounds"),
        ([0.0, 40.0, 80.0], [30.0, 35.0, 36.0], "needs 3"),
        ([40.0, 40.0, 40.0], [30.0, 35.0, 36.0], "more bought than before"),
        ([40.0, 120.0, 80.0], [30.0, 35.0, 36.0], "more bought than before"),
        ([40.0, 80.0, 120.0], [30.0, np.nan, 36.0], "needs 3"),
        ([40.0, 80.0, 120.0, 500.0, 900.0], [70.0, 60.0, 50.0, 30.0, 10.0], "does not rise with what is bought"),
    ],
)
def test_what_cannot_be_told_is_refused(amounts: list[float], points: list[float], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        planner.fit(amounts, points)


def test_prior_is_what_the_studies_say() -> None:
    """The numbers of the docstring, from the rows that they are taken from."""
    slopes, spreads = [], []
    for name in ("loop_camvid", "gain_camvid", "gain_town", "gain_imagenet"):
        rows = json.loads((ROOT / f"docs/results/{name}.json").read_text())["rows"]
        runs: dict[tuple[str, int], list[tuple[int, float]]] = {}
        for row in rows:
            if row["images"] and row["acquisition"] != "all":
                runs.setdefault((row["acquisition"], row["seed"]), []).append((row["images"], 100 * row["miou"]))
        fits = [np.polyfit(*np.array([(np.log(n), y) for n, y in run]).T, 1, full=True)[:2] for run in runs.values()]
        slopes.append(np.mean([line[0] for line, _ in fits]))
        squares = [left[0] / (len(run) - 2) for (_, left), run in zip(fits, runs.values(), strict=True)]
        spreads.append(np.sqrt(np.mean(squares)))
    assert slopes == pytest.approx([4.6, 3.9, 3.7, 6.6], abs=0.06)
    assert spreads == pytest.approx([0.5, 2.3, 1.0, 2.7], abs=0.06)
    assert np.mean(slopes) == pytest.approx(MEAN[1], abs=0.06)
    assert 2 * np.std(slopes, ddof=1) == pytest.approx(SD[1], abs=0.1)
    assert np.median(spreads) == pytest.approx(SPREAD, abs=0.1)
