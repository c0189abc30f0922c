"""The pass over the pool: one forward pass, out of which come gain, predicted work and features of every image left."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from pipeline import paths
from pipeline.artifacts import Features
from pipeline.errors import UserError
from pipeline.gain import ACQUISITIONS, Posterior, Settings, Worth, expected_iou, features, minutes, worth
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
    """What one pass says of the m units left, images or blocks."""

    gains: Float64[np.ndarray, "m c"]
    """Expected gain by class."""
    pool: Float64[np.ndarray, "c s"]
    """Totals of the acquisition's statistics, which the gains are relative to."""
    effort: Float64[np.ndarray, "m 3"]
    """What predicts the minutes: `minutes.FEATURES`."""
    features: Features
    """Of the images left and of those bought; of none where they are not asked for."""


class Cut(NamedTuple):
    """How the images left are cut into blocks, b each."""

    boxes: list[list[Box]]
    """Where the blocks of every image are, in the network's pixels."""
    left: Bool[np.ndarray, "m b"]
    """Which of them may be bought."""


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
    """Score the first `left` items or their blocks; other items, bought already, are only looked at for their features.

    Args:
        devices: of the run.
        scorer: of the round.
        items: the images left, then those bought.
        left: how many are left.
        model: at which size the network works.
        compute: batch size and readers.
        features_seed: draws the projection of the features; None for no features.
        cut: into blocks, of which those that are left are scored, image by image; None for whole images. The network
            sees every image once and whole either way.
        labelled: pixels of every class, at the network's size, of the items bought already; None if there are none.

    Raises:
        UserError: probabilities are not finite, or a class has no union and there is no smoothing.
    """
    of_pixel = sampled_worth(devices, scorer, items[:left], model, compute, cut) if scorer.entry.needs_worth else None
    projected = None if features_seed is None else _projection(scorer, features_seed).to(devices.device)
    with_cells = scorer.entry.needs_members or projected is not None
    name = f"score {scorer.round_name}"

    sums: list[Tensor] = []
    effort: list[Tensor] = []
    pooled: list[Pooled] = []
    probabilities = torch.empty(0)
    with torch.inference_mode():
        for out in inference.outputs(devices, scorer.network, items, model.size, compute, name, with_cells):
            probabilities = _calibrated(out.logits, scorer.calibration, into=probabilities)
            posterior = scorer.posterior(out, of_pixel)
            for part, members in _units(probabilities, posterior, cut, out.batch.indices):
                sums.append(scorer.acquisition.observe(part, members).double().cpu())
                effort.append(minutes.observe(part))
            if projected is not None:
                pooled.append(_pooled(scorer, out.cells, projected))

    statistics = _gathered(devices, sums, len(items), cut)
    _check_finite(scorer, items, statistics)
    of_left = slice(left) if cut is None else torch.from_numpy(cut.left)
    statistics, work = statistics[of_left], _gathered(devices, effort, len(items), cut)[of_left]
    found = Features.none()
    if pooled:
        known = np.zeros((0, statistics.shape[-2])) if labelled is None else labelled
        if left + len(known) != len(items):
            raise ValueError(f"{len(items)} items are {left} left and {len(known)} labelled ones")
        whole = Pooled(*(devices.gather(torch.cat(parts), len(items)) for parts in zip(*pooled, strict=True)))
        found = _features(whole, [item.key for item in items], known, scorer.smooth)
    return Scored(scorer.gain(statistics).numpy(), statistics.sum(0).numpy(), work.numpy(), found)


def sampled_worth(
    devices: Devices, scorer: Scorer, left: Sequence[Item], model: Model, compute: Compute, cut: Cut | None = None
) -> Worth:
    """What right and wrong claims are worth, before the pass in which an acquisition needs it for every pixel.

    J and U are those of at most SAMPLE images (of what is left of them, where blocks are bought), evenly spread over
    those left, U scaled up to all of them. That is exact for a pool no larger, and an estimate for a larger one: good
    for common classes; a class that the sample misses has its smoothing for a union. The pass itself counts all images,
    and what is written of the pool is their total: so the map of an image, drawn with that, sums to its gain up to the
    error of the estimate.

    Raises:
        UserError: probabilities are not finite, or a class has no union and there is no smoothing.
    """
    places = np.unique(np.linspace(0, len(left) - 1, SAMPLE).round().astype(int))
    sample = [left[place] for place in places]
    sample_cut = None if cut is None else Cut([cut.boxes[place] for place in places], cut.left[places])
    observe = ACQUISITIONS["shortfall"].make(Settings(scorer.smooth)).observe
    name = f"score {scorer.round_name}, J and U"

    sums: list[Tensor] = []
    probabilities = torch.empty(0)
    with torch.inference_mode():
        for out in inference.outputs(devices, scorer.network, sample, model.size, compute, name):
            probabilities = _calibrated(out.logits, scorer.calibration, into=probabilities)
            for part, _ in _units(probabilities, None, sample_cut, out.batch.indices):
                sums.append(observe(part).double().cpu())

    statistics = _gathered(devices, sums, len(sample), sample_cut)
    _check_finite(scorer, sample, statistics)
    all_of_them = len(left)
    if cut is not None and sample_cut is not None:
        statistics, all_of_them = statistics[torch.from_numpy(sample_cut.left)], int(cut.left.sum())
    with scorer.about_smoothing():
        return worth(statistics.sum(0) * all_of_them / len(statistics), scorer.smooth)


def _calibrated(logits: Float[Tensor, "n c h w"], calibration: Calibration, into: Tensor) -> Float[Tensor, "n c h w"]:
    """Calibrated probabilities, written into a tensor of the batch before if it fits; the logits are used up."""
    # In place and into one tensor for all batches: on the CPU, fresh ones of this size cost as much in page faults as
    # the softmax does in arithmetic.
    if into.shape != logits.shape:
        into = torch.empty_like(logits)
    return torch.softmax(calibration.apply(logits, out=logits), 1, out=into)


def _units(
    probabilities: Float[Tensor, "n c h w"], posterior: Posterior | None, cut: Cut | None, indices: Sequence[int]
) -> Iterator[tuple[Float[Tensor, "k c h2 w2"], Posterior | None]]:
    """What is said of the units of a batch: of all images at once, or of one block after the other, image by image."""
    if cut is None:
        yield probabilities, posterior
        return
    for place, index in enumerate(indices):
        for box in cut.boxes[index]:
            rows, cols = slice(box.top, box.bottom), slice(box.left, box.right)
            members = None if posterior is None else posterior.part(place, rows, cols)
            yield probabilities[place : place + 1, :, rows, cols], members


def _gathered(devices: Devices, parts: Sequence[Tensor], total: int, cut: Cut | None) -> Float64[Tensor, "m ..."]:
    """The rows of all units, of all processes, in the order of the `total` images; of blocks (images, blocks, ...)."""
    if not parts:
        raise ValueError("a process without images: use fewer processes than there are images")
    rows = torch.cat(list(parts))
    if cut is not None:
        rows = rows.reshape(-1, cut.left.shape[1], *rows.shape[1:])
    return devices.gather(rows, total)


def _check_finite(scorer: Scorer, items: Sequence[Item], statistics: Float64[Tensor, "m *b c s"]) -> None:
    broken = ~statistics.flatten(1).isfinite().all(1)
    if broken.any():
        raise UserError(
            f"{scorer.round_name}: the probabilities that {paths.model(scorer.after)} gives for "
            f"{items[int(broken.nonzero()[0])].key!r} are not finite: train it with a lower lr, or in 32-true"
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
