"""Questions about regions and their answers, as Label Studio's *results*: polygons with ids of ours, read by id alone.

What the editor lets people do to a polygon's shape (drag it, move a corner) has no meaning: the region's pixels are
those of the map that was sent along. What they draw themselves has an id of the editor's, is taken as drawn, and wins.
"""

import base64
import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import UInt8, UInt16

from pipeline.annotators.label_studio import region_shapes
from pipeline.annotators.label_studio.regions import FROM_NAME, TO_NAME, Refused, is_relation, shown
from pipeline.images.classes import IGNORE, ClassSet

TYPE = "polygonlabels"
STROKE = "stroke"
"""Name of a control with which a team may let people draw, besides our own."""
MIXED, NOT_ASKED, UNANSWERED = "mixed", "not asked", "?"
WITHOUT_CLASS = (MIXED, NOT_ASKED, UNANSWERED)
"""Labels that are no class: several things and none of them most of the region; the rest; no answer yet."""
REST = "rest"
"""Id of the read-only region below all others, which takes the clicks that meet no question."""


class Questions(NamedTuple):
    """The regions of one image that are asked about."""

    asked: tuple[int, ...]
    """Their numbers in the image's map."""
    guesses: tuple[int, ...]
    """The class that each was sent with; IGNORE for none."""
    places: UInt16[np.ndarray, "h w"]
    """For each pixel k + 1 where it belongs to asked[k], 0 where nothing is asked."""

    def with_classes(self, classes: Sequence[int]) -> UInt8[np.ndarray, "h w"]:
        """The mask in which each region has its class; IGNORE outside."""
        table = np.array([IGNORE, *classes], np.uint8)
        mask: UInt8[np.ndarray, "h w"] = table[self.places]
        return mask

    @property
    def sent(self) -> UInt8[np.ndarray, "h w"]:
        """The mask that was sent along."""
        return self.with_classes(self.guesses)


def questions(
    region_map: UInt16[np.ndarray, "h w"],
    asked: Sequence[int],
    predicted: UInt8[np.ndarray, "h w"] | None,
) -> Questions:
    """Ask about some regions of a map.

    Args:
        region_map: the region of every pixel.
        asked: numbers of regions that are in it.
        predicted: class ids; each region is sent with the commonest in it. None: without a guess.
    """
    table = np.zeros(int(region_map.max()) + 1, np.uint16)
    table[list(asked)] = np.arange(1, len(asked) + 1)
    places: UInt16[np.ndarray, "h w"] = table[region_map]
    if predicted is None:
        return Questions(tuple(asked), (IGNORE,) * len(asked), places)
    pairs = places.astype(np.int64) * 256 + predicted
    counts = np.bincount(pairs.ravel(), minlength=256 * (len(asked) + 1)).reshape(-1, 256)[1:, :IGNORE]
    guesses = np.where(counts.any(axis=1), counts.argmax(axis=1), IGNORE)
    return Questions(tuple(asked), tuple(guesses.tolist()), places)


def pack(asked: Questions) -> dict[str, Any]:
    """The questions as JSON, for a task's `meta`: all that it takes to read the answers."""
    png = cv2.imencode(".png", asked.places)[1].tobytes()
    return {"asked": list(asked.asked), "guesses": list(asked.guesses), "map": base64.b64encode(png).decode()}


def unpack(value: Any) -> Questions | None:
    """The questions that `pack` has written; None for any other value."""
    if not isinstance(value, dict):
        return None
    asked, guesses = _integers(value.get("asked")), _integers(value.get("guesses"))
    if asked is None or guesses is None or not len(set(asked)) == len(guesses) == len(asked):
        return None
    if not all(0 <= guess <= IGNORE for guess in guesses):
        return None
    places: np.ndarray | None = None
    with contextlib.suppress(TypeError, ValueError, cv2.error):
        data = base64.b64decode(value.get("map"), validate=True)  # type: ignore[arg-type]
        places = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if places is None or places.ndim != 2 or places.dtype != np.uint16 or places.max() > len(asked):
        return None
    return Questions(asked, guesses, places)


def _integers(value: Any) -> tuple[int, ...] | None:
    return tuple(value) if isinstance(value, list) and set(map(type, value)) <= {int} else None


