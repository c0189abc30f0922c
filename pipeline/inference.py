"""Running a network over many images, in one streaming pass: memory does not grow with their number."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Shaped, UInt8
from torch import Tensor
from tqdm import tqdm

from pipeline import batches, transforms
from pipeline.batches import Item, Whole
from pipeline.calibration import CALIBRATIONS, Calibration
from pipeline.devices import Devices
from pipeline.errors import UserError
from pipeline.labels import IGNORE
from pipeline.models import Grid, Network
from pipeline.params import Compute

PIXELS_PER_IMAGE = 1024
"""About so many pixels of an image, evenly spread, are enough to fit a calibration or a decoder."""


class Output(NamedTuple):
    """A batch and what the network says of it."""

    batch: Whole
    logits: Float[Tensor, "n c h w"]
    grid: Grid | None = None
    """What enters and leaves the last layer, if it is asked for."""


def outputs(
    devices: Devices,
    network: Network,
    of: Sequence[Item],
    size: tuple[int, int],
    compute: Compute,
    name: str,
    grid: bool = False,
) -> Iterator[Output]:
    """This process's share of the items, in order; images resized to `size`, logits at that size.

    Args:
        devices: of the run.
        network: is put on this process's device and into evaluation mode.
        of: the items of all processes.
        size: height and width at which the network works.
        compute: batch size and readers.
        name: shown on the progress bar.
        grid: whether to keep what enters and leaves the last layer.

    Raises:
        UserError: `grid`, and the network has several last layers.
    """
    loader = batches.whole(devices, of, size, batch=compute.batch, workers=compute.workers)
    bar = tqdm(total=len(of), desc=name, unit="image", disable=None if devices.is_first else True)
    for batch in loader:
        yield Output(batch, *predict(devices, network, batch.images, grid))
        bar.update(min(len(batch.indices) * devices.processes, len(of) - bar.n))
    bar.close()


def predict(
    devices: Devices, network: Network, images: UInt8[Tensor, "n 3 h w"], grid: bool = False
) -> tuple[Float[Tensor, "n c h w"], Grid | None]:
    """The logits of one batch, in the precision of the run; `network` and `grid` as in `outputs`."""
    network.to(devices.device).eval()
    with torch.inference_mode(), devices.autocast():
        logits, cells = network.with_grid(images) if grid else (network(images), None)
    return logits.float(), cells


def small_masks(batch: Whole, size: tuple[int, int]) -> Tensor:
    """The batch's masks at the network's size, uint8 (n, h, w)."""
    return torch.stack(
        [torch.from_numpy(transforms.resize_mask(mask.numpy(), size)) for mask in batch.masks if mask is not None]
    )


class Pixels(NamedTuple):
    """What a calibration is fitted on: pixels of all processes, on the CPU."""

    logits: Float[Tensor, "m c"]
    truth: Int64[Tensor, " m"]
    weights: Float[Tensor, " m"]

    def fit(self, method: str) -> Calibration:
        """By one of `calibration.CALIBRATIONS`.

        Raises:
            UserError: a logit is not finite, or the fit does not converge.
        """
        try:
            return CALIBRATIONS[method](*self)
        except ValueError as error:
            raise UserError(f"calibration.method {method}: {error}: train with a lower lr, or in 32-true") from None


def labelled(
    devices: Devices,
    network: Network,
    of: Sequence[Item],
    size: tuple[int, int],
    compute: Compute,
    weights: Sequence[float] | None = None,
) -> Pixels:
    """Evenly spread pixels of labelled items, to calibrate a network that has not learnt from them.

    Args:
        devices: of the run.
        network: the network to calibrate.
        of: labelled items.
        size: height and width at which the network works.
        compute: batch size and readers.
        weights: importance of each item, one over the probability that it was selected; None for equal weights.

    Raises:
        UserError: not one pixel of the items is of a class, or, through the readers, a label is damaged.
    """
    logits, truth, weight = [], [], []
    for out in outputs(devices, network, of, size, compute, "calibrate"):
        for index, one, mask in zip(out.batch.indices, out.logits, small_masks(out.batch, size), strict=True):
            flat = spread(mask)
            known = flat != IGNORE
            logits.append(spread(one).T.cpu()[known])
            truth.append(flat[known].long())
            weight.append(torch.full((int(known.sum()),), 1.0 if weights is None else weights[index]))
    kept = Pixels(*_joined(devices.everyone((logits, truth, weight))))
    if not len(kept.truth):
        raise UserError(
            f"no pixel of the labels of {of[0].key!r} and {len(of) - 1} more is of a class: label them again"
        )
    return kept


def probabilities(
    devices: Devices,
    network: Network,
    of: Sequence[Item],
    size: tuple[int, int],
    compute: Compute,
    calibration: Calibration,
) -> Float[Tensor, "m c"]:
    """Calibrated class probabilities of evenly spread pixels of the items, of all processes, on the CPU."""
    results = outputs(devices, network, of, size, compute, "pixels")
    rows = [spread(calibration.apply(one).softmax(0)).T.cpu() for out in results for one in out.logits]
    return _joined(devices.everyone((rows,)))[0]


def _joined(everyone: Sequence[tuple[list[Tensor], ...]]) -> list[Tensor]:
    """The values of all processes, one after the other; a process may have none."""
    return [torch.cat([value for part in parts for value in part]) for parts in zip(*everyone, strict=True)]


def spread(maps: Shaped[Tensor, "*c h w"]) -> Shaped[Tensor, "*c m"]:
    """The pixels of a square grid, row by row: PIXELS_PER_IMAGE or some more, and all of a small map."""
    step = max(1, math.isqrt(maps.shape[-2] * maps.shape[-1] // PIXELS_PER_IMAGE))
    return maps[..., step // 2 :: step, step // 2 :: step].flatten(-2)


def upsample(logits: Float[Tensor, "c h w"], size: tuple[int, int]) -> Float[Tensor, "c h2 w2"]:
    """One image's logits at another size."""
    return F.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0]
