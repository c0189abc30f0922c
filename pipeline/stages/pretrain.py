"""Stage: trains the source model by class-weighted cross-entropy and calibrates it."""

from pathlib import Path

import numpy as np
import torch

from pipeline import artifacts, paths, storage, streams
from pipeline.errors import UserError
from pipeline.images.items import items_of
from pipeline.networks import inference, saved
from pipeline.networks.calibration import NONE
from pipeline.networks.devices import Devices
from pipeline.params import Calibration, Compute, Model, Roots, Training
from pipeline.training import batches, fingerprints, loop
from pipeline.training.likelihood import class_weights, likelihood_loss, likelihood_plan, with_auxiliary_head

HELD_OUT = 20
"""One source image in so many is held out of training, to calibrate on; also where `calibration.start` does not ask for
it, so that the model does not depend on that."""


def run(
    *,
    seed: int,
    roots: Roots,
    model: Model,
    pretrain: Training,
    calibration: Calibration,
    compute: Compute,
) -> None:
    """Write the model of round r00.

    Raises:
        UserError: the loss is not finite, the encoder's weights do not fit, or the calibration fails or has no images.
    """
    devices = Devices.start(compute)
    classes = artifacts.load_classes()
    manifest = artifacts.load_manifest("source", roots.source)
    table = artifacts.load_ids("source", classes)
    source = items_of(manifest, table)
    learnt = [item for place, item in enumerate(source) if place % HELD_OUT != HELD_OUT - 1]
    held_out = source[HELD_OUT - 1 :: HELD_OUT]
    if calibration.start == "source" and not held_out:
        raise UserError(
            f"calibration.start is source, but {len(source)} source images leave none to calibrate on (one in "
            f"{HELD_OUT} is kept): set it to none"
        )

    def seed_of(purpose: str) -> int:
        return streams.seed_of(seed, paths.SOURCE_ROUND, purpose)

    network = saved.new_network(model, classes, torch.Generator().manual_seed(seed_of("weights")))
    loop.check_batch(network, model, pretrain.batch, devices.processes, "pretrain.batch")
    pixels = np.asarray(manifest[[f"n_{name}" for name in classes.names]].sum(), dtype=float)
    weights = class_weights(pixels, pretrain, classes, "pretrain").to(devices.device)
    plan = likelihood_plan(
        pretrain,
        name="pretrain",
        seed=seed_of("training"),
        compute=compute,
        fingerprint=loop.fingerprint(
            devices,
            compute,
            fingerprints.code(__name__),
            seed,
            classes.names,
            table.tolist(),
            fingerprints.rows(manifest),
            model.size,
            fingerprints.weights(network.state_dict()),
            pretrain,
        ),
    )
    draws = batches.training_batches(
        devices,
        [(learnt, pretrain.batch)],
        model.size,
        pretrain.augment,
        seed=plan.seed,
        steps=plan.steps,
        workers=compute.workers,
    )
    with with_auxiliary_head(network, pretrain, seed_of("auxiliary")):
        log = loop.fit(devices, network, draws, likelihood_loss(weights, pretrain), plan)

    fitted = NONE
    if calibration.start == "source":
        fitted = inference.calibration_pixels(devices, network, held_out, model.size, compute).fit(calibration.method)
    if devices.is_first:
        file = Path(model.weights or "")
        started_from = storage.sha256(file) if file.is_file() else None
        storage.save_json(paths.weights(paths.SOURCE_ROUND), {"sha256": started_from})
        artifacts.save_log(paths.SOURCE_ROUND, log)
        artifacts.save_model(paths.SOURCE_ROUND, network.state_dict(), saved.describe(model, classes, fitted))
        plan.checkpoint.unlink(missing_ok=True)
