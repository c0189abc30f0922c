from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import artifacts, ledger, paths, storage
from pipeline.errors import UserError
from pipeline.images import region_scores
from pipeline.images.region_scores import RegionScores
from pipeline.ledger.entries import Delivery, Order, Removal, Skip
from pipeline.params import Annotate, BudgetLine, Select
from pipeline.selection import METHODS
from pipeline.stages import select

KEYS = [f"{number:03}" for number in range(40)]


@pytest.fixture(autouse=True)
def scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    storage.save_json(paths.audit("r00"), {"signal": None})
    pool(KEYS)
    for name in ("r01", "r02"):
        score(name, KEYS)


def pool(keys: list[str], masks: str = "m.png", **contents: str) -> None:
    """Write the pool's manifest; every image has a content of its own if it is not given."""
    frame = pd.DataFrame({"key": keys, "image": "i.png", "mask": masks, "mask_sha256": "", "height": 8, "width": 8})
    artifacts.save_manifest("pool", frame.assign(sha256=[contents.get(f"_{key}", f"of {key}") for key in keys]))


def score(round_name: str, keys: list[str], minutes: float = 10.0) -> None:
    gains = np.random.default_rng(0).uniform(0.1, 1.0, len(keys))
    artifacts.save_scores(round_name, pd.DataFrame({"key": keys, "gain": gains, "minutes": minutes}))
    region_scores.save(round_name, RegionScores.none())


def run(
    round_name: str = "r01",
    *,
    seed: int = 1,
    method: str = "draw",
    fallback: bool = True,
    start: str | None = None,
    after: str = "r00",
    annotator: str = "label_studio",
    oracle_minutes: float = 10.0,
    **amount: float,
) -> list[str]:
    line = BudgetLine.model_validate({"after": after} | amount)
    how = Select.model_validate({"method": method, "fallback": fallback, "start": start})
    who = Annotate(annotator=annotator, oracle_minutes=oracle_minutes)
    select.run(round_name, line, seed=seed, select=how, annotate=who)
    return list(artifacts.load_selection(round_name)["key"])


def look(round_name: str, keys: list[str], vectors: np.ndarray) -> None:
    """Features of one class; the gradient is the same as well."""
    single = vectors.astype(np.float32)
    holds = np.ones((len(keys), 1), np.float32)
    features = artifacts.Features(keys, single, single[:, None].astype(np.float16), single, holds, np.full(1, 0.5))
    artifacts.save_features(round_name, features)
    scores = artifacts.load_scores(round_name)
    artifacts.save_scores(round_name, scores.assign(gain_road=scores["gain"]))


def order(key: str, round_name: str = "r01") -> Order:
    return Order(round_name, key, "oracle", "cityscapes19", 0.7, 7.0, 0.25, "", "draw")


def test_fills_the_line_with_rows_of_the_scores() -> None:
    chosen = run(images=12)
    rows = artifacts.load_selection("r01")
    scores = artifacts.load_scores("r01").set_index("key").loc[chosen]
    assert len(set(chosen)) == 12
    np.testing.assert_array_equal(rows["gain"], scores["gain"])
    assert ((rows["probability"] > 0) & (rows["probability"] < 1)).all()
    assert list(rows.columns) == [*artifacts.SELECTION_COLUMNS, "regions"]
    assert set(rows["regions"]) == {""}


def test_best_first_takes_the_highest_gains() -> None:
    scores = artifacts.load_scores("r01").sort_values("gain", ascending=False)
    assert run(images=5, method="best_first") == list(scores["key"][:5])


def test_same_seed_same_draw_other_seed_or_round_another() -> None:
    first = run(images=12)
    assert run(images=12) == first
    assert run(images=12, seed=2) != first
    assert run("r02", images=12) != first


def test_what_is_ordered_stays_with_its_own_numbers_whatever_the_scores_say() -> None:
    ledger.append([order("007"), order("stranger to the new scores")])
    chosen = run(images=5)
    assert chosen[:2] == ["007", "stranger to the new scores"]
    assert len(set(chosen)) == 5
    kept = artifacts.load_selection("r01").iloc[0]
    assert (kept["gain"], kept["minutes"], kept["probability"]) == (0.7, 7.0, 0.25)


def test_a_full_round_keeps_its_images_even_if_the_line_was_lowered() -> None:
    ledger.append([order(key) for key in KEYS[:4]])
    assert run(images=4) == KEYS[:4]
    assert run(images=2) == KEYS[:4]


