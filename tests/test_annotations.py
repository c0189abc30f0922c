import copy
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pipeline.annotators.contract import Answer, HeldBack, Request, Skipped
from pipeline.annotators.label_studio import annotations, annotator, region_answers, regions
from pipeline.images.classes import CLASS_SETS
from pipeline.ledger.entries import Order
from pipeline.params import Annotate

CLASSES = CLASS_SETS["camvid11"]
RNG = np.random.default_rng(0)
SENT = RNG.integers(0, 11, (6, 8), np.uint8)
LATER = "2026-01-02T03:04:0{}.123456Z"


def request(known: dict[str, str] | None = None, **annotate: Any) -> Request:
    pool = pd.DataFrame({"height": [6], "width": [8]}, index=["a"])
    return Request("r01", (), known or {}, pool, CLASSES, Annotate(**annotate), "shortfall")


def annotation(number: int = 1, mask: np.ndarray = SENT, who: str = "ann@example.org", **more: Any) -> dict[str, Any]:
    result = json.loads(json.dumps(regions.prediction(mask, CLASSES), default=np.ndarray.tolist))
    made = {"id": number, "completed_by": {"id": 1, "email": who}, "result": result, "lead_time": 30.0}
    return made | {"was_cancelled": False, "ground_truth": False, "updated_at": LATER.format(number)} | more


def task(*made: dict[str, Any], number: int = 7, meta: Any = None) -> dict[str, Any]:
    return {"id": number, "meta": meta or {"sent": annotations.pack(SENT)}, "annotations": list(made)}


def come_to(*tasks: dict[str, Any], known: dict[str, str] | None = None, **annotate: Any) -> list[Any]:
    return list(annotations.come_to("a", tasks, request(known, **annotate), CLASSES))


def painted(number: int) -> np.ndarray:
    mask = SENT.copy()
    mask[:, 2:4] = number
    return mask


def test_a_packed_mask_is_the_same_afterwards() -> None:
    np.testing.assert_array_equal(annotations.unpack(annotations.pack(SENT)), SENT)
    for text in ("", "%", "AAAA", None, 5, annotations.pack(SENT)[:-40], "\u00e9"):
        found = annotations.unpack(text)
        assert found is None or found.shape == SENT.shape


def test_what_needs_another_look_is_as_params_say() -> None:
    quick, flooded = annotation(lead_time=3.0), annotation(1, np.full_like(SENT, 1))
    for made, strict, lenient in (
        (quick, {"min_seconds": 4.0}, {"min_seconds": 2.0}),
        (flooded, {"max_share": 0.9}, {"max_share": 1.0}),
    ):
        assert [type(one) for one in come_to(task(made), **strict)] == [HeldBack]
        assert [type(one) for one in come_to(task(made), **lenient)] == [Answer]


@pytest.mark.usefixtures("at_home")
def test_what_is_sent_is_as_params_say() -> None:
    coarse = np.random.default_rng(3).integers(0, 256, (6, 8, 3), np.uint8)
    Image.fromarray(coarse.repeat(4, 0).repeat(4, 1)).save("a.png")
    large = SENT.repeat(4, 0).repeat(4, 1)
    order = Order("r01", "a", "label_studio", "camvid11", 1.0, 1.0, 1.0, "")
    corrected = large.copy()
    corrected[:, :9] = 10

    def sent(**annotate: Any) -> tuple[Request, dict[str, Any], list[dict[str, Any]]]:
        asked = request(**annotate)
        asked = asked._replace(pool=pd.DataFrame({"height": [24], "width": [32], "image": ["a.png"]}, index=["a"]))
        meta, result = annotator._start(order, large, asked, CLASSES)
        return asked, meta, json.loads(json.dumps(result, default=np.ndarray.tolist))

    _, meta, result = sent()
    assert {item["type"] for item in result} == {"brushlabels"}
    np.testing.assert_array_equal(annotations.unpack(meta["sent"]), large)
    asked, meta, result = sent(start="empty")
    assert result == []
    [one] = annotations.come_to("a", [task(annotation(mask=corrected), meta=meta)], asked, CLASSES)
    assert isinstance(one, Answer)
    np.testing.assert_array_equal(one.mask, corrected)
    assert one.changed is None, "nothing was sent to be changed"

    for start in ("model", "empty"):
        asked, meta, result = sent(by="regions", start=start)
        assert {item["type"] for item in result} == {"polygonlabels"}
        assert result[-1]["id"] == "rest"
        questions = region_answers.unpack(meta["regions"])
        assert questions is not None
        assert 4 < len(questions.asked) <= 150
        assert (questions.places > 0).all(), "all of the image is asked about"
        labels = {item["value"]["polygonlabels"][0] for item in result[:-1]}
        assert labels == {"?"} if start == "empty" else labels <= set(CLASSES.names)
        result[0]["value"]["polygonlabels"] = ["Bicyclist"]
        [one] = annotations.come_to("a", [task(annotation(result=result), meta=meta)], asked, CLASSES)
        assert isinstance(one, Answer)
        number = int(result[0]["id"].removeprefix("region-"))
        area = questions.places == questions.asked.index(number) + 1
        np.testing.assert_array_equal(one.mask, np.where(area, np.uint8(10), questions.sent))
        assert one.changed == (None if start == "empty" else (one.mask != questions.sent).sum())