def prediction(asked: Questions, classes: ClassSet) -> list[dict[str, Any]]:
    """The polygons to send along, inner ones before those around them, and below them all the rest of the image."""
    labels = [UNANSWERED if guess == IGNORE else classes.names[guess] for guess in asked.guesses]
    size = asked.places.shape
    made = [
        _polygon(region_id(asked.asked[number - 1]), labels[number - 1], outline, size)
        for number, outline in region_shapes.outlines(asked.places)
    ]
    corners = [[0.0, 0.0], [100.0, 0.0], [100.0, 100.0], [0.0, 100.0]]
    return [*made, _polygon(REST, NOT_ASKED, corners, size) | {"readonly": True}]


def _polygon(name: str, label: str, points: region_shapes.Outline, size: tuple[int, ...]) -> dict[str, Any]:
    return {
        "id": name,
        "type": TYPE,
        "from_name": FROM_NAME,
        "to_name": TO_NAME,
        "image_rotation": 0,
        "original_width": size[1],
        "original_height": size[0],
        "value": {"points": points, "closed": True, TYPE: [label]},
    }


def region_id(number: int) -> str:
    """The id of the polygon for a region, which Label Studio keeps whatever becomes of it."""
    return f"region-{number}"


def mask(result: Any, asked: Questions, classes: ClassSet) -> UInt8[np.ndarray, "h w"]:
    """The mask that somebody's answers amount to.

    A region has the class of the polygon with its id, which is its guess where nobody has changed it. It is IGNORE if
    that says MIXED, or has no answer, or was removed. What people have drawn themselves wins over that, also where
    nothing was asked, later shapes over earlier ones. Results of other controls are ignored.

    Args:
        result: any JSON value.
        asked: what was sent.
        classes: what can be answered.

    Raises:
        Refused: an answer or a shape cannot be read, or there is none.
    """
    if not isinstance(result, list):
        raise Refused(f"its result is {shown(result)} instead of a list of regions: open the task and submit it again")
    own = {region_id(number): place for place, number in enumerate(asked.asked)}
    answers, seen, answered = [IGNORE] * len(own), set[str](), False
    added: list[tuple[int, Mapping[str, Any], str]] = []
    for place, item in enumerate(result, 1):
        if is_relation(item) or _is_of_another_control(item, own):
            continue
        name = _name(item, place)
        if name == REST:
            continue
        if name in seen:
            raise Refused(f"two regions have the id {shown(name)}: delete one of them")
        seen.add(name)
        if name in own:
            label = _label(item, name, (TYPE,), classes)
            answered |= label in classes.names or label == MIXED
            answers[own[name]] = classes.names.index(label) if label in classes.names else IGNORE
        elif not name.startswith("region-"):  # else of another task, or of another round: not asked
            label = _label(item, name, region_shapes.SHAPES, classes)
            added.append((classes.names.index(label) if label in classes.names else IGNORE, item, name))
    if not answered and not added:
        raise Refused("it answers none of the regions that it asks about: give them their labels, or skip the image")
    whole = asked.with_classes(answers)
    for number, item, name in added:
        whole[region_shapes.drawn(item, name, asked.places.shape)] = number
    return whole


def _is_of_another_control(item: Any, own: Mapping[str, int]) -> bool:
    """Whether an item says that it is of another control than ours; a polygon that we have sent never is."""
    if not isinstance(item, dict) or not isinstance(item.get("from_name"), str):
        return False
    if item.get("type") == TYPE and isinstance(item.get("id"), str) and item["id"] in own:
        return False
    return item["from_name"] not in ("", FROM_NAME, STROKE)


def _name(item: Any, place: int) -> str:
    if not isinstance(item, dict):
        raise Refused(f"region {place} is {shown(item)} instead of an object: delete it and draw it again")
    name = item.get("id")
    if not isinstance(name, str) or not name:
        raise Refused(f"region {place} has the id {shown(name)} instead of a text: delete it and draw it again")
    return name


def _label(item: Mapping[str, Any], name: str, types: Sequence[str], classes: ClassSet) -> str:
    """The one label of a region."""
    kind = item.get("type")
    if not isinstance(kind, str) or kind not in types:
        raise Refused(f"region {shown(name)} has the type {shown(kind)} instead of {types[0]!r}: delete it")
    value = item.get("value")
    labels = value.get(kind) if isinstance(value, dict) else None
    if not isinstance(labels, list) or len(labels) != 1:
        raise Refused(f"region {shown(name)} has {shown(labels)} instead of a list of one label: give it one label")
    label = labels[0]
    if not isinstance(label, str) or label not in (*classes.names, *WITHOUT_CLASS):
        raise Refused(
            f"region {shown(name)} has the label {shown(label)}, which is none of {classes.name}'s: give it another"
        )
    return label
