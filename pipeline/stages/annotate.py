"""Stage: orders the selected images and collects their labels. The only stage that spends.

The order of writing is what makes labels safe: an order is in the ledger before it is sent; a mask is on the disk
before its delivery is in the ledger, and in DVC's cache before the next is read. Whenever a run is killed, the next one
finds what is paid for and goes on from there.

A line in minutes is spent by the clock, not by the prediction. While nothing has come back from these annotators,
orders go out for about half of the line; then for as much as fits at the pace that was measured. Where the selection
is used up before the line is, `select` draws more.
"""

import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float64, UInt8
from tqdm import tqdm

from pipeline import artifacts, ledger, paths, storage
from pipeline.annotators import ANNOTATORS, oracle
from pipeline.annotators.contract import Annotator, Answer, HeldBack, Request, Skipped, Unreachable
from pipeline.errors import UserError, WaitingForPeople, choose, counted
from pipeline.images import blocks
from pipeline.images.classes import IGNORE, ClassSet
from pipeline.images.masks import load_mask, save_mask
from pipeline.ledger import candidates, label_store, region_orders
from pipeline.ledger.entries import ABSURD, Delivery, Ledger, Order, Skip, Spending, accounts
from pipeline.params import Annotate, BudgetLine, Roots, Score

if TYPE_CHECKING:
    import pandas as pd

POLL_SECONDS = 30.0
LONGEST_POLL_SECONDS = 600.0
"""Longest wait between two attempts while the annotators cannot be reached; the wait doubles up to it."""
PATIENCE_SECONDS = 24 * 3600.0
"""In mode `wait`, the stage gives up when they cannot be reached for so long."""
VOID = "not one pixel of its label has a class, so nothing can be learnt from it: paint what is to be seen, or skip it"


def run(round_name: str, line: BudgetLine, *, roots: Roots, score: Score, annotate: Annotate) -> None:
    """Order what the round's selection adds, collect what has come back, and write the labels bought so far.

    Raises:
        UserError: the labels that the ledger speaks of are not here, the order would pass the budget, or the annotators
            cannot be reached.
        WaitingForPeople: not everything has come back (mode `stop`), or skipped images have to be replaced.
    """
    annotator = choose("annotate.annotator", ANNOTATORS, annotate.annotator)
    label_store.check(ledger.load())
    classes = ledger.classes()
    with label_store.adding() as add:  # before anything is bought that could not be kept
        selection = artifacts.load_selection(round_name)
        pool = _with_blocks(round_name, roots.pool, selection["key"])
        _check_pool(round_name, selection["key"], pool)
        request = Request(round_name, (), {}, pool, classes, annotate, score.acquisition)
        _order(round_name, line, selection, pool, classes, annotate)
        waiting = _collect(annotator, request, add)
        while _order(round_name, line, selection, pool, classes, annotate):  # what has come back leaves room for more
            waiting = _collect(annotator, request, add)
        _take_corrections(round_name, request)
        add()
    book = ledger.load()
    spending, orders = book.spending(round_name), book.ordered(round_name)
    _tell_times(round_name, spending)
    if line.minutes is not None:
        waiting += f", {spending.measured + spending.skipped:.4g} of {line} spent"
    if why := _needs_more(round_name, line, selection, annotate):
        paths.selection(round_name).unlink()  # so that DVC runs `select` again, which keeps what is ordered
        raise WaitingForPeople(f"{waiting}; `dvc repro` now draws {why}")
    if spending.waiting:
        later = len(set(selection["key"]) - _asked(book, round_name))
        more = f"; {later} more selected, which go out by the pace that is measured" if later else ""
        raise WaitingForPeople(f"{waiting}{more}; run `dvc repro` again when they are done")
    if line.minutes is not None:
        print(f"{round_name}: {accounts(line.minutes, spending)}")
    _write_purchases(round_name, line.after, orders)
    _write_labels(round_name, line.after, [order.key for order in orders])


