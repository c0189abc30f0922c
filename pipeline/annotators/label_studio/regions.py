"""Conversion between masks of class ids and Label Studio's *results*: lists of brush regions, one per painted area."""

from collections.abc import Iterator, Mapping, Sequence, Set
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8

from pipeline.annotators.label_studio import brush
from pipeline.images.classes import IGNORE, ClassSet

FROM_NAME, TO_NAME = "label", "image"
"""Names of the brushes, and of what they paint on, in the labelling interface."""
TYPE, FORMAT = "brushlabels", "rle"


class Refused(Exception):
    """An annotation that cannot be read as a mask: one sentence with the reason and what the annotator should do."""


def prediction(ids: UInt8[np.ndarray, "h w"], classes: ClassSet) -> list[dict[str, Any]]:
    """The regions to send along for correction: one per class that occurs, none for IGNORE.

    The RLE stays an array of bytes, which the JSON writer (`client`) must know.
    """
    height, width = ids.shape
    return [
        {
            "id": _region_id(number),
            "type": TYPE,
            "from_name": FROM_NAME,
            "to_name": TO_NAME,
            "image_rotation": 0,
            "original_width": width,
            "original_height": height,
            "value": {"format": FORMAT, "rle": rle, "brushlabels": [classes.names[number]]},
        }
        for number, rle in brush.encode_classes(ids, len(classes.names)).items()
    ]


def mask(result: Any, sent: UInt8[np.ndarray, "h w"], classes: ClassSet) -> UInt8[np.ndarray, "h w"]:
    """The mask that an annotator made by correcting `prediction(sent, classes)`.

    The editor lets regions overlap: painting one class does not take the pixels from another. So every region is
    compared with the one of the same id and class that was sent. Pixels that were added win over those that were left
    as they were, later ones over earlier ones, whatever the order of the regions. Pixels in no region are IGNORE.

    Results of other controls, which a team may have added to the interface, are ignored. Those of our brushes are read
    as labels, and so are those that name no control and those that correct a region which we have sent.

    Args:
        result: any JSON value, as Label Studio has no opinion on what people's scripts send.
        sent: the class ids that were sent along, IGNORE for none.
        classes: what can be painted.

    Raises:
        Refused: a region of our brushes cannot be read, or nothing is labelled in it.
    """
    if not isinstance(result, list):
        raise Refused(f"its result is {shown(result)} instead of a list of regions: open the task and submit it again")
    kept, added = (np.full(sent.shape, IGNORE, np.uint8) for _ in range(2))
    seen, others = set[str](), set[str]()
    lost = {_region_id(number) for number in range(len(classes.names))} - set(_own_ids(result))
    for place, item in enumerate(result, 1):
        if is_relation(item):
            continue
        if _is_of_another_control(item, lost):
            others.add(item["from_name"])
            continue
        region, name = _region(item, place)
        if name in seen:
            raise Refused(f"two regions have the id {shown(name)}: delete one of them")
        seen.add(name)
        number = _class(region, name, classes)
        painted = strokes(region, name, sent.shape)
        if name == _region_id(number):
            unchanged = painted & (sent == number)
            np.copyto(kept, np.uint8(number), where=unchanged)
            painted ^= unchanged
        np.copyto(added, np.uint8(number), where=painted)
    if not seen:
        of = f" of the brushes {FROM_NAME!r}, only of {', '.join(map(shown, sorted(others)))}" if others else " at all"
        raise Refused(f"it has no region{of}: paint what is to be seen, or skip the image")
    labelled = np.where(added == IGNORE, kept, added)
    if (labelled == IGNORE).all():
        raise Refused("its regions are all empty: paint what is to be seen, or skip the image")
    return labelled


def changed(mask: UInt8[np.ndarray, "h w"], sent: UInt8[np.ndarray, "h w"]) -> int:
    """The number of pixels in which the mask differs from what was sent."""
    return int(np.count_nonzero(mask != sent))


