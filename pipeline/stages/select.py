"""Stage: chooses the images, or blocks, that a round buys, by `select.method`. What it has ordered already stays.

Where the last audit found no signal in the score, the choice is class-stratified (`select.fallback`). What somebody
skipped in an earlier round comes last.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline import artifacts, ledger, paths, streams
from pipeline.errors import UserError, choose
from pipeline.evaluation import verdict
from pipeline.images import blocks
from pipeline.ledger import candidates
from pipeline.ledger.entries import Ledger, Order, Skip, Spending
from pipeline.params import Annotate, BudgetLine, Select
from pipeline.selection import METHODS, Budget, Candidates, Settings

if TYPE_CHECKING:
    import pandas as pd


def run(round_name: str, line: BudgetLine, *, seed: int, select: Select, annotate: Annotate) -> None:
    """Fill the round's budget line from its scores and write selection.csv.

    Raises:
        UserError: the pool has fewer images left than the line asks for, not one fits the minutes, or blocks are
            scored where images were bought or the other way round.
    """
    import pandas as pd  # here, since it takes as long to import as all the rest

    book = ledger.load()
    kept = book.ordered(round_name)  # paid for, so they stay whatever the scores say now
    scores = artifacts.load_scores(round_name)
    grid = blocks.grid_of(scores["key"].iloc[0])
    blocks.check_unit(grid, [entry.key for entry in book.entries], str(paths.LEDGER))
    field = "start" if select.start and line.after == paths.SOURCE_ROUND else "method"
    wanted = getattr(select, field)
    entry = choose(f"select.{field}", METHODS, wanted)
    if grid is not None and entry.needs_features:
        raise UserError(
            f"select.{field} is {wanted}, which compares features, and score.unit is block, of which there are none: "
            f"choose one of {', '.join(name for name, other in METHODS.items() if not other.needs_features)}"
        )
    left, aside = candidates.left(round_name, book, annotate)
    for sentence in aside:
        print(sentence)
    spending = book.spending(round_name)
    if annotate.annotator == "oracle":  # its minutes are known and need no prediction
        spending = spending._replace(pace=1.0)
    budget = _budget(line, spending)

    rows = [_kept(order) for order in kept]
    if budget is not None:
        if budget.images is not None and budget.images > len(left):
            raise UserError(
                f"budget: {round_name} asks for {line}, but only {len(left)} of the pool are left: "
                f"lower it in {paths.PARAMS}"
            )
        fallback = select.fallback and entry.by_gain  # methods that ignore the gain do not need it to have a signal
        name = verdict.method(wanted, artifacts.load_audit(line.after)["signal"], fallback)
        if name != wanted:
            print(
                f"{round_name}: drawn by {name} instead of {wanted}, since the labels of {line.after} "
                f"showed no signal in the score ({paths.audit(line.after)})"
            )
        settings = Settings(select.power, select.uniform_share)
        rows += _choose(round_name, left, book, budget, name, settings, streams.rng(seed, round_name, "select"))
    if not rows:
        raise UserError(
            f"budget: {round_name} has {line}, which is too little for one image: raise it in {paths.PARAMS}"
        )
    selection = pd.DataFrame(rows)
    artifacts.save_selection(round_name, selection)
    print(f"{round_name}: {blocks.counted(selection['key'].tolist())}, {len(kept)} of them ordered before")


def _budget(line: BudgetLine, spending: Spending) -> Budget | None:
    """The rest of a budget line, in images or predicted minutes; None if it is spent."""
    if line.images is not None:
        images = line.images - spending.images
        return Budget(images=images) if images > 0 else None
    left = ((line.minutes or 0) - spending.minutes) / spending.pace
    return Budget(minutes=left) if left > 0 else None


def _choose(
    round_name: str,
    left: "pd.DataFrame",
    book: Ledger,
    budget: Budget,
    name: str,
    settings: Settings,
    rng: np.random.Generator,
) -> list[dict[str, Any]]:
    """Rows of the selection, chosen by one method: first among images nobody has skipped, then among the others.

    Raises:
        UserError: the numbers are not what the method needs.
    """
    skipped = left["key"].isin({entry.key for entry in book.entries if isinstance(entry, Skip)})
    fresh, again = (part.reset_index(drop=True) for part in (left[~skipped], left[skipped]))
    rows: list[dict[str, Any]] = []
    for part in (fresh, again):
        images = None if budget.images is None else min(budget.images - len(rows), len(part))
        minutes = None if budget.minutes is None else budget.minutes - sum(row["minutes"] for row in rows)
        if part.empty or images == 0 or (minutes is not None and minutes <= 0):
            continue
        candidates = _candidates(round_name, part, book.orders, METHODS[name].needs_features)
        try:
            choice = METHODS[name].make(settings)(candidates, Budget(images, minutes), rng)
        except ValueError as error:
            raise UserError(f"{round_name}: {error}; see {paths.scores(round_name)} and the section select") from None
        drawn = part.iloc[choice.indices][["key", "gain", "minutes"]]
        rows += drawn.assign(probability=choice.probabilities, method=name).to_dict("records")
        if part is again and len(drawn):
            print(
                f"{round_name}: nothing else is left of the pool, so {blocks.counted(drawn['key'].tolist())} that "
                f"annotators of an earlier round have skipped will be asked for again"
            )
        if len(drawn) < len(part):
            break  # the budget line is filled, or the next image does not fit
    return rows


def _candidates(round_name: str, left: "pd.DataFrame", orders: Iterable[Order], need: str | None) -> Candidates:
    """The images left, with the features that the method needs and those of the images ordered so far.

    Raises:
        UserError: there are features, but not of every image left.
    """
    parts = left[[column for column in left.columns if column.startswith("gain_")]]
    scored = Candidates(left["gain"].to_numpy(float), left["minutes"].to_numpy(float), parts.to_numpy(float))
    if need is None or not (features := artifacts.load_features(round_name)).keys:
        return scored
    row = {key: number for number, key in enumerate(features.keys)}
    absent = [key for key in left["key"] if key not in row]
    if absent:
        raise UserError(
            f"{paths.features(round_name)} lacks {absent[0]!r}, which {paths.scores(round_name)} has: "
            f"run `dvc repro -s -f score@{round_name}`, then `dvc repro`"
        )
    own = [row[key] for key in left["key"]]
    bought = [row[order.key] for order in orders if order.key in row]
    fields = {"iou": features.iou}
    for name, table in (
        (need, getattr(features, "image" if need == "features" else need)),
        ("holds", features.holds),
    ):
        fields[name] = table[own]
        if f"bought_{name}" in Candidates._fields:
            fields[f"bought_{name}"] = table[bought]
    return scored._replace(**fields)


def _kept(order: Order) -> dict[str, str | float]:
    return {
        "key": order.key,
        "gain": order.gain,
        "minutes": order.minutes,
        "probability": order.probability,
        "method": order.method,
    }
