"""Which regions of which images: how many per image, how likely each is, what a budget line buys of them."""

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline import artifacts, ledger, paths, storage
from pipeline.errors import UserError
from pipeline.images import blocks, region_scores
from pipeline.images.region_scores import RegionScores
from pipeline.ledger import candidates
from pipeline.ledger.entries import Delivery, Order, Removal, Skip
from pipeline.params import Annotate, BudgetLine, Select
from pipeline.selection import Settings
from pipeline.selection.regions import REGION_METHODS, how_many, most_per_minute
from pipeline.stages import select

QUICK = settings(max_examples=60, deadline=None)
GAINS = hnp.arrays(np.float64, st.integers(1, 12), elements=st.floats(0, 1e3, width=32))
SEEDS = st.integers(0, 2**32 - 1)


@QUICK
@given(GAINS, st.floats(0.01, 10), st.floats(0, 10))
def test_no_set_of_regions_brings_more_per_minute(gains: np.ndarray, to_open: float, per_answer: float) -> None:
    def rate(which: tuple[int, ...]) -> float:
        return gains[list(which)].sum() / (to_open + len(which) * per_answer)

    k = most_per_minute(gains, to_open, per_answer)
    every = range(len(gains))
    best = max(rate(which) for n in range(1, len(gains) + 1) for which in itertools.islice(_sets(every, n), 400))
    assert rate(tuple(np.argsort(-gains)[:k])) >= best * (1 - 1e-9)


def _sets(every: range, n: int) -> itertools.combinations:
    return itertools.combinations(every, n)


@pytest.mark.parametrize(("to_open", "k"), [(0.001, 1), (1.5, 2), (100.0, 4)])
def test_the_dearer_the_opening_the_more_is_asked(to_open: float, k: int) -> None:
    assert most_per_minute(np.array([1.0, 8.0, 0.0, 4.0, 0.5]), to_open, 1.0) == k


@QUICK
@given(st.lists(GAINS, min_size=1, max_size=5), st.floats(0.01, 5), st.floats(0.01, 5), st.floats(0, 300))
def test_minutes_that_are_left_ask_about_the_best_regions_that_are(
    gains: list[np.ndarray], to_open: float, per_answer: float, minutes: float
) -> None:
    least = how_many(gains, to_open, per_answer, None)
    assert least == [most_per_minute(own, to_open, per_answer) for own in gains]
    each = how_many(gains, to_open, per_answer, minutes)
    spent = to_open * len(each) + per_answer * sum(each)
    if each == least:  # nothing is left of the line, or of the images
        room = minutes - to_open * len(each) - per_answer * sum(least)
        assert room < per_answer * (1 + 1e-9) or [len(own) for own in gains] == least
        return
    assert spent <= minutes * (1 + 1e-9)
    assert all(now >= before for now, before in zip(each, least, strict=True))
    ordered = [np.sort(own)[::-1] for own in gains]
    added = [own[before:now] for own, before, now in zip(ordered, least, each, strict=True)]
    left = [own[now:] for own, now in zip(ordered, each, strict=True)]
    if any(len(own) for own in left):
        assert spent + per_answer > minutes * (1 - 1e-9)
        assert np.concatenate(added).min() >= np.concatenate(left).max()


@QUICK
@given(GAINS, st.integers(1, 12), SEEDS, st.sampled_from(list(REGION_METHODS)))
def test_as_many_as_are_asked_for_none_twice(gains: np.ndarray, k: int, seed: int, name: str) -> None:
    k = min(k, len(gains))
    choice = REGION_METHODS[name](Settings())(gains, k, np.random.default_rng(seed))
    assert len(set(choice.indices.tolist())) == len(choice.indices) == len(choice.probabilities) == k
    assert ((choice.probabilities > 0) & (choice.probabilities <= 1)).all()
    if name == "best_first":
        assert sorted(gains[choice.indices]) == sorted(gains)[-k:]


@pytest.mark.parametrize("name", REGION_METHODS)
def test_probabilities_are_those_of_many_choices(name: str) -> None:
    gains, times = np.array([5.0, 1.0, 3.0, 2.0, 0.5, 4.0, 2.5]), 4000
    seen, said = np.zeros(7), np.zeros(7)
    for seed in range(times):
        choice = REGION_METHODS[name](Settings())(gains, 3, np.random.default_rng(seed))
        seen[choice.indices] += 1 / times
        said[choice.indices] = choice.probabilities
    np.testing.assert_allclose(seen, said, atol=0.05)


