"""Orders, deliveries and skips: the append-only record of what people's time was spent on.

One JSON object per line. An order is written before it is sent, a delivery before it is used, so whatever dies in
between, the next run knows what is already paid for. The file is replaced whole (temporary name, fsync, rename): a
killed run leaves the old or the new ledger, never half a line.
"""

import datetime
import json
import shlex
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import pandas as pd


from pipeline import artifacts, paths
from pipeline.errors import UserError
from pipeline.labels import CLASS_SETS, ClassSet

ABSURD = 5.0
"""A time of more than so many times the usual is no time of work: a tab was left open. Where people's times have a
logarithm with a standard deviation of 0.5 (rehearsals do), one honest time in 1500 is held back, and where of 0.8, one
in 45."""
FASTEST = 0.01
"""Pace below which nothing is extrapolated: a hundredth of what was predicted."""


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
    """A time that does not count, since nobody works so long over one image."""

    key: str
    annotator: str
    minutes: float
    """On record."""
    counted: float
    """What counts instead: the minutes that were to be expected."""


class Spending(NamedTuple):
    """What a round has cost in minutes of annotators' time, and what is still out."""

    images: int
    """Ordered and paid, or to be paid."""
    labelled: int
    """Of them, how many have come back."""
    waiting: int
    """How many are still to come back: not what has been removed since."""
    measured: float
    """Minutes that these took, as counted."""
    skipped: float
    """Minutes lost on images that were skipped, as counted."""
    doubled: float
    """Minutes of labels that another branch had bought, too."""
    out: float
    """Minutes expected of what has not come back."""
    pace: float
    """Measured per predicted minutes of this round; 1 until something has come back."""
    counted: dict[str, float]
    """Minutes that each label counts for, by key."""
    held_back: tuple[HeldBackTime, ...]
    """Times that do not count."""

    @property
    def minutes(self) -> float:
        """All that the round has spent of its budget line: counted, and expected of what is out."""
        return self.measured + self.skipped + self.doubled + self.out


class Ledger(NamedTuple):
    """Everything that happened so far, oldest first."""

    entries: tuple[Entry, ...] = ()

    @property
    def deliveries(self) -> list[Delivery]:
        """All masks that came back."""
        return [entry for entry in self.entries if isinstance(entry, Delivery)]

    @property
    def orders(self) -> list[Order]:
        """All orders that stand."""
        return [order for order, stands in self._orders() if stands]

    @property
    def withdrawn(self) -> list[Order]:
        """The orders whose image was skipped. A label that is made of it all the same reinstates the order."""
        return [order for order, stands in self._orders() if not stands]

    def _orders(self) -> list[tuple[Order, bool]]:
        here = {(entry.round, entry.key) for entry in self.deliveries}  # skipped on another branch or not: it stays
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
    def removed(self) -> set[str]:
        """Keys of what was bought and has to stay out of the pool: neither ordered nor delivered any more, but paid."""
        return {entry.key for entry in self.entries if isinstance(entry, Removal)}

    def ordered(self, round_name: str) -> list[Order]:
        """What a round has ordered; skipped images are not among it."""
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
        """What has come back of a round."""
        removed = self.removed
        return [one for one in self.deliveries if one.round == round_name and one.key not in removed]

    def skipped(self, round_name: str) -> list[Skip]:
        """What annotators of a round would not label."""
        return [entry for entry in self.entries if isinstance(entry, Skip) and entry.round == round_name]

    def doubled(self, round_name: str) -> list[Double]:
        """What a round bought that another branch had bought, too."""
        return [entry for entry in self.entries if isinstance(entry, Double) and entry.round == round_name]

    def spent(self, round_name: str, more: Sequence[Order] = ()) -> tuple[int, float]:
        """Images of a round, with `more` orders, and its minutes: counted where delivered, expected where not."""
        spending = self.spending(round_name, more)
        return spending.images, spending.minutes

    def spending(self, round_name: str, more: Sequence[Order] = ()) -> Spending:
        """What a round has cost, with `more` orders.

        An annotator's clock runs while a tab is open. So a time of more than ABSURD times the usual is held back: the
        image counts with what was to be expected of it. Usual is the (lower) median of measured over predicted minutes
        of the round, with the prediction itself as one more measurement: one idle tab does not set the measure where
        little has come back, and a prediction that is far off does not for longer than two images. The minutes of
        skipped images are spent, too.
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


def accounts(line_minutes: float, spending: Spending) -> str:
    """What has become of a line in minutes: kept, passed or not used up, and what can be done about it."""
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


def now() -> str:
    """The time for `at`, UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


KINDS: dict[str, type[Entry]] = {
    "order": Order,
    "delivery": Delivery,
    "skip": Skip,
    "removal": Removal,
    "double": Double,
}
JOIN = "`python -m pipeline join`"
"""The command that makes one ledger of two branches' (pipeline/join.py)."""


def load() -> Ledger:
    """Read data/ledger.jsonl; no file means that nothing was ordered yet.

    Raises:
        UserError: a line is not a whole entry, an image was ordered twice, or came back without an order.
    """
    entries = []
    for number, line in enumerate(lines(), start=1):
        try:
            entries.append(parse(line))
        except ValueError:
            raise UserError(
                f"{paths.LEDGER}: line {number} is no order, delivery, skip or removal ({line[:60]!r}): after "
                f"a git merge run {JOIN}; otherwise mend that line, `git diff {paths.LEDGER}` shows what was changed"
            ) from None
    _check(entries)
    return Ledger(tuple(entries))


