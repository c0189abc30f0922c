"""Stage: orders the selected images and collects their labels. The only stage that spends.

The order of things is what makes labels safe: an order is in the ledger before it is sent; a mask is on the disk
before its delivery is in the ledger; masks are in DVC's cache before the stage ends. Whoever dies in between, the next
run finds what is paid for and goes on from there.
"""

import os
import subprocess
import sys
import time
from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import UInt8
from tqdm import tqdm

from pipeline import artifacts, datasets, ledger, paths
from pipeline.annotators import ANNOTATORS
from pipeline.annotators.contract import Answer, Request
from pipeline.errors import UserError, WaitingForPeople, choose
from pipeline.labels import IGNORE
from pipeline.ledger import Delivery, Ledger, Order
from pipeline.params import Annotate, BudgetLine, Prepare

POLL_SECONDS = 30.0


def run(round_name: str, line: BudgetLine, *, prepare: Prepare, annotate: Annotate) -> None:
    """Order what the round's selection adds, collect what has come back, and write the labels bought so far.

    Raises:
        UserError: the labels that the ledger speaks of are not here, or the order would pass the budget.
        WaitingForPeople: not everything has come back (mode `stop`).
    """
    annotator = choose("annotate.annotator", ANNOTATORS, annotate.annotator)
    book = ledger.load()
    _check_store(book)
    selection = artifacts.load_selection(round_name)
    new = _order(round_name, line, selection, book, prepare, annotate)
    if new:
        _check_spending(round_name, line, book.ordered(round_name), new, book)
        ledger.append(new)
        print(f"{round_name}: ordered {len(new)} images from {annotate.annotator}")

    orders = ledger.load().ordered(round_name)
    keys, classes = {order.key for order in orders}, len(datasets.class_set(prepare.classes).names)
    pool = artifacts.load_manifest("pool").set_index("key", drop=False)
    bar = tqdm(total=len(orders), desc=f"annotate {round_name}", unit="image", disable=None)
    while True:
        delivered = {delivery.key for delivery in ledger.load().delivered(round_name)}
        bar.update(len(delivered) - bar.n)
        pending = [order for order in orders if order.key not in delivered]
        for answer in annotator(Request(pending, pool, prepare, annotate)) if pending else ():
            if answer.key in delivered or answer.key not in keys:
                raise AssertionError(f"{annotate.annotator} answered {answer.key!r}, which it was not asked for")
            _deliver(round_name, answer, pool.loc[answer.key], classes, annotate.annotator)
            delivered.add(answer.key)
            bar.update()
        _take_corrections(round_name, pool)
        _add_to_dvc()
        if len(delivered) == len(orders):
            break
        waiting = f"{round_name}: {len(delivered)} of {len(orders)} labelled"
        if annotate.mode == "stop":
            raise WaitingForPeople(f"{waiting}; run `dvc repro` again when they are done")
        time.sleep(POLL_SECONDS)
    bar.close()
    _write_labels(round_name, line.after, [order.key for order in orders])


def _check_store(book: Ledger) -> None:
    """The ledger and the label store must speak of the same labels before anything is bought."""
    lacking = [d.key for d in book.deliveries if not paths.mask(d.key).is_file()]
    if lacking:
        raise UserError(
            f"{paths.LABELS} lacks {len(lacking)} labels that are paid for, {lacking[0]!r} first: "
            f"run `dvc pull {paths.LABELS_DVC}` (or `dvc checkout {paths.LABELS_DVC}`), then `dvc repro`"
        )
    ordered = {order.key for order in book.orders}
    strangers = sorted(path.stem for path in paths.LABELS.glob("[!.]*.png") if path.stem not in ordered)
    if strangers:
        raise UserError(
            f"{paths.LABELS} holds {len(strangers)} labels that {paths.LEDGER} does not know, {strangers[0]!r} first: "
            f"bring the ledger back with git, or, at an older commit, run `dvc checkout {paths.LABELS_DVC}`"
        )