def test_what_other_rounds_bought_is_not_bought_again() -> None:
    ledger.append([order(key, "r01") for key in KEYS[:30]])
    assert set(run("r02", images=10)) == set(KEYS[30:])


def test_skipped_image_is_replaced_and_its_minutes_stay_spent() -> None:
    ledger.append([*map(order, KEYS[:3]), Skip("r01", KEYS[1], "ann@example.org", 0.5, "", "7@then")])
    chosen = run(images=3)
    assert chosen[:2] == [KEYS[0], KEYS[2]]
    assert len(chosen) == 3
    assert chosen[2] not in KEYS[:3]
    assert len(run(minutes=24.5)) == 3  # 2 x 7 are kept, 10 are left
    assert len(run(minutes=24.4)) == 2
    assert KEYS[1] in run("r02", images=38)  # back in the pool for others


def test_pool_that_is_too_small_is_a_sentence() -> None:
    ledger.append([order(key, "r01") for key in KEYS[:30]])
    with pytest.raises(UserError, match=r"r02 asks for 11 images, but only 10 of the pool are left.*params\.yaml"):
        run("r02", images=11)
    assert not paths.selection("r02").exists()


def test_minutes_count_what_was_measured() -> None:
    ledger.append([order("000"), order("001")])  # 7 minutes predicted each
    ledger.append([Delivery("r01", "000", "oracle", 2.0, "", "")])
    # 2 minutes where 7 were predicted: so 2 are out, and what is predicted to take 10 will take 20 / 7
    assert len(run(minutes=4 + 19.9 / 7)) == 2
    assert len(run(minutes=4 + 20.1 / 7)) == 2 + 1
    assert len(run(minutes=4 + 40.1 / 7)) == 2 + 2


def test_the_oracle_says_beforehand_what_an_image_takes() -> None:
    for minutes, images in ((30.0, 1), (3.0, 10), (1.0, 30), (0.1, 40)):
        assert len(run(minutes=30, annotator="oracle", oracle_minutes=minutes)) == images
        assert set(artifacts.load_selection("r01")["minutes"]) == {minutes}


def skipped(*keys: str) -> None:
    ledger.append([order(key) for key in keys])
    ledger.append([Skip("r01", key, "ann@example.org", 4.0, "", "7@then") for key in keys])


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("amount", [{"images": 38}, {"minutes": 385}])
def test_what_was_skipped_comes_last_whatever_the_method(
    method: str, amount: dict[str, float], capsys: pytest.CaptureFixture[str]
) -> None:
    look("r02", KEYS, np.random.default_rng(2).normal(size=(40, 6)))
    best = list(artifacts.load_scores("r02").sort_values("gain", ascending=False)["key"][:3])
    skipped(*best)
    assert not set(run("r02", images=20, method=method)) & set(best)
    assert "skipped" not in capsys.readouterr().out
    chosen = run("r02", method=method, **amount)
    assert len(chosen) == 38
    assert set(chosen[:37]) == set(KEYS) - set(best)
    assert chosen[37] in best
    says = "r02: nothing else is left of the pool, so 1 image that annotators of an earlier round have skipped"
    assert says in capsys.readouterr().out


def test_skipped_block_comes_last_and_the_others_of_its_image_do_not() -> None:
    blocks = [f"{key}@1x2-0-{column}" for key in KEYS[:4] for column in (0, 1)]
    score("r02", blocks)
    skipped(blocks[0])
    assert set(run("r02", images=7, method="best_first")) == set(blocks[1:])


def test_skipped_and_labelled_after_all_is_not_bought_again() -> None:
    skipped(KEYS[0])
    ledger.append([Delivery("r01", KEYS[0], "ann@example.org", 4.0, "", "")])
    assert KEYS[0] not in run("r02", images=39)


def test_minutes_for_no_image_are_a_sentence() -> None:
    with pytest.raises(UserError, match=r"r01 has 9\.5 minutes, which is too little for one image"):
        run(minutes=9.5)


def test_gains_that_cannot_be_drawn_from_are_a_sentence() -> None:
    artifacts.save_scores("r01", pd.DataFrame({"key": ["a", "b"], "gain": [0.5, -0.1], "minutes": 10.0}))
    with pytest.raises(UserError, match=r"r01: gains must be .*; see data/rounds/r01/scores\.csv"):
        run(images=1)


