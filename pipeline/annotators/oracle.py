"""The known labels of a benchmark, in place of people: every image takes `annotate.oracle_minutes`."""

from collections.abc import Iterator
from pathlib import Path

from pipeline import datasets
from pipeline.annotators.contract import Answer, Request
from pipeline.errors import UserError


def oracle(request: Request) -> Iterator[Answer]:
    """Every ordered image's own mask, read from the pool's folder.

    Raises:
        UserError: an image has no mask there.
    """
    pool = request.prepare.pool
    table = datasets.table(pool.dataset, Path(pool.root), datasets.class_set(request.prepare.classes))
    for order in request.orders:
        mask = request.pool.at[order.key, "mask"]
        if not mask:
            raise UserError(
                f"the oracle has no label for {order.key!r}: its image in {pool.root} has no mask; "
                f"set annotate.annotator to people"
            )
        yield Answer(order.key, datasets.read_mask(Path(mask), table), request.annotate.oracle_minutes)
