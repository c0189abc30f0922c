"""Stage: the gain that a round was bought for against the gain that its labels show, before they are trained on."""

from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Bool
from torch import Tensor

from pipeline import (
    acquisitions,
    artifacts,
    auditing,
    batches,
    inference,
    ledger,
    metrics,
    paths,
    scoring,
    streams,
    training,
)
from pipeline.acquisitions import shortfall
from pipeline.acquisitions.contract import by_claim
from pipeline.auditing import Verdict
from pipeline.claims import highest
from pipeline.devices import Devices
from pipeline.errors import UserError
from pipeline.labels import IGNORE
from pipeline.params import IN_POINTS, BudgetLine, Compute, Model, Roots, Score

BINS = 15
"""Of the expected calibration error."""


def run(
    round_name: str, line: BudgetLine, *, seed: int, roots: Roots, model: Model, score: Score, compute: Compute
) -> None:
    """Write audit.csv (predicted and realised gain of every labelled image) and audit.json (what they say).

    Raises:
        UserError: a label is missing, or no pixel of the round's labels is of a class.
    """
    devices = Devices.start(compute)
    classes = ledger.classes()
    labels = artifacts.load_labels(round_name)
    keys = [row["key"] for row in labels if row["round"] == round_name]
    pool = artifacts.load_images(round_name, roots.pool).set_index("key")
    items = batches.labelled(keys, pool, len(classes.names))
    reference = torch.from_numpy(artifacts.load_pool(round_name))
    network, calibration = training.open_network(line.after, model, classes)
    rounds = len({row["round"] for row in labels} - {round_name})
    scorer = scoring.start(round_name, line.after, network, calibration, score, seed=seed, rounds=rounds)
    acquisition = scorer.acquisition

    shape = (0, len(classes.names))  # there may be fewer images than processes
    expected = [torch.zeros(*shape, dtype=torch.float64)]
    true = [torch.zeros(*shape, 3, dtype=torch.float64)]
    reliability = torch.zeros((BINS, 3), dtype=torch.float64)
    name = f"audit {round_name}"
    for out in inference.outputs(devices, network, items, model.size, compute, name, scorer.entry.needs_members):
        probabilities = scorer.calibration.apply(out.logits).softmax(1)
        truth = inference.small_masks(out.batch, model.size).to(probabilities.device)
        known = truth != IGNORE
        if scorer.entry.needs_members:  # split by the claimed class, as such gains are
            gain_map = scorer.gain_map(out, probabilities, reference.to(probabilities.device)) * known
            expected.append(by_claim(probabilities, gain_map)[..., 1].cpu())
        else:
            seen = acquisition.observe(_certain_elsewhere(probabilities, known), None).double().cpu()
            expected.append(acquisition.gain(seen, reference))
        true.append(acquisitions.observe_truth(highest(probabilities)[1], truth, len(classes.names)).cpu())
        reliability += metrics.reliability(probabilities, truth, BINS).cpu()
    predicted, realised = (devices.gather(torch.cat(part), len(items)) for part in (expected, true))
    reliability = devices.total(reliability)
    if not devices.is_first:
        return
    if not reliability[:, 0].sum() > 0:
        raise UserError(
            f"{round_name}: no pixel of its labels is of a class: correct one (where it was made, or its PNG in "
            f"{paths.LABELS}), then `dvc repro -s -f annotate@{round_name}` and `dvc repro`"
        )

    # An image without a labelled pixel says nothing, and its two zeros would look like agreement.
    shown = realised[:, :, 0].sum(1) > 0
    keys = [key for key, kept in zip(keys, shown.tolist(), strict=True) if kept]
    predicted, realised = predicted[shown], realised[shown]

    parts = {"predicted": predicted.numpy()}
    columns = [place for place, name in enumerate(acquisition.statistics) if name in ("claimed", "doubted", "missed")]
    if len(columns) == 3:  # else the pool's unions are not known, and with them no gain of the truth
        parts["realised"] = shortfall.gain(realised, reference[:, columns], scorer.smooth).numpy()
    drawn = artifacts.load_selection(round_name).set_index("key")["probability"]
    frame = pd.DataFrame({"key": keys, "probability": [float(drawn[key]) for key in keys]})
    frame = frame.assign(**{name: of.sum(1) for name, of in parts.items()})
    split = [pd.DataFrame(of, columns=[f"{name}_{c}" for c in classes.names]) for name, of in parts.items()]
    content = {"round": round_name, "acquisition": score.acquisition, "images": len(frame)}
    content["calibration_error"] = metrics.expected_calibration_error(reliability)
    earlier = artifacts.load_judged(line.after)
    said = _conclude(earlier, frame, streams.rng(seed, round_name, "audit"), score.acquisition)
    artifacts.save_audit(round_name, pd.concat([frame, *split], axis=1), content | said)
    print(f"{round_name}: {said['conclusion']}")


def _certain_elsewhere(probabilities: Tensor, known: Bool[Tensor, "n h w"]) -> Tensor:
    """Where nobody labelled, the model is taken at its word: no doubt there, so no gain."""
    claim = F.one_hot(highest(probabilities)[1].long(), probabilities.shape[1]).movedim(-1, 1).to(probabilities.dtype)
    return torch.where(known[:, None], probabilities, claim)


def _conclude(
    earlier: list[list[list[float]]], frame: pd.DataFrame, rng: np.random.Generator, acquisition: str
) -> dict[str, Any]:
    """What the table says, with the gains of earlier rounds where it says too little alone."""
    if "realised" not in frame.columns:
        why = f"no verdict on {acquisition}: the statistics that it sums over the pool do not give the realised gain"
        return {"signal": None, "conclusion": why, "judged": earlier}
    predicted, realised, probability = (frame[c].to_numpy(float) for c in ("predicted", "realised", "probability"))
    before = [(np.array(predicted), np.array(realised)) for predicted, realised in earlier]
    verdict = auditing.judge([*before, (predicted, realised)], rng)
    content: dict[str, Any] = {"predicted": float(predicted.sum()), "realised": float(realised.sum())}
    if acquisition in IN_POINTS:
        content |= auditing.fit_line(predicted, realised, probability)._asdict()
    content |= {"spearman": verdict.rank.spearman, "p_value": verdict.rank.p_value}
    content |= {"tested_images": verdict.images, "tested_rounds": verdict.rounds, "signal": verdict.signal}
    content |= {"conclusion": _sentence(verdict, content, acquisition)}
    own = [[float(f"{value:.9g}") for value in side] for side in (predicted, realised)]  # as the table has them
    return content | {"judged": [*earlier, own][-verdict.rounds :]}  # no later round goes further back


def _sentence(verdict: Verdict, content: dict[str, Any], acquisition: str) -> str:
    level = f"gain in points of mIoU {content['predicted']:.2f} predicted, {content['realised']:.2f} realised; "
    rank = "nothing to rank" if verdict.rank.spearman is None else f"rank correlation {verdict.rank.spearman:.2f}"
    found = {True: "a signal", False: "no signal", None: f"no verdict below {auditing.FEWEST} images"}[verdict.signal]
    over = f"{verdict.images} images" + (f" of {verdict.rounds} rounds" if verdict.rounds > 1 else "")
    return (
        f"{level if acquisition in IN_POINTS else ''}{rank} over {over} "
        f"(p = {verdict.rank.p_value:.2g}): {found} in {acquisition}"
    )