def held_back(
    mask: UInt8[np.ndarray, "h w"],
    sent: UInt8[np.ndarray, "h w"],
    seconds: float,
    *,
    min_seconds: float,
    max_share: float,
    classes: ClassSet,
) -> str | None:
    """Why a mask should be checked again by its annotator before it is used; None if it need not be.

    Args:
        mask: what came back.
        sent: what was sent along.
        seconds: what the annotator took.
        min_seconds: an image that nothing was changed in takes at least so long to look at.
        max_share: no class covers more of an image (0-1), unless it covered half of what was sent.
        classes: names for the ids.
    """
    if seconds < min_seconds and changed(mask, sent) == 0:
        return f"nothing was changed within {seconds:.0f} seconds: look at the whole image and submit it again"
    shares, sent_shares = (np.bincount(each.ravel(), minlength=256) / each.size for each in (mask, sent))
    for number, name in enumerate(classes.names):
        share, before = shares[number], sent_shares[number]
        if share > max_share and before < 0.5:
            return (
                f"{name!r} covers {share:.0%} of the image, where {before:.0%} was sent: "
                f"correct what should be another label and submit it again"
            )
    return None


def majority(masks: Sequence[UInt8[np.ndarray, "h w"]]) -> UInt8[np.ndarray, "h w"]:
    """Majority vote per pixel. IGNORE has no vote; a tie gives IGNORE.

    Raises:
        ValueError: there is no mask.
    """
    if not masks:
        raise ValueError("a majority needs at least one mask")
    stack = np.stack(masks)
    winner = np.full(masks[0].shape, IGNORE, np.uint8)
    most = np.zeros(masks[0].shape, np.uint16)
    for number in np.setdiff1d(stack, [IGNORE]):
        votes = np.sum(stack == number, axis=0, dtype=np.uint16)
        np.copyto(winner, np.uint8(IGNORE), where=votes == most)
        np.copyto(winner, number, where=votes > most)
        np.maximum(most, votes, out=most)
    return winner


def agreement(masks: Sequence[UInt8[np.ndarray, "h w"]]) -> float:
    """Share of pixels on which two masks agree, averaged over all pairs of masks.

    Pixels that are IGNORE in both do not count; two masks without any other pixel agree.

    Raises:
        ValueError: there are fewer than two masks.
    """
    if len(masks) < 2:
        raise ValueError("agreement needs at least two masks")
    shares = []
    for one, other in combinations(masks, 2):
        counted = (one != IGNORE) | (other != IGNORE)
        pixels = np.count_nonzero(counted)
        shares.append(np.count_nonzero((one == other) & counted) / pixels if pixels else 1.0)
    return float(np.mean(shares))


def agreed(masks: Sequence[UInt8[np.ndarray, "h w"]], classes: int) -> tuple[tuple[int, int], ...]:
    """By class id, pixels that both masks of a pair give the class, and that at least one does, summed over all pairs.

    Pixels that are IGNORE in one of the two do not count: who leaves a pixel out says nothing of its class.
    """
    sums = np.zeros((classes, 2), np.int64)
    for one, other in combinations(masks, 2):
        known = (one != IGNORE) & (other != IGNORE)
        first, second = one[known], other[known]
        both, *each = (np.bincount(ids, minlength=classes) for ids in (first[first == second], first, second))
        sums += np.stack([both, sum(each) - both], axis=1)
    return tuple((int(both), int(either)) for both, either in sums)


def _region_id(number: int) -> str:
    """The id of the region of a class that we send; Label Studio keeps it when the region is corrected."""
    return f"c{number:02d}"


def _own_ids(result: list[Any]) -> Iterator[str]:
    """The ids of the regions of our brushes."""
    for item in result:
        if isinstance(item, dict) and item.get("from_name") == FROM_NAME and isinstance(item.get("id"), str):
            yield item["id"]


def _is_of_another_control(item: Any, lost: Set[str]) -> bool:
    """Whether an item of a result says that it is of another control than our brushes, and may be.

    Several controls may speak of one region, under its id. But brush strokes under an id of `lost`, those that were
    sent and that our brushes no longer have, are ours with another name.
    """
    if not isinstance(item, dict) or not isinstance(item.get("from_name"), str):
        return False
    if item.get("type") == TYPE and isinstance(item.get("id"), str) and item["id"] in lost:
        return False
    return item["from_name"] not in ("", FROM_NAME)


