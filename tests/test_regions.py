import copy
import json
import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.annotators.label_studio import brush, regions
from pipeline.annotators.label_studio.regions import Refused
from pipeline.images.classes import CLASS_SETS, IGNORE, ClassSet
from tests import sdk

QUICK = settings(max_examples=60, deadline=None)
CLASSES = CLASS_SETS["camvid11"]
SKY, BUILDING, POLE, ROAD = range(4)
SEEDS = st.integers(0, 2**32 - 1)

Result = list[dict[str, Any]]


def ids(*rows: str) -> np.ndarray:
    """A mask, a digit per pixel, a dot for IGNORE."""
    return np.array([[IGNORE if pixel == "." else int(pixel) for pixel in row] for row in rows], np.uint8)


SENT = ids("0011", "0011", "33.1")


def sent_back(sent: np.ndarray = SENT) -> Result:
    """The prediction, as Label Studio gives it back: JSON."""
    return [
        {**region, "value": {**region["value"], "rle": region["value"]["rle"].tolist()}}
        for region in regions.prediction(sent, CLASSES)
    ]


def region(name: str, number: int, pixels: np.ndarray) -> dict[str, Any]:
    """A region as the editor makes them."""
    height, width = pixels.shape
    return {
        "id": name,
        "type": "brushlabels",
        "from_name": "label",
        "to_name": "image",
        "origin": "manual",
        "image_rotation": 0,
        "original_width": width,
        "original_height": height,
        "value": {"format": "rle", "rle": brush.encode(pixels).tolist(), "brushlabels": [CLASSES.names[number]]},
    }


def at(*rows: str) -> np.ndarray:
    return np.array([[pixel == "#" for pixel in row] for row in rows])


def mask(result: Any, sent: np.ndarray = SENT) -> np.ndarray:
    return regions.mask(result, sent, CLASSES)


