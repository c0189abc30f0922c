"""The oracle: a benchmark's labels in place of people's, at `annotate.oracle_minutes` an image, a block its share."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from pipeline import artifacts
from pipeline.annotators.contract import Answer, Request, Skipped
from pipeline.errors import UserError
from pipeline.images import blocks, reading
from pipeline.images.classes import IGNORE

if TYPE_CHECKING:
    import pandas as pd


def answers(request: Request) -> Iterator[Answer | Skipped]:
    """Answer every order with the mask from the pool's folder; images without one are skipped.

    Raises:
        UserError: nothing of the round has a mask that can be read there.
    """
    table = artifacts.load_ids("pool", request.classes)
    waiting = [order for order in request.orders if order.key not in request.known]
    reasons = refused([order.key for order in waiting], request.pool, table)
    if reasons and len(reasons) == len(request.orders):  # all of them: perhaps the disk is not mounted
        raise UserError(next(iter(reasons.values())))
    for order in waiting:
        if order.key in reasons:
            print(f"{request.round_name}: {reasons[order.key]}")
            yield Skipped(order.key, 0.0, "oracle", "refused")
        else:
            mask = known_label(order.key, request.pool, table)
            minutes = request.annotate.oracle_minutes * blocks.share(order.key)
            yield Answer(order.key, mask, minutes, "oracle")


def refused(keys: Iterable[str], pool: "pd.DataFrame", table: UInt8[np.ndarray, "256"]) -> dict[str, str]:
    """By key, why the oracle cannot deliver a label, for those that it cannot deliver.

    Args:
        keys: of images or blocks.
        pool: as in a request.
        table: from the ids that the pool's masks store to class ids.
    """
    reasons = {}
    for key in keys:
        try:
            mask = known_label(key, pool, table)
        except UserError as error:
            reasons[key] = str(error)
            continue
        height, width = int(pool.at[key, "height"]), int(pool.at[key, "width"])
        if mask.shape != (height, width):
            reasons[key] = f"the mask of {key!r} is {mask.shape[0]}x{mask.shape[1]}, its image {height}x{width}"
        elif (mask == IGNORE).all():
            reasons[key] = f"no pixel of the mask of {key!r} is of a class"
    return reasons


def known_label(key: str, pool: "pd.DataFrame", table: UInt8[np.ndarray, "256"]) -> UInt8[np.ndarray, "h w"]:
    """Class ids and IGNORE of a pool image, or of a block of one.

    Args:
        key: of the image or block.
        pool: the manifest, indexed by key.
        table: from the ids that the pool's masks store to class ids.

    Raises:
        UserError: the image has no mask, or, for a block, one of another size.
    """
    image = pool.loc[blocks.image_of(key)]
    mask = image["mask"]
    if not mask:
        raise UserError(
            f"the oracle has no label for {key!r}: {image['image']} has no mask; "
            f"let people label it (annotate.annotator: label_studio)"
        )
    whole = reading.read_mask(Path(mask), table)
    if blocks.parse(key) is None:
        return whole
    size = (int(image["height"]), int(image["width"]))
    if whole.shape != size:  # for a whole image, `annotate` itself checks the size
        raise UserError(
            f"the mask {mask} is {whole.shape[0]}x{whole.shape[1]}, its image {size[0]}x{size[1]} (height x width), so "
            f"the oracle cannot cut {key!r} out: mend it, or take the image out of the pool"
        )
    return blocks.crop(whole, key)
