"""What annotators see: the labelling interface (XML), its hotkeys, and the instruction (HTML). Pure text functions."""

import html
import re
from collections.abc import Mapping
from xml.etree import ElementTree

from pipeline.annotators.label_studio.regions import FROM_NAME, TO_NAME
from pipeline.images.classes import ClassSet

PLAIN_KEYS = "1234567890qwrtyiopasdfgjklzxcnm"
"""Hotkeys that Label Studio's editor leaves free: it has b (brush), e (eraser), h (hand), u (unselect), v (move)."""
HOTKEYS = (*PLAIN_KEYS, *(f"shift+{key}" for key in PLAIN_KEYS if key.isalpha() and key != "r"))
"""Hotkeys of the classes, in order; with shift, the editor has 1 and 2 (zoom) and r (a rotated rectangle)."""
NO_KEY = "—"
"""For the classes beyond: no keyboard has this key. A label without any would be given one of the editor's own tools:
e, which then erases and relabels, v or b."""
GAIN = (
    'Where a correction is worth most: bright<br/><a href="$gain" target="_blank" title="larger">'
    '<img src="$gain" style="width: 32vw; height: 22vh; object-fit: contain; object-position: left top"/></a>'
)
"""Name of the second picture, the gain map."""
ALWAYS = "Every image comes with the model's own labels"
"""From this sentence on, the instruction is the same in every round."""
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


def painted_names(config: str) -> list[str] | None:
    """The labels that a labelling interface paints on our image; None if we could not read annotations made with it."""
    brushes = _brushes(config)
    return None if brushes is None else [label.get("value", "") for label in brushes.iter("Label")]


def keyless_names(config: str) -> list[str]:
    """Of our labels, those without a key of their own, to which the editor gives keys of its tools."""
    brushes = _brushes(config)
    labels = () if brushes is None else brushes.iter("Label")
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


def _brushes(config: str) -> ElementTree.Element | None:
    view = _view(config)
    return None if view is None else next(filter(_is_ours, view.iter("BrushLabels")), None)


def _is_ours(control: ElementTree.Element) -> bool:
    return control.get("name") == FROM_NAME and control.get("toName") == TO_NAME


def instruction(
    round_name: str, images: int, expected_points: float | None, per_class: Mapping[str, float], classes: ClassSet
) -> str:
    """The instruction for annotators, as HTML.

    Args:
        round_name: which round.
        images: how many images it asks for.
        expected_points: mIoU points (0-100) that labelling them is expected to bring; None if the gain is in another
            unit.
        per_class: the part of that which each class has.
        classes: what can be painted.
    """
    worth = (
        f", which is expected to raise the mIoU by {expected_points:.1f} points" if expected_points is not None else ""
    )
    most = [name for name in sorted(per_class, key=lambda name: -per_class[name])[:SHOWN] if per_class[name] > 0]
    names = ", ".join(
        f"{html.escape(name)}{f' [{HOTKEYS[number]}]' if number < len(HOTKEYS) else ''}"
        for number, name in enumerate(classes.names)
    )
    paragraphs = [
        f"<b>Round {html.escape(round_name)}: please correct {images} images</b>{worth}. The most valuable come first.",
        *([f"Look first at <b>{html.escape(', '.join(most))}</b>: there the model loses most."] if most else []),
        f"{ALWAYS}. Choose a label (or press its key) and paint over what is "
        "wrong: what you paint wins over what was there, so there is no need to erase first. Erase what belongs to no "
        "label. The small picture shows where a correction is worth most; a click makes it larger.",
        "<b>Press u before you choose another label</b>, or else what you have just painted changes to that one too.",
        "Submit when all is right, also if it was right from the start. Skip an image that cannot be labelled; another "
        "one will come in its place.",
        f"Labels: {names}",
        "Other keys: b paints, e erases from the chosen region, [ and ] change the size of the brush, ctrl+z takes a "
        "stroke back, ctrl+enter submits.",
    ]
    return "<br/><br/>".join(paragraphs)


def says_the_same(one: str, other: str) -> bool:
    """Whether two instructions have the same text; Label Studio changes tags and quotes when it saves one."""
    return _text(one) == _text(other)


def is_edited(there: str, told: str) -> bool:
    """Whether an instruction that a project has, if any, differs from ours in more than the round."""
    return bool(there) and _text(there).partition(ALWAYS)[1:] != _text(told).partition(ALWAYS)[1:]


def _text(instruction: str) -> str:
    return html.unescape(re.sub(r"<[^>]*>", " ", instruction))
