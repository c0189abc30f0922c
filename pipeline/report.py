"""Stage: what each round cost and brought, as a table, a curve, and a panel per bought image; how training went."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from lightning_fabric import Fabric

from pipeline import acquisitions, artifacts, batches, datasets, inference, paths, pictures, scoring, training
from pipeline.batches import Item
from pipeline.labels import IGNORE, ClassSet
from pipeline.params import BudgetLine, Compute, Model, Prepare, Report, Score


class Audit(NamedTuple):
    """Predicted and realised gain of a round, in the acquisition's unit; None where it has no truth to meet."""

    predicted: float | None
    realised: float | None


def run(
    *,
    seed: int,
    budget: dict[str, BudgetLine],
    prepare: Prepare,
    model: Model,
    score: Score,
    report: Report,
    compute: Compute,
) -> None:
    """Write reports/: rounds.csv, summary.json, curve.png, training/ and samples/."""
    fabric = training.start(compute)
    classes = datasets.class_set(prepare.classes)
    pool = artifacts.load_manifest("pool").set_index("key", drop=False)
    rows: list[dict[str, Any]] = [_row(paths.SOURCE_ROUND, [], Audit(None, None))]
    if fabric.is_global_zero:
        paths.SAMPLES.mkdir(parents=True, exist_ok=True)
    for name, line in budget.items():
        bought = artifacts.load_labels(name)
        audit = _round(fabric, name, line, pool, classes, seed, model, score, report, compute)
        rows.append(_row(name, bought, audit))
    if fabric.is_global_zero:
        frame = pd.DataFrame(rows)
        artifacts.save_report(frame)
        for name in frame["round"]:
            artifacts.write(paths.training_curves(name), pictures.training_curves(artifacts.load_log(name)))
        artifacts.write(
            paths.CURVE,
            pictures.curve([row["labels"] for row in rows], [row["miou"] for row in rows], list(frame["round"])),
        )
        print(frame.to_string(index=False, float_format=lambda x: f"{x:.3f}", na_rep="-"))


def _row(name: str, bought: Sequence[dict[str, Any]], audit: Audit) -> dict[str, Any]:
    measures = artifacts.load_json(paths.metrics(name), f"evaluate@{name}")
    return {
        "round": name,
        "labels": len(bought),
        "minutes": sum(row["minutes"] for row in bought),
        "miou": measures["miou"],
        "gain_predicted": audit.predicted,
        "gain_realised": audit.realised,
    }


def _round(
    fabric: Fabric,
    name: str,
    line: BudgetLine,
    pool: pd.DataFrame,
    classes: ClassSet,
    seed: int,
    model: Model,
    score: Score,
    report: Report,
    compute: Compute,
) -> Audit:
    """Draw the panels of a round's images, and compare what they were expected to bring with what they had."""
    table = batches.stored(len(classes.names))
    selection = artifacts.load_selection(name).sort_values("gain", ascending=False, kind="stable")
    items = [Item(key, Path(str(pool.at[key, "image"])), paths.mask(key), table) for key in selection["key"]]
    reference = torch.from_numpy(artifacts.load_pool(name))
    before, temperature = training.open_network(line.after, model, classes)
    after, _ = training.open_network(name, model, classes)
    rounds = len({row["round"] for row in artifacts.load_labels(line.after)})
    scorer = scoring.start(name, line.after, before, temperature, score, seed=seed, rounds=rounds)
    # There may be fewer images than processes.
    predicted = [torch.zeros(0, dtype=torch.float64)]
    realised = [torch.zeros(0, len(classes.names), 3, dtype=torch.float64)]
    grid = scorer.acquisition.members
    results = inference.outputs(fabric, before, items, model.size, compute, f"report {name}", grid)
    for out in results:
        probabilities = (out.logits / scorer.temperature).softmax(1)
        truth = inference.small_masks(out.batch, model.size).to(probabilities.device)
        now = probabilities.argmax(1)
        realised.append(acquisitions.observe_truth(now, truth, len(classes.names)).double().cpu())
        with torch.inference_mode():
            then = after.to(fabric.device).eval()(out.batch.images).argmax(1)
        gain_map = scorer.gain_map(out, probabilities, reference.to(probabilities.device))
        # On labelled pixels only, as the realised gain has to be; the map sums to the gain.
        predicted.append((gain_map * (truth != IGNORE)).sum((1, 2)).double().cpu())
        for place, index in enumerate(out.batch.indices):
            if index < report.panels:
                row = selection.iloc[index]
                artifacts.write(
                    paths.sample(name, index + 1, row["key"]),
                    pictures.panel(
                        image=out.batch.images[place].permute(1, 2, 0).cpu().numpy(),
                        truth=truth[place].cpu().numpy(),
                        before=now[place].byte().cpu().numpy(),
                        after=then[place].byte().cpu().numpy(),
                        gain=gain_map[place].float().cpu().numpy(),
                        classes=classes,
                        title=f"{name}  {row['key']}  gain {row['gain']:.4f}, drawn with p = {row['probability']:.2f}",
                    ),
                )
    if score.acquisition != "shortfall":
        return Audit(None, None)
    expected, true = (batches.gather(fabric, torch.cat(part), len(items)) for part in (predicted, realised))
    return Audit(float(expected.sum()), float(scorer.acquisition.gain(true, reference, score.smooth).sum()))
