"""What annotators see: the labelling interface (XML), its hotkeys, and the instruction (HTML). Pure text functions."""

import html
import re
from collections.abc import Mapping, Sequence
from xml.etree import ElementTree

from pipeline.annotators.label_studio.region_answers import MIXED, WITHOUT_CLASS
from pipeline.annotators.label_studio.regions import FROM_NAME, TO_NAME
from pipeline.images.classes import ClassSet

PLAIN_KEYS = "1234567890qwrtyiopasdfgjklzxcnm"
"""Hotkeys that Label Studio's editor leaves free: it has b (brush), e (eraser), h (hand), u (unselect), v (move)."""
HOTKEYS = (*PLAIN_KEYS, *(f"shift+{key}" for key in PLAIN_KEYS if key.isalpha() and key != "r"))
"""Hotkeys of the classes, in order; with shift, the editor has 1 and 2 (zoom) and r (a rotated rectangle)."""
NO_KEY = "—"
"""For the classes beyond: no keyboard has this key. A label without any would be given one of the editor's own tools:
e, which then erases and relabels, v or b."""
MIXED_KEY = "x"
REGION_KEYS = tuple(key for key in HOTKEYS if key[-1] not in ("p", MIXED_KEY))
"""The same where regions are asked about; the editor has p for the polygon."""
PALETTE = (
    "#b388ff", "#ff4fd8", "#c98b4e", "#7d86ff", "#c2b84a", "#9fb3bd", "#ffb020", "#f5d000", "#4fd94f", "#a4e01e",
    "#7be39a", "#5cc8ff", "#ff4d5e", "#ff7a1a", "#2f8bff", "#0fb5a6", "#12d8d0", "#00b35f", "#e48cff", "#ff9c8a",
    "#a8643a", "#d9c7a0",
)  # fmt: skip
"""Colours of outlines that are told from each other, on dark and on bright images and in the list of regions."""
PLAIN = "#9a9a9a"
"""Of the labels that are no class."""
HIDDEN = ".lsf-labels .lsf-label:nth-last-child(-n+2) { display: none }"
"""The last two labels are not for people to choose."""
GAIN = (
    'Where a correction is worth most: bright<br/><a href="$gain" target="_blank" title="larger">'
    '<img src="$gain" style="width: 32vw; height: 22vh; object-fit: contain; object-position: left top"/></a>'
)
"""Name of the second picture, the gain map."""
ALWAYS = "Every image comes with the model's own labels"
"""From this sentence on, the instruction is the same in every round."""
ALWAYS_EMPTY = "No image comes with labels"
"""The same where people start from nothing."""
ALWAYS_OF_REGIONS = "Every outlined area is a question: what is this?"
"""The same where regions are asked about."""
SHOWN = 3
"""How many classes the instruction names as worth most."""


def label_config(classes: ClassSet) -> str:
    """The labelling interface as XML: the image; below it one brush per class, and beside those the gain map."""
    view = ElementTree.Element("View")
    image = ElementTree.SubElement(view, "Image", name=TO_NAME, value="$image", zoom="true", zoomControl="true")
    # The editor fits the image before its toolbar is there: without room for that, 2% of the image are cut off.
    image.set("maxWidth", "calc(100% - 42px)")
    below = ElementTree.SubElement(view, "View", style="display: flex; gap: 24px; align-items: flex-start")
    left = ElementTree.SubElement(below, "View", style="flex: 1")
    brushes = ElementTree.SubElement(left, "BrushLabels", name=FROM_NAME, toName=TO_NAME, opacity="0.6")
    for number, (name, colour) in enumerate(zip(classes.names, classes.colours, strict=True)):
        label = ElementTree.SubElement(brushes, "Label", value=name, background=f"rgb{colour}".replace(" ", ""))
        label.set("category", str(number))
        label.set("hotkey", HOTKEYS[number] if number < len(HOTKEYS) else NO_KEY)
    # Not a second Image: the server takes no uploads for a project with two, and the editor would paint on both.
    ElementTree.SubElement(below, "Markdown", value=GAIN, style="flex: none")
    return ElementTree.tostring(view, encoding="unicode")


