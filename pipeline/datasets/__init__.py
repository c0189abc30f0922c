"""Datasets: where images and masks lie. One file and one line of `DATASETS` per layout."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from pipeline.datasets import camvid, cityscapes, files, folder, gta5, idd_lite
from pipeline.datasets.files import SUFFIXES, Layout, Listing, Sample, folders_in
from pipeline.errors import UserError, choose
from pipeline.images.classes import CLASS_SETS, ClassSet, id_table

__all__ = ["DATASETS", "Dataset", "Sample", "class_set", "find", "listing", "table"]


class Dataset(NamedTuple):
    """A layout of files."""

    layout: Layout
    """Where images and masks lie."""
    table: Callable[[Path, ClassSet], UInt8[np.ndarray, "256"]]
    """(root, class set) -> table from stored id to class id."""
    expects: str
    """Which files the layout has and where they come from, for error messages."""
    ids: str
    """Key of `classes.LAYOUTS` for the ids that its masks store; empty if a class list defines them."""


def _fixed(layout: str, root: Path, classes: ClassSet) -> UInt8[np.ndarray, "256"]:
    return id_table(layout, classes)


DATASETS: dict[str, Dataset] = {
    "gta5": Dataset(gta5.LAYOUT, partial(_fixed, "labelids"), gta5.EXPECTS, "labelids"),
    "cityscapes": Dataset(cityscapes.LAYOUT, partial(_fixed, "labelids"), cityscapes.EXPECTS, "labelids"),
    "camvid": Dataset(camvid.LAYOUT, partial(_fixed, "camvid"), camvid.EXPECTS, "camvid"),
    "idd_lite": Dataset(idd_lite.LAYOUT, partial(_fixed, "idd_lite"), idd_lite.EXPECTS, "idd_lite"),
    "folder": Dataset(folder.LAYOUT, folder.table, folder.EXPECTS, ""),
}


def find(dataset: str, root: Path, split: str) -> list[Sample]:
    """The samples of a data set, sorted by key.

    Raises:
        UserError: as `listing`.
    """
    return listing(dataset, root, split).samples


def listing(dataset: str, root: Path, split: str) -> Listing:
    """The samples of a data set, sorted by key, and the files that belong to none.

    Raises:
        UserError: the layout is not known, the root is missing, nothing is there, or files have names that clash.
    """
    member = choose("dataset", DATASETS, dataset)
    if not root.is_dir():
        raise UserError(f"{root} is no folder: put the {dataset} data there, which has {member.expects}")
    found = files.listing(root, member.layout, split)
    if not found.samples:
        here = ", ".join(folders_in(root)) or "no folders"
        passed = "; ".join(f"{len(paths)} files {reason} ({paths[0]})" for reason, paths in found.unused.items())
        raise UserError(
            f"no {dataset} images in {root} (split {split!r}): the layout is {member.expects}; "
            f"found there: {here}; images end in {' '.join(SUFFIXES)}{'; ' if passed else ''}{passed}"
        )
    return found


def table(dataset: str, root: Path, classes: ClassSet) -> UInt8[np.ndarray, "256"]:
    """Table for `reading.read_mask` from the ids that the masks under `root` store to class ids, IGNORE or UNKNOWN.

    Raises:
        UserError: the layout is not known, or its ids do not fit the class set.
    """
    return choose("dataset", DATASETS, dataset).table(root, classes)


def class_set(name_or_path: str) -> ClassSet:
    """The class set that `prepare.classes` means: one of `CLASS_SETS`, or the path of a class list ending in .csv.

    A list of the names of one of them, in their order, is that one.

    Raises:
        UserError: the name is not known, or the list is missing or not valid.
    """
    if name_or_path.lower().endswith(".csv"):
        listed = folder.class_set(Path(name_or_path))
        name = next((name for name, known in CLASS_SETS.items() if known.names == listed.names), listed.name)
        return listed._replace(name=name)
    if name_or_path not in CLASS_SETS:
        known = ", ".join(CLASS_SETS)
        raise UserError(
            f"unknown class set {name_or_path!r}: choose one of {known}, or the path of a class list (.csv)"
        )
    return CLASS_SETS[name_or_path]