def _tell_times(round_name: str, spending: Spending) -> None:
    for one in spending.held_back:
        print(
            f"{round_name}: {one.key}: {one.minutes:.4g} minutes of {one.annotator} are more than {ABSURD:g} times the "
            f"usual, as when a tab is left open, and count as {one.counted:.2g}; {paths.LEDGER} keeps the time itself"
        )


def _needs_more(round_name: str, line: BudgetLine, selection: "pd.DataFrame", annotate: Annotate) -> str | None:
    """A phrase for what `select` still has to draw for the round; None if the budget line is filled."""
    book = ledger.load()
    spending, asked = book.spending(round_name), _asked(book, round_name)
    if line.minutes is None:
        ordered = {order.key for order in book.ordered(round_name)}
        return "others for the skipped images" if ordered != set(selection["key"]) else None
    if not set(selection["key"]) <= asked:
        return None  # what is selected has to go out first, or does not fit
    left = candidates.left(round_name, book, annotate).rows
    room = line.minutes - spending.minutes
    # If even the longest fits, any method finds one that does. What the oracle books needs no pace.
    pace = 1.0 if annotate.annotator == "oracle" else spending.pace
    if left.empty or not left["minutes"].max() * pace <= room * (1 + 1e-9):
        return None
    return f"more images for the {room:.4g} minutes that are left of the line"


def _prices(rows: "pd.DataFrame", spending: Spending, annotate: Annotate) -> Float64[np.ndarray, " n"]:
    """Expected minutes of each row of a selection: predicted ones times the round's pace. The oracle's are known."""
    if annotate.annotator == "oracle":
        asked = [len(str(text).split()) for text in rows.get("regions", [""] * len(rows))]
        each = zip(map(blocks.share, rows["key"]), asked, strict=True)
        return np.array([annotate.oracle_minutes_of(*one) for one in each])
    prices: np.ndarray = rows["minutes"].to_numpy(float) * spending.pace
    return prices


def _asked(book: Ledger, round_name: str) -> set[str]:
    """Keys of all that the round has ordered, also of what was skipped since."""
    return {entry.key for entry in book.entries if entry.round == round_name}


def _with_blocks(round_name: str, root: Path, selected: Iterable[str]) -> "pd.DataFrame":
    """The pool's manifest with a row for all that the round selects or has ordered: a block is a small image."""
    import pandas as pd  # here, since it takes as long to import as all the rest

    pool = artifacts.load_images(round_name, root).set_index("key", drop=False)
    ordered = [entry.key for entry in ledger.load().entries if entry.round == round_name]
    rows = []
    for key in dict.fromkeys([*selected, *ordered]):
        if blocks.unit_of(key) == "image":
            continue
        if blocks.image_of(key) not in pool.index:
            raise UserError(
                f"{round_name} is to buy {key!r}, a part of an image that the pool has not: set "
                f"prepare.pool in {paths.PARAMS} back to the data that the round was selected from"
            )
        block, image = blocks.parse(key), pool.loc[blocks.image_of(key)]
        size = int(image["height"]), int(image["width"])
        height, width = size if block is None else block.box(size).size
        rows.append({**image, "key": key, "height": height, "width": width})
    return pd.concat([pool, pd.DataFrame(rows).set_index("key", drop=False)]) if rows else pool


