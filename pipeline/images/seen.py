"""Blocks of an image in the pixels of the network's input, which has another size than the image."""

from functools import lru_cache
from itertools import pairwise

import numpy as np
from jaxtyping import Float

from pipeline.errors import UserError
from pipeline.images import blocks, resizing
from pipeline.images.blocks import Box, Grid


def seen_boxes(grid: Grid, size: tuple[int, int], seen: tuple[int, int]) -> list[Box]:
    """The boxes of an image's blocks at the network's size, such that each pixel is in the block its label comes from.

    Args:
        grid: rows and columns of the blocks.
        size: height and width of the image.
        seen: height and width at which the network works.

    Raises:
        UserError: a block has no pixel.
    """
    rows, cols = (_seen_cuts(*axis) for axis in zip(grid, size, seen, (False, True), strict=True))
    if min(*np.diff(rows), *np.diff(cols)) < 1:
        raise UserError(
            f"score.blocks is [{grid[0]}, {grid[1]}], but an image of {size[0]}x{size[1]}, which the network sees at "
            f"{seen[0]}x{seen[1]} (height x width), has too few pixels for that: cut it into fewer"
        )
    corners = ((top, bottom, left, right) for top, bottom in pairwise(rows) for left, right in pairwise(cols))
    return [Box(top, left, bottom, right) for top, bottom, left, right in corners]


def seen_crop(seen: Float[np.ndarray, "h w"], key: str, size: tuple[int, int]) -> Float[np.ndarray, "h2 w2"]:
    """Crop a map at the network's size to the block of `key` (all of it for a whole image); `size` is the image's."""
    block = blocks.parse(key)
    if block is None:
        return seen
    box = seen_boxes(block.grid, size, (seen.shape[0], seen.shape[1]))[block.row * block.grid[1] + block.col]
    part: np.ndarray = seen[box.top : box.bottom, box.left : box.right]
    return part


@lru_cache
def _seen_cuts(number: int, length: int, seen: int, across: bool) -> list[int]:
    part = np.repeat(np.arange(number, dtype=np.uint8), np.diff(blocks.cuts(number, length)))
    line = resizing.resize_mask(part[None], (1, seen)) if across else resizing.resize_mask(part[:, None], (seen, 1))
    cuts: list[int] = np.searchsorted(line.flatten(), np.arange(number + 1)).tolist()
    return cuts
