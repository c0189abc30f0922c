"""Running a network over whole images, in one streaming pass whose memory does not grow with their number.

Items are dealt to processes round-robin: process k of n takes items k, k+n, k+2n, ...
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Shaped, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from pipeline.errors import UserError
from pipeline.images import reading, resizing
from pipeline.images.classes import IGNORE
from pipeline.images.items import Item
from pipeline.networks import loading
from pipeline.networks.calibration import CALIBRATIONS, Calibration
from pipeline.networks.devices import Devices
from pipeline.networks.network import Cells, Network
from pipeline.params import Compute


class _Whole(Dataset[tuple[int, Tensor, Tensor | None]]):
    """Each item once: the image resized to the network's size, the mask at its own."""

    def __init__(self, whole: Sequence[Item], size: tuple[int, int]) -> None:
        self.whole, self.size = whole, size

    def __len__(self) -> int:
        return len(self.whole)

    def __getitem__(self, index: int) -> tuple[int, Tensor, Tensor | None]:
        item = self.whole[index]
        full = reading.read_image(item.image, item.sha256)
        image, mask = resizing.resize(full, self.size), item.read_mask(full.shape[:2])
        return index, torch.from_numpy(image).permute(2, 0, 1), None if mask is None else torch.from_numpy(mask)


class Whole(NamedTuple):
    """A batch of whole images."""

    indices: list[int]
    """Positions in the list of items."""
    images: UInt8[Tensor, "n 3 h w"]
    masks: list[Tensor | None]
    """uint8 (height, width) at the mask's own size, on the CPU."""


def _stack(batch: list[tuple[int, Tensor, Tensor | None]]) -> Whole:
    indices, images, masks = zip(*batch, strict=True)
    return Whole(list(indices), torch.stack(images), list(masks))


def whole(
    devices: Devices, items: Sequence[Item], size: tuple[int, int], *, batch: int, workers: int
) -> Iterator[Whole]:
    """Batches of this process's share of the items, in order; images resized to `size`, on the process's device."""
    share = range(devices.rank, len(items), devices.processes)
    loader = DataLoader(
        _Whole(items, size),
        batch_size=batch,
        sampler=list(share),
        num_workers=workers,
        collate_fn=_stack,
    )
    for loaded in loading.passed_on(loader, workers):
        yield loaded._replace(images=loaded.images.to(devices.device, non_blocking=True))


PIXELS_PER_IMAGE = 1024
"""Pixels sampled of an image, evenly spread, at least: enough to fit a calibration or a decoder."""


class Output(NamedTuple):
    """A batch and the network's outputs on it."""

    batch: Whole
    logits: Float[Tensor, "n c h w"]
    cells: Cells | None = None
    """What enters and leaves the last layer, if it is asked for."""


def outputs(
    devices: Devices,
    network: Network,
    items: Sequence[Item],
    size: tuple[int, int],
    compute: Compute,
    name: str,
    with_cells: bool = False,
) -> Iterator[Output]:
    """The network's outputs, batch by batch, on this process's share of the items; images and logits are of `size`.

    Args:
        devices: of the run.
        network: is put on this process's device and into evaluation mode.
        items: of all processes.
        size: height and width at which the network works.
        compute: batch size and readers.
        name: shown on the progress bar.
        with_cells: whether to keep what enters and leaves the last layer.

    Raises:
        UserError: `with_cells`, and the network has several last layers.
    """
    loader = whole(devices, items, size, batch=compute.batch, workers=compute.workers)
    bar = tqdm(total=len(items), desc=name, unit="image", disable=None if devices.is_first else True)
    for batch in loader:
        yield Output(batch, *predict(devices, network, batch.images, with_cells))
        bar.update(min(len(batch.indices) * devices.processes, len(items) - bar.n))
    bar.close()


def predict(
    devices: Devices, network: Network, images: UInt8[Tensor, "n 3 h w"], with_cells: bool = False
) -> tuple[Float[Tensor, "n c h w"], Cells | None]:
    """The logits of one batch, in the precision of the run; `network` and `with_cells` as in `outputs`."""
    network.to(devices.device).eval()
    with torch.inference_mode(), devices.autocast():
        logits, cells = network.with_cells(images) if with_cells else (network(images), None)
    return logits.float(), cells


def small_masks(batch: Whole, size: tuple[int, int]) -> Tensor:
    """The batch's masks at the network's size, uint8 (n, h, w)."""
    return torch.stack(
        [torch.from_numpy(resizing.resize_mask(mask.numpy(), size)) for mask in batch.masks if mask is not None]
    )


