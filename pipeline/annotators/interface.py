"""What annotators see in Label Studio: the labels to paint with, and what is asked of them. Text in, text out."""

import html
from collections.abc import Mapping
from xml.etree import ElementTree

from pipeline.annotators.regions import FROM_NAME, TO_NAME
from pipeline.labels import ClassSet

HOTKEYS = "1234567890qwrtyiopasdfgjklzxcnm"
"""Keys that Label Studio's editor leaves free: it has b (brush), e (eraser), h (hand), u (unselect), v (move)."""
GAIN = (
    'Where a correction is worth most: bright<br/><a href="$gain" target="_blank" title="larger">'
    '<img src="$gain" style="width: 32vw; height: 22vh; object-fit: contain; object-position: left top"/></a>'
)
"""The second picture."""
SHOWN = 3
"""So many classes are named as worth most."""


def label_config(classes: ClassSet) -> str:
    """The labelling interface: the image; below it the brushes, one per class, and beside those the gain map."""
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
        if number < len(HOTKEYS):
            label.set("hotkey", HOTKEYS[number])
    # Not a second Image: the server takes no uploads for a project with two, and the editor would paint on both.
    ElementTree.SubElement(below, "Markdown", value=GAIN, style="flex: none")
    return ElementTree.tostring(view, encoding="unicode")


def painted_names(config: str) -> list[str] | None:
    """The labels that a labelling interface paints on our image; None if it is not one that we can read answers of."""
    try:
        view = ElementTree.fromstring(config)
    except ElementTree.ParseError:
        return None
    for brushes in view.iter("BrushLabels"):
        if brushes.get("name") == FROM_NAME and brushes.get("toName") == TO_NAME:
            return [label.get("value", "") for label in brushes.iter("Label")]
    return None


def instruction(
    round_name: str, images: int, expected: float | None, per_class: Mapping[str, float], classes: ClassSet
) -> str:
    """What the annotators are asked, as HTML.

    Args:
        round_name: which round.
        images: how many images it asks for.
        expected: mIoU (0-1) that labelling them is expected to bring; None if the gain is in another unit.
        per_class: the part of that which each class has.
        classes: what can be painted.
    """
    worth = f", which is expected to raise the mIoU by {100 * expected:.1f} points" if expected is not None else ""
    most = [name for name in sorted(per_class, key=lambda name: -per_class[name])[:SHOWN] if per_class[name] > 0]
    names = ", ".join(
        f"{html.escape(name)}{f' [{HOTKEYS[number]}]' if number < len(HOTKEYS) else ''}"
        for number, name in enumerate(classes.names)
    )
    paragraphs = [
        f"<b>Round {html.escape(round_name)}: please correct {images} images</b>{worth}. The most valuable come first.",
        *([f"Look first at <b>{html.escape(', '.join(most))}</b>: there the model loses most."] if most else []),
        "Every image comes with the model's own labels. Choose a label (or press its key) and paint over what is "
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