def classes() -> ClassSet:
    """The class set in force, in which all that was ever ordered is made.

    Raises:
        UserError: something was ordered in other classes, or in another order of them.
    """
    in_force = artifacts.load_classes()
    check_classes(load(), in_force.names)
    return in_force


def pool_of(round_name: str) -> "pd.DataFrame":
    """The rows of the pool's manifest that a round has to do with.

    What came to the pool after the round had bought is none of them, so that past rounds stay as they are; r00 is past
    as soon as anything is bought. What is still there has its present path and hash.
    """
    pool = artifacts.load_manifest("pool")
    past = any(entry.round == round_name or round_name == paths.SOURCE_ROUND for entry in load().entries)
    if past and paths.images(round_name).is_file():
        pool = pool[pool["key"].isin(artifacts.load_images(round_name)["key"])]
    return pool


def check_classes(book: Ledger, names: Sequence[str], unnamed: Sequence[str] | None = None) -> None:
    """See that everything was ordered in these classes: the masks store their numbers.

    Args:
        book: the ledger.
        names: of the classes, in the order of their ids.
        unnamed: the classes of orders that name none but the path of a list; None takes them for these.

    Raises:
        UserError: something was ordered in others.
    """
    for entry in book.entries:
        if not isinstance(entry, Order):
            continue
        built_in = CLASS_SETS[entry.classes].names if entry.classes in CLASS_SETS else None
        bought_in = entry.class_names or built_in or unnamed
        if bought_in is not None and tuple(bought_in) != tuple(names):
            raise UserError(
                f"labels were bought in the classes {', '.join(bought_in)} ({entry.round}), but now they are "
                f"{', '.join(names)}: set prepare.classes, or the list that it names, back to those, in that order, or "
                f"start a new project for the new ones"
            )


def absent(key: str, round_name: str, renamed: str | None = None, more: int = 0) -> str:
    """What to do about an image that was bought and is not in the pool: a sentence.

    Args:
        key: of the image.
        round_name: that bought it.
        renamed: key under which its content is there.
        more: so many others are absent, too.
    """
    what = f"the pool lacks {key!r}, which {round_name} has bought{f', and {more} more' if more else ''}: "
    if renamed is not None:
        return f"{what}it is called {renamed!r} now, so give its file the old name again"
    return (
        f"{what}put its file back and run `dvc repro -f prepare`, or, if it has to stay out, run "
        f"`python -m pipeline remove {shlex.quote(key)}`"
    )


def lines() -> list[str]:
    """The ledger's lines; none if there is no file."""
    text = paths.LEDGER.read_text(encoding="utf-8") if paths.LEDGER.is_file() else ""
    return text.removesuffix("\n").split("\n") if text else []  # splitlines() would also split at U+2028 in a key


def parse(line: str) -> Entry:
    """The entry on a line.

    Raises:
        ValueError: it is not a whole entry.
    """
    try:
        fields = json.loads(line.removeprefix("\ufeff"))  # which some editors put at the start of a file
        if "class_names" in fields:
            fields["class_names"] = tuple(fields["class_names"])
        return KINDS[fields.pop("event")](**fields)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{line!r} is no entry of a ledger") from None


def format_line(entry: Entry) -> str:
    """The line of an entry, without its end."""
    names: dict[type, str] = {kind: name for name, kind in KINDS.items()}
    return json.dumps({"event": names[type(entry)], **entry._asdict()}, ensure_ascii=False)


def ordered_twice(entries: Sequence[Entry]) -> list[str]:
    """Keys of images that were ordered while an order of them stood, or in the same round again."""
    here = {(entry.round, entry.key) for entry in entries if isinstance(entry, Delivery)}
    standing: dict[str, str] = {}
    seen, twice = set(), []
    for entry in entries:
        place = (entry.round, entry.key)
        if isinstance(entry, Order):
            if entry.key in standing or place in seen:
                twice.append(entry.key)
            seen.add(place)
            standing[entry.key] = entry.round
        elif isinstance(entry, Skip) and place not in here and standing.get(entry.key) == entry.round:
            del standing[entry.key]
    return twice


def _check(entries: Sequence[Entry]) -> None:
    for key in ordered_twice(entries):
        raise UserError(
            f"{paths.LEDGER}: {key!r} was ordered twice: run {JOIN}, which keeps both costs and the first label"
        )
    seen = set()
    for entry in entries:
        place = (entry.round, entry.key)
        if isinstance(entry, Order):
            seen.add(place)
        elif place not in seen and not isinstance(entry, Double):
            what = {Delivery: "delivered", Skip: "skipped", Removal: "removed"}[type(entry)]
            raise UserError(
                f"{paths.LEDGER}: {entry.key!r} was {what} in {entry.round} but not ordered there: run {JOIN}, which "
                f"brings back what a merge left out"
            )


def append(entries: Iterable[Entry]) -> None:
    """Add entries at the end, all or none of them."""
    old = paths.LEDGER.read_bytes() if paths.LEDGER.is_file() else b""
    if old and not old.endswith(b"\n"):  # an editor took it
        old += b"\n"
    artifacts.write(paths.LEDGER, old + "".join(format_line(entry) + "\n" for entry in entries).encode())
