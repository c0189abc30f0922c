"""`python -m pipeline remove KEY`: takes an image that was bought out of the pool, say for privacy.

What was paid for it stays paid. Its label stays in data/labels, where older commits find it, and is no longer trained
on: the rounds from the one that bought it on are made anew without it, and nothing is bought in its place.
"""

from collections.abc import Sequence

from pipeline import ledger, paths
from pipeline.errors import UserError
from pipeline.images import blocks
from pipeline.ledger.entries import Removal


def run(keys: Sequence[str]) -> None:
    """Write to the ledger that these images, and all blocks of them, are no longer used.

    Raises:
        UserError: one of them was not bought.
    """
    book = ledger.load()
    gone = []
    for key in keys:
        orders = [order for order in book.orders if key in (order.key, blocks.image_of(order.key))]
        if not orders:
            raise UserError(f"{key!r} is not bought, or removed already: simply take its file out of the pool")
        gone += orders
    ledger.append(Removal(order.round, order.key, ledger.now()) for order in gone)
    for name in sorted({order.round for order in gone}):
        paths.selection(name).unlink(missing_ok=True)  # so that DVC makes the round anew
    print(
        f"{blocks.counted([order.key for order in gone])} no longer used: take the files out of the pool, then run "
        f"`dvc repro -f prepare` and `dvc repro`; their labels stay in {paths.LABELS}"
    )
