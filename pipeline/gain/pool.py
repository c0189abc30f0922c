"""The pass over the pool: one forward pass, out of which come gain, predicted work and features of every image left."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64, Integer, UInt8
from torch import Tensor

from pipeline import paths
from pipeline.artifacts import Features
from pipeline.errors import UserError
from pipeline.gain import (
    ACQUISITIONS,
    Acquisition,
    Posterior,
    Settings,
    Units,
    Worth,
    expected_iou,
    features,
    minutes,
    worth,
)
from pipeline.gain.features import Pooled
from pipeline.gain.scorer import Scorer
from pipeline.images.blocks import Box
from pipeline.images.items import Item
from pipeline.networks import inference
from pipeline.networks.calibration import Calibration
from pipeline.networks.devices import Devices
from pipeline.networks.network import Cells
from pipeline.params import Compute, Model

SAMPLE = 200
"""Images, evenly spread over those left, that tell J and U where an acquisition needs them before the pass."""


class Scored(NamedTuple):
    """What one pass says of the m units left: images, blocks or regions, image by image."""

    gains: Float64[np.ndarray, "m c"]
    """Expected gain by class."""
    pool: Float64[np.ndarray, "c s"]
    """Totals of the acquisition's statistics, which the gains are relative to."""
    effort: Float64[np.ndarray, "k 3"]
    """What predicts the minutes, `minutes.FEATURES`; of no unit where these are regions."""
    features: Features
    """Of the images left and of those bought; of none where they are not asked for."""
    image: Int64[np.ndarray, " m"]
    """Which of the images left a unit is of."""
    part: Int64[np.ndarray, " m"]
    """Which of its image's parts a unit is."""
    pixels: Int64[np.ndarray, " m"]
    """Its pixels, at the network's size."""
    claim: UInt8[np.ndarray, " m"]
    """Its commonest argmax class."""


class Parts(NamedTuple):
    """How an image is cut into b parts, blocks or regions."""

    of: Integer[np.ndarray, "h w"]
    """The part of every pixel at the network's size, from 0."""
    left: Bool[np.ndarray, " b"]
    """Which of them may be bought."""
    boxes: Sequence[Box] = ()
    """Of blocks, where they are, in the network's pixels."""


Cut = Callable[[int], Parts]
"""(place of an image among the items) -> its parts."""


def score_pool(
    devices: Devices,
    scorer: Scorer,
    items: Sequence[Item],
    left: int,
    model: Model,
    compute: Compute,
    features_seed: int | None = None,
    cut: Cut | None = None,
    labelled: Float64[np.ndarray, "b c"] | None = None,
) -> Scored:
    """Score the first `left` items or their parts; other items, bought already, are only looked at for their features.

    Args:
        devices: of the run.
        scorer: of the round.
        items: the images left, then those bought.
        left: how many are left.
        model: at which size the network works.
        compute: batch size and readers.
        features_seed: draws the projection of the features; None for no features.
        cut: into blocks or regions, of which those are scored that are left and have a pixel at the network's size;
            None for whole images. The network sees every image once and whole either way.
        labelled: pixels of every class, at the network's size, of the items bought already; None if there are none.

    Raises:
        UserError: probabilities are not finite, or a class has no union and there is no smoothing.
    """
    of_pixel = sampled_worth(devices, scorer, items[:left], model, compute, cut) if scorer.entry.needs_worth else None
    projected = None if features_seed is None else _projection(scorer, features_seed).to(devices.device)
    with_cells = scorer.entry.needs_members or projected is not None
    name = f"score {scorer.round_name}"

    sums: list[_Sums] = []
    pooled: list[Pooled] = []
    probabilities = torch.empty(0)
    with torch.inference_mode():
        for out in inference.outputs(devices, scorer.network, items, model.size, compute, name, with_cells):
            probabilities = _calibrated(out.logits, scorer.calibration, into=probabilities)
            posterior = scorer.posterior(out, of_pixel)
            sums += _observed(scorer.acquisition, probabilities, posterior, cut, out.batch.indices, effort=True)
            if projected is not None:
                pooled.append(_pooled(scorer, out.cells, projected))

    of_images = _gathered(devices, sums, len(items))
    _check_finite(scorer, items, of_images)
    of_images = of_images[:left]
    total = torch.stack([one.statistics.double().sum(0) for one in of_images]).sum(0)
    claimed = torch.cat([one.statistics[..., scorer.acquisition.statistics.index("claimed")] for one in of_images])
    found = Features.none()
    if pooled:
        known = np.zeros((0, len(total))) if labelled is None else labelled
        if left + len(known) != len(items):
            raise ValueError(f"{len(items)} items are {left} left and {len(known)} labelled ones")
        whole = Pooled(*(devices.gather(torch.cat(parts), len(items)) for parts in zip(*pooled, strict=True)))
        found = _features(whole, [item.key for item in items], known, scorer.smooth)
    return Scored(
        gains=torch.cat([scorer.gain(one.statistics.double(), total) for one in of_images]).numpy(),
        pool=total.numpy(),
        effort=torch.cat([one.effort for one in of_images]).numpy(),
        features=found,
        image=np.repeat(np.arange(left), [len(one.part) for one in of_images]),
        part=torch.cat([one.part for one in of_images]).numpy(),
        pixels=claimed.double().sum(1).round().long().numpy(),
        claim=claimed.argmax(1).byte().numpy(),
    )


