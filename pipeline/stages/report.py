"""Stage: what each round cost and brought, as a table, a curve, and a panel per bought image; how training went."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from pipeline import artifacts, ledger, paths, storage
from pipeline.evaluation import pictures, planner, verdict
from pipeline.evaluation.planner import Curves
from pipeline.images import reading, resizing
from pipeline.images.classes import ClassSet
from pipeline.images.items import labelled_items
from pipeline.params import IN_POINTS, BudgetLine, Report, Roots, Score


def run(*, budget: dict[str, BudgetLine], roots: Roots, score: Score, report: Report) -> None:
    """Write reports/: rounds.csv, summary.json, curve.png, training/, audit/ and samples/."""
    classes = ledger.classes()
    book, skipped = ledger.load(), 0.0
    rows: list[dict[str, Any]] = [_row(paths.SOURCE_ROUND, [], skipped)]
    for folder in (paths.SAMPLES, paths.AUDITS):
        folder.mkdir(parents=True, exist_ok=True)
    for name in budget:
        skipped += book.spending(name).skipped
        rows.append(_row(name, artifacts.load_labels(name), skipped))
        pool = artifacts.load_images(name, roots.pool).set_index("key")
        _panels(name, pool, classes, score, report)
    frame = pd.DataFrame(rows)
    curves = _curves(rows[1:]) if report.reach else None
    artifacts.save_report(frame, _goal(rows[-1]["miou"], report.reach, curves) if report.reach else {})
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
