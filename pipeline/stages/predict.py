"""Stage: what the model of the round before says of the images to buy, as a start for the people who label them."""

import shutil
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pipeline import artifacts, ledger, paths, storage
from pipeline.errors import UserError
from pipeline.evaluation import pictures
from pipeline.gain.scorer import start_scorer
from pipeline.images import blocks, reading
from pipeline.images.claims import highest
from pipeline.images.items import Item, id_table_of_labels
from pipeline.images.masks import save_mask
from pipeline.images.seen import seen_crop
from pipeline.networks import inference, saved
from pipeline.networks.devices import Devices
from pipeline.params import BudgetLine, Compute, Model, Roots, Score


def run(
    round_name: str, line: BudgetLine, *, seed: int, roots: Roots, model: Model, score: Score, compute: Compute
) -> None:
    """Write, for every selected image or block, its predicted class ids and a picture of where its gain lies.

    And, for the report's panels, the same of the whole image as the network sees it.

    Raises:
        UserError: a selected image is not in the pool, or the network's outputs are not finite.
    """
    devices = Devices.start(compute)
    classes = ledger.classes()
    items = _items(round_name, roots.pool, len(classes.names))
    reference = torch.from_numpy(artifacts.load_pool(round_name)).to(devices.device)
    network, calibration = saved.open_network(line.after, model, classes)
    rounds = len({row["round"] for row in artifacts.load_labels(line.after)})
    scorer = start_scorer(round_name, line.after, network, calibration, score, seed=seed, rounds=rounds)

    folder = paths.predictions(round_name)
    if devices.is_first:
        for made in (folder, paths.before(round_name)):
            if made.exists():
                shutil.rmtree(made)  # of a former selection
            made.mkdir(parents=True)
    devices.barrier()
    name = f"predict {round_name}"
    broken = [torch.zeros(0, dtype=torch.bool)]  # there may be fewer images than processes
    for out in inference.outputs(devices, network, items, model.size, compute, name, scorer.entry.needs_members):
        scaled = scorer.calibration.apply(out.logits)
        broken.append(~scaled.flatten(1).isfinite().all(1).cpu())
        predicted = highest(out.logits)[1].cpu().numpy()
        gains = scorer.gain_map(out, scaled.softmax(1), reference).float().cpu().numpy()
        for place, index in enumerate(out.batch.indices):
            if not broken[-1][place]:
                _write(round_name, items[index], out.logits[place], gains[place])
                save_mask(paths.predicted_before(round_name, items[index].key), predicted[place])
                save_mask(paths.gain_before(round_name, items[index].key), pictures.gain_levels(gains[place]))
    anywhere = devices.gather(torch.cat(broken), len(items))  # by now, every process has written its files
    if anywhere.any():
        raise UserError(
            f"{round_name}: what {paths.model(line.after)} says of {items[int(anywhere.nonzero()[0])].key!r} "
            f"is not finite: train it with a lower lr, or in 32-true"
        )
    if devices.is_first:
        print(f"{round_name}: {len(items)} images predicted, {folder}")


def _items(round_name: str, root: Path, classes: int) -> list[Item]:
    """The images of what is selected, in the selection's order."""
    pool = artifacts.load_images(round_name, root).set_index("key")
    keys = artifacts.load_selection(round_name)["key"]
    strangers = keys[~keys.map(blocks.image_of).isin(pool.index)]
    if len(strangers):
        raise UserError(
            f"{paths.selection(round_name)} has {strangers.iloc[0]!r}, which the pool has not: set "
            f"prepare.pool in {paths.PARAMS} back to the data that the round was selected from"
        )
    rows = [pool.loc[blocks.image_of(key)] for key in keys]
    table = id_table_of_labels(classes)
    return [
        Item(key, Path(row["image"]), None, table, sha256=row["sha256"]) for key, row in zip(keys, rows, strict=True)
    ]


def _write(round_name: str, item: Item, logits: Float[Tensor, "c h w"], gain: Float[np.ndarray, "h w"]) -> None:
    image = reading.read_image(item.image, item.sha256)
    full = inference.upsample(logits, (image.shape[0], image.shape[1]))
    ids = blocks.crop(highest(full[None])[1][0].cpu().numpy(), item.key)
    save_mask(paths.prediction(round_name, item.key), ids)
    seen = seen_crop(gain, item.key, (image.shape[0], image.shape[1]))
    storage.write(paths.gain_picture(round_name, item.key), pictures.gain_overlay(blocks.crop(image, item.key), seen))
