"""Questions about regions, sent to Label Studio as polygons, and what comes back read as a mask."""

import copy
import json
import math
import random
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.path import Path as Polygon

from pipeline.annotators.label_studio import brush, region_answers, region_merging, region_shapes
from pipeline.annotators.label_studio.region_answers import Questions
from pipeline.annotators.label_studio.regions import Refused
from pipeline.images import region_maps
from pipeline.images.classes import CLASS_SETS, IGNORE

CLASSES = CLASS_SETS["camvid11"]
SKY, BUILDING, POLE, ROAD = range(4)
SIZE = (24, 32)
QUICK = settings(max_examples=60, deadline=None)
SEEDS = st.integers(0, 2**32 - 1)

Result = list[dict[str, Any]]


def a_map(seed: int = 0, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Regions of coarse noise."""
    coarse = np.random.default_rng(seed).integers(0, 256, (size[0] // 4, size[1] // 4, 3), np.uint8)
    return region_maps.cut(coarse.repeat(4, 0).repeat(4, 1), 10.0, 4)


MAP = a_map()
RNG = np.random.default_rng(1)
ASKED = tuple(int(n) for n in RNG.permutation(int(MAP.max()) + 1)[:6])
PREDICTED = RNG.integers(0, 11, SIZE, np.uint8)
SENT = region_answers.questions(MAP, ASKED, PREDICTED)


def sent_back(asked: Questions = SENT) -> Result:
    """The questions, as Label Studio gives them back: JSON."""
    result: Result = json.loads(json.dumps(region_answers.prediction(asked, CLASSES)))
    return result


def relabelled(result: Result, number: int, label: str) -> Result:
    changed = copy.deepcopy(result)
    [item] = [item for item in changed if item["id"] == f"region-{number}"]
    item["value"]["polygonlabels"] = [label]
    return changed


def read(result: Any, asked: Questions = SENT) -> np.ndarray:
    return region_answers.mask(result, asked, CLASSES)


def shape(kind: str, label: str, name: str = "kx81Hf0aQz", **value: Any) -> dict[str, Any]:
    """What somebody has drawn."""
    size = {"original_width": SIZE[1], "original_height": SIZE[0], "image_rotation": 0}
    about = {"id": name, "type": kind, "from_name": "label", "to_name": "image", "origin": "manual"}
    return {**about, **size, "value": {**value, kind: [label]}}


def polygon(label: str, *points: tuple[float, float], name: str = "kx81Hf0aQz") -> dict[str, Any]:
    return shape("polygonlabels", label, name, points=[list(point) for point in points], closed=True)


LEFT = ((0.0, 0.0), (50.0, 0.0), (50.0, 100.0), (0.0, 100.0))


def test_a_guess_is_the_commonest_class_of_the_prediction() -> None:
    for number, guess in zip(SENT.asked, SENT.guesses, strict=True):
        votes = np.bincount(PREDICTED[number == MAP], minlength=11)
        assert votes[guess] == votes.max()
        assert (SENT.sent[number == MAP] == guess).all()
    assert (SENT.sent[~np.isin(MAP, ASKED)] == IGNORE).all()
    half = np.where(ASKED[0] == MAP, np.uint8(IGNORE), PREDICTED)
    assert region_answers.questions(MAP, ASKED, half).guesses[0] == IGNORE
    assert set(region_answers.questions(MAP, ASKED, None).guesses) == {IGNORE}


def test_what_is_packed_is_the_same_afterwards_and_anything_else_is_nothing() -> None:
    packed = json.loads(json.dumps(region_answers.pack(SENT)))
    found = region_answers.unpack(packed)
    assert found is not None
    assert (found.asked, found.guesses) == (SENT.asked, SENT.guesses)
    np.testing.assert_array_equal(found.places, SENT.places)
    for key, value in {
        "asked": [[1], None, [*ASKED[:-1], "5"], [*ASKED[:-1], ASKED[0]], [*ASKED[:-1], True], "abcdef"],
        "guesses": [[1], None, [0.5] * 6, [300] * 6, [-1] * 6],
        "map": [None, "", "%", "AAAA", 5, packed["map"][:-40], packed["map"][:60]],
    }.items():
        for wrong in value:
            assert region_answers.unpack({**packed, key: wrong}) is None
        assert region_answers.unpack({name: packed[name] for name in packed if name != key}) is None
    for wrong in (None, [], "x", 7, {}):
        assert region_answers.unpack(wrong) is None


def test_untouched_questions_confirm_the_guesses() -> None:
    np.testing.assert_array_equal(read(sent_back()), SENT.sent)


def test_a_label_is_the_answer_whatever_becomes_of_the_shape_and_the_order() -> None:
    result = relabelled(sent_back(), ASKED[2], "Road")
    for item in result:
        item["value"]["points"] = [[1.0, 2.0], [float("nan"), 4.0]]
        item["origin"] = "prediction-changed"
    expected = np.where(ASKED[2] == MAP, np.uint8(ROAD), SENT.sent)
    np.testing.assert_array_equal(read(result), expected)
    np.testing.assert_array_equal(read(result[::-1]), expected)


@pytest.mark.parametrize("label", ["mixed", "?", "not asked"])
def test_a_label_that_is_no_class_is_no_label(label: str) -> None:
    expected = np.where(ASKED[1] == MAP, np.uint8(IGNORE), SENT.sent)
    np.testing.assert_array_equal(read(relabelled(sent_back(), ASKED[1], label)), expected)


def test_a_region_that_was_removed_has_no_answer() -> None:
    result = [item for item in sent_back() if item["id"] != f"region-{ASKED[3]}"]
    np.testing.assert_array_equal(read(result), np.where(ASKED[3] == MAP, np.uint8(IGNORE), SENT.sent))


def test_all_mixed_is_an_answer_and_none_at_all_is_not() -> None:
    result = sent_back()
    for number in ASKED:
        result = relabelled(result, number, "mixed")
    assert (read(result) == IGNORE).all()
    empty = region_answers.questions(MAP, ASKED, None)
    for nothing in ([], sent_back(empty), sent_back()[-1:]):
        with pytest.raises(Refused, match="answers none of the regions that it asks about"):
            read(nothing, empty)
    one = read(relabelled(sent_back(empty), ASKED[0], "Sky"), empty)
    np.testing.assert_array_equal(one, np.where(ASKED[0] == MAP, np.uint8(SKY), np.uint8(IGNORE)))


def test_regions_that_were_not_asked_for_and_the_rest_say_nothing() -> None:
    other = next(n for n in range(int(MAP.max()) + 1) if n not in ASKED)
    stranger = copy.deepcopy(sent_back()[0]) | {"id": f"region-{other}"}
    rest = copy.deepcopy(sent_back()[-1])
    rest["value"] = {"polygonlabels": ["Road"]}
    np.testing.assert_array_equal(read([*sent_back(), stranger, rest]), SENT.sent)


def test_what_people_draw_wins_and_later_over_earlier() -> None:
    left = np.zeros(SIZE, bool)
    left[:, :16] = True
    top = np.zeros(SIZE, bool)
    top[:12] = True
    drawn = polygon("Road", *LEFT)
    stroke = shape("brushlabels", "Pole", "b", format="rle", rle=brush.encode(top).tolist())
    first = np.where(left, np.uint8(ROAD), SENT.sent)
    np.testing.assert_array_equal(read([drawn, *sent_back()]), first)
    np.testing.assert_array_equal(read([drawn, *sent_back(), stroke]), np.where(top, np.uint8(POLE), first))
    np.testing.assert_array_equal(
        read([stroke, drawn, *sent_back()]), np.where(left, np.uint8(ROAD), np.where(top, np.uint8(POLE), SENT.sent))
    )
    nothing = polygon("mixed", *LEFT)
    np.testing.assert_array_equal(read([*sent_back(), nothing]), np.where(left, np.uint8(IGNORE), SENT.sent))


def test_other_controls_and_arrows_are_passed_over_but_a_brush_called_stroke_is_not() -> None:
    other = {"id": f"region-{ASKED[0]}", "type": "choices", "from_name": "doubt", "value": {"choices": ["yes"]}}
    arrow = {"type": "relation", "from_id": "a", "to_id": "b"}
    alien = polygon("Road", *LEFT) | {"from_name": "shape"}
    np.testing.assert_array_equal(read([other, arrow, alien, *sent_back()]), SENT.sent)
    ours = alien | {"from_name": "stroke"}
    assert (read([*sent_back(), ours])[:, :16] == ROAD).all()


def test_rectangles_and_ellipses_are_where_they_are_drawn() -> None:
    rows, cols = np.indices(SIZE) + 0.5
    box = shape("rectanglelabels", "Road", x=25.0, y=25.0, width=50.0, height=25.0, rotation=0)
    inside = (cols > 8) & (cols < 24) & (rows > 6) & (rows < 12)
    np.testing.assert_array_equal(read([*sent_back(), box]) == ROAD, inside | (SENT.sent == ROAD))
    turned = shape("rectanglelabels", "Road", x=50.0, y=0.0, width=25.0, height=50.0, rotation=90)  # 8 wide, 12 tall
    inside = (cols > 4) & (cols < 16) & (rows < 8)
    np.testing.assert_array_equal(read([*sent_back(), turned]) == ROAD, inside | (SENT.sent == ROAD))
    round_one = shape("ellipselabels", "Road", x=50.0, y=50.0, radiusX=25.0, radiusY=25.0, rotation=0)
    inside = ((cols - 16) / 8) ** 2 + ((rows - 12) / 6) ** 2 < 1
    assert ((read([*sent_back(), round_one]) == ROAD) != (inside | (SENT.sent == ROAD))).sum() <= 2


@QUICK
@given(SEEDS)
def test_a_polygon_is_filled_as_by_winding_numbers(seed: int) -> None:
    rng = np.random.default_rng(seed)
    corners = rng.uniform(-10, 45, (int(rng.integers(3, 9)), 2))
    rows, cols = np.indices(SIZE) + 0.5
    x, y = corners.T[..., None, None]
    angles = np.arctan2(y - rows, x - cols)
    steps = (np.roll(angles, -1, axis=0) - angles + np.pi) % (2 * np.pi) - np.pi
    np.testing.assert_array_equal(region_shapes.filled(corners, SIZE), np.abs(steps.sum(0)) > 1)


@QUICK
@given(SEEDS)
def test_outlines_lie_around_their_regions_inner_ones_first(seed: int) -> None:
    size = (40, 60)
    regions = a_map(seed, size)
    inner = regions.max() + 1
    regions[20:26, 30:36] = inner  # perhaps within another
    places = region_answers.questions(regions, range(int(inner) + 1), None).places
    made = region_shapes.outlines(places)
    assert sorted(number for number, _ in made) == sorted(set(np.unique(places)) - {0})
    areas = {}
    for number, outline in made:
        corners = np.array(outline) * (60 / 100, 40 / 100)
        assert len(corners) >= 3
        assert (corners >= -0.01).all()
        assert (corners <= (60.01, 40.01)).all()
        hull = region_shapes.filled(corners, size)
        pixels = places == number
        largest = cv2.connectedComponentsWithStats(pixels.astype(np.uint8), connectivity=8)[2][1:, cv2.CC_STAT_AREA]
        if largest.size == 1 and pixels.sum() > 30:
            thick = cv2.erode(np.pad(pixels, 1).astype(np.uint8), np.ones((3, 3)))[1:-1, 1:-1] > 0
            assert hull[thick].all(), "its inside is clicked"
        areas[number] = hull
    order = [number for number, _ in made]
    for place, number in enumerate(order):
        for later in order[place + 1 :]:
            overlap = areas[number] & areas[later]
            assert overlap.sum() <= areas[later].sum()
            if areas[later].sum() and (areas[later] & ~areas[number]).sum() == 0:
                assert areas[number].sum() <= areas[later].sum() + 12, "the one around it would take its clicks"


def test_outlines_of_many_pixels_have_few_corners() -> None:
    rows, cols = np.indices((300, 400))
    wavy = (rows + 4 * np.sin(cols / 3) > 150).astype(np.uint16)
    [(_, outline)] = region_shapes.outlines(wavy)
    assert len(outline) < 150
    [(_, line)] = region_shapes.outlines(np.pad(np.ones((1, 30), np.uint16), 40))
    assert len(line) == 4


def test_what_is_not_asked_about_is_under_a_haze() -> None:
    image = RNG.integers(0, 256, (*SIZE, 3), np.uint8)
    asked = SENT.places > 0
    shown = region_shapes.hazed(image, asked)
    np.testing.assert_array_equal(shown[asked], image[asked])
    assert np.abs(shown[~asked].astype(float) - (0.4 * image[~asked] + 0.6 * 128)).max() <= 0.5


def test_merged_regions_are_few_and_of_one_class_where_they_can_be() -> None:
    rng = np.random.default_rng(4)
    regions = a_map(5, (80, 120))
    image = rng.integers(0, 256, (80, 120, 3), np.uint8)
    halves = np.zeros((80, 120), np.uint8)
    halves[:, 60:] = 3
    count = int(regions.max()) + 1
    claim = [np.bincount(halves[regions == n], minlength=4).argmax() for n in range(count)]
    for most in (count + 5, 40, 7, 1):
        found = region_merging.merged(image, regions, halves, most)
        numbers = np.unique(found)
        assert list(numbers) == list(range(len(numbers)))
        assert len(numbers) == min(most, count)
        for n in range(count):
            assert len(np.unique(found[regions == n])) == 1, "regions stay whole"
        for number in numbers:
            pieces = cv2.connectedComponents((found == number).astype(np.uint8), connectivity=8)[0] - 1
            assert pieces == 1
            classes = {claim[n] for n in np.unique(regions[found == number])}
            assert len(classes) == 1 or most < 4


REASONS = {
    "not a list": (lambda r: {"a": r}, "instead of a list of regions"),
    "not an object": (lambda r: [*r, 5], "is 5 instead of an object"),
    "no id": (lambda r: [*r, {"type": "polygonlabels", "from_name": "label"}], "instead of a text"),
    "twice": (lambda r: [*r, r[0]], "two regions have the id"),
    "two labels": (lambda r: [*r[1:], _with(r[0], ["Sky", "Road"])], "instead of a list of one label"),
    "no label": (lambda r: [*r[1:], _with(r[0], [])], "instead of a list of one label"),
    "unknown label": (lambda r: [*r[1:], _with(r[0], ["street"])], "the label 'street', which is none of camvid11's"),
    "no value": (lambda r: [*r[1:], r[0] | {"value": None}], "instead of a list of one label"),
    "another type": (lambda r: [*r[1:], r[0] | {"type": "keypointlabels"}], "has the type 'keypointlabels'"),
    "key point": (lambda r: [*r, shape("keypointlabels", "Sky", x=1, y=2)], "has the type 'keypointlabels'"),
    "two points": (lambda r: [*r, polygon("Sky", (1, 2), (3, 4))], "instead of three points or more"),
    "NaN": (lambda r: [*r, polygon("Sky", (1, 2), (3, 4), (math.nan, 5))], "has a coordinate nan"),
    "huge": (lambda r: [*r, polygon("Sky", (1, 2), (3, 4), (1e300, 5))], r"has a coordinate 1e\+300"),
    "another size": (lambda r: [*r, polygon("Sky", *LEFT) | {"original_width": 99}], "original_width 99 instead of 32"),
    "turned": (lambda r: [*r, polygon("Sky", *LEFT) | {"image_rotation": 90}], "rotated by 90"),
    "no radius": (lambda r: [*r, shape("ellipselabels", "Sky", x=1, y=2)], "has the radiusX nothing"),
    "no RLE": (lambda r: [*r, shape("brushlabels", "Sky", format="rle")], "its RLE is nothing"),
}  # fmt: skip


def _with(item: dict[str, Any], labels: list[str]) -> dict[str, Any]:
    return item | {"value": item["value"] | {"polygonlabels": labels}}


@pytest.mark.parametrize("name", REASONS)
def test_what_cannot_be_read_is_refused_in_one_sentence(name: str) -> None:
    change, reason = REASONS[name]
    with pytest.raises(Refused, match=reason) as caught:
        read(change(sent_back()))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


JUNK: list[Any] = [
    None, True, False, 0, -1, 1, 10**400, 1e308, math.nan, math.inf, "", "region-", "region-0", "region-99999", "rest",
    "label", "polygonlabels", "brushlabels", "ellipselabels", "Road", "mixed", "?", "not asked", "é\n", [], {}, [[]],
    [1, 2], [[1, 2], [3, 4], [5, 6]], ["Road"], ["Road", "Sky"], {"points": []}, {"polygonlabels": ["Road"]}, "x" * 999,
]  # fmt: skip


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, one in inside for place in _places(one, (*path, key)))]


def broken(chance: random.Random) -> tuple[Any, list[tuple[Any, ...]]]:
    """A result with something wrong in one to four places."""
    result: Any = sent_back()
    shapes = [
        polygon("Road", *LEFT),
        shape("brushlabels", "Sky", "b", format="rle", rle=brush.encode(np.eye(*SIZE) > 0).tolist()[:40]),
        shape("rectanglelabels", "Sky", "r", x=1, y=2, width=30, height=20, rotation=12),
        shape("ellipselabels", "Pole", "e", x=50, y=50, radiusX=9, radiusY=12),
    ]
    for one in chance.sample(shapes, chance.randrange(3)):
        result.insert(chance.randrange(len(result) + 1), one)
    for _ in range(chance.randint(1, 4)):
        places = [place for place in _places(result) if place or chance.random() < 0.02]
        if not places:
            break
        *above, last = chance.choice(places) or (None,)
        if last is None:
            result = chance.choice(JUNK)
            continue
        where = result
        for key in above:
            where = where[key]
        doing = chance.randrange(4)
        if doing == 0:
            del where[last]
        elif doing == 1 and isinstance(where, list):
            where.insert(chance.randrange(len(where) + 1), copy.deepcopy(where[last]))
        else:
            where[last] = copy.deepcopy(chance.choice(JUNK))
    return result, shapes


def answer_of(result: Any, number: int) -> set[int]:
    """What a result says of a region, read without our code: the labels of all that bears its id."""
    said = set()
    for item in result:
        if isinstance(item, dict) and item.get("id") == f"region-{number}":
            value = item.get("value")
            labels = value.get("polygonlabels") if isinstance(value, dict) else None
            for label in labels if isinstance(labels, list) else ():
                if isinstance(label, str) and label in CLASSES.names:
                    said.add(CLASSES.names.index(label))
    return said | {IGNORE}


def attempt(result: Any) -> np.ndarray | str:
    """The mask, or the sentence that refuses it."""
    try:
        return read(result)
    except Refused as reason:
        return str(reason)


def test_malformed_answers_are_a_sentence_or_right_and_never_another_regions() -> None:
    """3,000 of them; what was drawn by hand is looked at apart, where it can be read as Label Studio means it."""
    outcomes = {"read": 0, "refused": 0}
    for seed in range(3000):
        result, _ = broken(random.Random(seed))
        found = attempt(result)
        outcomes["refused" if isinstance(found, str) else "read"] += 1
        if isinstance(found, str):
            assert "\n" not in found, seed
            assert 10 < len(found) < 300, seed
            continue
        assert found.shape == SIZE
        assert set(np.unique(found)) <= {*range(11), IGNORE}
        asked_for = {f"region-{number}" for number in ASKED}
        drawn = [
            item
            for item in result
            if isinstance(item, dict)
            and item.get("id") not in asked_for
            and item.get("type") in region_shapes.SHAPES
            and not str(item.get("id")).startswith("region-")
            and item.get("id") != "rest"
        ]
        areas = np.zeros(SIZE, bool)
        for item in drawn:
            if item.get("from_name") in ("label", "stroke") or not isinstance(item.get("from_name") or None, str):
                areas |= region_shapes.drawn(item, "x", SIZE)
        for number in ASKED:
            values = set(np.unique(found[(number == MAP) & ~areas]).tolist())
            assert len(values) <= 1, seed
            assert values <= answer_of(result, number), seed
        assert (found[(SENT.places == 0) & ~areas] == IGNORE).all(), seed
    assert min(outcomes.values()) > 300, outcomes


@QUICK
@given(SEEDS)
def test_a_polygon_by_hand_is_that_of_matplotlib(seed: int) -> None:
    """Of convex ones both ways of filling are the same."""
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * np.pi, 7))
    points = 50 + rng.uniform(10, 70) * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    rows, cols = np.indices(SIZE) + 0.5
    middles = np.stack([cols.ravel() * 100 / SIZE[1], rows.ravel() * 100 / SIZE[0]], axis=1)
    expected = Polygon(points).contains_points(middles).reshape(SIZE)
    found = read([*sent_back(), polygon("Road", *[tuple(point) for point in points.tolist()])])
    np.testing.assert_array_equal(found[expected], ROAD)
    np.testing.assert_array_equal(found[~expected], SENT.sent[~expected])
