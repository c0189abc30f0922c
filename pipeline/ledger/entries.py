"""The ledger's entries, and what they say together: bought, delivered, skipped, spent."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from pipeline import paths
from pipeline.images import blocks

ABSURD = 5.0
"""A time of more than so many times the usual is held back: a tab was left open. If the logarithm of people's times has
a standard deviation of 0.5 (as in rehearsals), one honest time in 1500 is held back; if of 0.8, one in 45."""
FASTEST = 0.01
"""Lower bound of the pace (measured over predicted minutes) that is used to extrapolate."""

Paid = tuple[str, int | None]
"""What is paid for once: what has a key (key, None), and a region of an image (image, region)."""


class Order(NamedTuple):
    """One image asked for."""

    round: str
    key: str
    annotator: str
    classes: str
    """Name of the class set that the labels are made in; what counts is `class_names`."""
    gain: float
    """Expected gain when it was ordered, in the acquisition's unit."""
    minutes: float
    """Predicted minutes."""
    probability: float
    """Probability with which it was drawn; makes later averages over bought images unbiased."""
    at: str
    """When, UTC."""
    method: str = ""
    """The selection method that chose it; empty in a ledger of before this was on record."""
    class_names: tuple[str, ...] = ()
    """The classes in the order of their ids in the mask; empty in a ledger of before this was on record."""
    image: str = ""
    """Hash of the image file as it was ordered; empty in a ledger of before this was on record."""
    regions: tuple[int, ...] = ()
    """Of a key IMAGE@regions-ROUND, the regions of the image's map that are asked about; empty for other units."""
    region_map: str = ""
    """Hash of that map's file as it was ordered."""

    @property
    def asked(self) -> tuple[Paid, ...]:
        """All that this order pays for."""
        return (self.key, None), *((blocks.image_of(self.key), region) for region in self.regions)


class Delivery(NamedTuple):
    """One mask that came back."""

    round: str
    key: str
    annotator: str
    """Who made it."""
    minutes: float
    """Minutes that it took."""
    sha256: str
    """Hash of the mask file."""
    at: str
    """When, UTC."""
    changed: int | None = None
    """Pixels in which it differs from the prediction that was sent along; None if none was."""
    agreement: float | None = None
    """Share of pixels on which several annotators agree; None if there was one."""
    version: str = ""
    """Which annotation it was made from, in which state: another version is a correction."""


class Skip(NamedTuple):
    """One image that an annotator would not label: its order is withdrawn, the image returns to the pool."""

    round: str
    key: str
    annotator: str
    """Who skipped it."""
    minutes: float
    """Minutes that this took."""
    at: str
    """When, UTC."""
    version: str = ""
    """Which annotation says so, in which state."""


class Removal(NamedTuple):
    """One image that was bought has to stay out of the pool: what was paid stays paid, its label is not used."""

    round: str
    key: str
    at: str
    """When, UTC."""


class Double(NamedTuple):
    """One image that two branches bought: of this purchase only the minutes count, the other one's label is used.

    `python -m pipeline join` writes it in place of the purchase's order and deliveries, which stay in git's history.
    """

    round: str
    key: str
    annotator: str
    """Who made the label that is not used, or who was to make it."""
    minutes: float
    """Minutes that it took; 0 if it had not come back."""
    sha256: str
    """Hash of that label's file, which stays in DVC's cache; empty if it had not come back."""
    at: str
    """When it came back, or was ordered, UTC."""


Entry = Order | Delivery | Skip | Removal | Double


class HeldBackTime(NamedTuple):
    """A measured time that is not counted, since nobody works so long over one image."""

    key: str
    annotator: str
    minutes: float
    """As measured."""
    counted: float
    """Counted instead: the minutes that were expected."""


