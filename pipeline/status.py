"""`python -m pipeline status`: where the loop stands, and who is waited for. Starts without torch."""

import json
from typing import Any

from pipeline import artifacts, inputs, ledger, paths
from pipeline.errors import UserError
from pipeline.ledger import Delivery, Ledger, Skip
from pipeline.params import Params


def collect(params: Params) -> dict[str, Any]:
    """Everything the status shows, as plain values."""
    book = ledger.load()
    rounds: list[dict[str, Any]] = [
        {"round": paths.SOURCE_ROUND, "budget": "-", "ordered": 0, "labelled": 0, "skipped": 0, "minutes": 0.0}
    ]
    for name, line in params.budget.items():
        images, minutes = book.spent(name)
        labelled, skipped = len({delivery.key for delivery in book.delivered(name)}), len(book.skipped(name))
        row = {"round": name, "budget": str(line), "ordered": images, "labelled": labelled, "skipped": skipped}
        rounds.append(row | {"minutes": minutes})
    for has in rounds:
        has["forecast"] = _forecast(has["round"])
        has["miou"] = _miou(has["round"])
        has["state"] = _state(has, params)
    spent = [book.spent(name) for name in {entry.round for entry in book.entries}]
    return {
        "rounds": rounds,
        "annotators": _annotators(book),
        "doubled": _doubled(book),
        "agreement": _agreement(book),
        "label_studio": _label_studio(params, [row["round"] for row in rounds if row["ordered"] > row["labelled"]]),
        "spent": {"images": sum(images for images, _ in spent), "minutes": sum(minutes for _, minutes in spent)},
        "outside_the_table": sorted({order.round for order in book.orders} - set(params.budget)),
        "changed": inputs.changed(params),
        "next": next((f"{r['round']}: {r['state']}" for r in rounds if r["state"] != "done"), "all rounds are done"),
    }


def _annotators(book: Ledger) -> list[dict[str, Any]]:
    """What each of them did in each round; of corrections the last counts."""
    latest = {(delivery.round, delivery.key): delivery for delivery in book.deliveries}
    done: list[Delivery | Skip] = [*latest.values(), *(entry for entry in book.entries if isinstance(entry, Skip))]
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for entry in sorted(done, key=lambda entry: (entry.round, entry.annotator)):
        new = {"round": entry.round, "annotator": entry.annotator, "labelled": 0, "skipped": 0, "minutes": 0.0}
        row = rows.setdefault((entry.round, entry.annotator), new)
        row["labelled" if isinstance(entry, Delivery) else "skipped"] += 1
        row["minutes"] += entry.minutes
    return list(rows.values())


def _doubled(book: Ledger) -> dict[str, tuple[int, float]]:
    """Images of each round that two branches bought, and the minutes of the purchases that are not used."""
    doubles = {name: book.doubled(name) for name in dict.fromkeys(entry.round for entry in book.entries)}
    return {name: (len(each), sum(one.minutes for one in each)) for name, each in doubles.items() if each}


def _agreement(book: Ledger) -> dict[str, float]:
    """Share of pixels on which several annotators agree: the mean of each round's images that had several."""
    latest = {(delivery.round, delivery.key): delivery.agreement for delivery in book.deliveries}
    shares: dict[str, list[float]] = {}
    for (name, _), share in latest.items():
        if share is not None:
            shares.setdefault(name, []).append(share)
    return {name: sum(several) / len(several) for name, several in shares.items()}


def _label_studio(params: Params, waiting: list[str]) -> dict[str, Any] | None:
    """How far people are with the rounds that wait for them, as Label Studio has it; None if nobody waits for it."""
    if params.annotate.annotator != "label_studio" or not waiting:
        return None
    from pipeline.annotators import label_studio  # half a second, so only where it is needed

    try:
        progress = label_studio.progress(params.annotate, waiting)
    except UserError as error:  # the rest is worth showing all the same
        return {"url": params.annotate.url, "rounds": {}, "error": str(error)}
    return {"url": params.annotate.url, "rounds": {name: p._asdict() for name, p in progress.items()}, "error": None}


def _miou(round_name: str) -> float | None:
    return float(artifacts.load_metrics(round_name)["miou"]) if paths.metrics(round_name).is_file() else None


def _forecast(round_name: str) -> list[float] | None:
    """The interval that the round's mIoU was expected in before it was bought."""
    if not paths.forecast(round_name).is_file():
        return None
    has = artifacts.load_forecast(round_name)
    return [has["low"], has["high"]]


def _state(row: dict[str, Any], params: Params) -> str:
    missing = row["ordered"] - row["labelled"]
    if missing:
        return f"waiting for {missing} labels from {params.annotate.annotator}"
    if row["miou"] is not None:
        return "done"
    if row["round"] != paths.SOURCE_ROUND and not row["ordered"]:
        return "nothing ordered yet"
    return "to be trained and measured"


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
    spent = content["spent"]
    print(f"\nspent: {spent['images']} images, {spent['minutes']:.4g} minutes; next: {content['next']}")
    for row in content["annotators"]:
        skipped = f", skipped {row['skipped']}" if row["skipped"] else ""
        print(f"{row['round']}: {row['annotator']} labelled {row['labelled']}{skipped} in {row['minutes']:.4g} minutes")
    for name, (images, minutes) in content["doubled"].items():
        print(
            f"{name}: {images} bought on another branch, too; their {minutes:.4g} minutes are spent, the labels unused"
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
    for sentence in content["changed"]:
        print(sentence)
    if content["outside_the_table"]:
        print(f"bought in rounds that the budget table no longer has: {', '.join(content['outside_the_table'])}")
