"""The ledger, data/ledger.jsonl: the append-only record of orders, deliveries and skips, that is, of what was paid for.

One JSON object per line. An order is written before it is sent, a delivery before it is used, so whenever a run is
killed, the next one knows what is already paid for. The file is replaced atomically (temporary name, fsync, rename): a
killed run leaves the old or the new ledger, never half a line.
"""

import datetime
import json
import shlex
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
from pipeline import artifacts, paths, storage
from pipeline.errors import UserError
from pipeline.images.classes import CLASS_SETS, ClassSet
from pipeline.ledger.entries import Delivery, Double, Entry, Ledger, Order, Removal, Skip, ordered_twice


def now() -> str:
    """The present time as entries have it in `at`: UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


KINDS: dict[str, type[Entry]] = {
    "order": Order,
    "delivery": Delivery,
    "skip": Skip,
    "removal": Removal,
    "double": Double,
}
JOIN = "`python -m pipeline join`"
"""The command that merges the ledgers of two branches (pipeline/commands/join.py)."""


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
    """The class set in force, after checking that everything was ordered in it.

    Raises:
        UserError: something was ordered in other classes, or in another order of them.
    """
    in_force = artifacts.load_classes()
    check_classes(load(), in_force.names)
    return in_force


def pool_of(round_name: str) -> "pd.DataFrame":
    """The rows of the pool's manifest that belong to a round.

    Images that came to the pool after the round had bought are left out, so that past rounds stay as they are; r00 is
    past as soon as anything is bought. Images that are still there have their present path and hash.
    """
    pool = artifacts.load_manifest("pool")
    past = any(entry.round == round_name or round_name == paths.SOURCE_ROUND for entry in load().entries)
    if past and paths.images(round_name).is_file():
        pool = pool[pool["key"].isin(artifacts.load_images(round_name)["key"])]
    return pool


def check_classes(book: Ledger, names: Sequence[str], unnamed: Sequence[str] | None = None) -> None:
    """Check that everything was ordered in these classes, in their order: the masks store only the class ids.

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
    """A sentence on what to do about an image that was bought and is not in the pool.

    Args:
        key: of the image.
        round_name: that bought it.
        renamed: key under which its content is there.
        more: number of other absent images.
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
        for name in {"class_names", "regions"} & fields.keys():
            fields[name] = tuple(fields[name])
        if not all(type(region) is int for region in fields.get("regions", ())):
            raise ValueError("a region is no whole number")
        return KINDS[fields.pop("event")](**fields)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{line!r} is no entry of a ledger") from None


def format_line(entry: Entry) -> str:
    """The line of an entry, without its end."""
    names: dict[type, str] = {kind: name for name, kind in KINDS.items()}
    fields = entry._asdict()
    if isinstance(entry, Order) and not entry.regions:  # the line is that of before there were regions
        del fields["regions"], fields["region_map"]
    return json.dumps({"event": names[type(entry)], **fields}, ensure_ascii=False)


def _check(entries: Sequence[Entry]) -> None:
    for key, region in ordered_twice(entries):
        what = repr(key) if region is None else f"region {region} of {key!r}"
        raise UserError(
            f"{paths.LEDGER}: {what} was ordered twice: run {JOIN}, which keeps both costs and the first label"
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
    if old and not old.endswith(b"\n"):  # an editor has removed it
        old += b"\n"
    storage.write(paths.LEDGER, old + "".join(format_line(entry) + "\n" for entry in entries).encode())