class Spending(NamedTuple):
    """The cost of a round in minutes of annotators' time, and what is still to come back."""

    images: int
    """Images ordered."""
    labelled: int
    """Of them, how many have come back."""
    waiting: int
    """Of them, how many are still to come back; removed ones are not."""
    measured: float
    """Minutes that the labelled ones took, as counted."""
    skipped: float
    """Minutes lost on images that were skipped, as counted."""
    doubled: float
    """Minutes of labels that another branch had bought, too."""
    out: float
    """Minutes expected for what has not come back."""
    pace: float
    """Measured over predicted minutes of this round; 1 until something has come back."""
    counted: dict[str, float]
    """By key, the minutes counted for each label."""
    held_back: tuple[HeldBackTime, ...]
    """Times that are not counted."""

    @property
    def minutes(self) -> float:
        """What the round has spent of its budget line: minutes counted, and those expected for what is still out."""
        return self.measured + self.skipped + self.doubled + self.out


class Ledger(NamedTuple):
    """All entries so far, oldest first, and what follows from them."""

    entries: tuple[Entry, ...] = ()

    @property
    def deliveries(self) -> list[Delivery]:
        """All masks that came back."""
        return [entry for entry in self.entries if isinstance(entry, Delivery)]

    @property
    def orders(self) -> list[Order]:
        """All orders that are not withdrawn."""
        return [order for order, stands in self._orders() if stands]

    @property
    def withdrawn(self) -> list[Order]:
        """The orders whose image was skipped. A label that is made of it all the same reinstates the order."""
        return [order for order, stands in self._orders() if not stands]

    def _orders(self) -> list[tuple[Order, bool]]:
        here = {(entry.round, entry.key) for entry in self.deliveries}  # delivered stays, even if skipped on a branch
        stands: dict[tuple[str, str], tuple[Order, bool]] = {}
        removed = self.removed
        for entry in self.entries:
            place = (entry.round, entry.key)
            if entry.key in removed:
                continue
            if isinstance(entry, Order):
                stands[place] = (entry, True)
            elif isinstance(entry, Delivery | Skip):
                stands[place] = (stands[place][0], place in here)
        return list(stands.values())

    @property
    def taken(self) -> dict[Paid, str]:
        """The round of all that may not be ordered again, as what was skipped may; also of what was removed."""
        return {paid: place[0] for paid, place in _taken(self.entries)[0].items()}

    @property
    def removed(self) -> set[str]:
        """Keys of what was bought and has to stay out of the pool: paid for, but no longer counted as ordered."""
        return {entry.key for entry in self.entries if isinstance(entry, Removal)}

    def ordered(self, round_name: str) -> list[Order]:
        """The orders of a round, without those of skipped images."""
        return [order for order in self.orders if order.round == round_name]

    def replaced(self, table: Sequence[str]) -> tuple[str, str] | None:
        """A round that has bought but is not in the budget table, and the first of the table that stands in its place.

        A table that only lacks its last rounds replaces none of them.
        """
        bought = list(dict.fromkeys(entry.round for entry in self.entries))
        gone = [name for name in bought if name not in table]
        new = [name for name in table if name not in bought]
        return (gone[0], new[0]) if gone and new else None

    def delivered(self, round_name: str) -> list[Delivery]:
        """The deliveries of a round."""
        removed = self.removed
        return [one for one in self.deliveries if one.round == round_name and one.key not in removed]

    def skipped(self, round_name: str) -> list[Skip]:
        """The skips of a round."""
        return [entry for entry in self.entries if isinstance(entry, Skip) and entry.round == round_name]

    def doubled(self, round_name: str) -> list[Double]:
        """The purchases of a round that another branch had made, too."""
        return [entry for entry in self.entries if isinstance(entry, Double) and entry.round == round_name]

    def spent(self, round_name: str, more: Sequence[Order] = ()) -> tuple[int, float]:
        """Images of a round, with `more` orders, and its minutes: counted where delivered, expected where not."""
        spending = self.spending(round_name, more)
        return spending.images, spending.minutes

    def spending(self, round_name: str, more: Sequence[Order] = ()) -> Spending:
        """What a round has cost, with `more` orders.

        An annotator's clock runs while a tab is open. So a time of more than ABSURD times the usual is held back: the
        image counts with the minutes expected for it. Usual is the (lower) median of measured over predicted minutes of
        the round, with the prediction itself as one more measurement: so one idle tab cannot set the scale while little
        has come back, and a prediction that is far off does so for two images at most. The minutes of skipped images
        are spent, too.
        """
        removed = self.removed
        gone = {e.key: e for e in self.entries if isinstance(e, Order) and e.round == round_name and e.key in removed}
        orders = [*self.ordered(round_name), *gone.values(), *more]
        predicted = {order.key: order.minutes for order in [*orders, *self.withdrawn] if order.round == round_name}
        latest = {delivery.key: delivery for delivery in self.deliveries if delivery.round == round_name}
        labels = [latest[order.key] for order in orders if order.key in latest]
        ratios = [label.minutes / predicted[label.key] for label in labels]
        usual = sorted([1.0, *ratios])[len(ratios) // 2]
        work = [label for label, r in zip(labels, ratios, strict=True) if usual / ABSURD <= r <= usual * ABSURD]
        pace = sum(one.minutes for one in work) / sum(predicted[one.key] for one in work) if work else 1.0
        pace = max(pace, FASTEST)

        def count(one: Delivery | Skip) -> float:
            absurd = one.minutes > usual * ABSURD * predicted[one.key]
            return pace * predicted[one.key] if absurd else one.minutes

        skips = self.skipped(round_name)
        done: list[Delivery | Skip] = [*labels, *skips]
        held = [HeldBackTime(one.key, one.annotator, one.minutes, count(one)) for one in done]
        counted = {label.key: count(label) for label in labels}
        out = [order for order in orders if order.key not in latest and order.key not in removed]
        return Spending(
            images=len(orders),
            labelled=len(labels),
            waiting=len(out),
            measured=float(sum(counted.values())),
            skipped=float(sum(map(count, skips))),
            doubled=float(sum(double.minutes for double in self.doubled(round_name))),
            out=float(pace * sum(order.minutes for order in out)),
            pace=pace,
            counted=counted,
            held_back=tuple(one for one in held if one.counted != one.minutes),
        )


def ordered_twice(entries: Iterable[Entry]) -> list[Paid]:
    """What was ordered while an order of it stood, and all of an order whose key had been ordered in its round."""
    return _taken(entries)[1]


def _taken(entries: Iterable[Entry]) -> tuple[dict[Paid, tuple[str, str]], list[Paid]]:
    """(round and key of the order that stands, by all that it pays for; what was ordered twice)."""
    entries = tuple(entries)
    here = {(entry.round, entry.key) for entry in entries if isinstance(entry, Delivery)}
    stands: dict[Paid, tuple[str, str]] = {}
    asked: dict[tuple[str, str], tuple[Paid, ...]] = {}
    twice: list[Paid] = []
    for entry in entries:
        place = (entry.round, entry.key)
        if isinstance(entry, Order):
            for paid in entry.asked:
                if paid in stands or place in asked:
                    twice.append(paid)
                stands[paid] = place
            asked[place] = entry.asked
        elif isinstance(entry, Skip) and place not in here:
            for paid in asked.get(place, ()):
                if stands.get(paid) == place:
                    del stands[paid]
    return stands, twice


def accounts(line_minutes: float, spending: Spending) -> str:
    """A phrase on how a budget line in minutes stands: kept, exceeded or not used up, and what can be done about it."""
    spent, most, line = spending.minutes, line_minutes, f"{line_minutes:g} minutes"
    skipped = f" ({spending.skipped:.4g} of them on skipped images)" if spending.skipped else ""
    if spent > most * (1 + 1e-9):
        return (
            f"{spent:.4g} minutes spent{skipped}, {spent - most:.4g} more than its line of {line}, since images took "
            f"longer than was expected: to make up for them, lower a later line of the budget in {paths.PARAMS}"
        )
    if spent < most * (1 - 1e-9):
        return (
            f"{spent:.4g} minutes spent{skipped}, {most - spent:.4g} left of its line of {line}, too little for "
            f"another image, or no other is left: to use them, raise a later line of the budget in {paths.PARAMS}"
        )
    return f"{spent:.4g} minutes spent{skipped}, as its line says"
