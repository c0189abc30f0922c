"""Orders and deliveries: the append-only record of what people's time was spent on.

One JSON object per line. An order is written before it is sent, a delivery before it is used, so whatever dies in
between, the next run knows what is already paid for. The file is replaced whole (temporary name, fsync, rename): a
killed run leaves the old or the new ledger, never half a line.
"""

import datetime
import json
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from pipeline import artifacts, paths
from pipeline.errors import UserError


class Order(NamedTuple):
    """One image asked for."""

    round: str
    key: str
    annotator: str
    classes: str
    """Name of the class set that the labels are made in."""
    gain: float
    """Expected gain when it was ordered, in the acquisition's unit."""
    minutes: float
    """Predicted minutes."""
    probability: float
    """Probability with which it was drawn; makes later averages over bought images unbiased."""
    at: str
    """When, UTC."""


class Delivery(NamedTuple):
    """One mask that came back."""

    round: str
    key: str
    annotator: str
    minutes: float
    """Minutes that it took."""
    sha256: str
    """Hash of the mask file."""
    at: str
    """When, UTC."""


class Ledger(NamedTuple):
    """Everything ordered and delivered so far, oldest first."""

    orders: tuple[Order, ...]
    deliveries: tuple[Delivery, ...]

    def ordered(self, round_name: str) -> list[Order]:
        """What a round has ordered."""
        return [order for order in self.orders if order.round == round_name]

    def delivered(self, round_name: str) -> list[Delivery]:
        """What has come back of a round."""
        return [delivery for delivery in self.deliveries if delivery.round == round_name]


def now() -> str:
    """The time for `at`, UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


KINDS: dict[str, type[Order] | type[Delivery]] = {"order": Order, "delivery": Delivery}


def load() -> Ledger:
    """Read data/ledger.jsonl; no file means that nothing was ordered yet.

    Raises:
        UserError: a line is not a whole entry, an image was ordered twice, or came back without an order.
    """
    entries: list[Order | Delivery] = []
    text = paths.LEDGER.read_text(encoding="utf-8") if paths.LEDGER.is_file() else ""
    lines = text.removesuffix("\n").split("\n") if text else []  # splitlines() would also split at U+2028 in a key
    for number, line in enumerate(lines, start=1):
        try:
            fields = json.loads(line)
            entries.append(KINDS[fields.pop("event")](**fields))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(
                f"{paths.LEDGER}: line {number} is not an order or a delivery ({line[:60]!r}): "
                f"restore the file from git, or resolve the merge by keeping the lines of both sides"
            ) from None
    book = Ledger(
        tuple(entry for entry in entries if isinstance(entry, Order)),
        tuple(entry for entry in entries if isinstance(entry, Delivery)),
    )
    keys = [order.key for order in book.orders]
    if len(set(keys)) != len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise UserError(f"{paths.LEDGER}: {twice!r} was ordered twice: keep one of its order lines")
    rounds = {order.key: order.round for order in book.orders}
    for delivery in book.deliveries:
        if rounds.get(delivery.key) != delivery.round:
            raise UserError(f"{paths.LEDGER}: {delivery.key!r} was delivered in {delivery.round} but not ordered there")
    return book


def append(entries: Iterable[Order] | Iterable[Delivery]) -> None:
    """Add entries at the end, all or none of them."""
    old = paths.LEDGER.read_bytes() if paths.LEDGER.is_file() else b""
    if old and not old.endswith(b"\n"):  # an editor took it
        old += b"\n"
    names: dict[type, str] = {kind: name for name, kind in KINDS.items()}
    lines = [json.dumps({"event": names[type(e)], **e._asdict()}, ensure_ascii=False) + "\n" for e in entries]
    artifacts.write(paths.LEDGER, old + "".join(lines).encode())


def spent(orders: Sequence[Order], deliveries: Sequence[Delivery]) -> tuple[int, float]:
    """Images ordered, and their minutes: measured where delivered, predicted where not."""
    measured = {delivery.key: delivery.minutes for delivery in deliveries}
    return len(orders), float(sum(measured.get(order.key, order.minutes) for order in orders))
