"""The known labels of a benchmark, in place of people: every image takes `annotate.oracle_minutes`."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import UInt8

from pipeline import datasets
from pipeline.annotators.contract import Answer, Request
from pipeline.errors import UserError
from pipeline.params import Prepare


def answers(request: Request) -> Iterator[Answer]:
    """Every ordered image's own mask, read from the pool's folder.

    Raises:
        UserError: an image has no mask there.
    """
    for order in request.orders:
        if order.key not in request.known:
            mask = known_label(order.key, request.pool, request.prepare)
            yield Answer(order.key, mask, request.annotate.oracle_minutes, "oracle")


def known_label(key: str, pool: pd.DataFrame, prepare: Prepare) -> UInt8[np.ndarray, "h w"]:
    """Class ids and IGNORE of a pool image; `pool` is its manifest, indexed by key.

    Raises:
        UserError: the image has no mask.
    """
    mask, root = pool.at[key, "mask"], Path(prepare.pool.root)
    if not mask:
        raise UserError(
            f"the oracle has no label for {key!r}: its image in {root} has no mask; "
            f"let people label it (annotate.annotator: label_studio)"
        )
    return datasets.read_mask(
        Path(mask), datasets.table(prepare.pool.dataset, root, datasets.class_set(prepare.classes))
    )
