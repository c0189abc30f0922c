"""What annotators see. That the editor shows it, and heeds the keys, is seen in tests/server/test_browser.py."""

import re
from xml.etree import ElementTree

import pytest

from pipeline.annotators.label_studio import editor
from pipeline.annotators.label_studio.regions import FROM_NAME, TO_NAME
from pipeline.images.classes import CLASS_SETS, ClassSet

CITYSCAPES = CLASS_SETS["cityscapes19"]
ODD = ClassSet("odd", ("a<b", 'the "old" & new', "it's", "straße", "$image"), ((1, 2, 3), (0, 0, 0), *[(9, 9, 9)] * 3))
MANY = ClassSet("many", tuple(f"class {n}" for n in range(40)), tuple((n, 0, 0) for n in range(40)))


def labels(classes: ClassSet) -> list[dict[str, str]]:
    return [label.attrib for label in ElementTree.fromstring(editor.label_config(classes)).iter("Label")]


def test_label_config_has_one_brush_per_class_in_its_colour() -> None:
    view = ElementTree.fromstring(editor.label_config(CITYSCAPES))
    [image] = view.iter("Image")
    assert (image.get("name"), image.get("value")) == (TO_NAME, "$image")
    [brushes] = view.iter("BrushLabels")
    assert (brushes.get("name"), brushes.get("toName")) == (FROM_NAME, TO_NAME)
    made = labels(CITYSCAPES)
    assert made[0] == {"value": "road", "background": "rgb(128,64,128)", "category": "0", "hotkey": "1"}
    assert made[18] == {"value": "bicycle", "background": "rgb(119,11,32)", "category": "18", "hotkey": "a"}
    assert [label["category"] for label in made] == [str(number) for number in range(19)]


def test_gain_map_is_shown_and_is_nothing_to_paint_on() -> None:
    view = ElementTree.fromstring(editor.label_config(CITYSCAPES))
    [gain] = [element for element in view.iter() if "$gain" in element.get("value", "")]
    assert gain.tag == "Markdown"
    assert "name" not in gain.attrib
    assert re.search(r'<img src="\$gain"', gain.attrib["value"])


@pytest.mark.parametrize("classes", [CITYSCAPES, CLASS_SETS["camvid11"], ODD, MANY], ids=lambda classes: classes.name)
def test_names_come_back_out_of_the_label_config(classes: ClassSet) -> None:
    assert editor.painted_names(editor.label_config(classes)) == list(classes.names)


@pytest.mark.parametrize(
    "config",
    [
        "",
        "<View>",
        "<View/>",
        '<View><BrushLabels name="other" toName="image"><Label value="road"/></BrushLabels></View>',
        '<View><BrushLabels name="label" toName="other"><Label value="road"/></BrushLabels></View>',
        '<View><PolygonLabels name="label" toName="image"><Label value="road"/></PolygonLabels></View>',
    ],
)
def test_interface_of_another_kind_has_no_painted_names(config: str) -> None:
    assert editor.painted_names(config) is None


def test_hotkeys_are_unique_and_not_the_editors_own() -> None:
    for classes in (CITYSCAPES, MANY):
        keys = [label["hotkey"] for label in labels(classes)]
        assert len(set(keys)) == len(keys) == len(classes.names)
        assert not set(keys) & set("behuv"), "brush, eraser, hand, unselect, move"
    assert [label["hotkey"] for label in labels(MANY)][28:33] == ["c", "n", "m", "shift+q", "shift+w"]
    assert editor.keyless_names(editor.label_config(MANY)) == []


def test_classes_beyond_all_keys_have_one_that_no_keyboard_has_and_the_editor_cannot_give_away() -> None:
    sixty = ClassSet("sixty", tuple(f"class {n}" for n in range(60)), ((0, 0, 0),) * 60)
    keys = [label["hotkey"] for label in labels(sixty)]
    assert keys[50:53] == ["shift+m", "—", "—"]
    assert len(set(keys)) == 52
    said = told(sixty, None, {})
    assert "class 50 [shift+m], class 51, class 52" in said


def test_what_a_team_has_added_to_the_interface_is_named() -> None:
    config = editor.label_config(CITYSCAPES)
    assert editor.other_controls(config) == []
    more = '<View><Choices name="quality" toName="image"><Choice value="sharp"/></Choices></View>'
    more += '<BrushLabels name="doubt" toName="image"><Label value="road"/></BrushLabels><Header value="Hello"/>'
    edited = config.removesuffix("</View>") + more + "</View>"
    assert editor.other_controls(edited) == ["quality", "doubt"]
    assert editor.painted_names(edited) == list(CITYSCAPES.names)
    assert editor.keyless_names(edited) == []
    assert editor.keyless_names(edited.replace(' hotkey="1"', "").replace('hotkey="2"', "")) == ["road", "sidewalk"]
    assert editor.other_controls("<View>") == editor.keyless_names("<View>") == []


