"""Stage: trains on all labels bought so far: first by likelihood with source replay, then for the reward itself."""

import copy
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline import artifacts, batches, blocks, inference, ledger, losses, paths, reward_tuning, training
from pipeline.batches import Item
from pipeline.errors import UserError
from pipeline.labels import IGNORE, ClassSet
from pipeline.params import BudgetLine, Calibration, Compute, Model, Roots, Tune


def run(
    round_name: str,
    line: BudgetLine,
    *,
    seed: int,
    roots: Roots,
    model: Model,
    calibration: Calibration,
    tune: Tune,
    compute: Compute,
) -> None:
    """Start from the model of the round before and write this round's.

    Raises:
        UserError: a label is missing or was changed since it was delivered, a loss is not finite, or the calibration
            fails.
    """
    fabric = training.start(compute)
    classes = ledger.classes()
    rows = artifacts.load_labels(round_name)
    pool = artifacts.load_images(round_name, roots.pool).set_index("key", drop=False)
    labels = _labelled(rows, pool, len(classes.names))
    source_manifest = artifacts.load_manifest("source", roots.source)
    source = batches.items(source_manifest, artifacts.load_ids("source", classes))
    network, _ = training.open_network(line.after, model, classes)

    # Fitted before training on them: to the model, this round's labels are still unseen.
    new, importance = _returned(round_name, rows, labels)
    fitted = inference.labelled(fabric, network, new, model.size, compute, importance).fit(calibration.method)

    target, held_out = _hold_out(batches.by_image(labels), tune.held_out)
    weights = class_weights(target, source_manifest, classes, tune).to(fabric.device)
    manifests = [paths.CLASSES, paths.ids("source"), paths.manifest("source")]
    inputs = [paths.model(line.after) / "model.pt", paths.labels(round_name), *manifests]
    mark = training.fingerprint(seed, model, tune, *inputs)
    # Each round draws its own batches.
    round_seed = int(np.random.SeedSequence([seed, *round_name.encode()]).generate_state(1)[0])
    plan = training.likelihood_plan(tune.likelihood, f"tune {round_name} likelihood", round_seed, compute, mark)
    replayed = replayed_images(tune, target)

    def draws(shares: Sequence[tuple[Sequence[Item], int]], steps: int, seed: int) -> Any:
        augment, workers = tune.likelihood.augment, compute.workers
        return batches.training(fabric, shares, model.size, augment, seed=seed, steps=steps, workers=workers)

    mixed = draws([(target, tune.likelihood.batch - replayed), (source, replayed)], plan.steps, round_seed)
    likelihood = training.likelihood(weights, tune.likelihood)
    with training.auxiliary_head(network, tune.likelihood, round_seed):
        log = [{"stage": 0.0, **row} for row in training.fit(fabric, network, mixed, likelihood, plan)]

    reward_plan = plan._replace(
        name=f"tune {round_name} reward",
        steps=tune.reward.steps,
        lr=tune.reward.lr,
        seed=round_seed + 1,
        end=tune.reward.lr_end,
        clip=tune.reward.clip,
        frozen=True,
        validate_every=tune.reward.validate_every,
        patience=tune.reward.patience,
        checkpoint=paths.checkpoint(f"tune-{round_name}-reward"),
    )
    if tune.reward.steps:
        reward = reward_tuning.reward_function(tune.reward, weights, classes)
        each = tune.reward.epochs if tune.reward.estimator == "ppo" else 1
        fresh = draws([(target, tune.likelihood.batch)], -(-reward_plan.steps // each), reward_plan.seed)
        anchor = copy.deepcopy(network).eval() if tune.reward.kl else None
        loss = reward_tuning.loss_function(tune.reward, reward, weights, network, anchor, fabric)
        validate = reward_tuning.held_out_reward(fabric, reward, held_out, model, compute) if held_out else None
        rows = training.fit(fabric, network, batches.repeated(fresh, each), loss, reward_plan, validate)
        log += [{"stage": 1.0, **row} for row in rows]

    if fabric.is_global_zero:
        artifacts.save_log(round_name, log)
        artifacts.save_model(round_name, network.state_dict(), training.describe(model, classes, fitted))
        plan.checkpoint.unlink(missing_ok=True)
        reward_plan.checkpoint.unlink(missing_ok=True)


def _labelled(rows: Sequence[dict[str, Any]], pool: Any, classes: int) -> list[Item]:
    """An item for each delivered mask, of an image of the pool or of a block of one."""
    for row in rows:
        path = paths.mask(row["key"])
        artifacts.load_mask(path)
        if artifacts.sha256(path) != row["sha256"]:
            raise UserError(
                f"{path} was changed since it was delivered: run `dvc repro -s -f annotate@{row['round']}` "
                f"to take the correction, or `dvc checkout -f {paths.LABELS_DVC}` to undo it; then `dvc repro`"
            )
    return batches.labelled([row["key"] for row in rows], pool, classes)


def replayed_images(tune: Tune, target: Sequence[Item]) -> int:
    """How many images of a batch are replayed from the source, so that `source_share` of its labelled pixels are.

    Of whole images that is the share of the batch. An image of which only a share f is bought has so many fewer pixels
    to learn from: n images of the source have a share s of the labelled pixels if n / (n + (batch - n) f) = s.
    """
    batch, s = tune.likelihood.batch, tune.source_share
    of_whole = round(s * batch)
    bought = [sum(blocks.share(key) for key, _ in item.blocks) if item.blocks else 1.0 for item in target]
    f = sum(bought) / len(bought)
    if f == 1 or not of_whole:
        return of_whole
    return max(1, round(s * f * batch / (1 - s + s * f)))


def _hold_out(target: Sequence[Item], share: float) -> tuple[list[Item], list[Item]]:
    """Images to learn from, and those to choose weights by, told apart by a hash of their names."""
    held = round(share * len(target))
    if held and held == len(target):
        raise UserError(f"tune.held_out {share:g} leaves none of {len(target)} labelled images to learn from: lower it")
    shuffled = sorted(target, key=lambda item: hashlib.sha256(item.key.encode()).digest())
    return [item for item in target if item not in shuffled[:held]], shuffled[:held]


def _returned(
    round_name: str, rows: Sequence[dict[str, Any]], target: Sequence[Item]
) -> tuple[list[Item], list[float]]:
    """The round's new labels, and weights as if every pool image were equally likely to be among them."""
    drawn = artifacts.load_selection(round_name).set_index("key")["probability"]
    new = [item for item, row in zip(target, rows, strict=True) if row["round"] == round_name]
    return new, [1 / float(drawn[item.key]) for item in new]


def class_weights(target: Sequence[Item], source: Any, classes: ClassSet, tune: Tune) -> Tensor:
    """Weights from the class shares of an average batch: replayed source and labelled target, by their shares."""
    in_target = sum(
        np.bincount(artifacts.load_mask(path).ravel(), minlength=IGNORE + 1)[: len(classes.names)].astype(float)
        for item in target
        for path in item.masks
    )
    in_source = source[[f"n_{name}" for name in classes.names]].sum().to_numpy(dtype=float)
    share = tune.source_share
    mixed = (1 - share) * in_target / np.sum(in_target) + share * in_source / in_source.sum()
    return losses.class_weights(torch.from_numpy(mixed), tune.likelihood.class_smooth)
