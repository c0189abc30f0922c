import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from pipeline import artifacts, paths, storage
from pipeline.errors import UserError
from pipeline.evaluation import curve
from pipeline.evaluation.curve import MEAN, OFFSET, SD, SPREAD, Round
from pipeline.stages import forecast
from tests import repo
from tests.project import ROOT

NEXT = Round(20, 40, 4.0)


def x(of: Round) -> float:
    return float(np.log((of.after + OFFSET) / (of.before + OFFSET)))


def test_without_history_it_is_the_prior() -> None:
    found = curve.forecast([], NEXT, 30.0)
    scale = np.hypot(SPREAD * x(NEXT) ** 0.5, np.hypot(SD[0] * x(NEXT), SD[1] * 4.0))
    reach = stats.t(curve.DOF).ppf(0.9) * scale
    expected = 30 + MEAN[0] * x(NEXT)
    assert found == pytest.approx((expected, expected - reach, expected + reach))


def test_it_is_the_posterior_by_weighted_draws_from_the_prior() -> None:
    """A second computation that knows nothing of conjugacy: draw, weight by the likelihood, count."""
    rng = np.random.default_rng(0)
    history = [(Round(0, 20, 4.0), 16.0), (Round(20, 40, 6.0), 6.0)]
    n = 2_000_000
    variance = SPREAD**2 * curve.DOF / rng.chisquare(curve.DOF, n)
    beta, gamma = MEAN[:, None] + (SD / SPREAD)[:, None] * np.sqrt(variance) * rng.normal(size=(2, n))
    log_weight = np.zeros(n)
    for of, change in history:
        log_weight += stats.norm.logpdf(change, beta * x(of) + gamma * of.gain_points, np.sqrt(variance * x(of)))
    weight = np.exp(log_weight - log_weight.max())
    drawn = 30 + beta * x(NEXT) + gamma * NEXT.gain_points + np.sqrt(variance * x(NEXT)) * rng.normal(size=n)
    order = np.argsort(drawn)
    reached = np.cumsum(weight[order]) / weight.sum()
    low, high = (drawn[order[np.searchsorted(reached, share)]] for share in (0.1, 0.9))
    found = curve.forecast(history, NEXT, 30.0)
    assert found == pytest.approx((np.average(drawn, weights=weight), low, high), abs=0.03)


@pytest.mark.parametrize("rounds", [0, 3])
def test_eight_of_ten_intervals_hold_where_the_model_is_true(rounds: int) -> None:
    rng, held, n = np.random.default_rng(rounds), 0, 1000
    plan = [Round(8 * k, 8 * (k + 1), 3.0 + k) for k in range(rounds + 1)]
    for _ in range(n):
        sigma = np.sqrt(SPREAD**2 * curve.DOF / rng.chisquare(curve.DOF))
        beta, gamma = MEAN + SD / SPREAD * sigma * rng.normal(size=2)
        changes = [beta * x(of) + gamma * of.gain_points + sigma * x(of) ** 0.5 * rng.normal() for of in plan]
        found = curve.forecast(list(zip(plan, changes, strict=True))[:-1], plan[-1], 50.0)
        held += min(100, max(0, found.low_points)) <= min(100, max(0, 50 + changes[-1])) <= found.high_points
    assert abs(held / n - 0.8) < 4 * (0.8 * 0.2 / n) ** 0.5


def test_history_moves_and_narrows_it_whatever_its_order() -> None:
    history = [(Round(20 * k, 20 * (k + 1), 0.0), 8 * x(Round(20 * k, 20 * (k + 1), 0.0))) for k in range(6)]
    following = Round(120, 140, 0.0)
    before, after = curve.forecast([], following, 30.0), curve.forecast(history, following, 30.0)
    assert after.expected_points - 30 == pytest.approx(8 * x(following), rel=0.1)
    assert after.expected_points > before.expected_points
    assert after.high_points - after.low_points < before.high_points - before.low_points
    assert curve.forecast(history[::-1], following, 30.0) == pytest.approx(after)


def test_predicted_gain_counts_as_far_as_it_has_come_true() -> None:
    rounds = [Round(20 * k, 20 * (k + 1), 10.0 * (k % 2)) for k in range(8)]
    history = [(of, 4.5 * x(of) + 0.4 * of.gain_points) for of in rounds]
    much, nothing = (curve.forecast(history, Round(160, 180, gain), 30.0) for gain in (10.0, 0.0))
    assert 2 < much.expected_points - nothing.expected_points < 4
    first, other = (curve.forecast([], NEXT._replace(gain_points=gain), 30.0) for gain in (4.0, 9.0))
    assert first.expected_points == other.expected_points


def test_it_is_cut_to_what_an_miou_can_be() -> None:
    assert curve.forecast([], Round(0, 1000, 4.0), 90.0).high_points == 100
    assert curve.forecast([(Round(0, 20, 0.0), -90.0)], NEXT, 1.0).low_points == 0


