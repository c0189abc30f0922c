"""Blocks: an image cut into a grid of rows and columns, each a task of its own to choose, label and pay for.

A label has one key: that of its image or, of a block, IMAGE@2x2-0-1, the grid (rows x columns), then row and column
from 0. Whoever has a key knows what it means, in the ledger, in a file name or in Label Studio, without any parameter.

    box of row i: from round(i height / rows) to round((i + 1) height / rows), of columns alike, in the label's pixels

Blocks tile the image. Everything that is kept of a block (label, prediction, picture) is its crop, a small image; only
those who learn or measure paste it back, into IGNORE.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Shaped, UInt8

from pipeline.errors import UserError
from pipeline.images.classes import IGNORE

Grid = tuple[int, int]
"""Rows and columns that an image is cut into."""
Unit = Grid | Literal["image", "region"]
"""What a key is of: a block of a grid, a whole image, or some regions of one."""

_REGIONS = "@regions-"
"""Between an image's key and the round that asks about some of its regions."""
_KEY = re.compile(r"(.+)@([1-9]\d*)x([1-9]\d*)-(0|[1-9]\d*)-(0|[1-9]\d*)", re.DOTALL | re.ASCII)


class Box(NamedTuple):
    """Where a block is, in pixels; bottom and right lie just outside."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.bottom - self.top, self.right - self.left


class Block(NamedTuple):
    """One block of one image."""

    image: str
    """Key of the image."""
    grid: Grid
    row: int
    col: int

    def box(self, size: tuple[int, int]) -> Box:
        """Where it is in an image of this height and width."""
        rows, cols = (cuts(number, length) for number, length in zip(self.grid, size, strict=True))
        return Box(rows[self.row], cols[self.col], rows[self.row + 1], cols[self.col + 1])


def cuts(number: int, length: int) -> list[int]:
    """Where `length` pixels are cut into `number` parts, both ends included.

    >>> cuts(3, 10)
    [0, 3, 7, 10]
    """
    return [round(place * length / number) for place in range(number + 1)]


def parse(key: str) -> Block | None:
    """The block that a key means; None if it is that of a whole image.

    >>> parse("aachen_000001@2x2-0-1")
    Block(image='aachen_000001', grid=(2, 2), row=0, col=1)
    """
    found = _KEY.fullmatch(key)
    if found is None:
        return None
    rows, cols, row, col = map(int, found.groups()[1:])
    return Block(found[1], (rows, cols), row, col) if row < rows and col < cols else None


def keys(image: str, grid: Grid | None) -> list[str]:
    """The keys of all blocks of an image, row by row; without a grid its own.

    >>> keys("a", (1, 2)), keys("a", None)
    (['a@1x2-0-0', 'a@1x2-0-1'], ['a'])
    """
    if grid is None:
        return [image]
    rows, cols = grid
    return [f"{image}@{rows}x{cols}-{row}-{col}" for row in range(rows) for col in range(cols)]


def key_of_regions(image: str, round_name: str) -> str:
    """The key of what a round asks about some regions of an image.

    >>> key_of_regions("aachen_000001", "r01")
    'aachen_000001@regions-r01'
    """
    return f"{image}{_REGIONS}{round_name}"


def is_of_regions(key: str) -> bool:
    """Whether the key is of some regions of an image."""
    return _REGIONS in key


def listed(regions: Iterable[int]) -> str:
    """Regions of one image as a selection has them.

    >>> listed([3, 17]), numbers("3 17"), numbers("")
    ('3 17', (3, 17), ())
    """
    return " ".join(map(str, regions))


def numbers(text: str) -> tuple[int, ...]:
    """The regions that a selection lists.

    Raises:
        ValueError: it lists something else.
    """
    if not re.fullmatch(r"(\d+( \d+)*)?", text, re.ASCII):
        raise ValueError(f"{text!r} is no list of regions")
    return tuple(map(int, text.split()))


def image_of(key: str) -> str:
    """The key of the image that a label is of.

    >>> image_of("a"), image_of("a@2x2-0-1"), image_of("a@regions-r01")
    ('a', 'a', 'a')
    """
    block = parse(key)
    return key.partition(_REGIONS)[0] if block is None else block.image


def grid_of(key: str) -> Grid | None:
    """The grid that the key's image is cut into; None if it is whole."""
    block = parse(key)
    return None if block is None else block.grid