def random_ids(rng: np.random.Generator, height: int = 6, width: int = 8) -> np.ndarray:
    """Patches of classes 0-4 and IGNORE."""
    patches = rng.choice(np.array([0, 1, 2, 3, 4, IGNORE], np.uint8), (-(-height // 2), -(-width // 3)))
    return np.kron(patches, np.ones((2, 3), np.uint8))[:height, :width]


def edited(rng: np.random.Generator, sent: np.ndarray) -> Result:
    """What was sent, after strokes, erasures, new regions, other labels and deletions."""
    result = sent_back(sent)
    for _ in range(rng.integers(0, 5)):
        where = rng.random(sent.shape) < 0.3
        new = region(f"x{rng.integers(1000)}", int(rng.integers(5)), where)
        if not result or rng.random() < 0.3:
            result.append(new)
            continue
        old = result[rng.integers(len(result))]
        now = brush.decode(bytes(old["value"]["rle"]), *sent.shape)
        match rng.integers(4):
            case 0:
                old["value"]["rle"] = brush.encode(now | where).tolist()
            case 1:
                old["value"]["rle"] = brush.encode(now & ~where).tolist()
            case 2:
                old["value"]["brushlabels"] = new["value"]["brushlabels"]
            case 3:
                result.remove(old)
    rng.shuffle(result)
    return list({each["id"]: each for each in result}.values())


def reference(result: Any, sent: np.ndarray, classes: ClassSet) -> np.ndarray:
    """What the annotator meant, from the rules alone, pixel by pixel. Fails, in any way, where there is no answer."""
    height, width = sent.shape
    kept: dict[tuple[int, int], int] = {}
    added: dict[tuple[int, int], int] = {}
    known = set()
    ours = [each["id"] for each in result if isinstance(each, dict) and each.get("from_name") == "label"]
    for each in result:
        if each.get("type") == "relation" and "value" not in each:
            continue
        other = isinstance(each.get("from_name"), str) and each["from_name"] not in ("", "label")
        sent_as = each.get("id") in [f"c{number:02}" for number in range(len(classes.names))]
        if other and not (each.get("type") == "brushlabels" and sent_as and each["id"] not in ours):
            continue
        assert (each["type"], each["from_name"], each["to_name"]) == ("brushlabels", "label", "image")
        assert json.dumps([each["original_width"], each["original_height"]]).replace(".0", "") == f"[{width}, {height}]"
        assert json.dumps(each.get("image_rotation")) in ("null", "0", "0.0", "-0.0")
        assert isinstance(each["id"], str)
        assert each["id"] not in {"", *known}
        known.add(each["id"])
        assert each["value"]["format"] == "rle"
        assert isinstance(each["value"]["brushlabels"], list)
        (label,) = each["value"]["brushlabels"]
        number = {name: number for number, name in enumerate(classes.names)}[label]
        rle = each["value"]["rle"]
        assert not any(isinstance(byte, bool) for byte in rle)
        painted = sdk.decode(bytes(rle), height, width)
        for y in range(height):
            for x in range(width):
                if painted[y, x] and each["id"] == f"c{number:02}" and sent[y, x] == number:
                    kept[y, x] = number
                elif painted[y, x]:
                    added[y, x] = number
    assert kept or added
    rows = [[added.get((y, x), kept.get((y, x), IGNORE)) for x in range(width)] for y in range(height)]
    return np.array(rows, np.uint8)


def test_prediction_is_one_region_per_class() -> None:
    assert [each["id"] for each in sent_back()] == ["c00", "c01", "c03"]
    (road,) = [each for each in sent_back() if each["id"] == "c03"]
    assert road == {
        "id": "c03",
        "type": "brushlabels",
        "from_name": "label",
        "to_name": "image",
        "image_rotation": 0,
        "original_width": 4,
        "original_height": 3,
        "value": {"format": "rle", "rle": list(sdk.encode(SENT == ROAD)), "brushlabels": ["Road"]},
    }
    assert regions.prediction(ids(".."), CLASSES) == []


@QUICK
@given(seed=SEEDS)
def test_untouched_prediction_gives_back_what_was_sent(seed: int) -> None:
    sent = random_ids(np.random.default_rng(seed))
    sent[0, 0] = SKY
    np.testing.assert_array_equal(mask(sent_back(sent), sent), sent)
    np.testing.assert_array_equal(mask(regions.prediction(sent, CLASSES), sent), sent)


def test_what_was_added_wins_wherever_the_region_is() -> None:
    result = sent_back()
    result[0] = region("c00", SKY, at("###.", "####", "...."))  # before the building it grows over
    np.testing.assert_array_equal(mask(result), ids("0001", "0000", "33.1"))
    np.testing.assert_array_equal(mask(result[::-1]), ids("0001", "0000", "33.1"))


def test_erased_pixels_that_nobody_claims_are_ignored() -> None:
    result = sent_back()
    result[0] = region("c00", SKY, at("#...", "##..", "...."))
    np.testing.assert_array_equal(mask(result), ids("0.11", "0011", "33.1"))
    np.testing.assert_array_equal(mask(result[:2]), ids("0.11", "0011", "...1"))  # the road's region was deleted


def test_new_region_wins_over_the_old_ones_and_fills_what_was_ignored() -> None:
    result = [*sent_back(), region("k3Fj_x", POLE, at("..#.", "..#.", "..#."))]
    np.testing.assert_array_equal(mask(result), ids("0021", "0021", "3321"))


def test_region_with_another_label_is_all_added() -> None:
    """Also over a class that comes later in the list."""
    result = sent_back()
    result[0] = region("c00", POLE, at("###.", "##..", "...."))
    np.testing.assert_array_equal(mask(result), ids("2221", "2211", "33.1"))


def test_region_of_another_id_is_all_added() -> None:
    """Two regions of what was one: neither is what was sent, so the other class's addition comes before them."""
    grown = region("c01", BUILDING, at("..##", "..##", "####"))
    result = [grown, region("new", ROAD, at("....", "....", "##.."))]
    np.testing.assert_array_equal(mask(result), ids("..11", "..11", "3311"))


def test_of_two_additions_the_later_wins() -> None:
    first, second = region("a", POLE, at(".##.", "....", "....")), region("b", ROAD, at("..##", "....", "...."))
    np.testing.assert_array_equal(mask([*sent_back(), first, second]), ids("0233", "0011", "33.1"))
    np.testing.assert_array_equal(mask([*sent_back(), second, first]), ids("0223", "0011", "33.1"))
    np.testing.assert_array_equal(mask([second, *sent_back(), first]), ids("0223", "0011", "33.1"))


def test_the_same_pixels_in_other_bytes_are_unchanged() -> None:
    """An anti-aliased stroke within the class's own pixels: added pixels of others win all the same."""
    alpha = np.where(SENT == SKY, 130, 100)
    result = [region("new", POLE, at("#...", "....", "....")), *sent_back()]
    result[1]["value"]["rle"] = list(sdk.encode_values(np.repeat(alpha.ravel(), 4)))
    np.testing.assert_array_equal(mask(result), ids("2011", "0011", "33.1"))


@QUICK
@given(seed=SEEDS)
def test_random_edits_against_loops_over_pixels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sent = random_ids(rng)
    result = edited(rng, sent)
    try:
        expected = reference(result, sent, CLASSES)
    except AssertionError:
        with pytest.raises(Refused, match=r"no region at all|regions are all empty"):
            mask(result, sent)
    else:
        np.testing.assert_array_equal(mask(result, sent), expected)


def with_(path: str, value: Any) -> Result:
    """What was sent, with another value in its first region."""
    result = sent_back()
    *parents, last = path.split(".")
    target = result[0]
    for parent in parents:
        target = target[parent]
    target[last] = value
    return result


@pytest.mark.parametrize(
    "result",
    [
        with_("image_rotation", None),
        with_("image_rotation", 0.0),
        with_("original_width", 4.0),
        with_("value.rle", sdk.encode(SENT == SKY)),
        with_("value.rle", bytearray(sdk.encode(SENT == SKY))),
        with_("value.rle", np.frombuffer(sdk.encode(SENT == SKY), np.uint8)),
        with_("score", "unheard of"),
        [{key: value for key, value in each.items() if key != "image_rotation"} for each in sent_back()],
        [{"type": "relation", "from_id": "c00", "to_id": "c01", "direction": "right"}, *sent_back()],
        [*sent_back(), {"id": "q", "type": "choices", "from_name": "quality", "to_name": "image", "value": {}}],
        [
            {"id": "c00", "type": "rating", "from_name": "sure", "to_name": "image", "value": {"rating": 4}},
            *sent_back(),
        ],
        [*sent_back(), {"type": "number", "from_name": "count", "value": {"number": 3}}],
        [*sent_back(), {"id": "r", "type": "rectanglelabels", "from_name": "box", "to_name": "image", "value": {}}],
        [*sent_back(), {**region("p", POLE, SENT == SKY), "from_name": "doubt"}],
        [{**region("c00", POLE, SENT == SKY), "from_name": "doubt"}, *sent_back()],
    ],
)
def test_ways_of_saying_the_same(result: Result) -> None:
    np.testing.assert_array_equal(mask(result), SENT)


@pytest.mark.parametrize(
    ("result", "says"),
    [
        (None, "its result is nothing instead of a list of regions"),
        ({"a": 1}, "its result is an object of 1 instead of a list of regions"),
        ([], "it has no region at all: paint what is to be seen, or skip"),
        ([{"type": "relation"}], "it has no region at all"),
        ([region("a", SKY, SENT == 9)], "its regions are all empty"),
        ([region("a", SKY, SENT == SKY) | {"from_name": "x"}], "no region of the brushes 'label', only of 'x': paint"),
        (with_("from_name", None), "region 'c00' has the from_name nothing instead of 'label'"),
        (with_("from_name", ""), "region 'c00' has the from_name '' instead of 'label'"),
        ([3], "region 1 is 3 instead of an object"),
        ([*sent_back(), sent_back()[1]], "two regions have the id 'c01': delete one of them"),
        (with_("id", None), "region 1 has the id nothing instead of a text"),
        (with_("id", ""), "region 1 has the id '' instead of a text"),
        (with_("id", 10**5000), "region 1 has the id a huge number"),
        (with_("type", "polygonlabels"), "region 'c00' has the type 'polygonlabels' instead of 'brushlabels'"),
        (with_("type", "relation"), "region 'c00' has the type 'relation' instead of 'brushlabels'"),
        (with_("from_name", "tag"), "region 'c00' has the from_name 'tag' instead of 'label'"),
        (with_("to_name", []), "region 'c00' has the to_name a list of 0 instead of 'image'"),
        (with_("image_rotation", 90), "region 'c00' was painted on an image rotated by 90: rotate the image back"),
        (with_("image_rotation", False), "rotated by False"),
        (with_("original_width", 8), "region 'c00' has the original_width 8 instead of 4"),
        (with_("original_height", "3"), "has the original_height '3' instead of 3"),
        (with_("original_height", float("nan")), "has the original_height nan instead of 3"),
        (with_("value", None), "region 'c00' has nothing as its value"),
        (with_("value.brushlabels", []), "has a list of 0 instead of a list of one label: give it one label"),
        (with_("value.brushlabels", ["Sky", "Road"]), "has a list of 2 instead of a list of one label"),
        (with_("value.brushlabels", "Sky"), "has 'Sky' instead of a list of one label"),
        (with_("value.brushlabels", ["sky"]), "has the label 'sky', which is none of camvid11's: give it another"),
        (with_("value.brushlabels", [["Sky"]]), "has the label a list of 1, which is none"),
        (with_("value.format", "png"), "has the format 'png' instead of 'rle'"),
        (with_("value.rle", None), "cannot be read, its RLE is nothing instead of a list of bytes: delete it and"),
        (with_("value.rle", np.zeros(99, np.int64)), "its RLE is a ndarray instead of a list of bytes"),
        (with_("value.rle", [0, True]), "its RLE contains True"),
        (with_("value.rle", [0, 1.0]), "its RLE contains 1.0"),
        (with_("value.rle", [0, 256]), "its RLE contains 256"),
        (with_("value.rle", [-1]), "its RLE contains -1"),
        (with_("value.rle", []), "the RLE ends within its header"),
        (with_("value.rle", list(sdk.encode(SENT[:2] == SKY))), "holds 32 values, not 4 for each of 3 x 4 pixels"),
    ],
)
def test_refusals_say_why(result: Any, says: str) -> None:
    with pytest.raises(Refused) as refusal:
        mask(result)
    assert says in str(refusal.value)


GARBAGE = [
    None, True, False, 0, 1, -1, 255, 256, 1.5, 8.0, float("nan"), float("inf"), 10**30, -(10**5000), "", "0", "8",
    "rle", "label", "relation", "Road", "c00", "ünï\nzwei\u2028drei", "\ud800", "x" * 5000, [], {}, [[[[]]]], [None],
    ["Road"], ["Sky", "Sky"], {"a": {"b": [{}]}}, {"rle": [1]},
]  # fmt: skip


def mutate(rng: random.Random, result: Any) -> Any:
    """One thing of an annotation made wrong, or at least strange."""
    spots: list[tuple[Any, Any]] = []

    def visit(node: Any) -> None:
        keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else []
        if isinstance(node, list) and len(node) > 20:  # an RLE: not all the choices are to be among its bytes
            keys = rng.sample(range(len(node)), 2)
        for key in keys:
            spots.append((node, key))
            visit(node[key])

    visit(result)
    if not spots or rng.random() < 0.02:
        return copy.deepcopy(rng.choice(GARBAGE))
    parent, key = rng.choice(spots)
    painted = [each["value"] for each in result if isinstance(each, dict) and isinstance(each.get("value"), dict)]
    rles = [value["rle"] for value in painted if isinstance(value.get("rle"), list) and value["rle"]]
    rle = rng.choice(rles) if rles else [0]
    match rng.randrange(12):
        case 0 | 1:
            parent[key] = copy.deepcopy(rng.choice(GARBAGE))
        case 2:
            del parent[key]
        case 3:
            other, place = rng.choice(spots)
            parent[key], other[place] = copy.deepcopy(other[place]), copy.deepcopy(parent[key])
        case 4:
            parent[key] = str(parent[key])
        case 5:
            result.insert(rng.randrange(len(result) + 1), copy.deepcopy(rng.choice(result)))
        case 6:
            del rle[rng.randrange(len(rle)) :]
        case 7:
            place = rng.randrange(len(rle))
            rle[place] = rng.randrange(256)
        case 8:
            rle.extend(rng.choices(range(256), k=rng.randrange(1, 4)))
        case 9:
            rle[rng.randrange(len(rle))] = copy.deepcopy(rng.choice(GARBAGE))
        case 10:
            result.append({"type": "relation", "from_id": "c00", "to_id": copy.deepcopy(rng.choice(GARBAGE))})
        case 11:
            rng.choice(painted or [{}])["brushlabels"] = [rng.choice([*CLASSES.names, "Unknown", None])]
    return result


def test_thousands_of_malformed_annotations_are_refused_or_read_as_the_rules_say() -> None:
    rng, generator = random.Random(0), np.random.default_rng(0)
    outcomes: Counter[str] = Counter()
    while outcomes.total() < 2100:
        sent = random_ids(generator, int(generator.integers(1, 9)), int(generator.integers(1, 12)))
        result: Any = edited(generator, sent)
        for _ in range(rng.choice([1, 1, 2, 3])):
            if isinstance(result, list):
                result = mutate(rng, result)
        try:
            found = mask(result, sent)
        except Refused as refusal:
            outcomes["refused"] += 1
            reason = str(refusal)
            assert len(reason.splitlines()) == 1
            assert ": " in reason.strip(), "it does not say what to do"
            assert len(reason) < 300
            reason.encode()
        else:
            outcomes["read"] += 1
            np.testing.assert_array_equal(found, reference(result, sent, CLASSES))
    assert min(outcomes["refused"], outcomes["read"]) > 150


def test_changed_counts_pixels() -> None:
    assert regions.changed(SENT, SENT) == 0
    assert regions.changed(ids("001.", "0011", "3301"), SENT) == 2


@pytest.mark.parametrize(
    ("came", "sent", "seconds", "says"),
    [
        ("0011", "0011", 3.2, "nothing was changed within 3 seconds"),
        ("0011", "0011", 5.0, None),
        ("0111", "0011", 1.0, None),
        ("1111", "0011", 60.0, None),  # half of it was building before
        ("1111", "0001", 60.0, "'Building' covers 100% of the image, where 25% was sent"),
        ("1110", "0001", 60.0, None),  # exactly the share that is allowed
        ("....", "0001", 60.0, None),
    ],
)
def test_held_back(came: str, sent: str, seconds: float, says: str | None) -> None:
    why = regions.held_back(ids(came), ids(sent), seconds, min_seconds=5.0, max_share=0.75, classes=CLASSES)
    assert why is None if says is None else why is not None and why.startswith(says)


def test_majority() -> None:
    masks = [ids("0012.."), ids("0.13.."), ids("1.2.0.")]
    np.testing.assert_array_equal(regions.majority(masks), ids("001.0."))
    np.testing.assert_array_equal(regions.majority(masks[:1]), masks[0])
    # 0 is overtaken by 1, and 2 draws level with 1
    np.testing.assert_array_equal(regions.majority([ids(pixel) for pixel in "01122"]), ids("."))
    np.testing.assert_array_equal(regions.majority([ids(pixel) for pixel in "011223330"]), ids("3"))
    with pytest.raises(ValueError, match="at least one mask"):
        regions.majority([])


@QUICK
@given(seed=SEEDS, count=st.integers(1, 6))
def test_majority_against_counting_votes(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    masks = [random_ids(rng) for _ in range(count)]
    winner = regions.majority(masks)
    for y, x in np.ndindex(winner.shape):
        votes = Counter(int(each[y, x]) for each in masks if each[y, x] != IGNORE).most_common(2)
        tie = len(votes) == 2 and votes[0][1] == votes[1][1]
        assert winner[y, x] == (votes[0][0] if votes and not tie else IGNORE)


def test_agreement() -> None:
    assert regions.agreement([ids("001."), ids("0.2.")]) == pytest.approx(1 / 3)
    assert regions.agreement([ids(".."), ids("..")]) == 1
    assert regions.agreement([ids("00"), ids("01"), ids("11")]) == pytest.approx((0.5 + 0 + 0.5) / 3)
    with pytest.raises(ValueError, match="at least two masks"):
        regions.agreement([ids("00")])