def _collect(annotator: Annotator, about: Request, add: Callable[[], None]) -> str:
    """Record what comes back until all has, or in mode `stop` what is there by now; returns how far it is, in words."""
    name = about.round_name
    poll, last_answer, first = POLL_SECONDS, time.monotonic(), True
    told: set[HeldBack] = set()
    bar = tqdm(total=len(ledger.load().ordered(name)), desc=f"annotate {name}", unit="image", disable=None)
    while True:
        request = _request(about)
        pending = [order for order in request.orders if order.key not in request.known]
        held: list[HeldBack] = []
        try:
            region_orders.check_maps(request.orders)
            # Deliveries on record are checked for corrections once; while waiting for people, only the rest is asked.
            for said in annotator(request if first else request._replace(orders=pending)):
                if isinstance(said, Answer) and _is_void(said.key, said.mask):
                    held.append(HeldBack(said.key, VOID))
                elif isinstance(said, HeldBack):
                    held.append(said)
                else:
                    _record(name, said, request, add)
                bar.update(len({d.key for d in ledger.load().delivered(name)}) - bar.n)
            poll, last_answer, first = POLL_SECONDS, time.monotonic(), False
        except UserError as error:
            if not pending:  # complete: nobody is needed
                print(f"{name}: all labels are here; nobody was asked for corrections, since {error}")
            elif not (isinstance(error, Unreachable) and about.annotate.mode == "wait"):
                raise
            elif time.monotonic() - last_answer > PATIENCE_SECONDS:
                raise UserError(f"{error} (tried for {PATIENCE_SECONDS / 3600:g} hours)") from None
            else:
                poll = min(2 * poll, LONGEST_POLL_SECONDS)
                tqdm.write(f"{error}; next try in {poll:g} s")
        for one in set(held) - told:
            tqdm.write(f"{name}: {one.key}: {one.reason}")
        told |= set(held)
        book = ledger.load()
        ordered, delivered = book.ordered(name), {d.key for d in book.delivered(name)}
        if about.annotate.mode == "stop" or delivered.issuperset(order.key for order in ordered):
            break
        time.sleep(poll)
    bar.close()
    return f"{name}: {len(delivered)} of {len(ordered)} labelled" + (
        f", {len(held)} need{'s' if len(held) == 1 else ''} another look" if held else ""
    )


def _request(about: Request) -> Request:
    """The request with the orders that may still bring answers, as the ledger has them now."""
    book, name = ledger.load(), about.round_name
    taken = book.taken
    # A skipped image may still be labelled after all, unless it was ordered again since.
    late = [one for one in book.withdrawn if one.round == name and taken.keys().isdisjoint(one.asked)]
    late = [one for one in late if region_orders.is_current(one)]
    known = {e.key: e.version for e in book.entries if isinstance(e, Delivery | Skip) and e.round == name}
    return about._replace(orders=[*book.ordered(name), *late], known=known)


def _record(round_name: str, said: Answer | Skipped, request: Request, add: Callable[[], None]) -> None:
    """Write an answer to the label store, the ledger and DVC's cache; of a skip, its entry in the ledger."""
    name = request.annotate.annotator
    if said.key not in {order.key for order in request.orders} or request.known.get(said.key) == said.version:
        raise AssertionError(f"{name} answered {said.key!r}, which it was not asked for")
    if not 0 <= said.minutes < float("inf"):
        raise UserError(f"{name} says that {said.key!r} took {said.minutes} minutes, which is no time")
    if isinstance(said, Skipped):
        if said.key in {delivery.key for delivery in ledger.load().delivered(round_name)}:
            return  # a skip does not take back a label that was delivered
        print(f"{round_name}: {said.key} was skipped by {said.annotator}; it is back in the pool")
        ledger.append([Skip(round_name, said.key, said.annotator, said.minutes, ledger.now(), said.version)])
        return
    if said.key in request.known:
        print(f"{round_name}: {said.key} was changed by {said.annotator}; taken as corrected")
    _check_mask(said.key, said.mask, request, name)
    path = paths.mask(said.key)
    # The mask on disk may have been changed by hand. If it is this answer, a run was killed before recording it.
    if said.key in request.known and path.is_file() and not np.array_equal(load_mask(path), said.mask):
        _take_corrections(round_name, request)
        add()
    digest = save_mask(path, said.mask)
    what = (said.annotator, said.minutes, digest, ledger.now(), said.changed, said.agreement, said.version)
    ledger.append([Delivery(round_name, said.key, *what)])
    add()


