"""Stage: what a round's labels say of the model that they were bought for, before any model is trained on them.

Of its gains: predicted against realised. And of its probabilities: what calibrates it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Bool
from torch import Tensor

from pipeline import artifacts, gain, ledger, paths, streams
from pipeline.errors import UserError
from pipeline.evaluation import label_quality, metrics, suspects, verdict
from pipeline.gain import shortfall
from pipeline.gain.contract import by_claim
from pipeline.gain.scorer import start_scorer
from pipeline.images import blocks
from pipeline.images.claims import highest
from pipeline.images.classes import IGNORE, ClassSet
from pipeline.images.items import labelled_items
from pipeline.networks import inference, saved
from pipeline.networks.devices import Devices
from pipeline.params import BudgetLine, Calibration, Compute, Model, Roots, Score

BINS = 15
"""Of the expected calibration error."""


def run(
    round_name: str,
    line: BudgetLine,
    *,
    seed: int,
    roots: Roots,
    model: Model,
    calibration: Calibration,
    score: Score,
    compute: Compute,
) -> None:
    """Write audit.csv (predicted and realised gain of every labelled image) and audit.json (what they say).

    And calibration.json: what calibrates the model of the round before, for `tune` to keep beside the next one. And
    quality.csv and suspects/: which of the labels are most likely wrong, and where.

    Raises:
        UserError: a label is missing, no pixel of the round's labels is of a class, or the calibration fails.
    """
    devices = Devices.start(compute)
    classes = ledger.classes()
    labels = artifacts.load_labels(round_name)
    new = [row for row in labels if row["round"] == round_name]
    keys = [row["key"] for row in new]
    pool = artifacts.load_images(round_name, roots.pool).set_index("key")
    items = labelled_items(keys, pool, len(classes.names))
    reference = torch.from_numpy(artifacts.load_pool(round_name))
    # As if every image of the pool were equally likely to be among them.
    drawn = artifacts.load_selection(round_name).set_index("key")["probability"]
    importance = [1 / float(drawn[key]) for key in keys]
    network, used = saved.open_network(line.after, model, classes)
    rounds = len({row["round"] for row in labels} - {round_name})
    scorer = start_scorer(round_name, line.after, network, used, score, seed=seed, rounds=rounds)
    acquisition = scorer.acquisition

    shape = (0, len(classes.names))  # there may be fewer images than processes
    expected = [torch.zeros(*shape, dtype=torch.float64)]
    true = [torch.zeros(*shape, 3, dtype=torch.float64)]
    reliability = torch.zeros((BINS, 3), dtype=torch.float64)
    pixels, judged = [], list[tuple[int, label_quality.Judged]]()
    name = f"audit {round_name}"
    for out in inference.outputs(devices, network, items, model.size, compute, name, scorer.entry.needs_members):
        probabilities = scorer.calibration.apply(out.logits).softmax(1)
        masks = inference.small_masks(out.batch, model.size)
        pixels.append(inference.labelled_pixels(out, masks, importance))
        truth = masks.to(probabilities.device)
        known = truth != IGNORE
        if scorer.entry.needs_members:  # split by the claimed class, as such gains are
            gain_map = scorer.gain_map(out, probabilities, reference.to(probabilities.device)) * known
            expected.append(by_claim(probabilities, gain_map)[..., 1].cpu())
        else:
            seen = acquisition.observe(_certain_elsewhere(probabilities, known), None).double().cpu()
            expected.append(acquisition.gain(seen, reference))
        best, claim = highest(probabilities)
        true.append(gain.observe_truth(claim, truth, len(classes.names)).cpu())
        own = probabilities.gather(1, truth.long().clamp(max=len(classes.names) - 1)[:, None])[:, 0]
        for place, index in enumerate(out.batch.indices):
            maps = (of[place].cpu().numpy() for of in (truth, claim, own, best))
            judged.append((index, label_quality.judge(len(classes.names), *maps)))
        reliability += metrics.reliability(probabilities, truth, BINS).cpu()
    predicted, realised = (devices.gather(torch.cat(part), len(items)) for part in (expected, true))
    reliability = devices.total(reliability)
    to_fit = inference.Pixels.gathered(devices, pixels)
    doubted = _doubted(devices, round_name, new, judged, pool, classes)
    if not devices.is_first:
        return
    if not len(to_fit.truth):
        raise UserError(
            f"{round_name}: no pixel of its labels is of a class: raise its line of the budget in {paths.PARAMS} and "
            f"run `dvc repro`, which buys more; or correct one (where it was made, or its PNG in {paths.LABELS}), then "
            f"`dvc repro -s -f annotate@{round_name}` and `dvc repro`"
        )

    # An image without a labelled pixel says nothing, and its two zeros would look like agreement.
    shown = realised[:, :, 0].sum(1) > 0
    keys = [key for key, kept in zip(keys, shown.tolist(), strict=True) if kept]
    predicted, realised = predicted[shown], realised[shown]

    parts = {"predicted": predicted.numpy()}
    columns = [place for place, name in enumerate(acquisition.statistics) if name in ("claimed", "doubted", "missed")]
    if len(columns) == 3:  # else the pool's unions are not known, and with them no gain of the truth
        parts["realised"] = shortfall.gain(realised, reference[:, columns], scorer.smooth).numpy()
    frame = pd.DataFrame({"key": keys, "probability": [float(drawn[key]) for key in keys]})
    frame = frame.assign(**{name: of.sum(1) for name, of in parts.items()})
    split = [pd.DataFrame(of, columns=[f"{name}_{c}" for c in classes.names]) for name, of in parts.items()]
    content = {"round": round_name, "acquisition": score.acquisition, "images": len(frame)}
    content["calibration_error"] = metrics.expected_calibration_error(reliability)
    earlier = artifacts.load_judged(line.after)
    said = verdict.conclude(earlier, frame, streams.rng(seed, round_name, "audit"), score.acquisition)
    suspects.save(round_name, doubted)
    artifacts.save_calibration(round_name, to_fit.fit(calibration.method).lists())
    artifacts.save_audit(round_name, pd.concat([frame, *split], axis=1), content | said)
    print(f"{round_name}: {said['conclusion']}")


def _doubted(
    devices: Devices,
    round_name: str,
    labels: Sequence[Mapping[str, Any]],
    judged: Sequence[tuple[int, label_quality.Judged]],
    pool: pd.DataFrame,
    classes: ClassSet,
) -> list[tuple[suspects.Row, list[suspects.Row]]]:
    """How likely each of the round's labels is wrong, and where; `judged` are those of this process, with their index.

    Each process writes the pictures of its own.
    """
    if devices.is_first:
        suspects.clear(round_name)
    devices.barrier()
    sums = sum((one.sums for _, one in judged), np.zeros((len(classes.names), 2)))
    limits = label_quality.thresholds(devices.total(torch.from_numpy(sums)).numpy())
    found = []
    for index, one in judged:
        key, sha256 = labels[index]["key"], labels[index]["sha256"]
        pixels, image = label_quality.suspected(one.contradicted, limits), pool.loc[blocks.image_of(key)]
        size = (int(image["height"]), int(image["width"]))
        found.append(suspects.write(round_name, key, sha256, one, pixels, size, classes))
    return [one for part in devices.everyone(found) for one in part]


def _certain_elsewhere(probabilities: Tensor, known: Bool[Tensor, "n h w"]) -> Tensor:
    """Where nobody labelled, the model is taken at its word: no doubt there, so no gain."""
    claim = F.one_hot(highest(probabilities)[1].long(), probabilities.shape[1]).movedim(-1, 1).to(probabilities.dtype)
    return torch.where(known[:, None], probabilities, claim)
