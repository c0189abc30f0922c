"""What every selection method must hold to."""

from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline import artifacts, params, paths, storage
from pipeline.images import region_scores
from pipeline.images.region_scores import RegionScores
from pipeline.params import BY_FEATURES
from pipeline.selection import METHODS, Budget, Candidates, Choice, Entry, Settings
from pipeline.selection.contract import take
from pipeline.stages import select

QUICK = settings(max_examples=25, deadline=None)
SEEDS = st.integers(0, 2**32 - 1)
every = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
CLASSES = 3
CERTAIN = ("best_first", "class_balanced", "coreset", "clue", "coverage", "representative", "learning_curve")
SAMPLED = {"whole": 0, "terms": 10}  # large pools, in small


def candidates(gains: np.ndarray, minutes: np.ndarray, seed: int = 0, bought: int = 0, depth: int = 8) -> Candidates:
    """Gains split over classes at random, and features of some images that show some classes."""
    m, rng = len(gains), np.random.default_rng(seed)
    shares = rng.dirichlet(np.ones(CLASSES), m) if m else np.zeros((0, CLASSES))
    by_class = rng.normal(size=(m + bought, CLASSES, depth)) * (rng.random((m + bought, CLASSES, 1)) < 0.8)
    vectors = [rng.normal(size=(m + bought, size)).astype(np.float32) for size in (depth, 2 * depth)]
    return Candidates(
        gains,
        minutes,
        shares * gains[:, None],
        features=vectors[0][:m],
        by_class=by_class[:m].astype(np.float16),
        gradient=vectors[1][:m],
        bought_features=vectors[0][m:] if bought else None,
        bought_by_class=by_class[m:].astype(np.float16) if bought else None,
        holds=rng.exponential(size=(m, CLASSES)),
        iou=rng.random(CLASSES),
        bought_holds=rng.exponential(size=(bought, CLASSES)) if bought else None,
    )


@st.composite
def pools(draw: st.DrawFn) -> Candidates:
    """Any gains; features that differ, are few different ones, or all alike."""
    m = draw(st.integers(0, 25))
    gains = draw(hnp.arrays(np.float64, m, elements=st.floats(0, 1e300)))
    minutes = draw(hnp.arrays(np.float64, m, elements=st.floats(1e-3, 1e3)))
    pool = candidates(gains, minutes, draw(SEEDS), bought=draw(st.integers(0, 3)))
    kinds = draw(st.sampled_from([None, 4, 1]))
    if kinds is None:
        return pool
    same = {name: getattr(pool, name)[np.arange(m) % kinds] for name in ("features", "by_class", "gradient")}
    return pool._replace(**{name: array * (kinds > 1) for name, array in same.items()})


def choose(method: Entry, pool: Candidates, seed: int = 0, how: Settings | None = None, **budget: float) -> Choice:
    return method.make(how or Settings())(pool, Budget(**budget), np.random.default_rng(seed))


@st.composite
def ways(draw: st.DrawFn) -> Settings:
    size = draw(st.sampled_from([{}, SAMPLED]))
    return Settings(draw(st.floats(0, 1e6)), draw(st.floats(0.01, 1)), **size)


@every
@QUICK
@given(pool=pools(), seed=SEEDS, data=st.data(), how=ways())
def test_images_are_filled_exactly(
    method: Entry, pool: Candidates, seed: int, data: st.DataObject, how: Settings
) -> None:
    images = data.draw(st.integers(0, len(pool.gains)))
    choice = choose(method, pool, seed, how, images=images)
    assert len(choice.indices) == len(set(choice.indices)) == len(choice.probabilities) == images
    assert ((choice.probabilities > 0) & (choice.probabilities <= 1)).all()
    with pytest.raises(ValueError, match="can be drawn"):
        choose(method, pool, seed, images=len(pool.gains) + 1)