def _check_pool(round_name: str, selected: Iterable[str], pool: "pd.DataFrame") -> None:
    """Check that what was bought, and what is to be bought, is in the pool.

    Raises:
        UserError: an image is not.
    """
    for order in ledger.load().ordered(round_name):
        if order.key not in pool.index:
            raise UserError(ledger.absent(order.key, round_name))
    for key in selected:
        if key not in pool.index:
            raise UserError(
                f"{round_name} is to buy {key!r}, which the pool has not: put its file back, or run "
                f"`dvc repro -s -f select@{round_name}`, then `dvc repro`"
            )


def _order(
    round_name: str,
    line: BudgetLine,
    selection: "pd.DataFrame",
    pool: "pd.DataFrame",
    classes: ClassSet,
    annotate: Annotate,
) -> bool:
    """Write to the ledger the orders that the selection adds to those on record; returns whether there are any.

    What the oracle cannot deliver is skipped at once, so that `select` draws others.
    """
    book = ledger.load()
    for unit in set(map(blocks.unit_of, selection["key"])):
        blocks.check_unit(unit, [entry.key for entry in book.entries], str(paths.LEDGER))
        blocks.check_unit(unit, list(selection["key"]), str(paths.selection(round_name)))
    taken = book.taken
    wanted = selection[~selection["key"].isin(_asked(book, round_name))]
    for key in wanted["key"]:
        if (key, None) in taken:
            raise UserError(
                f"{round_name} wants {key!r}, which {taken[key, None]} has bought already: "
                f"run `dvc repro -s -f select@{round_name}`, then `dvc repro`"
            )
    asked = region_orders.asked(round_name, wanted, book, pool)
    wanted = _portion(wanted, line, book, round_name, annotate)
    names, refused = (annotate.annotator, classes.name), dict[str, str]()
    if annotate.annotator == "oracle":
        refused = oracle.refused(wanted["key"], pool, artifacts.load_ids("pool", classes))
    if refused and len(refused) == len(selection):
        raise UserError(f"{round_name}: nothing that it selects can be delivered: {next(iter(refused.values()))}")
    images = pool["sha256"]
    every = [
        Order(
            *(round_name, r.key, *names, r.gain, r.minutes, r.probability, ledger.now(), r.method, classes.names),
            *(str(images[r.key]), *asked.get(r.key, ())),
        )
        for r in wanted.itertuples()
    ]
    new = [order for order in every if order.key not in refused]
    for key, reason in refused.items():
        print(f"{round_name}: {key} is not ordered, others are drawn in its place: {reason}")
    if every:
        _check_spending(round_name, line, book, new)
        ledger.append([*every, *(Skip(round_name, key, names[0], 0.0, ledger.now(), "refused") for key in refused)])
    if new:
        what = blocks.counted([order.key for order in new], sum(len(order.regions) for order in new))
        print(f"{round_name}: ordered {what} from {annotate.annotator}")
    return bool(every)


def _portion(
    wanted: "pd.DataFrame", line: BudgetLine, book: Ledger, round_name: str, annotate: Annotate
) -> "pd.DataFrame":
    """The first rows of the selection, as many as are ordered now; for a budget line in images, all of them."""
    if line.minutes is None or wanted.empty:
        return wanted
    spending = book.spending(round_name)
    prices = np.cumsum(_prices(wanted, spending, annotate))
    room = line.minutes - spending.minutes
    fits = int((prices <= room + 1e-6).sum())
    if not fits and not spending.images and not spending.skipped:
        raise UserError(
            f"{round_name} has {line}, and its first image is expected to take {prices[0]:.4g}: raise the line in "
            f"{paths.PARAMS}, or run `dvc repro -s -f select@{round_name}`"
        )
    if annotate.annotator == "oracle":
        return wanted[:fits]
    # The pace of these annotators is known from their labels, and the better the more there are: never more than two
    # are out for each of them. Before the first there is only the guess that params.yaml makes.
    labelled = {order.key for order in book.orders if order.annotator == annotate.annotator} & {
        delivery.key for delivery in book.deliveries
    }
    out = spending.waiting
    if labelled:
        return wanted[: min(fits, max(0, 2 * len(labelled) - out))]
    half = int((prices <= room - line.minutes / 2 + 1e-6).sum())
    return wanted[: min(fits, half if out else max(1, half))]


