"""Images and masks as batches of tensors: reading, resizing, augmenting, and which image comes when.

What step t of a training sees depends on (seed, t) alone: not on the number of workers, not on where a resumed run
starts. Work is dealt to processes card by card: process k of n takes items k, k+n, k+2n, ...
"""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import cv2
import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from pipeline import blocks, paths, streams, transforms
from pipeline.datasets import reading
from pipeline.devices import Devices
from pipeline.errors import UserError
from pipeline.labels import IGNORE, UNKNOWN
from pipeline.params import Augment

if TYPE_CHECKING:
    import pandas as pd

cv2.setNumThreads(0)  # the readers are processes already

L = TypeVar("L")

ATTEMPTS = 4
"""So often an image of which blocks are labelled is cropped anew if the crop shows nothing of them."""


SIGNAL_SECONDS = 3.0
"""Within which the system says that a reader is gone, and torch raises."""


class Item(NamedTuple):
    """An image, and where its mask is if it has one."""

    key: str
    image: Path
    mask: Path | None
    table: UInt8[np.ndarray, "256"]
    """The mask's native ids -> class ids."""
    blocks: tuple[tuple[str, Path], ...] = ()
    """In the place of one mask, key and mask of each of some blocks; the rest is IGNORE."""
    sha256: str = ""
    """Of the image file, as it was looked at; empty if that is not known."""
    mask_sha256: str = ""
    """Of the mask file."""

    @property
    def masks(self) -> list[Path]:
        """All files that its labels lie in."""
        return [path for _, path in self.blocks] if self.mask is None else [self.mask]

    def read_mask(self, size: tuple[int, int]) -> UInt8[np.ndarray, "h w"] | None:
        """Its class ids and IGNORE; None if it has no label. `size` is that of its image, height and width.

        Raises:
            UserError: a file is damaged, or that of a block has not the block's size.
        """
        if self.mask is not None:
            return reading.read_mask(self.mask, self.table, self.mask_sha256)
        crops = [(key, reading.read_mask(path, self.table)) for key, path in self.blocks]
        return blocks.paste(crops, size) if crops else None


def items(frame: "pd.DataFrame", table: UInt8[np.ndarray, "256"]) -> list[Item]:
    """The rows of a manifest, in its order."""
    return [
        Item(r.key, Path(r.image), Path(r.mask) if r.mask else None, table, (), r.sha256, r.mask_sha256)
        for r in frame.itertuples()
    ]


def labelled(keys: Iterable[str], pool: "pd.DataFrame", classes: int) -> list[Item]:
    """An item for each delivered label, whole image or block.

    Args:
        keys: of the labels.
        pool: its manifest, by image key.
        classes: how many there are.

    Raises:
        UserError: the image of a label is not in the pool.
    """
    table = stored(classes)
    found = []
    for key in keys:
        name, block = blocks.image_of(key), blocks.parse(key)
        if name not in pool.index:
            raise UserError(
                f"{key!r} is labelled, but its image is not in the pool: put it back into prepare.pool, then run "
                "`dvc repro -f prepare` and `dvc repro`, or, if it has to stay out, `python -m pipeline remove KEY`"
            )
        image, parts = pool.loc[name], () if block is None else ((key, paths.mask(key)),)
        mask = paths.mask(key) if block is None else None
        found.append(Item(key, Path(str(image["image"])), mask, table, parts, str(image["sha256"])))
    return found


def by_image(of: Iterable[Item]) -> list[Item]:
    """The same labels, those of blocks of one image together in one item."""
    merged: dict[str, Item] = {}
    for item in of:
        key = blocks.image_of(item.key)
        parts = merged[key].blocks if key in merged else ()
        merged[key] = item._replace(key=key, blocks=parts + item.blocks)
    return list(merged.values())


def stored(classes: int) -> UInt8[np.ndarray, "256"]:
    """The table of delivered masks, which hold class ids already."""
    table = np.full(256, UNKNOWN, np.uint8)
    table[:classes] = np.arange(classes)
    table[IGNORE] = IGNORE
    return table


class Batch(NamedTuple):
    """What one training step learns from."""

    images: UInt8[Tensor, "n 3 h w"]
    masks: UInt8[Tensor, "n h w"]


class _Whole(Dataset[tuple[int, Tensor, Tensor | None]]):
    """Each item once, unchanged but for its size; the mask stays at its own."""

    def __init__(self, whole: Sequence[Item], size: tuple[int, int]) -> None:
        self.whole, self.size = whole, size

    def __len__(self) -> int:
        return len(self.whole)

    def __getitem__(self, index: int) -> tuple[int, Tensor, Tensor | None]:
        item = self.whole[index]
        full = reading.read_image(item.image, item.sha256)
        image, mask = transforms.resize(full, self.size), item.read_mask(full.shape[:2])
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