def label_config_of_regions(classes: ClassSet) -> str:
    """The labelling interface for regions: labels that stay in view, below them the image, one polygon per question."""
    view = ElementTree.Element("View")
    ElementTree.SubElement(view, "Style").text = HIDDEN
    above = ElementTree.SubElement(view, "View", style="position: sticky; top: 0; z-index: 5")
    labels = ElementTree.SubElement(above, REGIONS, name=FROM_NAME, toName=TO_NAME, opacity="0.12")
    labels.attrib |= {"strokeWidth": "2", "pointSize": "small"}
    colours = _outline_colours(classes)
    for number, name in enumerate(classes.names):
        label = ElementTree.SubElement(labels, "Label", value=name, background=colours[number])
        label.set("category", str(number))
        label.set("hotkey", REGION_KEYS[number] if number < len(REGION_KEYS) else NO_KEY)
    for name in WITHOUT_CLASS:
        label = ElementTree.SubElement(labels, "Label", value=name, background=PLAIN)
        label.set("hotkey", MIXED_KEY if name == MIXED else NO_KEY)
    image = ElementTree.SubElement(view, "Image", name=TO_NAME, value="$image", zoom="true", zoomControl="true")
    image.attrib |= {"maxWidth": "calc(100% - 42px)", "maxHeight": "calc(100vh - 240px)"}  # beside and below: buttons
    return ElementTree.tostring(view, encoding="unicode")


