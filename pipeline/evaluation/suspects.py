"""The files of label quality: quality.csv, a row per label; suspects/, where each is contradicted, and areas.json."""

import shutil
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8

from pipeline import paths, storage
from pipeline.evaluation import label_quality
from pipeline.evaluation.label_quality import Contradicted, Judged
from pipeline.images.classes import ClassSet
from pipeline.images.masks import load_made, save_mask

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("key", "sha256", "pixels", "quality", "suspected", "doubt")
AREAS_FILE = "areas.json"
AREAS = 5
"""Areas of one label that are kept, those of greatest doubt."""

Row = Mapping[str, Any]


def clear(round_name: str) -> None:
    """Make the folder of a round's suspects empty."""
    shutil.rmtree(paths.suspects(round_name), ignore_errors=True)
    paths.suspects(round_name).mkdir(parents=True)


def write(
    round_name: str,
    key: str,
    sha256: str,
    judged: Judged,
    found: Contradicted,
    size: tuple[int, int],
    classes: ClassSet,
) -> tuple[Row, list[Row]]:
    """Write the picture of one label's suspected areas; returns the label's row, and those of the areas.

    Args:
        round_name: that bought it.
        key: of the label.
        sha256: hash of its mask.
        judged: what the model says of it.
        found: the suspected pixels.
        size: height and width of the image, whose pixels the areas' boxes are in.
        classes: names for the ids.
    """
    areas = label_quality.areas(found)[:AREAS]
    save_mask(paths.suspected(round_name, key), label_quality.picture(areas, found.size))
    tall, wide = (own / seen for own, seen in zip(size, found.size, strict=True))
    rows: list[Row] = [
        {
            "given": classes.names[area.given],
            "claim": classes.names[area.claim],
            "pixels": len(area.place),
            "doubt": area.doubt,
            "top": round(area.top * tall),
            "left": round(area.left * wide),
            "bottom": round(area.bottom * tall),
            "right": round(area.right * wide),
        }
        for area in areas
    ]
    doubt = areas[0].doubt if areas else 0.0
    row: Row = {
        "key": key,
        "sha256": sha256,
        "pixels": judged.pixels,
        "quality": judged.quality,
        "suspected": len(found.place),
        "doubt": doubt,
    }
    return row, rows


def save(round_name: str, judged: Sequence[tuple[Row, list[Row]]]) -> None:
    """Write what `write` has returned of every label, the most suspect first."""
    import pandas as pd

    ordered = sorted(judged, key=lambda one: (one[0]["quality"], one[0]["key"]))
    storage.save_table(paths.quality(round_name), pd.DataFrame([row for row, _ in ordered]), COLUMNS)
    storage.save_json(paths.suspects(round_name) / AREAS_FILE, {row["key"]: areas for row, areas in ordered})


def load(round_name: str) -> "pd.DataFrame":
    """The labels that came back in a round, the most suspect first.

    Columns key, sha256 (of the mask that was judged), pixels (labelled ones), quality (softmin of self-confidence, by
    which they are ordered), suspected (pixels), and doubt of the greatest area. Pixels are those of the network's size.
    """
    return storage.load_table(paths.quality(round_name), COLUMNS, paths.maker("audit", round_name))


def load_areas(round_name: str) -> dict[str, list[Row]]:
    """By label, its suspected areas, greatest doubt first.

    Each has given and claim (its class by label and by model), pixels and doubt (at the network's size), and top, left,
    bottom and right of the box around it, in the image's own pixels.
    """
    found: dict[str, list[Row]] = storage.load_json(
        paths.suspects(round_name) / AREAS_FILE, paths.maker("audit", round_name)
    )
    return found


def load_picture(round_name: str, key: str) -> UInt8[np.ndarray, "h w"]:
    """The model's class in the suspected areas of a label, at the network's size; IGNORE elsewhere."""
    return load_made(paths.suspected(round_name, key), paths.maker("audit", round_name))
