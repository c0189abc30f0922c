"""Stage: trains on all labels bought so far: first by likelihood with source replay, then for the reward itself."""

import copy
import hashlib
import shutil
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from pipeline import artifacts, ledger, paths, storage, streams
from pipeline.errors import UserError, counted
from pipeline.images import blocks
from pipeline.images.claims import highest
from pipeline.images.classes import IGNORE, ClassSet
from pipeline.images.items import Item, by_image, items_of, labelled_items, with_labels
from pipeline.images.masks import load_mask, save_mask
from pipeline.networks import inference, saved
from pipeline.networks.calibration import Calibration
from pipeline.networks.devices import Devices
from pipeline.params import BudgetLine, Compute, Model, Roots, Tune
from pipeline.training import batches, fingerprints, loop, reward_tuning
from pipeline.training.likelihood import class_weights, likelihood_loss, likelihood_plan, with_auxiliary_head

if TYPE_CHECKING:
    import pandas as pd


def run(
    round_name: str,
    line: BudgetLine,
    *,
    seed: int,
    roots: Roots,
    model: Model,
    tune: Tune,
    compute: Compute,
) -> None:
    """Start from the model of the round before and write this round's.

    What likelihood has taught stays in data/checkpoints, one file a round: another reward starts from there.

    Raises:
        UserError: a label is missing or was changed since it was delivered, or a loss is not finite.
    """
    devices = Devices.start(compute)
    classes = ledger.classes()
    rows = artifacts.load_labels(round_name)
    pool = artifacts.load_images(round_name, roots.pool).set_index("key", drop=False)
    labels = _labelled(rows, pool, len(classes.names))
    source_manifest = artifacts.load_manifest("source", roots.source)
    source_table = artifacts.load_ids("source", classes)
    source = items_of(source_manifest, source_table)
    network, _ = saved.open_network(line.after, model, classes)
    loop.check_batch(network, model, tune.likelihood.batch, devices.processes, "tune.likelihood.batch")

    # Fitted by `audit` to the model before training: to that one, this round's labels were still unseen.
    fitted = Calibration.of_lists(artifacts.load_calibration(round_name))

    target, held_out = _hold_out(with_a_class(by_image(labels)), tune.held_out)
    weights = weights_of_both(target, source_manifest, classes, tune).to(devices.device)
    mark = loop.fingerprint(
        devices,
        compute,
        fingerprints.code(__name__, without=("pipeline.training.reward_tuning",)),
        (seed, round_name),
        classes.names,
        (source_table.tolist(), fingerprints.rows(source_manifest)),
        _contents(target, rows, pool),
        model.size,
        fingerprints.weights(network.state_dict()),
        (tune.likelihood, tune.source_share),
    )
    # Each round draws its own batches.
    likelihood_seed = streams.seed_of(seed, round_name, "likelihood")
    plan = likelihood_plan(tune.likelihood, f"tune {round_name} likelihood", likelihood_seed, compute, mark)
    replayed = replayed_images(tune, devices.processes)

    def draws(shares: Sequence[tuple[Sequence[Item], int]], steps: int, seed: int) -> Any:
        augment, workers = tune.likelihood.augment, compute.workers
        return batches.training_batches(devices, shares, model.size, augment, seed=seed, steps=steps, workers=workers)

    mixed = draws([(target, tune.likelihood.batch - replayed), (source, replayed)], plan.steps, plan.seed)
    of_source = replayed / tune.likelihood.batch
    likelihood = likelihood_loss(weights, tune.likelihood, (1 - of_source, of_source), devices)
    with with_auxiliary_head(network, tune.likelihood, streams.seed_of(seed, round_name, "auxiliary")):
        log = [{"stage": 0.0, **row} for row in loop.fit(devices, network, mixed, likelihood, plan)]

    reward_plan = plan._replace(
        name=f"tune {round_name} reward",
        steps=tune.reward.steps,
        lr=tune.reward.lr,
        seed=streams.seed_of(seed, round_name, "reward"),
        end=tune.reward.lr_end,
        clip=tune.reward.clip,
        frozen=True,
        validate_every=tune.reward.validate_every,
        patience=tune.reward.patience,
        checkpoint=paths.checkpoint(f"tune-{round_name}-reward"),
        fingerprint=loop.fingerprint(
            devices,
            compute,
            fingerprints.code(__name__),
            mark,
            fingerprints.weights(network.state_dict()),
            _contents(held_out, rows, pool),
            (tune.likelihood.batch, tune.likelihood.augment),
            tune.reward,
        ),
    )
    if tune.reward.steps:
        reward = reward_tuning.reward_function(tune.reward, weights, classes)
        each = tune.reward.epochs if tune.reward.estimator == "ppo" else 1
        fresh = draws([(target, tune.likelihood.batch)], -(-reward_plan.steps // each), reward_plan.seed)
        anchor = copy.deepcopy(network).eval() if tune.reward.kl else None
        loss = reward_tuning.loss_function(tune.reward, reward, weights, network, anchor, devices)
        validate = reward_tuning.held_out_reward(devices, reward, held_out, model, compute) if held_out else None
        steps = loop.fit(devices, network, batches.repeated(fresh, each), loss, reward_plan, validate)
        log += [{"stage": 1.0, **row} for row in steps]

    if devices.is_first:
        artifacts.save_log(round_name, log)
        artifacts.save_model(round_name, network.state_dict(), saved.describe(model, classes, fitted))
    devices.barrier()
    new = [item for item, row in zip(labels, rows, strict=True) if row["round"] == round_name]
    show(devices, round_name, new, model, compute)
    if devices.is_first:
        reward_plan.checkpoint.unlink(missing_ok=True)


def show(devices: Devices, round_name: str, new: Sequence[Item], model: Model, compute: Compute) -> None:
    """Write, for the report's panels, what the round's model says of the images of the round's own labels.

    Raises:
        UserError: the model cannot be used.
    """
    folder = paths.after(round_name)
    if devices.is_first:
        if folder.exists():
            shutil.rmtree(folder)  # of former labels
        folder.mkdir(parents=True)
    devices.barrier()
    network, _ = saved.open_network(round_name, model, ledger.classes())
    for out in inference.outputs(devices, network, new, model.size, compute, f"show {round_name}"):
        for index, predicted in zip(out.batch.indices, highest(out.logits)[1].cpu().numpy(), strict=True):
            save_mask(paths.predicted_after(round_name, new[index].key), predicted)


def _labelled(rows: Sequence[dict[str, Any]], pool: Any, classes: int) -> list[Item]:
    """An item for each delivered mask, of an image of the pool or of a part of one."""
    for row in rows:
        path = paths.mask(row["key"])
        load_mask(path)
        if storage.sha256(path) != row["sha256"]:
            raise UserError(
                f"{path} was changed since it was delivered: run `dvc repro -s -f annotate@{row['round']}` "
                f"to take the correction, or `dvc checkout -f {paths.LABELS_DVC}` to undo it; then `dvc repro`"
            )
    return labelled_items([row["key"] for row in rows], pool, classes)


def _contents(
    of: Sequence[Item], rows: Sequence[dict[str, Any]], pool: "pd.DataFrame"
) -> list[tuple[str, str, list[tuple[str, str]]]]:
    """Key and hash of every image, and keys and hashes of its labels."""
    masks: dict[str, list[tuple[str, str]]] = {}
    for row in rows:
        masks.setdefault(blocks.image_of(row["key"]), []).append((row["key"], row["sha256"]))
    return [(item.key, str(pool.loc[item.key, "sha256"]), masks[item.key]) for item in of]


def replayed_images(tune: Tune, processes: int = 1) -> int:
    """How many images of a batch are replayed from the source: `source_share` of them.

    Whatever the share, every process learns from a bought label in every step.
    """
    batch = tune.likelihood.batch
    return min(round(tune.source_share * batch), max(0, batch - processes))


def with_a_class(items: Sequence[Item]) -> list[Item]:
    """The images of which some pixel is labelled: the answers to others were all *mixed*, and nothing is learnt there.

    Raises:
        UserError: there are none.
    """
    found = with_labels(items)
    if not found:
        raise UserError(
            f"no pixel of the {counted(len(items), 'label')} to learn from is of a class: buy or correct some"
        )
    return found


def _hold_out(target: Sequence[Item], share: float) -> tuple[list[Item], list[Item]]:
    """Images to learn from, and those to choose weights by, told apart by a hash of their names."""
    held = round(share * len(target))
    if held and held == len(target):
        raise UserError(f"tune.held_out {share:g} leaves none of {len(target)} labelled images to learn from: lower it")
    shuffled = sorted(target, key=lambda item: hashlib.sha256(item.key.encode()).digest())
    return [item for item in target if item not in shuffled[:held]], shuffled[:held]


def weights_of_both(target: Sequence[Item], source: Any, classes: ClassSet, tune: Tune) -> Tensor:
    """Weights from the class shares in the loss: of the source's and of the target's labelled pixels, by their shares.

    However few pixels of the target are labelled, they count as much as those of whole images would.

    Args:
        target: items of which some pixel is of a class (`with_a_class`).
        source: its manifest.
        classes: of the labels.
        tune: the section of params.yaml.

    Raises:
        UserError: a class has no pixel anywhere and there is no smoothing.
    """
    in_target = sum(
        np.bincount(load_mask(path).ravel(), minlength=IGNORE + 1)[: len(classes.names)].astype(float)
        for item in target
        for path in item.masks
    )
    in_source = source[[f"n_{name}" for name in classes.names]].sum().to_numpy(dtype=float)
    share = tune.source_share
    mixed = (1 - share) * in_target / np.sum(in_target) + share * in_source / in_source.sum()
    return class_weights(mixed, tune.likelihood, classes, "tune.likelihood")
