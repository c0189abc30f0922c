"""`python -m pipeline status`: where the loop stands, what it has cost, and who is waited for. Starts without torch."""

import json
from typing import Any

from pipeline import artifacts, inputs, ledger, paths
from pipeline.commands.budget import goal
from pipeline.errors import UserError, counted
from pipeline.images import blocks
from pipeline.ledger.entries import Delivery, Ledger, Order, Skip, Spending, accounts
from pipeline.params import BudgetLine, Params


def collect(params: Params) -> dict[str, Any]:
    """Everything that the status shows, as plain values. Minutes are those that labels took, as in reports/rounds.csv.

    Minutes lost on skipped images and those expected for what is still out have keys of their own.
    """
    book = ledger.load()
    nothing = {
        "ordered": 0,
        "labelled": 0,
        "waiting": 0,
        "skipped": 0,
        "minutes": 0.0,
        "minutes_skipped": 0.0,
        "minutes_out": 0.0,
    }
    rounds: list[dict[str, Any]] = [{"round": paths.SOURCE_ROUND, "budget": "-", **nothing, "account": None}]
    for name, line in params.budget.items():
        spending = book.spending(name)
        row = {"round": name, "budget": str(line), "ordered": spending.images, "labelled": spending.labelled}
        row |= {
            "waiting": spending.waiting,
            "skipped": len(book.skipped(name)),
            "minutes": spending.measured,
            "minutes_skipped": spending.skipped,
        }
        rounds.append(row | {"minutes_out": spending.out, "account": _account(line, spending)})
    for has in rounds:
        has["forecast"] = _forecast(has["round"])
        has["miou"] = _miou(has["round"])
        has["state"] = _state(has, params)
    spent = [book.spending(name) for name in {entry.round for entry in book.entries}]
    labelled, skipped = sum(one.labelled for one in spent), sum(isinstance(entry, Skip) for entry in book.entries)
    out = sum(one.waiting for one in spent)
    units = {blocks.unit_of(entry.key) for entry in book.entries}
    unit = "region" if "region" in units else "image" if units <= {"image"} else "block"
    here = {(delivery.round, delivery.key) for delivery in book.deliveries}
    return {
        "rounds": rounds,
        "annotators": _annotators(book),
        "doubled": _doubled(book),
        "agreement": _agreement(book),
        "label_studio": _label_studio(params, [row["round"] for row in rounds if row["waiting"]]),
        "unit": unit,
        "regions": sum(len(e.regions) for e in book.entries if isinstance(e, Order) and (e.round, e.key) in here),
        "spent": {"images": labelled, "minutes": float(sum(one.measured for one in spent))},
        "skipped": {"images": skipped, "minutes": float(sum(one.skipped for one in spent))},
        "out": {"images": out, "minutes": float(sum(one.out for one in spent))},
        "held_back": [
            {"round": name, **held._asdict()}
            for name in sorted({entry.round for entry in book.entries})
            for held in book.spending(name).held_back
        ],
        "outside_the_table": sorted({order.round for order in book.orders} - set(params.budget)),
        "reach": goal(params, params.report.reach).said if params.report.reach else None,
        "changed": inputs.changed(params),
        "next": next((f"{r['round']}: {r['state']}" for r in rounds if r["state"] != "done"), "all rounds are done"),
    }


def _account(line: BudgetLine, spending: Spending) -> str | None:
    """A phrase on how a budget line in minutes stands; None for one in images, or if nothing is ordered yet."""
    if line.minutes is None or not spending.images:
        return None
    if not spending.waiting:
        return accounts(line.minutes, spending)
    spent = spending.measured + spending.skipped
    return f"{spent:.4g} of {line} spent, about {spending.out:.4g} are out, {line.minutes - spending.minutes:.4g} left"


def _annotators(book: Ledger) -> list[dict[str, Any]]:
    """A row per annotator and round: labels, skips and counted minutes; of several corrections the last counts."""
    latest = {(delivery.round, delivery.key): delivery for delivery in book.deliveries}
    done: list[Delivery | Skip] = [*latest.values(), *(entry for entry in book.entries if isinstance(entry, Skip))]
    held = {
        (name, one.key, one.minutes): one.counted
        for name in {entry.round for entry in done}
        for one in book.spending(name).held_back
    }
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for entry in sorted(done, key=lambda entry: (entry.round, entry.annotator)):
        new = {"round": entry.round, "annotator": entry.annotator, "labelled": 0, "skipped": 0, "minutes": 0.0}
        row = rows.setdefault((entry.round, entry.annotator), new)
        row["labelled" if isinstance(entry, Delivery) else "skipped"] += 1
        row["minutes"] += held.get((entry.round, entry.key, entry.minutes), entry.minutes)
    return list(rows.values())


def _doubled(book: Ledger) -> dict[str, tuple[int, float]]:
    """By round: (images that two branches bought, minutes of the purchases that are not used)."""
    doubles = {name: book.doubled(name) for name in dict.fromkeys(entry.round for entry in book.entries)}
    return {name: (len(each), sum(one.minutes for one in each)) for name, each in doubles.items() if each}