class Pixels(NamedTuple):
    """Labelled pixels to fit a calibration on: logits, class ids and weights of all processes, on the CPU."""

    logits: Float[Tensor, "m c"]
    truth: Int64[Tensor, " m"]
    weights: Float[Tensor, " m"]

    @classmethod
    def gathered(cls, devices: Devices, batches: Sequence["Pixels"]) -> "Pixels":
        """Those of all batches of all processes; a process may have none."""
        return cls(*_joined(devices.everyone(tuple(map(list, zip(*batches, strict=True))) or ([], [], []))))

    def fit(self, method: str) -> Calibration:
        """The calibration that one of `calibration.CALIBRATIONS` fits to these pixels.

        Raises:
            UserError: a logit is not finite, or the fit does not converge.
        """
        try:
            return CALIBRATIONS[method](*self)
        except ValueError as error:
            raise UserError(f"calibration.method {method}: {error}: train with a lower lr, or in 32-true") from None


def calibration_pixels(
    devices: Devices,
    network: Network,
    items: Sequence[Item],
    size: tuple[int, int],
    compute: Compute,
    weights: Sequence[float] | None = None,
) -> Pixels:
    """Evenly spread pixels of labelled items, to calibrate a network that has not learnt from them.

    Args:
        devices: of the run.
        network: the network to calibrate.
        items: labelled ones.
        size: height and width at which the network works.
        compute: batch size and readers.
        weights: importance of each item, one over the probability that it was selected; None for equal weights.

    Raises:
        UserError: not one pixel of the items is of a class, or, through the readers, a label is damaged.
    """
    results = outputs(devices, network, items, size, compute, "calibrate")
    kept = Pixels.gathered(devices, [labelled_pixels(out, small_masks(out.batch, size), weights) for out in results])
    if not len(kept.truth):
        raise UserError(
            f"no pixel of the labels of {items[0].key!r} and {len(items) - 1} more is of a class: label them again"
        )
    return kept


def labelled_pixels(out: Output, masks: UInt8[Tensor, "n h w"], weights: Sequence[float] | None = None) -> Pixels:
    """Evenly spread labelled pixels of a batch.

    Args:
        out: of labelled items, as the network gives it: not calibrated.
        masks: of the batch, at the network's size, on the CPU.
        weights: importance of each item; None for equal weights.
    """
    logits, truth, weight = [], [], []
    for index, one, mask in zip(out.batch.indices, out.logits, masks, strict=True):
        flat = every_nth(mask)
        known = flat != IGNORE
        logits.append(every_nth(one).T.cpu()[known])
        truth.append(flat[known].long())
        weight.append(torch.full((int(known.sum()),), 1.0 if weights is None else weights[index]))
    return Pixels(torch.cat(logits), torch.cat(truth), torch.cat(weight))


def sampled_probabilities(
    devices: Devices,
    network: Network,
    items: Sequence[Item],
    size: tuple[int, int],
    compute: Compute,
    calibration: Calibration,
) -> Float[Tensor, "m c"]:
    """Calibrated class probabilities of evenly spread pixels of the items, of all processes, on the CPU."""
    results = outputs(devices, network, items, size, compute, "pixels")
    rows = [every_nth(calibration.apply(one).softmax(0)).T.cpu() for out in results for one in out.logits]
    return _joined(devices.everyone((rows,)))[0]


def _joined(everyone: Sequence[tuple[list[Tensor], ...]]) -> list[Tensor]:
    """Each list of tensors, concatenated over all processes, of which some may have none."""
    return [torch.cat([value for part in parts for value in part]) for parts in zip(*everyone, strict=True)]


def every_nth(maps: Shaped[Tensor, "*c h w"]) -> Shaped[Tensor, "*c m"]:
    """Every nth pixel of every nth row, flattened: PIXELS_PER_IMAGE or some more, and all pixels of a small map."""
    step = max(1, math.isqrt(maps.shape[-2] * maps.shape[-1] // PIXELS_PER_IMAGE))
    return maps[..., step // 2 :: step, step // 2 :: step].flatten(-2)


def upsample(logits: Float[Tensor, "c h w"], size: tuple[int, int]) -> Float[Tensor, "c h2 w2"]:
    """One image's logits, bilinearly interpolated to another size."""
    return F.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0]