def _order(
    round_name: str, line: BudgetLine, selection: pd.DataFrame, book: Ledger, prepare: Prepare, annotate: Annotate
) -> list[Order]:
    """What the selection adds to what is ordered already."""
    elsewhere = {order.key: order.round for order in book.orders}
    new = selection[~selection["key"].isin([key for key, name in elsewhere.items() if name == round_name])]
    for key in new["key"]:
        if key in elsewhere:
            raise UserError(
                f"{round_name} wants {key!r}, which {elsewhere[key]} has bought already: "
                f"run `dvc repro -s -f select@{round_name}`, then `dvc repro`"
            )
    for order in book.orders:
        if order.classes != prepare.classes:
            raise UserError(
                f"prepare.classes is {prepare.classes!r}, but labels were bought in {order.classes!r}: "
                f"set it back, or start a new project for the new classes"
            )
    return [
        Order(round_name, r.key, annotate.annotator, prepare.classes, r.gain, r.minutes, r.probability, ledger.now())
        for r in new.itertuples()
    ]


def _check_spending(
    round_name: str, line: BudgetLine, kept: Sequence[Order], new: Sequence[Order], book: Ledger
) -> None:
    if os.environ.get("DVC_EXP_NAME"):
        raise UserError(
            f"{round_name} would buy {len(new)} images inside `dvc exp run`, whose ledger is thrown away: "
            f"buy them with `dvc repro` first, then experiment on what was bought"
        )
    images, minutes = ledger.spent([*kept, *new], book.delivered(round_name))
    if images > (line.images or images) or minutes > (line.minutes or minutes) + 1e-6:
        raise UserError(
            f"{round_name} would spend {images} images and {minutes:g} minutes, but its budget line says {line}: "
            f"raise it in {paths.PARAMS}, or run `dvc repro -s -f select@{round_name}`"
        )


def _deliver(round_name: str, answer: Answer, image: pd.Series, classes: int, annotator: str) -> None:
    if not 0 <= answer.minutes < float("inf"):
        raise UserError(f"{annotator} says that {answer.key!r} took {answer.minutes} minutes, which is no time")
    unknown = np.setdiff1d(answer.mask, [*range(classes), IGNORE])
    if unknown.size:
        raise UserError(
            f"the label of {answer.key!r} from {annotator} holds the ids {', '.join(map(str, unknown))}, "
            f"but there are {classes} classes and {IGNORE} for none: mend it there, then `dvc repro`"
        )
    _check_size(answer.key, answer.mask, image)
    digest = artifacts.save_mask(paths.mask(answer.key), answer.mask)
    ledger.append([Delivery(round_name, answer.key, annotator, answer.minutes, digest, ledger.now())])


def _check_size(key: str, mask: UInt8[np.ndarray, "h w"], image: pd.Series) -> None:
    size = (int(image["height"]), int(image["width"]))
    if mask.shape != size:
        raise UserError(
            f"the label of {key!r} is {mask.shape[0]}x{mask.shape[1]}, its image {size[0]}x{size[1]} "
            f"(height x width): label it at the image's own size"
        )


def _take_corrections(round_name: str, pool: pd.DataFrame) -> None:
    """A mask that was changed by hand since it was delivered is delivered anew, for no further minutes."""
    latest = {delivery.key: delivery for delivery in ledger.load().delivered(round_name)}
    for key, delivery in latest.items():
        _check_size(key, artifacts.load_mask(paths.mask(key)), pool.loc[key])
        digest = artifacts.sha256(paths.mask(key))
        if digest != delivery.sha256:
            print(f"{round_name}: {paths.mask(key)} was changed by hand; taken as corrected")
            ledger.append([delivery._replace(annotator="hand", sha256=digest, at=ledger.now())])


def _add_to_dvc() -> None:
    if not paths.LABELS.is_dir():
        return  # nothing has come back yet
    # Relinking would take masks away for a moment, before data/labels.dvc speaks of them: a kill there would lose them.
    command = [sys.executable, "-m", "dvc", "add", "--no-relink", str(paths.LABELS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = " ".join(done.stderr.split())
        raise UserError(f"`dvc add {paths.LABELS}` failed ({reason}): mend that, then `dvc repro` goes on from here")


def _write_labels(round_name: str, after: str, keys: Sequence[str]) -> None:
    before = artifacts.load_labels(after)
    latest = {delivery.key: delivery for delivery in ledger.load().delivered(round_name)}
    rows = [
        {"key": key, "round": round_name, "minutes": latest[key].minutes, "sha256": latest[key].sha256} for key in keys
    ]
    artifacts.save_labels(round_name, [*before, *rows])