def _agreement(book: Ledger) -> dict[str, float]:
    """By round, the mean share of pixels on which annotators agree, over images that had several."""
    latest = {(delivery.round, delivery.key): delivery.agreement for delivery in book.deliveries}
    shares: dict[str, list[float]] = {}
    for (name, _), share in latest.items():
        if share is not None:
            shares.setdefault(name, []).append(share)
    return {name: sum(several) / len(several) for name, several in shares.items()}


def _label_studio(params: Params, waiting: list[str]) -> dict[str, Any] | None:
    """Progress of the rounds that wait for people, from Label Studio; None if no round waits for it."""
    if params.annotate.annotator != "label_studio" or not waiting:
        return None
    from pipeline.annotators.label_studio import annotator  # half a second, so only where it is needed

    try:
        progress = annotator.progress(params.annotate, waiting)
    except UserError as error:  # shown in the status, so that the rest is shown as well
        return {"url": params.annotate.url, "rounds": {}, "error": str(error)}
    return {"url": params.annotate.url, "rounds": {name: p._asdict() for name, p in progress.items()}, "error": None}


def _miou(round_name: str) -> float | None:
    return artifacts.load_miou_share(round_name) if paths.metrics(round_name).is_file() else None


def _forecast(round_name: str) -> list[float] | None:
    """The forecast interval of the round's mIoU, in [0, 1] as the mIoU is; None without a forecast."""
    if round_name == paths.SOURCE_ROUND or not paths.forecast(round_name).is_file():
        return None
    has = artifacts.load_forecast(round_name)
    return [has["low"], has["high"]]


def _state(row: dict[str, Any], params: Params) -> str:
    missing = row["waiting"]
    if missing:
        labels = f"{counted(missing, 'label')}, about {_minutes(row['minutes_out'])},"
        if params.annotate.annotator == "oracle":  # no people to wait for
            return f"{labels} to come from the oracle: `dvc repro` takes what it has not yet taken"
        return f"waiting for {labels} from {params.annotate.annotator}"
    if row["miou"] is not None:
        return "done"
    if row["round"] != paths.SOURCE_ROUND and not row["ordered"]:
        return "nothing ordered yet"
    return "to be trained and measured"


def _minutes(number: float) -> str:
    return f"{number:.4g} minute{'' if number == 1 else 's'}"


def _cost(row: dict[str, Any], unit: str) -> str:
    """Of unit region, `images` are those that had to be opened."""
    return f"{counted(row['images'], unit)} in {_minutes(row['minutes'])}"


def run(params: Params, *, as_json: bool) -> None:
    """Print the status as a table, or as JSON for programs."""
    content = collect(params)
    if as_json:
        print(json.dumps(content, indent=1))
        return
    print(
        f"{'round':<7}{'budget':<13}{'ordered':>8}{'labelled':>10}{'skipped':>9}{'minutes':>9}"
        f"{'forecast':>14}{'mIoU':>8}  state"
    )
    for row in content["rounds"]:
        forecast = "-" if row["forecast"] is None else " to ".join(f"{100 * end:.1f}" for end in row["forecast"])
        miou = "-" if row["miou"] is None else f"{100 * row['miou']:.1f}"
        print(
            f"{row['round']:<7}{row['budget']:<13}{row['ordered']:>8}{row['labelled']:>10}{row['skipped']:>9}"
            f"{row['minutes']:>9.4g}{forecast:>14}{miou:>8}  {row['state']}"
        )
    unit, of = content["unit"], ""
    if unit == "region":
        unit, of = "image", f"{counted(content['regions'], 'region')} of "
    parts = [f"labelled: {of}{_cost(content['spent'], unit)}"]
    if content["skipped"]["images"]:
        parts.append(f"skipped: {_cost(content['skipped'], unit)}")
    if content["out"]["images"]:
        parts.append(
            f"out: {counted(content['out']['images'], unit)}, about {_minutes(content['out']['minutes'])} expected"
        )
    print(f"\n{'; '.join(parts)}; next: {content['next']}")
    for row in content["rounds"]:
        if row["account"]:
            print(f"{row['round']}: {row['account']}")
    for row in content["annotators"]:
        skipped = f", skipped {row['skipped']}" if row["skipped"] else ""
        print(f"{row['round']}: {row['annotator']} labelled {row['labelled']}{skipped} in {_minutes(row['minutes'])}")
    for name, (images, minutes) in content["doubled"].items():
        print(f"{name}: {images} bought on another branch, too; their {_minutes(minutes)} are spent, the labels unused")
    for row in content["held_back"]:
        print(
            f"{row['round']}: {row['key']}: {_minutes(row['minutes'])} of {row['annotator']}, as when a tab is left "
            f"open, count as {row['counted']:.2g}"
        )
    for name, share in content["agreement"].items():
        print(f"{name}: several annotators agree on {100 * share:.1f}% of the pixels")
    if content["label_studio"]:
        for name, has in content["label_studio"]["rounds"].items():
            print(
                f"{name} in Label Studio at {content['label_studio']['url']}: sent {has['sent']}, "
                f"started {has['started']}, done {has['done']}, skipped {has['skipped']}"
            )
        if content["label_studio"]["error"]:
            print(f"not asked how far people are: {content['label_studio']['error']}")
    if content["reach"]:
        print(content["reach"])
    for sentence in content["changed"]:
        print(sentence)
    if content["outside_the_table"]:
        print(f"bought in rounds that the budget table no longer has: {', '.join(content['outside_the_table'])}")