def test_features_are_taken_by_key_and_bought_images_are_covered() -> None:
    """Five groups of eight look alike. Two groups have been bought from, one of them in this round."""
    shuffled = np.random.default_rng(1).permutation(40)
    look("r02", [KEYS[index] for index in shuffled], np.eye(5)[shuffled % 5])
    ledger.append([order(KEYS[0], "r01"), order(KEYS[1], "r02")])
    for method in ("coreset", "coverage"):
        chosen = run("r02", images=4, method=method)
        assert chosen[0] == KEYS[1]
        assert sorted(int(key) % 5 for key in chosen[1:]) == [2, 3, 4], method
    assert len(set(run("r02", images=4, method="badge"))) == 4


def test_methods_that_need_features_refuse_without() -> None:
    artifacts.save_features("r01", artifacts.Features.none())
    for method in ("coreset", "badge", "clue"):
        with pytest.raises(UserError, match=r"r01: this method compares .* there are none: set score\.features: true"):
            run(images=3, method=method)
    with pytest.raises(UserError, match=r"no gain by class: no column gain_<class>"):
        run(images=3, method="class_stratified")


def test_features_without_an_image_of_the_scores_are_refused() -> None:
    look("r01", KEYS[:-1], np.eye(39))
    with pytest.raises(
        UserError, match=r"features\.npz lacks '039', which .*scores\.csv has: run `dvc repro -s -f score@"
    ):
        run(images=3, method="coreset")
    assert len(run(images=3)) == 3  # who needs none does not look


def test_classes_are_the_columns_of_the_scores() -> None:
    parts = {f"gain_{name}": np.where(np.arange(40) % 4 == n, 0.5, 0.0) for n, name in enumerate("abcd")}
    artifacts.save_scores("r01", pd.DataFrame({"key": KEYS, "gain": 0.5, "minutes": 10.0, **parts}))
    chosen = run(images=8, method="class_stratified")
    assert np.bincount([int(key) % 4 for key in chosen]).tolist() == [2, 2, 2, 2]
    np.testing.assert_allclose(artifacts.load_selection("r01")["probability"], 0.2)


def test_the_first_purchase_may_have_a_method_of_its_own() -> None:
    storage.save_json(paths.audit("r01"), {"signal": None})
    ranked = list(artifacts.load_scores("r01").sort_values("gain", ascending=False)["key"])
    assert run(images=5, start="best_first") == ranked[:5]
    assert run("r02", after="r01", images=5, start="best_first") == run("r02", after="r01", images=5) != ranked[:5]


def test_no_signal_in_the_score_is_not_heeded_by_who_does_not_go_by_it() -> None:
    look("r01", KEYS, np.eye(40))
    storage.save_json(paths.audit("r00"), {"signal": False})
    for method, used in (("coreset", "coreset"), ("clue", "clue"), ("representative", "class_stratified")):
        run(images=3, method=method)
        assert set(artifacts.load_selection("r01")["method"]) == {used}


def test_curves_start_at_what_is_labelled() -> None:
    """Ten images of each of four classes, all alike. One of the second class is bought, and holds as much as ten."""
    of = np.arange(40) % 4
    parts = {f"gain_{name}": np.where(of == n, 0.5, 0.0) for n, name in enumerate("abcd")}
    artifacts.save_scores("r02", pd.DataFrame({"key": KEYS, "gain": 0.5, "minutes": 10.0, **parts}))
    alike = np.ones((40, 3), np.float32)
    holds = 4 * np.eye(4, dtype=np.float32)[of]
    holds[1] *= 10
    features = artifacts.Features(KEYS, alike, alike[:, None].astype(np.float16), alike, holds, np.full(4, 0.5))
    artifacts.save_features("r02", features)
    ledger.append([order(KEYS[1], "r01")])
    assert [int(key) % 4 for key in run("r02", images=6, method="learning_curve")].count(1) == 0
    paths.LEDGER.unlink()
    holds[1] /= 10
    artifacts.save_features("r02", features)
    chosen = run("r02", images=8, method="learning_curve")
    assert np.bincount([int(key) % 4 for key in chosen]).tolist() == [2, 2, 2, 2]


