from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage, optimize

from pipeline import artifacts, paths
from pipeline.errors import UserError
from pipeline.gain import minutes
from pipeline.images.classes import CLASS_SETS
from pipeline.networks import saved
from pipeline.networks.calibration import of_temperature
from pipeline.stages import score
from tests import repo

QUICK = settings(max_examples=40, deadline=None)
FEATURES = hnp.arrays(np.float64, st.tuples(st.integers(1, 12), st.just(3)), elements=st.floats(0, 1e5))


def images(n: int, seed: int = 0) -> np.ndarray:
    """Regions, boundary and corrections that go together, as they do."""
    rng = np.random.default_rng(seed)
    regions = rng.poisson(30, n) + 1.0
    boundary = regions * rng.uniform(20, 60, n)
    return np.column_stack([regions, boundary, rng.gamma(2, 3000, n)])


# what is read off a prediction


@QUICK
@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 3)))
def test_regions_are_scipys_class_by_class(labelling: np.ndarray) -> None:
    assert minutes.count_regions(labelling) == sum(ndimage.label(labelling == c)[1] for c in range(4))


def test_diagonal_neighbours_are_two_regions() -> None:
    assert minutes.count_regions(np.eye(2, dtype=np.uint8)) == 4
    assert minutes.count_regions(np.zeros((5, 7), np.uint8)) == 1


def test_features_of_a_picture_of_known_shape() -> None:
    """Left half and right half, and a square of 16 x 16 in the left one, all with confidence 3/4."""
    claim = torch.zeros(64, 64, dtype=torch.int64)
    claim[:, 32:] = 1
    claim[8:24, 8:24] = 2
    p = torch.nn.functional.one_hot(claim, 4).movedim(-1, 0)[None] * 0.75 + 0.25 / 3 * (
        claim != torch.arange(4)[:, None, None]
    )
    regions, boundary, corrections = minutes.observe(torch.cat([p, torch.full_like(p, 0.25)]).float())[0].tolist()
    assert regions == 3
    assert boundary == 64 + 4 * 16
    assert corrections == pytest.approx(0.25 * 64 * 64)


