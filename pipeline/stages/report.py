"""Stage: what each round cost and brought, as a table, a curve, and a panel per bought image; how training went.

And who has labelled, and which labels are most likely wrong.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from pipeline import artifacts, ledger, paths, storage
from pipeline.evaluation import pictures, planner, suspect_pictures, suspects, verdict
from pipeline.evaluation.planner import Curves
from pipeline.images import blocks, reading, resizing
from pipeline.images.classes import ClassSet
from pipeline.images.items import labelled_items
from pipeline.ledger import annotators
from pipeline.params import IN_POINTS, BudgetLine, Report, Roots, Score

SUSPECTS = 5
"""Labels of a round that the picture of the most suspect ones shows."""


def run(*, budget: dict[str, BudgetLine], roots: Roots, score: Score, report: Report) -> None:
    """Write reports/: rounds.csv, summary.json, annotators.csv, curve.png, training/, audit/, quality/ and samples/."""
    classes = ledger.classes()
    book, skipped = ledger.load(), 0.0
    rows: list[dict[str, Any]] = [_row(paths.SOURCE_ROUND, [], skipped)]
    for folder in (paths.SAMPLES, paths.AUDITS, paths.QUALITY):
        folder.mkdir(parents=True, exist_ok=True)
    pools = dict[str, pd.DataFrame]()
    for name in budget:
        skipped += book.spending(name).skipped
        rows.append(_row(name, artifacts.load_labels(name), skipped))
        pool = pools[name] = artifacts.load_images(name, roots.pool).set_index("key")
        _panels(name, pool, classes, score, report)
        _suspects(name, pool, classes)
    frame = pd.DataFrame(rows)
    curves = _curves(rows[1:]) if report.reach else None
    artifacts.save_report(frame, _goal(rows[-1]["miou"], report.reach, curves) if report.reach else {})
    _annotators(pools, classes)
    for name in frame["round"]:
        storage.write(paths.training_curves(name), pictures.training_curves(artifacts.load_log(name)))
    for name in budget:
        _audit(name, classes)
    storage.write(
        paths.CURVE,
        pictures.curve(
            [row["minutes" if curves else "labels"] for row in rows],
            [row["miou"] for row in rows],
            list(frame["round"]),
            "images (some regions of each)" if score.unit == "region" else f"{score.unit}s",
            curves,
            report.reach,
        ),
    )
    print(frame.to_string(index=False, float_format=lambda x: f"{x:.3f}", na_rep="-"))
    for name in frame["round"][frame["fallback"] > 0]:
        print(f"{name}: drawn by {verdict.FALLBACK}, since the round before showed no signal in the score")


def _curves(rows: Sequence[Mapping[str, Any]]) -> Curves | None:
    """The curves of mIoU over minutes that the rounds leave possible; None if they are too few to tell."""
    bought = [row for row in rows if row["minutes"] > 0]
    try:
        return planner.fit([float(row["minutes"]) for row in bought], [100 * row["miou"] for row in bought])
    except ValueError:
        return None


def _goal(miou_share: float, target_points: float, curves: Curves | None) -> dict[str, Any]:
    """What the target takes, in minutes in all; None where it cannot be told, or where it is never reached."""
    content = {"reach": target_points / 100, "reached": 100 * miou_share >= target_points}
    if content["reached"] or curves is None:
        return content
    found = planner.plan(curves, target_points)
    minutes = {"reach_minutes": found.expected, "reach_minutes_low": found.low, "reach_minutes_high": found.high}
    finite = {name: value if math.isfinite(value) else None for name, value in minutes.items()}
    return content | finite | {"reach_never": found.never}


def _row(name: str, bought: Sequence[dict[str, Any]], minutes_skipped: float) -> dict[str, Any]:
    audit = artifacts.load_audit(name)
    forecast = {} if name == paths.SOURCE_ROUND else artifacts.load_forecast(name)
    # Gains are in points of mIoU, mIoUs in [0, 1], as on disk. Gains in another unit are not for a table.
    in_points = "through_origin" in audit
    return {
        "round": name,
        "labels": len(bought),
        "minutes": sum(row["minutes"] for row in bought),
        "minutes_skipped": minutes_skipped,  # up to this round, as the minutes of labels are
        "miou": artifacts.load_miou_share(name),
        "forecast_low": forecast.get("low"),
        "forecast_high": forecast.get("high"),
        "gain_predicted": audit["predicted"] if in_points else None,
        "gain_realised": audit["realised"] if in_points else None,
        "rank_correlation": audit.get("spearman"),
        "signal": {True: "yes", False: "no", None: None}[audit["signal"]],
        "fallback": 0 if name == paths.SOURCE_ROUND else _fallback(name),
    }


def _fallback(name: str) -> int:
    """Images of the round that were chosen by the fallback."""
    return int((_bought(name)["method"] == verdict.FALLBACK).sum())


def _bought(name: str) -> pd.DataFrame:
    """What the round has bought of its selection: of a line in minutes not all may have been ordered."""
    keys = [row["key"] for row in artifacts.load_labels(name) if row["round"] == name]
    selection = artifacts.load_selection(name)
    return selection[selection["key"].isin(keys)]


def _audit(name: str, classes: ClassSet) -> None:
    """Draw the audit, where there is a realised gain to show."""
    audit, frame = artifacts.load_audit(name), artifacts.load_audit_table(name)
    if "through_origin" in audit:
        fit = None if audit["slope"] is None else (audit["intercept"], audit["slope"])
        columns = {str(column): frame[column].to_numpy(float) for column in frame.columns if column != "key"}
        title = f"{name}: {audit['conclusion']}"
        storage.write(paths.audit_picture(name), pictures.audit(columns, classes, fit, title))


def _panels(name: str, pool: pd.DataFrame, classes: ClassSet, score: Score, report: Report) -> None:
    """Draw a panel of each of the round's images (whole, also where a part of it is bought), highest gain first."""
    selection = _bought(name).sort_values("gain", ascending=False, kind="stable")[: report.panels]
    unit = " points" if score.acquisition in IN_POINTS else f" of {score.acquisition}"
    items = labelled_items(selection["key"], pool, len(classes.names))
    for rank, (item, row) in enumerate(zip(items, selection.to_dict("records"), strict=True), start=1):
        before, gain = artifacts.load_before(name, item.key)
        full = reading.read_image(item.image, item.sha256)
        mask = item.read_mask(full.shape[:2])
        if mask is None:
            raise AssertionError("a label that was delivered has a mask")
        how = f"drawn with p = {row['probability']:.2f}" if row["probability"] < 1 else f"chosen by {row['method']}"
        storage.write(
            paths.sample(name, rank, item.key),
            pictures.panel(
                image=resizing.resize(full, before.shape),
                truth=resizing.resize_mask(mask, before.shape),
                before=before,
                after=artifacts.load_after(name, item.key),
                gain=gain,
                classes=classes,
                title=f"{name}  {item.key}  gain {row['gain']:.4f}{unit}, {how}",
            ),
        )


