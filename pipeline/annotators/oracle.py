"""The known labels of a benchmark, in place of people. An image takes `annotate.oracle_minutes`, a block its share."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import UInt8

from pipeline import artifacts, blocks, datasets
from pipeline.annotators.contract import Answer, Request
from pipeline.errors import UserError


def answers(request: Request) -> Iterator[Answer]:
    """The own mask of everything that is ordered, read from the pool's folder.

    Raises:
        UserError: an image has no mask there.
    """
    table = artifacts.load_ids("pool", request.classes)
    for order in request.orders:
        if order.key not in request.known:
            mask = known_label(order.key, request.pool, table)
            minutes = request.annotate.oracle_minutes * blocks.share(order.key)
            yield Answer(order.key, mask, minutes, "oracle")


def known_label(key: str, pool: pd.DataFrame, table: UInt8[np.ndarray, "256"]) -> UInt8[np.ndarray, "h w"]:
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
    whole = datasets.read_mask(Path(mask), table)
    if blocks.parse(key) is None:
        return whole
    size = (int(image["height"]), int(image["width"]))
    if whole.shape != size:  # of a whole image, whoever takes the label sees that
        raise UserError(
            f"the mask {mask} is {whole.shape[0]}x{whole.shape[1]}, its image {size[0]}x{size[1]} (height x width), so "
            f"the oracle cannot cut {key!r} out: mend it, or take the image out of the pool"
        )
    return blocks.crop(whole, key)
