"""`python -m pipeline status`: where the loop stands, and who is waited for. Starts without torch."""

import json
from typing import Any

from pipeline import artifacts, ledger, paths
from pipeline.params import Params


def collect(params: Params) -> dict[str, Any]:
    """Everything the status shows, as plain values."""
    book = ledger.load()
    rounds = [{"round": paths.SOURCE_ROUND, "budget": "-", "ordered": 0, "labelled": 0, "minutes": 0.0}]
    for name, line in params.budget.items():
        orders, deliveries = book.ordered(name), book.delivered(name)
        images, minutes = ledger.spent(orders, deliveries)
        labelled = len({delivery.key for delivery in deliveries})
        rounds.append({"round": name, "budget": str(line), "ordered": images, "labelled": labelled, "minutes": minutes})
    for row in rounds:
        row["miou"] = _miou(str(row["round"]))
        row["state"] = _state(row, params)
    in_table = set(params.budget)
    images, minutes = ledger.spent(book.orders, book.deliveries)
    return {
        "rounds": rounds,
        "spent": {"images": images, "minutes": minutes},
        "outside_the_table": sorted({order.round for order in book.orders} - in_table),
        "next": next((f"{r['round']}: {r['state']}" for r in rounds if r["state"] != "done"), "all rounds are done"),
    }


def _miou(round_name: str) -> float | None:
    path = paths.metrics(round_name)
    return float(artifacts.load_json(path, f"evaluate@{round_name}")["miou"]) if path.is_file() else None


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
    print(f"{'round':<7}{'budget':<13}{'ordered':>8}{'labelled':>10}{'minutes':>9}{'mIoU':>8}  state")
    for row in content["rounds"]:
        miou = "-" if row["miou"] is None else f"{100 * row['miou']:.1f}"
        print(
            f"{row['round']:<7}{row['budget']:<13}{row['ordered']:>8}{row['labelled']:>10}{row['minutes']:>9g}"
            f"{miou:>8}  {row['state']}"
        )
    spent = content["spent"]
    print(f"\nspent: {spent['images']} images, {spent['minutes']:g} minutes; next: {content['next']}")
    if content["outside_the_table"]:
        print(f"bought in rounds that the budget table no longer has: {', '.join(content['outside_the_table'])}")