def _check_spending(round_name: str, line: BudgetLine, book: Ledger, new: Sequence[Order]) -> None:
    if os.environ.get("DVC_EXP_NAME"):
        raise UserError(
            f"{round_name} would buy {blocks.counted([order.key for order in new])} inside `dvc exp run`, whose ledger "
            f"is thrown away: buy them with `dvc repro` first, then experiment on what was bought"
        )
    images, _ = book.spent(round_name, new)
    if line.images is not None and images > line.images:  # for minutes, `_portion` orders nothing that does not fit
        raise UserError(
            f"{round_name} would order {counted(images, 'image')}, but its budget line says {line}: "
            f"raise it in {paths.PARAMS}, or run `dvc repro -s -f select@{round_name}`"
        )


def _check_mask(key: str, mask: UInt8[np.ndarray, "h w"], request: Request, whose: str) -> None:
    """Check that a label can be trained on: the size of its image, and ids of classes only."""
    classes = len(request.classes.names)
    unknown = np.setdiff1d(mask, [*range(classes), IGNORE])
    if unknown.size:
        raise UserError(
            f"the label of {key!r} from {whose} holds the ids {', '.join(map(str, unknown))}, "
            f"but there are {classes} classes and {IGNORE} for none: mend it there, then `dvc repro`"
        )
    _check_size(key, mask, request.pool.loc[key])


def _is_void(key: str, mask: UInt8[np.ndarray, "h w"]) -> bool:
    """Whether no pixel of a label has a class; of regions asked about, all may be *mixed*."""
    return not blocks.is_of_regions(key) and bool((mask == IGNORE).all())


def _check_size(key: str, mask: UInt8[np.ndarray, "h w"], image: "pd.Series") -> None:
    size = (int(image["height"]), int(image["width"]))
    if mask.shape != size:
        raise UserError(
            f"the label of {key!r} is {mask.shape[0]}x{mask.shape[1]}, its image {size[0]}x{size[1]} "
            f"(height x width): label it at the image's own size"
        )


def _take_corrections(round_name: str, request: Request) -> None:
    """Record a new delivery, of no further minutes, for each mask that was changed by hand since it was delivered."""
    latest = {delivery.key: delivery for delivery in ledger.load().delivered(round_name)}
    for key, delivery in latest.items():
        digest = storage.sha256(paths.mask(key))
        if digest != delivery.sha256:
            mask = load_mask(paths.mask(key))
            _check_mask(key, mask, request, str(paths.mask(key)))
            if _is_void(key, mask):
                raise UserError(
                    f"{paths.mask(key)} has no labelled pixel left, so nothing can be learnt from it: paint what is to "
                    f"be seen, or take it back with `dvc checkout {paths.LABELS_DVC}`"
                )
            print(f"{round_name}: {paths.mask(key)} was changed by hand; taken as corrected")
            ledger.append([delivery._replace(annotator="hand", sha256=digest, at=ledger.now())])


def _write_purchases(round_name: str, after: str, orders: Sequence[Order]) -> None:
    effort = artifacts.load_costs(round_name).set_index("key").to_dict("index")
    effort |= {order.key: {"regions": len(order.regions)} for order in orders if order.regions}
    rows = [{"key": order.key, "gain": order.gain, **effort.get(order.key, {})} for order in orders]
    artifacts.save_purchases(round_name, [*artifacts.load_purchases(after).values(), *rows])


def _write_labels(round_name: str, after: str, keys: Sequence[str]) -> None:
    before, book = artifacts.load_labels(after), ledger.load()
    latest, counted = (
        {delivery.key: delivery for delivery in book.delivered(round_name)},
        book.spending(round_name).counted,
    )
    rows = [{"key": key, "round": round_name, "minutes": counted[key], "sha256": latest[key].sha256} for key in keys]
    artifacts.save_labels(round_name, [*before, *rows])