# the stage

KEYS = [f"{number:02}" for number in range(8)]
"""Of so many images, each with ten regions; region n of image i has gain (i + 1) (n + 1) / 10, all of it road's."""


@pytest.fixture(autouse=True)
def scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    storage.save_json(paths.audit("r00"), {"signal": None})
    frame = pd.DataFrame({"key": KEYS, "image": "i.png", "mask": "m.png", "mask_sha256": "", "height": 8, "width": 8})
    artifacts.save_manifest("pool", frame.assign(sha256=[f"of {key}" for key in KEYS]))
    for name in ("r01", "r02"):
        gains = (np.outer(np.arange(8) + 1, np.arange(10) + 1) / 10).ravel()
        whole = np.full(80, 6, np.int64)
        image, region = np.repeat(np.arange(8), 10), np.tile(np.arange(10), 8)
        parts = gains[:, None].astype(np.float32)
        price = np.array([2.0, 1.0])
        scores = RegionScores(image, region, whole, gains, parts, np.zeros(80, np.uint8), price)
        region_scores.save(name, scores)
        table = pd.DataFrame({"key": KEYS, "gain": gains.reshape(8, 10).sum(1), "minutes": 12.0})
        artifacts.save_scores(name, table.assign(gain_road=table["gain"]))


def run(
    round_name: str = "r01", *, seed: int = 1, annotator: str = "label_studio", how: dict | None = None, **amount: float
) -> dict[str, list[int]]:
    """By image, the regions that are chosen."""
    line = BudgetLine.model_validate({"after": "r00"} | amount)
    chosen = Select.model_validate({"regions_per_image": 3} | (how or {}))
    who = Annotate(annotator=annotator, oracle_seconds_to_open=30, oracle_seconds_per_answer=60)
    select.run(round_name, line, seed=seed, select=chosen, annotate=who)
    rows = artifacts.load_selection(round_name)
    assert all(key == blocks.key_of_regions(blocks.image_of(key), round_name) for key in rows["key"])
    return {
        blocks.image_of(key): list(blocks.numbers(text)) for key, text in zip(rows["key"], rows["regions"], strict=True)
    }


def order(image: str, which: tuple[int, ...], round_name: str = "r01") -> Order:
    made = Order(round_name, blocks.key_of_regions(image, round_name), "oracle", "cityscapes19", 0.7, 5.0, 0.25, "")
    return made._replace(method="draw", regions=which, region_map="0")


def test_rows_have_the_gain_price_and_probability_of_what_is_asked() -> None:
    found = run(images=4)
    rows, gains = artifacts.load_selection("r01"), region_scores.load("r01").gain.reshape(8, 10)
    assert [len(set(which)) for which in found.values()] == [3] * 4
    expected = [gains[KEYS.index(image)][which].sum() for image, which in found.items()]
    np.testing.assert_allclose(rows["gain"], expected)
    assert set(rows["minutes"]) == {5.0}
    first = run(images=8, how={"regions": "best_first"})
    assert list(artifacts.load_selection("r01")["probability"]) == [1.0] * 8  # all images, and of each the best
    assert all(sorted(which) == [7, 8, 9] for which in first.values())
    run(images=8, how={"regions": "random"})
    np.testing.assert_allclose(artifacts.load_selection("r01")["probability"], 0.3)  # 3 of 10


def test_images_are_chosen_by_the_gain_of_their_best_regions() -> None:
    assert list(run(images=3, how={"method": "best_first"})) == ["07", "06", "05"]


def test_regions_per_image_are_those_that_bring_most_per_minute() -> None:
    found = run(images=8, how={"regions_per_image": None})
    gains = region_scores.load("r01").gain[:10]
    assert {len(which) for which in found.values()} == {most_per_minute(gains, 2.0, 1.0)} == {5}
    assert set(artifacts.load_selection("r01")["minutes"]) == {7.0}


def test_a_line_in_minutes_pays_for_opening_and_answers() -> None:
    assert len(run(minutes=15.1)) == 3
    assert len(run(minutes=14.9)) == 2
    assert len(run(minutes=14.1, annotator="oracle")) == 4  # 3.5 minutes each
    with pytest.raises(UserError, match="too little for one image"):
        run(minutes=4.9)