@pytest.mark.parametrize(
    ("signal", "fallback", "used"),
    [(False, True, "class_stratified"), (False, False, "draw"), (None, True, "draw"), (True, True, "draw")],
)
def test_score_without_a_signal_no_longer_chooses(
    signal: bool | None, fallback: bool, used: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger.append([order("007")])
    scores = artifacts.load_scores("r01")
    artifacts.save_scores("r01", scores.assign(gain_road=scores["gain"]))
    storage.save_json(paths.audit("r00"), {"signal": signal})
    run(images=5, fallback=fallback)
    assert list(artifacts.load_selection("r01")["method"]) == ["draw"] + [used] * 4  # what is ordered keeps its own
    said = capsys.readouterr().out
    assert ("r01: drawn by class_stratified instead of draw, since the labels of r00" in said) == (used != "draw")


def test_fallback_takes_no_notice_of_the_gains() -> None:
    gains = np.array([1e-9] * 20 + [1.0] * 20)
    artifacts.save_scores("r01", pd.DataFrame({"key": KEYS, "gain": gains, "minutes": 10.0, "gain_road": gains}))
    assert sum(key < "020" for key in run(images=20)) <= 3
    storage.save_json(paths.audit("r00"), {"signal": False})
    assert sum(key < "020" for key in run(images=20)) >= 5


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_never_exceeds_and_never_loses_an_order(data: st.DataObject) -> None:
    paths.LEDGER.unlink(missing_ok=True)
    kept = data.draw(st.lists(st.sampled_from(KEYS), unique=True, max_size=6))
    elsewhere = data.draw(st.lists(st.sampled_from(sorted(set(KEYS) - set(kept))), unique=True, max_size=6))
    ledger.append([*[order(key) for key in kept], *[order(key, "r09") for key in elsewhere]])
    if data.draw(st.booleans()):
        images = data.draw(st.integers(1, 25))
        chosen = run(images=images)
        assert len(chosen) == max(images, len(kept))
    else:
        minutes = data.draw(st.floats(50, 200))
        chosen = run(minutes=minutes)
        spent = 7.0 * len(kept) + 10.0 * (len(chosen) - len(kept))
        assert minutes - 10 < spent <= minutes
    assert chosen[: len(kept)] == kept
    assert len(set(chosen)) == len(chosen)
    assert not set(chosen) & set(elsewhere)


@pytest.mark.parametrize("method", METHODS)
def test_of_images_of_the_same_content_one_is_bought(method: str, capsys: pytest.CaptureFixture[str]) -> None:
    keys = [f"{number:02}" for number in range(8)]
    pool(keys, **{f"_{key}": f"picture {int(key) // 2}" for key in keys})  # each twice
    for name in ("r01", "r02"):
        score(name, keys)
        look(name, keys, np.random.default_rng(0).normal(size=(8, 4)))
    first = run(images=3, method=method)
    assert len({int(key) // 2 for key in first}) == 3
    assert "set aside: 4 of 8 images have the same content as another, '01' first" in capsys.readouterr().out
    ledger.append(map(order, first))
    (last,) = run("r02", images=1, method=method)  # the doubles of what other rounds bought are had
    assert {int(key) // 2 for key in [*first, last]} == {0, 1, 2, 3}
    with pytest.raises(UserError, match="only 1 of the pool are left"):
        run("r02", images=2, method=method)


def test_the_double_of_a_skipped_image_is_not_offered_in_its_round() -> None:
    pool(KEYS, _000="twin", _001="twin")
    ledger.append([order("000"), Skip("r01", "000", "ann@example.org", 0.5, "", "7@then")])
    assert set(run(images=38)) == set(KEYS[2:])


def test_blocks_of_one_content_are_bought_once() -> None:
    pool(["a", "b", "c"], _a="twin", _b="twin")
    blocks = [f"{image}@1x2-0-{col}" for image in "abc" for col in (0, 1)]
    score("r01", blocks)
    ledger.append([order("b@1x2-0-0")])
    assert set(run(images=4)) == {"b@1x2-0-0", "b@1x2-0-1", "c@1x2-0-0", "c@1x2-0-1"}


def test_what_the_oracle_has_no_mask_of_is_left_to_people(capsys: pytest.CaptureFixture[str]) -> None:
    frame = artifacts.load_manifest("pool")
    artifacts.save_manifest("pool", frame.assign(mask=["" if number < 30 else "m.png" for number in range(40)]))
    assert set(run(images=10, annotator="oracle")) == set(KEYS[30:])
    assert "set aside: 30 of 40 images have no mask for the oracle, '000' first" in capsys.readouterr().out
    assert len(run(images=40, annotator="label_studio")) == 40


def test_what_was_removed_is_paid_and_not_replaced() -> None:
    ledger.append([*map(order, KEYS[:3]), Removal("r01", KEYS[1], "")])
    assert run(images=3) == [KEYS[0], KEYS[2]]
    assert KEYS[1] not in run("r02", images=37)