def _outline_colours(classes: ClassSet) -> list[str]:
    """For each class the colour of PALETTE, of those still free, that is most like its own, made bright.

    Those whose own colour is strongest choose first. With more classes than colours, all are given away again.
    """
    chosen, free = [""] * len(classes.names), list[str]()
    strength = [max(colour) - min(colour) for colour in classes.colours]
    for number in sorted(range(len(strength)), key=lambda number: -strength[number]):
        free = free or list(PALETTE)
        own = [255 * part / max(1, *classes.colours[number]) for part in classes.colours[number]]
        off = [sum((int(one[n : n + 2], 16) - own[n // 2]) ** 2 for n in (1, 3, 5)) for one in free]
        chosen[number] = free.pop(off.index(min(off)))
    return chosen


BRUSHES, REGIONS = "BrushLabels", "PolygonLabels"
"""Our control in the two interfaces, by its tag."""


def painted_names(config: str, tag: str = BRUSHES) -> list[str] | None:
    """The labels of our control in a labelling interface; None if we could not read annotations made with it."""
    control = _control(config, tag)
    return None if control is None else [label.get("value", "") for label in control.iter("Label")]


def keyless_names(config: str) -> list[str]:
    """Of our labels, those without a key of their own, to which the editor gives keys of its tools."""
    controls = [_control(config, tag) for tag in (BRUSHES, REGIONS)]
    labels = [label for control in controls if control is not None for label in control.iter("Label")]
    return [label.get("value", "") for label in labels if not label.get("hotkey")]


def other_controls(config: str) -> list[str]:
    """Names of the controls in the interface that are not ours; their answers are ignored."""
    view = _view(config)
    controls = () if view is None else view.iter()
    return [control.get("name", "") for control in controls if control.get("toName") and not _is_ours(control)]


def _view(config: str) -> ElementTree.Element | None:
    try:
        return ElementTree.fromstring(config)
    except ElementTree.ParseError:
        return None


def _control(config: str, tag: str) -> ElementTree.Element | None:
    view = _view(config)
    return None if view is None else next(filter(_is_ours, view.iter(tag)), None)


def _is_ours(control: ElementTree.Element) -> bool:
    return control.get("name") == FROM_NAME and control.get("toName") == TO_NAME


def instruction(
    round_name: str,
    images: int,
    expected_points: float | None,
    per_class: Mapping[str, float],
    classes: ClassSet,
    *,
    with_guesses: bool = True,
) -> str:
    """The instruction for annotators, as HTML.

    Args:
        round_name: which round.
        images: how many images it asks for.
        expected_points: mIoU points (0-100) that labelling them is expected to bring; None if the gain is in another
            unit.
        per_class: the part of that which each class has.
        classes: what can be painted.
        with_guesses: whether images come with the model's own labels.
    """
    most = _most(per_class)
    paragraphs = [
        f"<b>Round {html.escape(round_name)}: please correct {images} images</b>{_worth(expected_points)}. The most "
        "valuable come first.",
        *([f"Look first at <b>{html.escape(', '.join(most))}</b>: there the model loses most."] if most else []),
        f"{ALWAYS if with_guesses else ALWAYS_EMPTY}. Choose a label (or press its key) and paint over what is "
        f"{'wrong' if with_guesses else 'of its class'}: what you paint wins over what was there, so there is no need "
        "to erase first. Erase what belongs to no label. The small picture shows where a correction is worth most; a "
        "click makes it larger.",
        "<b>Press u before you choose another label</b>, or else what you have just painted changes to that one too.",
        "Submit when all is right, also if it was right from the start. Skip an image that cannot be labelled; another "
        "one will come in its place.",
        f"Labels: {_named(classes.names, HOTKEYS)}",
        "Other keys: b paints, e erases from the chosen region, [ and ] change the size of the brush, ctrl+z takes a "
        "stroke back, ctrl+enter submits.",
    ]
    return "<br/><br/>".join(paragraphs)


def instruction_of_regions(
    round_name: str,
    images: int,
    expected_points: float | None,
    per_class: Mapping[str, float],
    classes: ClassSet,
    *,
    with_guesses: bool,
) -> str:
    """The instruction for those who answer questions about regions, as HTML.

    Args:
        round_name: which round.
        images: how many images it asks about.
        expected_points: as of `instruction`.
        per_class: as of `instruction`.
        classes: what can be answered.
        with_guesses: whether every area comes with what the model takes it for.
    """
    most = _most(per_class)
    how = (
        "It comes with the model's own answer, in that label's colour. Click an area where it is wrong and press the "
        "key of the right label; leave what is right."
        if with_guesses
        else "Click an area and press the key of its label."
    )
    paragraphs = [
        f"<b>Round {html.escape(round_name)}: please answer what {images} images ask</b>{_worth(expected_points)}. The "
        "most valuable come first.",
        *([f"Look closely at <b>{html.escape(', '.join(most))}</b>: there the model loses most."] if most else []),
        f"{ALWAYS_OF_REGIONS} {how} <b>{MIXED} [{MIXED_KEY}]</b>: several things, and none of them most of it. Shapes "
        "cannot be changed by moving them.",
        "Submit (ctrl+enter) when all is right, also if it was right from the start. Skip an image that cannot be "
        "answered; another one will come in its place.",
        f"Labels: {_named(classes.names, REGION_KEYS)}",
        "Other keys: space (or alt+.) goes to the next area, ctrl+z takes the last change back, ctrl+h hides all areas "
        "and shows them again. To draw an area of your own, press u and a label's key, and hold ctrl while you click "
        "round it. To see names on the areas, switch on Show region labels under the button with the sliders, below "
        "the image.",
    ]
    return "<br/><br/>".join(paragraphs)


def _worth(expected_points: float | None) -> str:
    if expected_points is None:
        return ""
    return f", which is expected to raise the mIoU by {expected_points:.1f} points"


def _most(per_class: Mapping[str, float]) -> list[str]:
    return [name for name in sorted(per_class, key=lambda name: -per_class[name])[:SHOWN] if per_class[name] > 0]


def _named(names: Sequence[str], keys: Sequence[str]) -> str:
    """All labels with their keys, as HTML."""
    return ", ".join(
        f"{html.escape(name)}{f' [{keys[number]}]' if number < len(keys) else ''}" for number, name in enumerate(names)
    )


def says_the_same(one: str, other: str) -> bool:
    """Whether two instructions have the same text; Label Studio changes tags and quotes when it saves one."""
    return _text(one) == _text(other)


def is_edited(there: str, told: str) -> bool:
    """Whether an instruction that a project has, if any, differs from ours in more than the round."""
    always = next(start for start in (ALWAYS, ALWAYS_EMPTY, ALWAYS_OF_REGIONS) if start in told)
    return bool(there) and _text(there).partition(always)[1:] != _text(told).partition(always)[1:]


def _text(instruction: str) -> str:
    return html.unescape(re.sub(r"<[^>]*>", " ", instruction))