def test_a_region_is_bought_once_and_an_image_asked_about_once_a_round() -> None:
    ledger.append([order("07", (7, 8, 9)), order("06", tuple(range(10)))])
    kept = run(images=3)
    assert kept["07"] == [7, 8, 9]
    assert kept["06"] == list(range(10))
    assert len(kept) == 3
    later = run("r02", images=7, how={"regions": "best_first"})
    assert "06" not in later  # nothing of it is left
    assert sorted(later["07"]) == [4, 5, 6]
    with pytest.raises(UserError, match="only 7 of the pool are left"):
        run("r02", images=8)
    ledger.append([order("07", (0, 1, 2, 3, 4, 5), "r02")])
    assert run("r02", images=7, how={"regions_per_image": 9})["07"] == [0, 1, 2, 3, 4, 5]


def test_a_round_of_which_everything_is_ordered_stays() -> None:
    ledger.append([order(key, tuple(range(10))) for key in KEYS])
    assert run(images=8) == {key: list(range(10)) for key in KEYS}


def test_a_line_in_minutes_after_everything_is_bought_is_not_too_little() -> None:
    ledger.append([order(key, tuple(range(10))) for key in KEYS])
    with pytest.raises(UserError, match="r02 has 20 minutes, but nothing of the pool is left: remove it"):
        run("r02", minutes=20)


def test_what_was_skipped_is_asked_by_later_rounds_only_and_last() -> None:
    ledger.append([order("07", (7, 8, 9)), Skip("r01", blocks.key_of_regions("07", "r01"), "a@b.org", 0.5, "", "")])
    assert "07" not in run(images=7)
    assert "07" not in run("r02", images=7)
    again = run("r02", images=8, how={"regions": "best_first"})
    assert list(again)[-1] == "07"
    assert sorted(again["07"]) == [7, 8, 9]


def test_an_image_that_has_to_stay_out_is_not_asked_about() -> None:
    key = blocks.key_of_regions("07", "r01")
    ledger.append([order("07", (9,)), Delivery("r01", key, "oracle", 1.0, "", ""), Removal("r01", key, "")])
    assert "07" not in run("r02", images=7)


def test_what_is_left_has_the_price_of_all_that_is_left() -> None:
    ledger.append([order("07", (7, 8, 9))])
    left = candidates.left("r02", ledger.load(), Annotate())
    assert list(left.rows["key"]) == KEYS
    oracle = Annotate(oracle_seconds_to_open=30, oracle_seconds_per_answer=60)
    assert candidates.left("r02", ledger.load(), oracle).rows["minutes"].tolist() == [10.5] * 7 + [7.5]
    assert [int((left.regions.image == place).sum()) for place in range(8)] == [10] * 7 + [7]
    assert not np.isin(left.regions.region[left.regions.image == 7], [7, 8, 9]).any()


def test_regions_are_not_bought_where_images_were() -> None:
    ledger.append([Order("r01", "07", "oracle", "cityscapes19", 0.7, 5.0, 0.25, "")])
    with pytest.raises(UserError, match=r"score\.unit is region, but .* has '07' ordered, and its unit is image"):
        run("r02", images=2)


def test_the_uniform_share_and_the_power_reach_regions() -> None:
    found = [run(images=8, how={"power": 50.0, "uniform_share": share}) for share in (0.0, 1.0)]
    assert all(9 in which for which in found[0].values())
    assert not all(9 in which for which in found[1].values())


def test_scores_that_are_not_whole_are_a_sentence() -> None:
    scores = region_scores.load("r01")
    with pytest.raises(UserError, match="a value in gain is not finite, or below 0"):
        region_scores.save("r01", scores._replace(gain=-scores.gain))
    with pytest.raises(UserError, match="its regions are not in the order of their images"):
        region_scores.save("r01", scores._replace(image=scores.image[::-1].copy()))
    with pytest.raises(UserError, match="of 80 regions have the lengths"):
        region_scores.save("r01", scores._replace(claim=scores.claim[:3]))
    paths.region_scores("r01").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"regions\.npz is not whole .* run `dvc repro -s -f score@r01`"):
        run(images=2)