def sampled_worth(
    devices: Devices, scorer: Scorer, left: Sequence[Item], model: Model, compute: Compute, cut: Cut | None = None
) -> Worth:
    """What right and wrong claims are worth, before the pass in which an acquisition needs it for every pixel.

    J and U are those of at most SAMPLE images (of what is left of them, where parts are bought), evenly spread over
    those left, U scaled up to all of them. That is exact for a pool no larger, and an estimate for a larger one: good
    for common classes; a class that the sample misses has its smoothing for a union. The pass itself counts all images,
    and what is written of the pool is their total: so the map of an image, drawn with that, sums to its gain up to the
    error of the estimate.

    Raises:
        UserError: probabilities are not finite, or a class has no union and there is no smoothing.
    """
    places = np.unique(np.linspace(0, len(left) - 1, SAMPLE).round().astype(int))
    sample = [left[place] for place in places]
    acquisition = ACQUISITIONS["shortfall"].make(Settings(scorer.smooth))
    name = f"score {scorer.round_name}, J and U"

    sums: list[_Sums] = []
    probabilities = torch.empty(0)
    with torch.inference_mode():
        for out in inference.outputs(devices, scorer.network, sample, model.size, compute, name):
            probabilities = _calibrated(out.logits, scorer.calibration, into=probabilities)
            sums += _observed(acquisition, probabilities, None, cut, [int(places[at]) for at in out.batch.indices])

    of_images = _gathered(devices, sums, len(sample))
    _check_finite(scorer, sample, of_images)
    total = torch.stack([one.statistics.double().sum(0) for one in of_images]).sum(0)
    with scorer.about_smoothing():
        return worth(total * len(left) / len(sample), scorer.smooth)


def _calibrated(logits: Float[Tensor, "n c h w"], calibration: Calibration, into: Tensor) -> Float[Tensor, "n c h w"]:
    """Calibrated probabilities, written into a tensor of the batch before if it fits; the logits are used up."""
    # In place and into one tensor for all batches: on the CPU, fresh ones of this size cost as much in page faults as
    # the softmax does in arithmetic.
    if into.shape != logits.shape:
        into = torch.empty_like(logits)
    return torch.softmax(calibration.apply(logits, out=logits), 1, out=into)


class _Sums(NamedTuple):
    """What one image has of k units that are left, on the CPU."""

    statistics: Float[Tensor, "k c s"]
    part: Int64[Tensor, " k"]
    """Which of its parts they are."""
    effort: Float64[Tensor, "e 3"]
    """Of e = k units, or of none: where they are regions, and where it is not asked for."""