@pytest.mark.parametrize("classes", [CITYSCAPES, CLASS_SETS["camvid11"], ODD, MANY], ids=lambda classes: classes.name)
def test_interface_for_regions_has_every_class_and_keys_that_the_editor_leaves_free(classes: ClassSet) -> None:
    config = editor.label_config_of_regions(classes)
    assert editor.painted_names(config, editor.REGIONS) == [*classes.names, "mixed", "not asked", "?"]
    assert editor.painted_names(config) is None
    assert editor.keyless_names(config) == editor.other_controls(config) == []
    made = [label.attrib for label in ElementTree.fromstring(config).iter("Label")]
    keys = [label["hotkey"] for label in made[:-2]]
    assert len(set(keys)) == len(keys)
    assert not {key[-1] for key in keys} & set("behuvp")
    assert keys[-1] == "x"
    assert [label["hotkey"] for label in made[-2:]] == ["—", "—"]


def test_outlines_have_different_colours_each_like_its_classs_own() -> None:
    colours = editor._outline_colours(CITYSCAPES)
    assert len(set(colours)) == 19
    green = [int(colours[CITYSCAPES.names.index("terrain")][n : n + 2], 16) for n in (1, 3, 5)]
    assert max(green) == green[1]
    blue = [int(colours[CITYSCAPES.names.index("sky")][n : n + 2], 16) for n in (1, 3, 5)]
    assert max(blue) == blue[2]
    many = editor._outline_colours(MANY)
    assert len(many) == 40
    assert all(many)


def test_instruction_for_regions_says_whether_there_are_guesses() -> None:
    def said(with_guesses: bool) -> str:
        gains = dict.fromkeys(CITYSCAPES.names, 0.001) | {"bus": 0.03}
        return editor.instruction_of_regions("r01", 4, 2.13, gains, CITYSCAPES, with_guesses=with_guesses)

    for guesses in (True, False):
        assert "please answer what 4 images ask</b>, which is expected to raise the mIoU by 2.1 points" in said(guesses)
        assert "<b>bus" in said(guesses)
        assert "motorcycle [a], bicycle [s]" in said(guesses)
        assert ("the model's own answer" in said(guesses)) == guesses
        assert not editor.is_edited(said(guesses), said(guesses).replace("4 images", "9 images"))
        assert editor.is_edited(said(guesses) + "<br>Mind the kerbs.", said(guesses))


def told(classes: ClassSet, expected_points: float | None, per_class: dict[str, float]) -> str:
    return editor.instruction("r<1>", 20, expected_points, per_class, classes)


def test_instruction_says_what_the_round_is_worth_and_which_classes_most() -> None:
    gains = dict.fromkeys(CITYSCAPES.names, 0.001) | {"bus": 0.03, "rider": 0.02, "train": 0.04, "sky": 0.0}
    said = told(CITYSCAPES, 2.13, gains)
    assert "Round r&lt;1&gt;: please correct 20 images" in said
    assert "expected to raise the mIoU by 2.1 points" in said
    assert "<b>train, bus, rider</b>" in said
    assert "road [1], sidewalk [2]" in said
    assert "bicycle [a]" in said
    assert "mIoU" not in told(CITYSCAPES, None, gains)


def test_instruction_names_no_class_without_gain_and_no_guess_without_one() -> None:
    assert "<b>bus</b>" in told(CITYSCAPES, None, dict.fromkeys(CITYSCAPES.names, 0.0) | {"bus": 0.1})
    empty = editor.instruction("r01", 2, None, {}, CITYSCAPES, with_guesses=False)
    assert "own labels" not in empty
    assert not editor.is_edited(empty, empty.replace("2 images", "3 images"))
    assert editor.is_edited(empty + "<br>Mind the kerbs.", empty)
    assert "Look first" not in told(CITYSCAPES, None, dict.fromkeys(CITYSCAPES.names, 0.0))


def test_instruction_escapes_names_and_lists_classes_without_a_key() -> None:
    said = told(ODD, None, dict.fromkeys(ODD.names, 1.0))
    assert "<b>a&lt;b, the &quot;old&quot; &amp; new, it&#x27;s</b>" in said
    assert "a&lt;b [1], the &quot;old&quot; &amp; new [2]" in said
    assert set(re.findall(r"<[^>]*>", said)) == {"<b>", "</b>", "<br/>"}
    assert "class 30 [m], class 31 [shift+q], class 32 [shift+w]" in told(MANY, None, dict.fromkeys(MANY.names, 0.0))


def test_an_instruction_is_known_again_though_label_studio_writes_it_its_own_way() -> None:
    def first(name: str, images: int) -> str:
        return editor.instruction(name, images, None, {}, ODD)

    kept = first("r01", 3).replace("<br/>", "<br>").replace("&quot;", '"').replace("&#x27;", "'")
    assert editor.says_the_same(kept, first("r01", 3))
    assert not editor.is_edited(kept, first("r01", 3))
    assert not editor.says_the_same(kept, first("r02", 2))
    assert not editor.is_edited(kept, first("r02", 2))
    assert not editor.is_edited("", first("r01", 3))
    assert editor.is_edited("Hurry!", first("r01", 3))
    assert editor.is_edited(kept + "<br>Mind the kerbs.", first("r01", 3))