def test_regions_submitted_unseen_or_unanswered_need_another_look() -> None:
    regions_of = np.arange(6).repeat(8).reshape(6, 8).astype(np.uint16)
    for predicted, wanted in ((SENT, "nothing was changed within 1 seconds"), (None, "answers none of the regions")):
        asked = region_answers.questions(regions_of, (1, 4), predicted)
        result = region_answers.prediction(asked, CLASSES)
        made = task(annotation(result=result, lead_time=1.0), meta={"regions": region_answers.pack(asked)})
        [one] = come_to(made)
        assert isinstance(one, HeldBack)
        assert wanted in one.reason
    asked = region_answers.questions(regions_of, (1, 4), SENT)
    works = []
    for number, (label, who) in enumerate([("Sky", "a@x"), ("Sky", "b@x"), ("mixed", "c@x")], 1):
        result = region_answers.prediction(asked, CLASSES)
        for item in result[:-1]:
            item["value"] = item["value"] | {"polygonlabels": [label]}
        works.append(annotation(number, who=who, result=result))
    made = task(*works, meta={"regions": region_answers.pack(asked)})
    [one] = come_to(made, annotators_per_image=3, several="majority")
    np.testing.assert_array_equal(one.mask, np.where(np.isin(regions_of, (1, 4)), np.uint8(0), np.uint8(255)))
    assert one.agreement == pytest.approx(1 / 3)


@pytest.fixture
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_latest_of_each_person_and_ground_truth_before_all() -> None:
    first, second = annotation(1, painted(1)), annotation(2, painted(2))
    [one] = come_to(task(second, first))
    np.testing.assert_array_equal(one.mask, painted(2))
    assert (one.version, one.minutes, one.agreement) == (f"2@{LATER.format(2)}", 1.0, None)
    assert one.changed == (painted(2) != SENT).sum()
    [one] = come_to(task(second, first | {"ground_truth": True}))
    np.testing.assert_array_equal(one.mask, painted(1))
    other = annotation(3, painted(3), who="bob@example.org")
    [one] = come_to(task(first), task(other, number=8))  # a copy of the task
    np.testing.assert_array_equal(one.mask, painted(3))
    assert one.agreement == (painted(1) == painted(3)).mean()


def test_enough_people_or_ground_truth() -> None:
    first, other = annotation(1, painted(1)), annotation(2, painted(2), who="bob@example.org")
    third = annotation(3, painted(2), who="eve@example.org")
    assert come_to(task(first, first | {"id": 9}), annotators_per_image=2) == []
    assert len(come_to(task(first | {"ground_truth": True}), annotators_per_image=2)) == 1
    [one] = come_to(task(first, other, third), annotators_per_image=3, several="majority")
    np.testing.assert_array_equal(one.mask, painted(2))
    assert one.annotator == "ann@example.org, bob@example.org, eve@example.org"
    assert one.minutes == 1.5
    skip = annotation(4, who="kim@example.org", was_cancelled=True)
    [one] = come_to(task(first, skip), annotators_per_image=2)
    assert isinstance(one, Answer)


def test_skip_counts_only_where_nobody_labelled() -> None:
    skip = annotation(1, was_cancelled=True, lead_time=6)
    assert come_to(task(skip)) == [Skipped("a", 0.1, "ann@example.org", f"1@{LATER.format(1)}")]
    assert come_to(task(skip), known={"a": f"1@{LATER.format(1)}"}) == []
    assert come_to(task(skip), annotators_per_image=2) == []
    [one] = come_to(task(skip, annotation(2)), known={"a": f"1@{LATER.format(1)}"})
    assert isinstance(one, Answer)


@pytest.mark.parametrize("hours", [2, 8, 60])
def test_label_is_not_refused_for_a_tab_that_was_left_open(hours: int) -> None:
    [one] = come_to(task(annotation(1, painted(1), lead_time=3600.0 * hours)))
    assert (type(one), one.minutes) == (Answer, 60.0 * hours)  # what it counts for is the ledger's matter


