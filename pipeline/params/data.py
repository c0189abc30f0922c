"""The section `prepare`: what the loop runs on."""

from pathlib import Path
from typing import Literal, NamedTuple

from pipeline.params.section import Count, Section, Seed

DatasetName = Literal["gta5", "cityscapes", "camvid", "idd_lite", "folder"]


class Data(Section):
    """Where a set of images lies and in which layout."""

    dataset: DatasetName
    """Layout: gta5, cityscapes, camvid, idd_lite or folder."""
    root: str
    """Folder, relative to the working directory or absolute."""
    split: str = "train"
    """Which part of the layout; layouts without splits ignore it."""


class Town(Section):
    """The rendered demo town: how much of it to draw."""

    source: Count
    """Images of the game look, in the GTA5 layout."""
    pool: Count
    """Images of the camera look to buy from, in the Cityscapes layout (train)."""
    test: Count
    """Images of the camera look to measure on, in the Cityscapes layout (val)."""
    size: tuple[Count, Count]
    """Height and width of every image, pixels."""
    seed: Seed
    """Another seed is another town."""


class Prepare(Section):
    """What the loop runs on."""

    classes: str
    """Class set: cityscapes19, camvid11, idd7, or the path of a class list (CSV: id, name, red, green, blue)."""
    source: Data
    """Labelled synthetic images."""
    pool: Data
    """Unlabelled target images that may be bought. Masks found here are read by the oracle annotator only."""
    test: Data
    """Labelled target images, for measuring only."""
    size_mismatch: Literal["error", "skip"] = "error"
    """What to do with an image whose mask has another size (GTA5 has some)."""
    town: Town | None = None
    """Draws the demo town into data/town first; leave out with real data."""


class Roots(NamedTuple):
    """The folders of the data on this machine; the manifests' paths begin there."""

    source: Path
    pool: Path
    test: Path


SPLITS = ("source", "pool", "test")