def _region(item: Any, place: int) -> tuple[Mapping[str, Any], str]:
    """An item of a result and its id, if it is a brush region of ours."""
    if not isinstance(item, dict):
        raise Refused(f"region {place} is {shown(item)} instead of an object: delete it and paint it again")
    name = item.get("id")
    if not isinstance(name, str) or not name:
        raise Refused(f"region {place} has the id {shown(name)} instead of a text: delete it and paint it again")
    for key, expected in (("type", TYPE), ("from_name", FROM_NAME), ("to_name", TO_NAME)):
        if item.get(key) != expected:
            raise Refused(
                f"region {shown(name)} has the {key} {shown(item.get(key))} instead of {expected!r}: "
                f"delete it and paint it with the brush"
            )
    return item, name


def _class(region: Mapping[str, Any], name: str, classes: ClassSet) -> int:
    """The class id of the region's one label."""
    value = region.get("value")
    if not isinstance(value, dict):
        raise Refused(f"region {shown(name)} has {shown(value)} as its value: delete it and paint it again")
    labels = value.get(TYPE)
    if not isinstance(labels, list) or len(labels) != 1:
        raise Refused(f"region {shown(name)} has {shown(labels)} instead of a list of one label: give it one label")
    if not isinstance(labels[0], str) or labels[0] not in classes.names:
        raise Refused(
            f"region {shown(name)} has the label {shown(labels[0])}, which is none of {classes.name}'s: "
            f"give it another label"
        )
    return classes.names.index(labels[0])


def strokes(region: Mapping[str, Any], name: str, shape: tuple[int, ...]) -> Bool[np.ndarray, "h w"]:
    """The pixels of a brush region.

    Raises:
        Refused: it is of another image, or cannot be read.
    """
    check_image(region, name, shape)
    value = region["value"]
    if value.get("format") != FORMAT:
        raise Refused(
            f"region {shown(name)} has the format {shown(value.get('format'))} instead of {FORMAT!r}: "
            f"delete it and paint it with the brush"
        )
    try:
        return brush.decode(_bytes(value.get("rle")), *shape)
    except ValueError as error:
        raise Refused(f"region {shown(name)} cannot be read, {error}: delete it and paint it again") from error


def check_image(region: Mapping[str, Any], name: str, shape: tuple[int, ...]) -> None:
    """See that a region is of an image of this height and width.

    Raises:
        Refused: it is not, or it was made on the image turned.
    """
    height, width = shape
    rotation = region.get("image_rotation")
    if rotation is not None and not is_number(rotation, 0):
        raise Refused(
            f"region {shown(name)} was painted on an image rotated by {shown(rotation)}: "
            f"rotate the image back, delete the region and paint it again"
        )
    for key, expected in (("original_width", width), ("original_height", height)):
        if not is_number(region.get(key), expected):
            raise Refused(
                f"region {shown(name)} has the {key} {shown(region.get(key))} instead of {expected}: "
                f"delete it and paint it on the image of this task"
            )


def _bytes(rle: Any) -> bytes:
    """The bytes of an RLE in any of the forms that it may come in.

    Raises:
        ValueError: it is none of them.
    """
    if isinstance(rle, bytes | bytearray | memoryview) or (isinstance(rle, np.ndarray) and rle.dtype == np.uint8):
        return bytes(rle)
    if not isinstance(rle, list):
        raise ValueError(f"its RLE is {shown(rle)} instead of a list of bytes")
    if set(map(type, rle)) - {int}:  # not even bool, which is an int elsewhere
        wrong = next(each for each in rle if type(each) is not int)
        raise ValueError(f"its RLE contains {shown(wrong)}")
    if rle and not (min(rle) >= 0 and max(rle) <= 255):
        raise ValueError(f"its RLE contains {shown(next(each for each in rle if not 0 <= each <= 255))}")
    return bytes(rle)


def is_relation(item: Any) -> bool:
    """Whether an item of a result is an arrow between two regions."""
    return isinstance(item, dict) and item.get("type") == "relation" and "value" not in item


def is_number(value: Any, expected: int) -> bool:
    """Whether a JSON value is this number. In Python `True == 1`, in JSON it is not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and value == expected


def shown(value: Any) -> str:
    """A JSON value within a sentence: short, and on one line."""
    if isinstance(value, str):
        return repr(value if len(value) <= 40 else value[:39] + "…")
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return f"an object of {len(value)}"
    if value is None or isinstance(value, bool | float):
        return "nothing" if value is None else str(value)
    if isinstance(value, int):
        return str(value) if abs(value) < 10**12 else "a huge number"
    return f"a {type(value).__name__}"