def _observed(
    acquisition: Acquisition,
    probabilities: Float[Tensor, "n c h w"],
    posterior: Posterior | None,
    cut: Cut | None,
    indices: Sequence[int],
    *,
    effort: bool = False,
) -> list[_Sums]:
    """The sums of every image of a batch."""
    if cut is None:
        statistics = acquisition.observe(probabilities, posterior).double().cpu()
        work = minutes.observe(probabilities) if effort else torch.zeros(len(statistics), 0, 3, dtype=torch.float64)
        first = torch.zeros(1, dtype=torch.int64)
        return [_Sums(one[None], first, of.view(-1, 3)) for one, of in zip(statistics, work, strict=True)]
    parts = [cut(index) for index in indices]
    counts = [len(one.left) for one in parts]
    starts = np.cumsum([0, *counts[:-1]])
    maps = np.stack([one.of.astype(np.int64) + start for one, start in zip(parts, starts, strict=True)])
    units = Units(torch.from_numpy(maps).to(probabilities.device), sum(counts))
    # of float32, since there may be millions of regions: counts stay exact, sums lose 1e-7
    statistics = acquisition.observe(probabilities, posterior, units).float().cpu()
    found = []
    for place, (one, rows) in enumerate(zip(parts, torch.split(statistics, counts), strict=True)):
        seen = np.bincount(one.of.ravel(), minlength=len(one.left)) > 0
        kept = torch.from_numpy(np.flatnonzero(one.left & seen))
        crops = [_crop(probabilities, place, one.boxes[part]) for part in kept.tolist()] if effort and one.boxes else []
        efforts = [torch.zeros(0, 3, dtype=torch.float64), *map(minutes.observe, crops)]
        found.append(_Sums(rows[kept], kept, torch.cat(efforts)))
    return found


def _crop(maps: Float[Tensor, "n c h w"], image: int, box: Box) -> Float[Tensor, "1 c h2 w2"]:
    return maps[image : image + 1, :, box.top : box.bottom, box.left : box.right]


def _gathered(devices: Devices, own: Sequence[_Sums], total: int) -> list[_Sums]:
    """Those of all processes, which the `total` images were dealt to in turn, in the order of the images."""
    if not own:
        raise ValueError("a process without images: use fewer processes than there are images")
    everyone = devices.everyone(list(own))
    return [everyone[place % devices.processes][place // devices.processes] for place in range(total)]


def _check_finite(scorer: Scorer, items: Sequence[Item], of_images: Sequence[_Sums]) -> None:
    for item, one in zip(items, of_images, strict=True):
        if not one.statistics.isfinite().all():
            raise UserError(
                f"{scorer.round_name}: the probabilities that {paths.model(scorer.after)} gives for {item.key!r} are "
                f"not finite: train it with a lower lr, or in 32-true"
            )


def _projection(scorer: Scorer, seed: int) -> Float[Tensor, "cd g"]:
    """What the gradients of the last layer are projected by."""
    last = scorer.network.last_layer()
    return features.projection(last.out_channels, last.in_channels, torch.Generator().manual_seed(seed))


def _pooled(scorer: Scorer, cells: Cells | None, projected: Float[Tensor, "cd g"]) -> Pooled:
    """The features of a batch, on the CPU."""
    if cells is None:
        raise AssertionError("features come with `outputs(..., with_cells=True)`")
    probabilities = scorer.calibration.apply(cells.logits).softmax(1)
    pixels = Posterior(probabilities[None], cells.rows, cells.cols).pixels()
    return Pooled(*(part.cpu() for part in features.pool(cells.features, probabilities, pixels, projected)))


def _features(pooled: Pooled, keys: list[str], labelled: Float64[np.ndarray, "b c"], smooth: float) -> Features:
    """Of all images, in the order of the keys, of which the last b are labelled and the others make up the pool."""
    left = len(keys) - len(labelled)
    iou = expected_iou(pooled.statistics[:left].sum(0), smooth)
    by_class = features.by_class(pooled.parts, pooled.statistics, iou)
    claimed, doubted, missed = pooled.statistics[:left].numpy().transpose(2, 0, 1)
    shown = claimed - doubted + missed
    average = shown.mean(0)
    pixels = np.concatenate([shown, labelled])
    holds = np.divide(pixels, average, out=np.zeros_like(pixels), where=average > 0).astype(np.float32)
    return Features(
        keys, pooled.image.numpy(), by_class.numpy(), pooled.gradient.numpy(), holds, iou.nan_to_num(0).numpy()
    )