@every
@QUICK
@given(pool=pools(), seed=SEEDS, budget=st.floats(0, 1e4), how=ways())
def test_minutes_are_never_exceeded(method: Entry, pool: Candidates, seed: int, budget: float, how: Settings) -> None:
    choice = choose(method, pool, seed, how, minutes=budget)
    spent = pool.minutes[choice.indices].sum()
    assert len(choice.indices) == len(set(choice.indices))
    assert spent <= budget * (1 + 1e-9)
    left = np.setdiff1d(np.arange(len(pool.gains)), choice.indices)
    # stops only at one that does not fit
    assert len(left) == 0 or spent + pool.minutes[left].max() > budget * (1 - 1e-9)


@every
def test_a_minutes_budget_of_all_images_buys_all(method: Entry) -> None:
    pool = candidates(np.arange(1.0, 9), np.full(8, 0.1))
    assert sorted(choose(method, pool, minutes=0.8).indices) == list(range(8))
    assert len(choose(method, pool, minutes=0.79).indices) == 7


@every
@QUICK
@given(pool=pools(), seed=SEEDS)
def test_the_generator_decides_and_the_input_stays(method: Entry, pool: Candidates, seed: int) -> None:
    before = [None if values is None else values.copy() for values in pool]
    first, second = (choose(method, pool, seed, minutes=50.0) for _ in range(2))
    assert first.indices.tolist() == second.indices.tolist()
    assert first.probabilities.tolist() == second.probabilities.tolist()
    assert all(a is None or np.array_equal(a, b) for a, b in zip(pool, before, strict=True))


@pytest.mark.parametrize("name", METHODS)
def test_who_draws_says_how_likely_it_was(name: str) -> None:
    pool = candidates(np.random.default_rng(0).uniform(1, 2, 60), np.ones(60))
    choices = [choose(METHODS[name], pool, seed, images=12) for seed in range(2)]
    if name in CERTAIN:
        assert all((choice.probabilities == 1).all() for choice in choices)
    else:
        assert set(choices[0].indices) != set(choices[1].indices)
        assert all((choice.probabilities < 1).all() for choice in choices)


@pytest.mark.parametrize("name", [name for name in METHODS if name not in CERTAIN])
def test_weights_from_the_probabilities_undo_the_choice(name: str) -> None:
    """Horvitz-Thompson: a sum over the chosen, weighted by 1 / probability, is the sum over all."""
    rng = np.random.default_rng(0)
    pool = candidates(rng.lognormal(size=60), np.ones(60), depth=64)
    longer = pool.features[:, :1] ** 2 + 0.5  # images differ in how likely badge takes them, and what is measured too
    pool = pool._replace(gradient=pool.gradient * longer)
    values = pool.gains + longer[:, 0]
    sums, plain = [], []
    for seed in range(150):
        choice = choose(METHODS[name], pool, seed, Settings(uniform_share=0.3), images=8)
        sums.append((values[choice.indices] / choice.probabilities).sum())
        plain.append(values[choice.indices].mean() * len(values))
    assert np.mean(sums) == pytest.approx(values.sum(), rel=0.04)
    if name != "class_stratified":  # the others prefer what is measured to be large
        assert np.mean(plain) > 1.1 * values.sum()


@every
@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0])
def test_bad_values_are_refused(method: Entry, bad: float) -> None:
    pool = candidates(np.ones(3), np.ones(3))
    broken = np.array([1, bad, 1])
    with pytest.raises(ValueError, match="gains must be finite and not negative"):
        choose(method, pool._replace(gains=broken), images=1)
    with pytest.raises(ValueError, match="gains by class must be finite and not negative"):
        choose(method, pool._replace(parts=np.stack([broken] * 3)), images=1)
    with pytest.raises(ValueError, match="minutes must be finite and above 0"):
        choose(method, pool._replace(minutes=broken), images=1)
    with pytest.raises(ValueError, match="budget"):
        choose(method, pool, minutes=bad)


@every
def test_a_budget_is_in_images_or_in_minutes(method: Entry) -> None:
    for budget in ({}, {"images": 1, "minutes": 1.0}, {"images": -1}):
        with pytest.raises(ValueError, match="budget"):
            choose(method, candidates(np.ones(3), np.ones(3)), **budget)


