"""Items: one image of a data set and the files of its labels, if it has any; made from manifests and bought labels."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import UInt8

from pipeline import paths
from pipeline.errors import UserError
from pipeline.images import blocks, reading
from pipeline.images.classes import IGNORE, UNKNOWN
from pipeline.images.masks import load_mask

if TYPE_CHECKING:
    import pandas as pd


class Item(NamedTuple):
    """Paths of an image and of its mask, if it has one, or of the masks of some of its blocks or regions."""

    key: str
    image: Path
    mask: Path | None
    table: UInt8[np.ndarray, "256"]
    """The mask's native ids -> class ids."""
    blocks: tuple[tuple[str, Path], ...] = ()
    """In the place of one mask, key and mask of each of some blocks, or of what rounds asked about some regions, oldest
    first; the rest is IGNORE."""
    sha256: str = ""
    """Hash that the image file has to have; empty: any."""
    mask_sha256: str = ""
    """The same of the mask file."""

    @property
    def masks(self) -> list[Path]:
        """All files that its labels lie in."""
        return [path for _, path in self.blocks] if self.mask is None else [self.mask]

    def read_mask(self, size: tuple[int, int]) -> UInt8[np.ndarray, "h w"] | None:
        """The labels as class ids and IGNORE; None if it has none. `size` is height and width of its image.

        Raises:
            UserError: a file is damaged, or that of a block or of regions has not its size.
        """
        if self.mask is not None:
            return reading.read_mask(self.mask, self.table, self.mask_sha256)
        crops = [(key, reading.read_mask(path, self.table)) for key, path in self.blocks]
        return blocks.paste(crops, size) if crops else None


def items_of(frame: "pd.DataFrame", table: UInt8[np.ndarray, "256"]) -> list[Item]:
    """An item for each row of a manifest, in its order."""
    return [
        Item(r.key, Path(r.image), Path(r.mask) if r.mask else None, table, (), r.sha256, r.mask_sha256)
        for r in frame.itertuples()
    ]


def labelled_items(keys: Iterable[str], pool: "pd.DataFrame", classes: int) -> list[Item]:
    """An item for each delivered label, of a whole image, a block or some regions.

    Args:
        keys: of the labels.
        pool: its manifest, by image key.
        classes: how many there are.

    Raises:
        UserError: the image of a label is not in the pool.
    """
    table = id_table_of_labels(classes)
    found = []
    for key in keys:
        name, whole = blocks.image_of(key), blocks.unit_of(key) == "image"
        if name not in pool.index:
            raise UserError(
                f"{key!r} is labelled, but its image is not in the pool: put it back into prepare.pool, then run "
                "`dvc repro -f prepare` and `dvc repro`, or, if it has to stay out, `python -m pipeline remove KEY`"
            )
        image, parts = pool.loc[name], () if whole else ((key, paths.mask(key)),)
        mask = paths.mask(key) if whole else None
        found.append(Item(key, Path(str(image["image"])), mask, table, parts, str(image["sha256"])))
    return found


def by_image(items: Iterable[Item]) -> list[Item]:
    """One item per image: items of blocks or regions of the same image are merged into one.

    Where the labels of two rounds overlap, since people painted beyond the regions asked about, the later item counts.
    """
    merged: dict[str, Item] = {}
    for item in items:
        key = blocks.image_of(item.key)
        parts = merged[key].blocks if key in merged else ()
        merged[key] = item._replace(key=key, blocks=parts + item.blocks)
    return list(merged.values())


def with_labels(items: Iterable[Item]) -> list[Item]:
    """Those of delivered labels that have a labelled pixel: all regions of an image may have been *mixed*."""
    return [item for item in items if any((load_mask(path) != IGNORE).any() for path in item.masks)]


def id_table_of_labels(classes: int) -> UInt8[np.ndarray, "256"]:
    """The identity table, for delivered masks, which hold class ids already."""
    table = np.full(256, UNKNOWN, np.uint8)
    table[:classes] = np.arange(classes)
    table[IGNORE] = IGNORE
    return table