@pytest.mark.parametrize("size", [(16, 32), (17, 30), (3, 5)])
def test_corrections_are_all_expected_wrong_pixels_on_the_grid(size: tuple[int, int]) -> None:
    p = (3 * torch.randn(2, 5, *size, generator=torch.Generator().manual_seed(0))).softmax(1)
    wrong = (1 - p.amax(1))[:, ::4, ::4].double().mean((1, 2)) * size[0] * size[1]
    found = minutes.observe(p)
    torch.testing.assert_close(found[:, 2], wrong, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(minutes.observe(p[1:]), found[1:])  # an image's are its own


# the fit


@QUICK
@given(FEATURES, st.floats(0.1, 1e3), FEATURES)
def test_constant_minutes_are_predicted_for_every_image(seen: np.ndarray, spent: float, other: np.ndarray) -> None:
    """The oracle's; from one label on, whatever the images are like."""
    coefficients = minutes.fit(seen, np.full(len(seen), spent))
    # far beyond what was seen, rounding shows in the last of the 9 digits that are kept on disk
    np.testing.assert_allclose(minutes.predict(other, coefficients), spent, rtol=1e-9)


@QUICK
@given(FEATURES, st.data())
def test_no_coefficient_is_negative_and_none_nearby_is_better(seen: np.ndarray, data: st.DataObject) -> None:
    spent = np.array(data.draw(st.lists(st.floats(0, 100), min_size=len(seen), max_size=len(seen))))
    found = minutes.fit(seen, spent)
    assert (found >= 0).all()
    assert (minutes.predict(seen, found) > 0).all()
    kept = minutes.credible(seen, spent)
    assert kept.any()
    seen, spent = seen[kept], spent[kept]
    mean = np.maximum(seen.mean(0), 1)

    def loss(coefficients: np.ndarray) -> float:
        residual = spent - coefficients[0] - seen @ coefficients[1:]
        return float(residual @ residual + minutes.PRIOR_IMAGES * ((coefficients[1:] * mean) ** 2).sum())

    unit = np.append(1.0, 1 / mean)
    for step in (*np.eye(4), *-np.eye(4)):
        nearby = found + 1e-3 * step * unit
        assert (nearby < 0).any() or loss(nearby) >= loss(found) - 1e-9 * (1 + loss(found))


def test_fit_is_that_of_another_solver() -> None:
    seen = images(9)
    spent = 2 + seen @ [0.1, 0.002, 0.0005] + np.random.default_rng(1).normal(size=9)
    mean = seen.mean(0)
    a = np.vstack([np.column_stack([np.ones(9), seen]), np.column_stack([np.zeros(3), 2 * np.diag(mean)])])
    bounded = optimize.lsq_linear(a, np.append(spent, np.zeros(3)), (0, np.inf), tol=1e-14)
    np.testing.assert_allclose(minutes.fit(seen, spent), bounded.x, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "absurd",
    [[480.0], [480.0, 600.0, 1200.0], [1 / 60, 1 / 60], [480.0, 1 / 60, 0.0, 900.0], [60.0] * 4],
)
def test_absurd_times_have_no_part_in_the_fit(absurd: list[float]) -> None:
    """Tabs left open over night, a click by mistake; on images that look as others do, or as much work as any."""
    seen = images(10)
    spent = 2 + seen @ [0.05, 0.001, 0.0002]
    for rows in (images(len(absurd), seed=3), np.full((len(absurd), 3), seen.max(0))):
        everything, took = np.vstack([seen, rows]), np.append(spent, absurd)
        assert minutes.credible(everything, took).tolist() == [True] * 10 + [False] * len(absurd)
        np.testing.assert_array_equal(minutes.fit(everything, took), minutes.fit(seen, spent))


def test_images_that_really_take_ten_times_as_long_are_fitted() -> None:
    """Eight times the median, but as their regions let expect."""
    seen = np.column_stack([np.geomspace(10, 800, 60), np.ones((60, 2))])
    spent = 0.1 * seen[:, 0] + np.random.default_rng(0).uniform(0.8, 1.2, 60)
    assert spent.max() > 1.5 * minutes.CREDIBLE * np.median(spent)
    assert minutes.credible(seen, spent).all()


def test_many_labels_outweigh_the_prior() -> None:
    seen, other = images(400), images(50, seed=1)
    true = np.array([1.5, 0.1, 0.003, 0.0004])
    spent = true[0] + seen @ true[1:] + np.random.default_rng(2).normal(0, 1, 400)
    wanted = true[0] + other @ true[1:]
    error = np.abs(minutes.predict(other, minutes.fit(seen, spent)) / wanted - 1)
    assert error.max() < 0.15
    constant = np.abs(spent.mean() / wanted - 1)
    assert error.mean() < 0.2 * constant.mean()
    few = np.abs(minutes.predict(other, minutes.fit(seen[:3], spent[:3])) / wanted - 1)
    assert few.mean() < 2 * constant.mean()  # and three do not run away


def test_minutes_without_time_still_cost_some() -> None:
    assert minutes.predict(images(3), minutes.fit(images(2), np.zeros(2))).tolist() == [minutes.SHORTEST] * 3


@pytest.mark.parametrize(
    ("seen", "spent", "says"),
    [
        (np.zeros((0, 3)), np.zeros(0), "one labelled image at least"),
        (np.full((1, 3), np.nan), np.ones(1), "finite features"),
        (np.full((1, 3), -1.0), np.ones(1), "finite features"),
        (np.ones((1, 3)), np.array([np.inf]), "minutes must be finite"),
        (np.ones((1, 3)), np.array([-1.0]), "minutes must be finite"),
    ],
)
def test_bad_values_are_refused(seen: np.ndarray, spent: np.ndarray, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        minutes.fit(seen, spent)


# in the stage `score`


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    repo.write(tmp_path)
    of = repo.params()
    network = saved.new_network(of.model, CLASS_SETS["cityscapes19"], torch.Generator().manual_seed(3))
    for name in ("r00", "r01"):
        about = saved.describe(of.model, CLASS_SETS["cityscapes19"], of_temperature(0.2))
        artifacts.save_model(name, network.state_dict(), about)


def scored(round_name: str) -> np.ndarray:
    of = repo.params()
    line = of.budget[round_name]
    score.run(round_name, line, seed=1, roots=of.roots, model=of.model, score=of.score, compute=of.compute)
    return artifacts.load_scores(round_name)["minutes"].to_numpy(float)


def bought(keys: list[str], spent: list[float]) -> None:
    of = zip(keys, spent, strict=True)
    artifacts.save_labels("r01", [{"key": k, "round": "r01", "minutes": m, "sha256": ""} for k, m in of])
    said = artifacts.load_costs("r01").set_index("key").to_dict("index")
    artifacts.save_purchases("r01", [{"key": key, "gain": 1.0, **said.get(key, {})} for key in keys])


@pytest.mark.usefixtures("project")
def test_stage_refits_from_the_minutes_of_what_came_back() -> None:
    assert scored("r01").tolist() == [10.0] * 8  # score.minutes_per_image: nothing has come back
    table = artifacts.load_costs("r01")
    assert (table["corrections"] > 0).all()
    assert table["regions"].min() >= 1
    keys = list(table["key"][:4])
    bought(keys, [7.0] * 4)
    assert scored("r02").tolist() == [7.0] * 4
    spent = (1 + table["regions"][:4] * 0.5).tolist()
    bought(keys, spent)
    expected = minutes.fit(table[list(minutes.FEATURES)].to_numpy(float)[:4], np.array(spent))
    found = scored("r02")
    np.testing.assert_allclose(
        found, minutes.predict(table[list(minutes.FEATURES)].to_numpy(float)[4:], expected), rtol=1e-6
    )


@pytest.mark.usefixtures("project")
def test_label_whose_look_is_not_on_record_is_a_sentence() -> None:
    scored("r01")
    bought(["a stranger"], [7.0])
    paths.scores("r02").unlink()
    with pytest.raises(
        UserError, match=r"r01/scores\.csv lacks 'a stranger', which r01 bought: run `dvc repro -s -f score@r01`, then"
    ):
        scored("r02")
    assert not paths.scores("r02").exists()
    artifacts.save_purchases("r01", [])  # as of another branch
    with pytest.raises(UserError, match=r"purchases\.json lacks 'a stranger', .* `dvc repro -s -f annotate@r01`, then"):
        scored("r02")
    artifacts.save_scores("r01", artifacts.load_scores("r01").drop(columns="boundary"))
    with pytest.raises(UserError, match="lacks the columns boundary"):
        artifacts.load_costs("r01")


# answers for regions


GUESS = np.array([5, 2.5]) / 60
ASKED = st.lists(st.integers(1, 60), min_size=1, max_size=30).map(lambda asked: np.array(asked, float))


def test_without_labels_answers_take_what_is_guessed() -> None:
    np.testing.assert_array_equal(minutes.fit_answers(np.zeros(0), np.zeros(0), GUESS), GUESS)


@QUICK
@given(ASKED, st.floats(0.2, 5))
def test_a_pace_that_is_the_same_for_all_scales_the_guess(asked: np.ndarray, pace: float) -> None:
    spent = pace * (GUESS[0] + GUESS[1] * asked)
    np.testing.assert_allclose(
        minutes.fit_answers(asked, spent, GUESS), np.maximum(pace * GUESS, [1 / 60, 0]), rtol=1e-6
    )


def test_many_labels_of_regions_outweigh_the_guess_and_open_tabs_do_not() -> None:
    rng = np.random.default_rng(0)
    asked = rng.integers(5, 60, 400).astype(float)
    spent = (0.2 + 0.1 * asked) * rng.lognormal(0, 0.2, 400)
    opening, answering = minutes.fit_answers(asked, spent, GUESS)
    assert (opening, answering) == (pytest.approx(0.2, abs=0.15), pytest.approx(0.1, rel=0.05))
    spent[::40] = 600
    np.testing.assert_allclose(minutes.fit_answers(asked, spent, GUESS), [opening, answering], rtol=0.1, atol=0.05)
