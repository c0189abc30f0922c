"""Plausibility of mask ids: whether ids that are valid in the layout seem to come from another numbering.

Every id of a wrong numbering may be valid. What gives it away is how many pixels each id has. Most of these findings
are guesses and become warnings; what can only be an error is refused.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8

from pipeline.images.classes import IGNORE, ClassSet

SMALL = (
    *("pole", "polegroup", "traffic light", "traffic sign", "signsymbol"),
    *("rider", "motorcycle", "bicycle", "bicyclist"),
)
"""Classes of which streets hold little."""
SMALL_SHARE = 0.15
"""No set of street scenes has a larger share of pixels of one of them: CamVid has at most 2.3 %."""
COMMON, RARE = 0.1, 0.001
"""A class with more than the first share of one set and less than the second of another is reported."""
VOID_SHARE = 0.5
"""A larger share of pixels without a class is reported."""
_TRAIN_IDS = 19


class Doubt(NamedTuple):
    """Something that does not look right."""

    sure: bool
    """Whether it certainly makes training wrong; else it is a warning."""
    text: str
    """A sentence, without the name of the set."""


def of_masks(
    ids: str, stored: Int64[np.ndarray, "256"], table: UInt8[np.ndarray, "256"], classes: ClassSet
) -> list[Doubt]:
    """What is odd about the ids of a set's masks.

    Args:
        ids: the layout of ids that the set should have, of `classes.LAYOUTS`; empty if a class list says it.
        stored: pixels of every id, as the masks store them, in all of the set.
        table: from stored ids to class ids.
        classes: the class set.
    """
    counts = _by_class(stored, table)
    total, known = int(stored.sum()), int(counts[: len(classes.names)].sum())
    used = set(np.flatnonzero(stored).tolist())
    if not known:
        return []  # said elsewhere
    doubts = []
    low = stored[:7].sum() / total
    if ids == "labelids" and used <= {*range(_TRAIN_IDS), IGNORE} and low > VOID_SHARE:
        doubts.append(
            Doubt(
                {0, 1, 2} <= used,
                f"the masks look like labelTrainIds: they hold no id above 18 but 255, and ids 0-6, which count for "
                f"nothing in labelIds, hold {low:.0%} of the pixels: convert them to labelIds, or use "
                "`dataset: folder` and a classes.csv that has the train ids (0,road and so on)",
            )
        )
    if used == {0, IGNORE} and len(classes.names) > 1:
        doubts.append(
            Doubt(
                True,
                "the masks hold 0 and 255 only, and 255 counts for nothing, so that there is one class: if 255 is a "
                "class, save it as the id that its list has",
            )
        )
    elif used <= {0, 1, IGNORE} and len(classes.names) > 2:
        there = f"and there are {len(classes.names)} classes"
        doubts.append(Doubt(False, f"the masks hold only the ids {_listed(used)}, {there}"))
    last = max((number for number in range(IGNORE) if table[number] < len(classes.names)), default=0)
    if not ids and table[0] == IGNORE and stored[0] > COMMON * total and not stored[last]:
        doubts.append(
            Doubt(
                False,
                f"id 0, which counts for nothing, holds {stored[0] / total:.0%} of the pixels, and id {last} "
                f"({classes.names[table[last]]}) none: are the masks numbered from 0, one below the class list?",
            )
        )
    for number, name in enumerate(classes.names):
        if name.lower() in SMALL and counts[number] > SMALL_SHARE * known:
            doubts.append(
                Doubt(
                    False,
                    f"{name} is {counts[number] / known:.0%} of the pixels, which no street has: are the ids in "
                    "another order, or numbered from another start?",
                )
            )
    void = counts[IGNORE] / total
    if void > VOID_SHARE:
        doubts.append(Doubt(False, f"{void:.0%} of the pixels are of no class: is it the right layout?"))
    return doubts


def apart(
    one: Int64[np.ndarray, "256"], other: Int64[np.ndarray, "256"], names: tuple[str, str], classes: ClassSet
) -> list[Doubt]:
    """A doubt for each class that one set is full of and the other lacks; counts are by class id."""
    shares = [side[: len(classes.names)] / max(int(side[: len(classes.names)].sum()), 1) for side in (one, other)]
    if not all(share.any() for share in shares):
        return []
    odd = [
        f"{name} is {shares[0][number]:.1%} of the {names[0]} and {shares[1][number]:.1%} of the {names[1]}"
        for number, name in enumerate(classes.names)
        if max(share[number] for share in shares) > COMMON and min(share[number] for share in shares) < RARE
    ]
    return [Doubt(False, f"{', '.join(odd)}: do their ids mean the same?")] if odd else []


def unknown(ids: Sequence[int], defined: Sequence[int]) -> str:
    """What ids that no list defines may be, as a clause; empty if nothing is known of them."""
    if not defined:
        return ""
    if max(defined) == _TRAIN_IDS - 1 and min(defined) == 0 and set(ids) <= set(range(_TRAIN_IDS, 35)):
        return " (as Cityscapes' labelIds have them: the list has train ids)"
    return " (one above the last that is defined: are they numbered from 1?)" if list(ids) == [max(defined) + 1] else ""


def _by_class(stored: Int64[np.ndarray, "256"], table: UInt8[np.ndarray, "256"]) -> Int64[np.ndarray, "256"]:
    counts = np.zeros(256, np.int64)
    np.add.at(counts, table, stored)
    return counts


def _listed(ids: set[int]) -> str:
    return ", ".join(str(number) for number in sorted(ids))
