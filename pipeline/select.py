"""Stage: which images, or blocks, a round buys. What the round has ordered before stays; the rest is drawn by gain.

Where the last audit found no signal in the score, the rest is drawn class-stratified (`select.fallback`).
"""

from collections.abc import Iterable, Set

import pandas as pd

from pipeline import artifacts, auditing, blocks, ledger, paths, streams
from pipeline.errors import UserError, choose
from pipeline.ledger import Order, Skip
from pipeline.params import Annotate, BudgetLine, Select
from pipeline.selection import BY_GAIN, METHODS, NEEDS, Budget, Candidates, Options


def run(round_name: str, line: BudgetLine, *, seed: int, select: Select, annotate: Annotate) -> None:
    """Fill the round's budget line from its scores and write selection.csv.

    Raises:
        UserError: the pool has fewer images left than the line asks for, not one fits the minutes, or blocks are
            scored where images were bought or the other way round.
    """
    book = ledger.load()
    kept = book.ordered(round_name)  # paid for: whatever the scores say now, they stay
    # A skipped image is back in the pool, but not offered again in the round whose annotators would not have it.
    gone = {order.key for order in book.orders} | {skip.key for skip in book.skipped(round_name)} | book.removed
    scores = artifacts.load_scores(round_name)
    grid = blocks.grid_of(scores["key"].iloc[0])
    blocks.check_unit(grid, [entry.key for entry in book.entries], str(paths.LEDGER))
    field = "start" if select.start and line.after == paths.SOURCE_ROUND else "method"
    wanted = getattr(select, field)
    if grid is not None and wanted in NEEDS:
        raise UserError(
            f"select.{field} is {wanted}, which compares features, and score.unit is block, of which there are none: "
            f"choose one of {', '.join(name for name in METHODS if name not in NEEDS)}"
        )
    had = {entry.key for entry in book.entries if not isinstance(entry, Skip)} | gone
    aside = _set_aside(
        scores["key"], artifacts.load_images(round_name).set_index("key"), had, oracle=annotate.annotator == "oracle"
    )
    left = scores[~scores["key"].isin(gone | aside)].reset_index(drop=True)
    spent = book.spent(round_name)
    images = None if line.images is None else line.images - spent[0]
    minutes = None if line.minutes is None else line.minutes - spent[1]

    rows = [_kept(order) for order in kept]
    if (images is None or images > 0) and (minutes is None or minutes > 0):
        if images is not None and images > len(left):
            raise UserError(
                f"budget: {round_name} asks for {line}, but only {len(left)} of the pool are left: "
                f"lower it in {paths.PARAMS}"
            )
        fallback = select.fallback and wanted in BY_GAIN  # a verdict on the score is none on who does not go by it
        name = auditing.method(wanted, artifacts.load_audit(line.after)["signal"], fallback)
        if name != wanted:
            print(
                f"{round_name}: drawn by {name} instead of {wanted}, since the labels of {line.after} "
                f"showed no signal in the score ({paths.audit(line.after)})"
            )
        method = choose(f"select.{field}", METHODS, name)
        try:
            choice = method(
                _candidates(round_name, left, book.orders, NEEDS.get(name)),
                Budget(images, minutes),
                Options(select.power, select.uniform_share),
                streams.rng(seed, round_name, "select"),
            )
        except ValueError as error:
            raise UserError(f"{round_name}: {error}; see {paths.scores(round_name)} and the section select") from None
        drawn = left.iloc[choice.indices][["key", "gain", "minutes"]]
        rows += drawn.assign(probability=choice.probabilities, method=name).to_dict("records")
    if not rows:
        raise UserError(
            f"budget: {round_name} has {line}, which is too little for one image: raise it in {paths.PARAMS}"
        )
    selection = pd.DataFrame(rows)
    artifacts.save_selection(round_name, selection)
    print(f"{round_name}: {blocks.counted(selection['key'].tolist())}, {len(kept)} of them ordered before")


def _set_aside(keys: pd.Series, pool: pd.DataFrame, had: Set[str], *, oracle: bool) -> set[str]:
    """What of the scored images, or blocks, is not to be bought: doubles, and what the oracle has no mask of.

    Of images of the same content one is left: one of which something is had already, else the first.
    """
    taken = {blocks.image_of(key) for key in had}
    first: dict[str, str] = {}
    for key in sorted(pool.index, key=lambda key: key not in taken):  # stable
        first.setdefault(pool.at[key, "sha256"], key)
    images = keys.map(blocks.image_of)
    known = images.isin(pool.index)
    content, mask = (images.map(pool[column]) for column in ("sha256", "mask"))
    double = known & (content.map(first) != images)
    closed = known & ~double & (mask == "") if oracle else known & False
    for which, why in ((double, "have the same content as another"), (closed, "have no mask for the oracle")):
        if which.any():
            print(f"set aside: {which.sum()} of {blocks.counted(keys.tolist())} {why}, {keys[which].iloc[0]!r} first")
    return set(keys[double | closed])


def _candidates(round_name: str, left: pd.DataFrame, orders: Iterable[Order], need: str | None) -> Candidates:
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