@pytest.mark.parametrize(
    ("history", "following", "miou"),
    [
        ([], Round(3, 3, 1.0), 30.0),
        ([(Round(3, 2, 1.0), 1.0)], NEXT, 30.0),
        ([(NEXT, np.nan)], NEXT, 30.0),
        ([], NEXT._replace(gain_points=np.inf), 30.0),
        ([], NEXT, np.nan),
    ],
)
def test_what_cannot_be_forecast_is_refused(history: list, following: Round, miou: float) -> None:
    with pytest.raises(ValueError, match="needs rounds that add labels"):
        curve.forecast(history, following, miou)


def test_prior_is_what_the_study_says() -> None:
    """The numbers of the docstring, from the rows that they are taken from."""
    rows = json.loads((ROOT / "docs/results/loop_camvid.json").read_text())["rows"]
    source = {row["seed"]: 100 * row["miou"] for row in rows if row["round"] == "r00"}
    runs: dict[tuple[str, int], list[tuple[int, float]]] = {}
    for row in rows:
        if row["acquisition"] in ("shortfall", "random"):
            start = [(0, source[row["seed"]])]
            runs.setdefault((row["acquisition"], row["seed"]), start).append((row["images"], 100 * row["miou"]))
    steps = np.array(
        [
            [x(Round(n, m, 0.0)), after - before]
            for run in runs.values()
            for (n, before), (m, after) in itertools.pairwise(run)
        ]
    ).reshape(6, 3, 2)
    ratio, change = steps[..., 0], steps[..., 1]
    beta = (change @ np.ones(3)).sum() / ratio.sum()  # least squares where the noise grows with the ratio
    assert beta == pytest.approx(MEAN[0], abs=0.1)
    residuals = change - beta * ratio
    assert abs(residuals[:, 1:].mean()) < 0.15
    assert (residuals / np.sqrt(ratio)).std() == pytest.approx(SPREAD, abs=0.1)
    assert (change.sum(1) / ratio.sum(1)).std(ddof=1) < SD[0]


# the stage


def run(round_name: str, after: str, acquisition: str = "shortfall") -> dict:
    of = repo.params(score={"acquisition": acquisition})
    forecast.run(round_name, of.budget[round_name], score=of.score)
    return artifacts.load_forecast(round_name)


def test_stage_puts_the_history_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    repo.write(tmp_path)
    with pytest.raises(UserError, match=r"data/metrics/r00\.json not found"):
        run("r01", "r00")
    storage.save_json(paths.metrics("r00"), {"miou": 0.25})
    first = run("r01", "r00")
    gains = {name: artifacts.load_selection(name)["gain"].sum() for name in ("r01", "r02")}
    expected = curve.forecast([], Round(0, 3, gains["r01"]), 25.0)
    assert [100 * first[name] for name in ("expected", "low", "high")] == pytest.approx(list(expected))
    assert f"r01: 3 more labels; mIoU 25.0 now, {expected.expected_points:.1f} expected" in capsys.readouterr().out
    storage.save_json(paths.metrics("r01"), {"miou": 0.4})
    rows = [{"key": key, "round": "r01", "minutes": 4, "sha256": ""} for key in artifacts.load_selection("r01")["key"]]
    artifacts.save_labels("r01", rows)
    artifacts.save_purchases("r01", artifacts.load_selection("r01")[["key", "gain"]].to_dict("records"))
    second = run("r02", "r01")
    assert second["measured"] == {"r00": 0.25, "r01": 0.4}
    expected = curve.forecast([(Round(0, 3, gains["r01"]), 15.0)], Round(3, 5, gains["r02"]), 40.0)
    assert [100 * second[name] for name in ("expected", "low", "high")] == pytest.approx(list(expected))
    artifacts.save_labels("r01", rows[:2])  # a line in minutes that was used up before the selection was
    gain = artifacts.load_selection("r01")["gain"][:2].sum()
    fewer = curve.forecast([(Round(0, 2, gain), 15.0)], Round(2, 4, gains["r02"]), 40.0)
    assert 100 * run("r02", "r01")["expected"] == pytest.approx(fewer.expected_points)
    artifacts.save_labels("r01", rows)
    blind = curve.forecast([(Round(0, 3, 0.0), 15.0)], Round(3, 5, 0.0), 40.0)
    assert 100 * run("r02", "r01", "entropy")["expected"] == pytest.approx(blind.expected_points)  # nats are no points
    storage.save_json(paths.forecast("r01"), {"expected": 0.3, "low": 0.2, "high": 0.4})  # of an earlier version
    with pytest.raises(UserError, match=r"r01/forecast\.json is not whole .*run `dvc repro -s -f forecast@r01`"):
        run("r02", "r01")