@pytest.mark.parametrize("name", METHODS)
def test_who_needs_features_says_so(name: str) -> None:
    pool = candidates(np.ones(4), np.ones(4), bought=2)
    fields = ("features", "by_class", "gradient", "bought_features", "bought_by_class")
    bare = pool._replace(**dict.fromkeys((*fields, "bought_holds")))
    need = METHODS[name].needs_features
    if need is None:
        assert len(choose(METHODS[name], bare, images=2).indices) == 2
        return
    assert len(choose(METHODS[name], bare._replace(**{need: getattr(pool, need)}), images=2).indices) == 2
    with pytest.raises(ValueError, match=r"there are none: set score\.features: true"):
        choose(METHODS[name], pool._replace(**{need: None}), images=2)
    with pytest.raises(ValueError, match="do not belong to gains"):
        choose(METHODS[name], pool._replace(**{need: getattr(pool, need)[:3]}), images=2)
    broken = getattr(pool, need).copy()
    broken[2] = np.nan
    with pytest.raises(ValueError, match="must be finite"):
        choose(METHODS[name], pool._replace(**{need: broken}), images=2)
    bought = f"bought_{need}"
    if bought in fields:
        with pytest.raises(ValueError, match="those of bought images"):
            choose(METHODS[name], pool._replace(**{bought: getattr(pool, bought)[..., 1:]}), images=2)


@pytest.mark.parametrize("name", ["class_stratified", "class_balanced", "coverage", "drawn_coverage"])
def test_who_weighs_classes_refuses_gains_without(name: str) -> None:
    pool = candidates(np.ones(4), np.ones(4))
    with pytest.raises(ValueError, match="no column gain_<class>"):
        choose(METHODS[name], pool._replace(parts=np.zeros((4, 0)), by_class=np.zeros((4, 0, 8))), images=2)


@pytest.mark.parametrize("name", METHODS)
def test_who_goes_by_gain_looks_for_it_and_nobody_else_but_clue(name: str) -> None:
    gains = np.array([1.0] * 20 + [100.0] * 5)
    found = []
    for seed in range(50):
        pool = candidates(gains, np.ones(25), seed, depth=1024)  # nearly no image resembles another
        found.append(choose(METHODS[name], pool, seed, images=5).indices)
    assert ((np.concatenate(found) >= 20).mean() > 0.7) == (METHODS[name].by_gain or name == "clue")


# -- the registry ------------------------------------------------------------------------------------------------------


def test_params_name_every_member_and_what_it_needs() -> None:
    assert set(get_args(params.Select.model_fields["method"].annotation)) == set(METHODS)
    assert set(BY_FEATURES) == {name for name, entry in METHODS.items() if entry.needs_features}


def test_a_member_is_a_function_and_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def worst_first(candidates: Candidates, budget: Budget, rng: np.random.Generator) -> Choice:
        indices = take(np.argsort(candidates.gains).tolist(), candidates.minutes, budget)
        return Choice(indices, np.ones(len(indices)))

    monkeypatch.setitem(METHODS, "worst_first", Entry(lambda _: worst_first))
    monkeypatch.chdir(tmp_path)
    images = pd.DataFrame({"key": ["a", "b", "c"], "image": "i.png", "mask": "m.png", "mask_sha256": ""})
    artifacts.save_manifest("pool", images.assign(height=8, width=8, sha256=["1", "2", "3"]))
    artifacts.save_scores("r01", pd.DataFrame({"key": ["a", "b", "c"], "gain": [3.0, 1.0, 2.0], "minutes": 1.0}))
    region_scores.save("r01", RegionScores.none())
    storage.save_json(paths.audit("r00"), {"signal": None})
    how = params.Select().model_copy(update={"method": "worst_first"})
    line = params.BudgetLine(after="r00", images=2)
    select.run("r01", line, seed=1, select=how, annotate=params.Annotate())
    assert list(artifacts.load_selection("r01")["key"]) == ["b", "c"]