def whole(devices: Devices, of: Sequence[Item], size: tuple[int, int], *, batch: int, workers: int) -> Iterator[Whole]:
    """This process's share of the items, in order, images resized to `size` and on its device."""
    share = range(devices.rank, len(of), devices.processes)
    loader = DataLoader(
        _Whole(of, size),
        batch_size=batch,
        sampler=list(share),
        num_workers=workers,
        collate_fn=_stack,
    )
    for loaded in _passed_on(loader, workers):
        yield loaded._replace(images=loaded.images.to(devices.device, non_blocking=True))


def _passed_on(loader: Iterable[L], workers: int) -> Iterator[L]:
    """What a loader gives. The sentence of a reader's UserError comes without the reader's traceback around it.

    Raises:
        RuntimeError: a reader was killed; torch's own, or in its words.
    """
    try:
        yield from loader
    except UserError as error:
        raise UserError(str(error).rpartition(f"{UserError.__qualname__}: ")[2].strip()) from None
    except (ConnectionError, EOFError, FileNotFoundError) as error:
        if not workers or "in DataLoader worker" in str(error):  # what reading itself has met
            raise
        # It was killed while it handed a batch over. Torch raises when the system's signal comes, wherever this
        # process is then: let that be here, not in the middle of what the error is answered with.
        time.sleep(SIGNAL_SECONDS)
        raise RuntimeError(f"DataLoader worker exited unexpectedly ({type(error).__name__})") from error


class _Augmented(Dataset[tuple[Tensor, Tensor]]):
    """Items changed at random; asked for by (position, seed of the change)."""

    def __init__(self, source: Sequence[Item], size: tuple[int, int], augment: Augment) -> None:
        self.source, self.size = source, size
        self.transform = transforms.augmentation(size, **augment.model_dump(exclude={"preset"}))

    def __getitem__(self, index: tuple[int, int]) -> tuple[Tensor, Tensor]:
        position, seed = index
        item = self.source[position]
        full = reading.read_image(item.image, item.sha256)
        mask = item.read_mask(full.shape[:2])
        if mask is None:
            raise AssertionError(f"{item.key} has no mask")
        image, mask = transforms.resize(full, self.size), transforms.resize_mask(mask, self.size)
        for attempt in range(ATTEMPTS if item.blocks else 1):
            changed = transforms.augment(self.transform, image, mask, (seed + attempt) % 2**32)
            if (changed[1] != IGNORE).any():
                break
        image, mask = changed
        return torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(mask)


class _Schedule(Sampler[list[tuple[int, int]]]):
    """Which items, changed with which seed, make up each step's batch in this process."""

    def __init__(self, groups: Sequence[tuple[int, int]], seed: int, steps: range, rank: int, world: int) -> None:
        self.groups, self.seed, self.steps, self.rank, self.world = groups, seed, steps, rank, world

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in self.steps:
            yield plan(self.groups, self.seed, step)[self.rank :: self.world]


def plan(groups: Sequence[tuple[int, int]], seed: int, step: int) -> list[tuple[int, int]]:
    """The batch of one step, all processes together: (position, seed of the change) pairs.

    Args:
        groups: (number of items, how many of them in a batch) of each group; positions count through the groups. Each
            group runs through its items in a new random order every epoch.
        seed: of the training.
        step: counted from 0.
    """
    batch: list[tuple[int, int]] = []
    offset = 0
    for group, (size, share) in enumerate(groups):
        for draw in range(step * share, (step + 1) * share):
            epoch, place = divmod(draw, size)
            order = streams.rng(seed, "order", group, epoch).permutation(size)
            change = streams.seed_of(seed, "change", group, draw) % 2**32  # OpenCV's and Albumentations' seeds
            batch.append((offset + int(order[place]), change))
        offset += size
    return batch


def training(
    devices: Devices,
    groups: Sequence[tuple[Sequence[Item], int]],
    size: tuple[int, int],
    augment: Augment,
    *,
    seed: int,
    steps: int,
    workers: int,
) -> Callable[[int], Iterator[Batch]]:
    """Batches of augmented items: `share` of every batch from each group; call the result with the first step."""
    used = [(group, share) for group, share in groups if share]
    together = sum(share for _, share in used)
    if together < devices.processes:
        raise UserError(
            f"a batch of {together} images leaves some of {devices.processes} processes without: raise batch"
        )
    everything = _Augmented([item for group, _ in used for item in group], size, augment)
    counts = [(len(group), share) for group, share in used]

    def start(first: int) -> Iterator[Batch]:
        schedule = _Schedule(counts, seed, range(first, steps), devices.rank, devices.processes)
        loader = DataLoader(everything, batch_sampler=schedule, num_workers=workers)
        for images, masks in _passed_on(loader, workers):
            yield Batch(images.to(devices.device, non_blocking=True), masks.to(devices.device, non_blocking=True))

    return start


def repeated(start: Callable[[int], Iterator[Batch]], times: int) -> Callable[[int], Iterator[Batch]]:
    """Every batch `times` times in a row, from any step on."""

    def again(first: int) -> Iterator[Batch]:
        left = times - first % times
        for batch in start(first // times):
            yield from itertools.repeat(batch, left)
            left = times

    return again