def _annotators(pools: Mapping[str, pd.DataFrame], classes: ClassSet) -> None:
    """Write the table of annotators."""
    book, pixels = ledger.load(), dict[str, int]()
    for order in book.orders:
        if order.round in pools and not blocks.is_of_regions(order.key):  # of regions, only some were asked about
            image, block = pools[order.round].loc[blocks.image_of(order.key)], blocks.parse(order.key)
            size = (int(image["height"]), int(image["width"]))
            height, width = size if block is None else block.box(size).size
            pixels[order.key] = height * width
    rows = annotators.rows(book, pixels, classes.names)
    columns = ("round", "annotator", "labels", "skipped", "minutes")  # of none, if nothing has come back
    text = pd.DataFrame(rows, columns=None if rows else columns).to_csv(
        index=False, lineterminator="\n", float_format="%.9g"
    )
    storage.write(paths.ANNOTATORS, text.encode())


def _suspects(name: str, pool: pd.DataFrame, classes: ClassSet) -> None:
    """Draw the labels of a round that are most likely wrong."""
    worst = suspects.load(name)
    worst = worst[worst["pixels"] > 0][:SUSPECTS]
    shown = []
    for item, row in zip(labelled_items(worst["key"], pool, len(classes.names)), worst.to_dict("records"), strict=True):
        suspected, (before, _) = suspects.load_picture(name, item.key), artifacts.load_before(name, item.key)
        full = reading.read_image(item.image, item.sha256)
        mask = item.read_mask(full.shape[:2])
        if mask is None:
            raise AssertionError("a label that was delivered has a mask")
        caption = f"{item.key}  quality {row['quality']:.2f}, {100 * row['suspected'] / row['pixels']:.0f}% suspected"
        small = resizing.resize(full, suspected.shape), resizing.resize_mask(mask, suspected.shape)
        shown.append(suspect_pictures.Suspect(caption, *small, before, suspected))
    title = f"{name}: the labels that are most likely wrong; `python -m pipeline review --round {name}`"
    storage.write(paths.quality_picture(name), suspect_pictures.sheet(shown, classes, title))