def test_only_what_is_newer_than_the_record_is_a_correction() -> None:
    made = task(annotation(5))
    assert len(come_to(made, known={"a": f"5@{LATER.format(4)}"})) == 1
    for known in (f"5@{LATER.format(5)}", f"4@{LATER.format(6)}", ""):
        assert come_to(made, known={"a": known}) == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"lead_time": None}, "its time is None seconds, so a program made it"),
        ({"lead_time": -1.0}, "its time is -1.0 seconds"),
        ({"lead_time": 10**400}, "its time is 1000"),
        ({"lead_time": 1.5}, "mark it as ground truth"),
        ({"completed_by": True}, "it says that True made it, who is nobody: delete it"),
        ({"updated_at": "yesterday"}, "'yesterday'"),
        ({"updated_at": "2026-01-02"}, "it does not say who made it and when"),
        ({"result": []}, "annotation 1 of task 7: "),
    ],
)
def test_what_needs_another_look_is_held_back_with_a_reason(change: dict[str, Any], reason: str) -> None:
    [one] = come_to(task(annotation() | change))
    assert isinstance(one, HeldBack)
    assert reason in one.reason
    assert come_to(task(annotation() | change), known={"a": f"1@{LATER.format(1)}"}) == []
    [one] = come_to(task(annotation() | change, annotation(2, painted(4))))
    np.testing.assert_array_equal(one.mask, painted(4))


def test_annotation_of_a_deleted_user_counts_and_each_of_them_is_somebody_else() -> None:
    gone, also_gone = annotation(1, painted(1), completed_by=None), annotation(2, painted(2), completed_by=None)
    [one] = come_to(task(gone))
    np.testing.assert_array_equal(one.mask, painted(1))
    assert (one.annotator, one.minutes) == ("unknown", 0.5)
    assert come_to(task(gone), annotators_per_image=2) == []
    [one] = come_to(task(gone, also_gone), annotators_per_image=2)
    assert (one.annotator, one.agreement) == ("unknown", float((painted(1) == painted(2)).mean()))
    [one] = come_to(task(gone, annotation(3, painted(1))), annotators_per_image=2, several="majority")
    assert one.annotator == "ann@example.org, unknown"
    [skip] = come_to(task(annotation(1, completed_by=None, was_cancelled=True)))
    assert (skip.annotator, skip.minutes) == ("unknown", 0.5)


def test_what_is_said_beside_the_label_changes_nothing() -> None:
    said = [
        {"id": "q", "type": "choices", "from_name": "quality", "to_name": "image", "value": {"choices": ["sharp"]}},
        {"id": "c00", "type": "textarea", "from_name": "note", "to_name": "image", "value": {"text": ["new lane"]}},
    ]
    made = annotation(1, painted(3), comments=[{"text": "?"}], reviews=[], unresolved_comment_count=1, state="x")
    made["result"] = [said[0], *made["result"], said[1]]
    [one] = come_to(task(made))
    np.testing.assert_array_equal(one.mask, painted(3))


def test_task_without_the_sent_prediction_is_held_back() -> None:
    for meta in ({"sent": "no"}, {"sent": annotations.pack(SENT[1:])}, {"more": 1}, [1]):
        [one] = come_to(task(annotation(), meta=meta))
        assert one == HeldBack("a", "task 7 has lost the prediction that was sent with it: delete it")


VALUES = [None, True, 0, -1, 1e308, float("nan"), float("inf"), 10**30, "", "x", "\u202e\u0000\U0001f600", [], [[]], {}]


def _mutate(value: Any, chance: random.Random) -> Any:
    """Change one place, anywhere."""
    if isinstance(value, dict) and value and chance.random() < 0.85:
        key = chance.choice(sorted(value))
        if chance.random() < 0.15:
            return {k: v for k, v in value.items() if k != key}
        return value | {key: _mutate(value[key], chance)}
    if isinstance(value, list) and value and chance.random() < 0.85:
        place = chance.randrange(len(value))
        if chance.random() < 0.2:
            return [*value[:place], *value[place + 1 :]]
        return [*value[:place], _mutate(value[place], chance), *value[place + 1 :]]
    return copy.deepcopy(chance.choice(VALUES))


def test_two_thousand_malformed_annotations_are_refused_or_read_right() -> None:
    chance, outcomes = random.Random(0), {"answer": 0, "skip": 0, "held": 0}
    for number in range(2000):
        made = annotation(1, painted(number % 11), was_cancelled=number % 10 == 0)
        for _ in range(chance.randint(1, 3)):
            made = _mutate(made, chance)
        if not isinstance(made, dict):
            continue
        [one] = come_to(task(made))
        if isinstance(one, HeldBack):
            outcomes["held"] += 1
            assert one.reason
            assert "\n" not in one.reason
        elif isinstance(one, Skipped):
            outcomes["skip"] += 1
            assert made["was_cancelled"]
            assert 0 <= one.minutes < 1e6
        else:
            outcomes["answer"] += 1
            np.testing.assert_array_equal(one.mask, regions.mask(made["result"], SENT, CLASSES))
            assert not made.get("was_cancelled")
            who = made.get("completed_by")
            who = who.get("email") or who.get("id") if isinstance(who, dict) else who
            assert one.annotator == ("unknown" if who in (None, "") else str(who)) != "True"
            assert 0 <= one.minutes < 1e6
    assert min(outcomes.values()) > 20, outcomes