def unit_of(key: str) -> Unit:
    """What the key is of."""
    return grid_of(key) or ("region" if is_of_regions(key) else "image")


def share(key: str) -> float:
    """How much of an image a label covers, in (0, 1]; the pixel by which blocks may differ is left out.

    What is asked about some regions counts as the image, which has to be opened for it: their pixels are in no key.
    """
    rows, cols = grid_of(key) or (1, 1)
    return 1 / (rows * cols)


def counted(units: Sequence[str], regions: int | None = None) -> str:
    """How many there are, in words: images, blocks, or images of which some regions (so many in all) are asked about.

    >>> counted(["a", "b"]), counted(["a@2x2-0-1"]), counted(["a@regions-r01", "b@regions-r01"], 60)
    ('2 images', '1 block', '60 regions of 2 images')
    """
    if units and is_of_regions(units[0]):
        images = len(set(map(image_of, units)))
        several = "" if regions is None else f"{regions} "
        return f"{several}region{'' if regions == 1 else 's'} of {images} image{'' if images == 1 else 's'}"
    return f"{len(units)} {'block' if units and parse(units[0]) else 'image'}{'' if len(units) == 1 else 's'}"


def crop(picture: Shaped[np.ndarray, "h w ..."], key: str) -> Shaped[np.ndarray, "h2 w2 ..."]:
    """What a picture of the whole image shows of a label's place: all of it, or the block."""
    block = parse(key)
    if block is None:
        return picture
    top, left, bottom, right = block.box((picture.shape[0], picture.shape[1]))
    part: np.ndarray = np.ascontiguousarray(picture[top:bottom, left:right])
    return part


def paste(crops: Iterable[tuple[str, UInt8[np.ndarray, "_ _"]]], size: tuple[int, int]) -> UInt8[np.ndarray, "h w"]:
    """The mask of a whole image, out of those of its blocks; IGNORE where there is none.

    Args:
        crops: key and mask of each. That of some regions is of the whole image, and what it labels stands over what
            comes before it.
        size: height and width of the image.

    Raises:
        UserError: a mask is not of its block's size.
    """
    whole = np.full(size, IGNORE, np.uint8)
    for key, mask in crops:
        block = parse(key)
        box = Box(0, 0, *size) if block is None else block.box(size)
        if mask.shape != box.size:
            raise UserError(
                f"the label of {key!r} is {mask.shape[0]}x{mask.shape[1]}, its part of the image {box.size[0]}x"
                f"{box.size[1]} (height x width): was the image changed since? Put it back, then `dvc repro`"
            )
        part = whole[box.top : box.bottom, box.left : box.right]
        part[...] = np.where(mask == IGNORE, part, mask) if is_of_regions(key) else mask
    return whole


def check_image_keys(images: Iterable[str]) -> None:
    """See that no image is called like a block, or like some regions, of another.

    Raises:
        UserError: one is.
    """
    for key in images:
        if unit_of(key) != "image":
            what = "regions" if parse(key) is None else "a block"
            raise UserError(
                f"the image {key!r} of the pool is called like {what} of {image_of(key)!r}: rename its files"
            )


def check_unit(unit: Unit | None, ordered: Sequence[str], ledger: str) -> None:
    """See that what is scored is what was bought so far: blocks of one grid, images, or regions.

    Args:
        unit: of what is to be bought next; None for images, be it as a whole or by regions.
        ordered: keys of everything that was ordered.
        ledger: the name of the file that says so.

    Raises:
        UserError: it is not, and an image would be paid for twice.
    """
    for key in ordered:
        before = unit_of(key)
        if before != unit and (unit is not None or isinstance(before, tuple)):
            raise UserError(
                f"score.unit is {_unit(unit)}, but {ledger} has {key!r} ordered, and its unit is {_unit(before)}: set "
                f"score.unit back to {_unit(before)}, or start a new project for {_unit(unit)}"
            )


def _unit(unit: Unit | None) -> str:
    return f"block with score.blocks [{unit[0]}, {unit[1]}]" if isinstance(unit, tuple) else unit or "image"
