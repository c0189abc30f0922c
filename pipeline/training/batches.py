"""Training batches: which image comes in which step, resized and augmented.

The batch of step t depends on (seed, t) alone: not on the number of workers, nor on where a resumed training starts. A
batch is dealt to the processes round-robin.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from pipeline import streams
from pipeline.errors import UserError
from pipeline.images import reading, resizing
from pipeline.images.classes import IGNORE
from pipeline.networks.devices import Devices
from pipeline.params import Augment
from pipeline.training import augmentation

if TYPE_CHECKING:
    pass
from pipeline.images.items import Item
from pipeline.networks import loading

ATTEMPTS = 4
"""An image with labelled blocks is cropped again, at most so often, while the crop shows none of its labels."""


class Batch(NamedTuple):
    """What one training step learns from."""

    images: UInt8[Tensor, "n 3 h w"]
    masks: UInt8[Tensor, "n h w"]


class _Augmented(Dataset[tuple[Tensor, Tensor]]):
    """Randomly augmented items; the index is (position of the item, seed of the augmentation)."""

    def __init__(self, source: Sequence[Item], size: tuple[int, int], augment: Augment) -> None:
        self.source, self.size = source, size
        self.transform = augmentation.augmentation(size, **augment.model_dump(exclude={"preset"}))

    def __getitem__(self, index: tuple[int, int]) -> tuple[Tensor, Tensor]:
        position, seed = index
        item = self.source[position]
        full = reading.read_image(item.image, item.sha256)
        mask = item.read_mask(full.shape[:2])
        if mask is None:
            raise AssertionError(f"{item.key} has no mask")
        image, mask = resizing.resize(full, self.size), resizing.resize_mask(mask, self.size)
        for attempt in range(ATTEMPTS if item.blocks else 1):
            changed = augmentation.augment(self.transform, image, mask, (seed + attempt) % 2**32)
            if (changed[1] != IGNORE).any():
                break
        image, mask = changed
        return torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(mask)


class _Schedule(Sampler[list[tuple[int, int]]]):
    """Yields this process's part of each step's batch: the indices that `_Augmented` takes."""

    def __init__(self, groups: Sequence[tuple[int, int]], seed: int, steps: range, rank: int, world: int) -> None:
        self.groups, self.seed, self.steps, self.rank, self.world = groups, seed, steps, rank, world

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in self.steps:
            yield plan(self.groups, self.seed, step)[self.rank :: self.world]


def plan(groups: Sequence[tuple[int, int]], seed: int, step: int) -> list[tuple[int, int]]:
    """The batch of one step, all processes together: (position, seed of the augmentation) pairs.

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


def training_batches(
    devices: Devices,
    groups: Sequence[tuple[Sequence[Item], int]],
    size: tuple[int, int],
    augment: Augment,
    *,
    seed: int,
    steps: int,
    workers: int,
) -> Callable[[int], Iterator[Batch]]:
    """A function from the first step to an iterator over the batches from that step on, this process's part of each.

    Every batch has as many augmented items of each group as `groups` says: pairs of (items, how many of them).
    """
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
        for images, masks in loading.passed_on(loader, workers):
            yield Batch(images.to(devices.device, non_blocking=True), masks.to(devices.device, non_blocking=True))

    return start


def repeated(start: Callable[[int], Iterator[Batch]], times: int) -> Callable[[int], Iterator[Batch]]:
    """The same kind of function, with every batch repeated for `times` steps."""

    def again(first: int) -> Iterator[Batch]:
        left = times - first % times
        for batch in start(first // times):
            yield from itertools.repeat(batch, left)
            left = times

    return again
