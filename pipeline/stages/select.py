"""Stage: chooses the images, or blocks, that a round buys, by `select.method`. What it has ordered already stays.

Of unit region it chooses images, each with the regions that are asked about (`select.regions`). Where the last audit
found no signal in the score, the choice of images is class-stratified (`select.fallback`). What somebody skipped in an
earlier round comes last.
"""

import itertools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline import artifacts, ledger, paths, streams
from pipeline.errors import UserError, choose
from pipeline.evaluation import verdict
from pipeline.images import blocks
from pipeline.images.region_scores import RegionScores
from pipeline.ledger import candidates
from pipeline.ledger.entries import Ledger, Order, Skip, Spending
from pipeline.params import Annotate, BudgetLine, Select
from pipeline.selection import METHODS, Budget, Candidates, Settings, regions

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
    left, aside, of_regions = candidates.left(round_name, book, annotate)
    first = artifacts.load_scores(round_name)["key"].iloc[0]
    unit = "region" if of_regions.in_force else blocks.unit_of(first)
    blocks.check_unit(unit, [entry.key for entry in book.entries], str(paths.LEDGER))
    field = "start" if select.start and line.after == paths.SOURCE_ROUND else "method"
    wanted = getattr(select, field)
    entry = choose(f"select.{field}", METHODS, wanted)
    if isinstance(unit, tuple) and entry.needs_features:
        raise UserError(
            f"select.{field} is {wanted}, which compares features, and score.unit is block, of which there are none: "
            f"choose one of {', '.join(name for name, other in METHODS.items() if not other.needs_features)}"
        )
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
        if unit == "region":
            left = _priced(left, of_regions, select.regions_per_image)
        chosen = _choose(round_name, left, book, budget, name, settings, streams.rng(seed, round_name, "select"))
        if unit == "region":
            rng = streams.rng(seed, round_name, "regions")
            chosen = _asked(round_name, chosen, left, of_regions, select.regions, settings, rng)
        rows += chosen
    if not rows:
        raise UserError(
            f"budget: {round_name} has {line}, which is too little for one image: raise it in {paths.PARAMS}"
        )
    selection = pd.DataFrame(rows)
    artifacts.save_selection(round_name, selection)
    asked = sum(len(blocks.numbers(row.get("regions", ""))) for row in rows)
    print(f"{round_name}: {blocks.counted(selection['key'].tolist(), asked)}, {len(kept)} orders of before among them")


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
    # of regions, a skip says that the image is not to be had: a later round asks others first
    skipped = left["key"].isin({_scored(entry.key) for entry in book.entries if isinstance(entry, Skip)})
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


def _scored(key: str) -> str:
    """The key that the scores have for what was ordered."""
    return blocks.image_of(key) if blocks.is_of_regions(key) else key


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
    bought = [row[key] for key in dict.fromkeys(_scored(order.key) for order in orders) if key in row]
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
    row: dict[str, str | float] = {
        "key": order.key,
        "gain": order.gain,
        "minutes": order.minutes,
        "probability": order.probability,
        "method": order.method,
    }
    return row | {"regions": blocks.listed(order.regions)} if order.regions else row


def _priced(left: "pd.DataFrame", of_regions: RegionScores, per_image: int | None) -> "pd.DataFrame":
    """The images left with the gain and the minutes of as many of their best regions as would be asked about."""
    left = left.copy()
    parts = [column for column in left.columns if column.startswith("gain_")]
    to_open, per_answer = map(float, of_regions.price)
    rows = []
    for own in _slices(of_regions, len(left)):
        gains = of_regions.gain[own]
        k = regions.most_per_minute(gains, to_open, per_answer) if per_image is None else min(per_image, len(gains))
        best = regions.top(gains, k)
        rows.append([k, to_open + k * per_answer, gains[best].sum(), *of_regions.parts[own][best].sum(0)])
    left[["asked", "minutes", "gain", *parts]] = np.array(rows).reshape(len(left), 3 + len(parts))
    return left


def _slices(of_regions: RegionScores, images: int) -> list[slice]:
    """Where the regions of each image are."""
    ends = np.searchsorted(of_regions.image, np.arange(images + 1))
    return [slice(start, end) for start, end in itertools.pairwise(ends.tolist())]


def _asked(
    round_name: str,
    chosen: list[dict[str, Any]],
    left: "pd.DataFrame",
    of_regions: RegionScores,
    how: str,
    settings: Settings,
    rng: np.random.Generator,
) -> list[dict[str, Any]]:
    """Rows of the selection with the regions that are asked about in each chosen image.

    The gain is that of these regions, the probability that of the image times the mean of its regions'.

    Raises:
        UserError: the numbers are not what the method needs.
    """
    method = choose("select.regions", regions.REGION_METHODS, how)(settings)
    places = {key: place for place, key in enumerate(left["key"])}
    slices = _slices(of_regions, len(left))
    rows = []
    for row in chosen:
        place = places[row["key"]]
        own = slices[place]
        try:
            indices, probabilities = method(of_regions.gain[own], int(left["asked"].iloc[place]), rng)
        except ValueError as error:
            raise UserError(f"{round_name}: {row['key']!r}: {error}") from None
        asked = {
            "key": blocks.key_of_regions(row["key"], round_name),
            "gain": float(of_regions.gain[own][indices].sum()),
            "probability": row["probability"] * float(probabilities.mean()),
            "regions": blocks.listed(of_regions.region[own][indices].tolist()),
        }
        rows.append(row | asked)
    return rows
