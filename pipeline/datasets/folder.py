"""Your own images: images/NAME.*, masks/NAME.png and classes.csv (id,name[,red,green,blue]); it has no splits.

Masks may be absent; where none is, so may the class list. The ids of the masks are those of classes.csv; they become
the class set's by name. The names in `VOID` are IGNORE.
"""

import colorsys
import csv
import io
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from pipeline import storage
from pipeline.datasets.files import Layout
from pipeline.errors import UserError
from pipeline.images.classes import IGNORE, UNKNOWN, ClassSet

EXPECTS = "images/NAME.png (or .jpg, .webp, ...), masks/NAME.png and classes.csv with the columns id,name"
LAYOUT = Layout("images", "masks")
VOID = ("ignore", "void", "unlabelled", "unlabeled")
"""Names in classes.csv, in small or capital letters, of pixels that count for nothing."""
VARIABLE = re.compile(r"\$\w")
"""Not allowed in a class name: Label Studio's editor replaces it by a value of the task, or by nothing."""
_COLOURS = ("red", "green", "blue")


class Entry(NamedTuple):
    """One line of a class list."""

    id: int
    name: str
    colour: tuple[int, int, int] | None


def table(root: Path, classes: ClassSet) -> UInt8[np.ndarray, "256"]:
    """Table from the ids of root/classes.csv to class ids, by name.

    Raises:
        UserError: there is no valid classes.csv, or a name in it is no class of the set.
    """
    path = root / "classes.csv"
    result = np.full(256, UNKNOWN, np.uint8)
    result[IGNORE] = IGNORE
    for entry in read_classes(path):
        if entry.name in classes.names:
            result[entry.id] = classes.names.index(entry.name)
        elif entry.name.lower() in VOID:
            result[entry.id] = IGNORE
        else:
            raise UserError(
                f"{path}: {entry.name!r} is no class of {classes.name}: rename it to one of "
                f"{', '.join(classes.names)}, or to `ignore`"
            )
    return result


def class_set(path: Path) -> ClassSet:
    """The class set that a class list makes, in the order of its ids, without the names in `VOID`.

    Raises:
        UserError: the list is missing or not valid, or has no class.
    """
    entries = [e for e in sorted(read_classes(path), key=lambda e: e.id) if e.name.lower() not in VOID]
    if not entries:
        raise UserError(f"{path} lists no class: write one line `id,name` for each")
    colours = tuple(e.colour or _distinct_colour(i) for i, e in enumerate(entries))
    return ClassSet(path.as_posix(), tuple(e.name for e in entries), colours)


def read_classes(path: Path) -> list[Entry]:
    """The lines of a class list.

    Raises:
        UserError: the file is missing, lacks a column, or has a line that is not valid or stands twice.
    """
    if not path.is_file():
        raise UserError(f"the class list {path} is missing: write a CSV with the columns id,name[,red,green,blue]")
    try:
        rows = list(csv.DictReader(io.StringIO(storage.read_bytes(path).decode("utf-8-sig")), skipinitialspace=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"the class list {path} is no CSV in UTF-8: {error}") from None
    entries: list[Entry] = []
    for line, row in enumerate(rows, start=2):
        entry = _entry(row, f"{path} line {line}")
        for other in entries:
            if entry.id == other.id or entry.name.lower() == other.name.lower() not in VOID:
                raise UserError(f"{path} line {line}: {entry.id},{entry.name} and {other.id},{other.name} clash")
        entries.append(entry)
    return entries


def _entry(row: dict[str, str], where: str) -> Entry:
    number, name = (row.get("id") or "").strip(), (row.get("name") or "").strip()
    if not name or not number.isdecimal() or int(number) > IGNORE:
        raise UserError(f"{where}: id is {number!r} and name is {name!r}: write the header id,name and an id of 0-255")
    if VARIABLE.search(name):
        raise UserError(
            f"{where}: Label Studio would show something else for the name {name!r}, as it reads $ before a letter or "
            f"number as the name of a column: put a space between them"
        )
    if int(number) == IGNORE and name.lower() not in VOID:
        raise UserError(f"{where}: the id {IGNORE} means `ignore`: give {name!r} another id")
    parts = [(row.get(column) or "").strip() for column in _COLOURS]
    if not any(parts):
        return Entry(int(number), name, None)
    if not all(part.isdecimal() and int(part) <= 255 for part in parts):
        raise UserError(f"{where}: the colour {','.join(parts)!r} of {name!r} is not three numbers of 0-255")
    red, green, blue = map(int, parts)
    return Entry(int(number), name, (red, green, blue))


def _distinct_colour(number: int) -> tuple[int, int, int]:
    # hues a golden angle apart: every new one falls into the largest gap that is left
    red, green, blue = colorsys.hsv_to_rgb(number * 0.618034 % 1, 0.75, 0.9 - 0.2 * (number // 8 % 3))
    return round(255 * red), round(255 * green), round(255 * blue)
