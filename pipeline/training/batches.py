"""Training batches: which image comes in which step, resized and augmented.

The batch of step t depends on (seed, t) alone: not on the number of workers, nor on where a resumed training starts. A
batch is dealt to the processes round-robin.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from pipeline import streams
from pipeline.errors import UserError
from pipeline.images import reading, resizing
from pipeline.images.classes import IGNORE
from pipeline.images.items import Item
from pipeline.networks import loading
from pipeline.networks.devices import Devices
from pipeline.params import Augment
from pipeline.training import augmentation

ATTEMPTS = 4
"""So many crops at most are drawn of an image of which parts are labelled, until one shows enough of them."""
ENOUGH = 0.5
"""A crop shows enough if it has so many labelled pixels, as a share of those that the image has at the same size."""


class Batch(NamedTuple):
    """What one training step learns from."""

    images: UInt8[Tensor, "n 3 h w"]
    masks: UInt8[Tensor, "n h w"]
    groups: Int64[Tensor, " n"]
    """Number of the group (target, source) that each image is of."""

    @classmethod
    def of_one_group(cls, images: UInt8[Tensor, "n 3 h w"], masks: UInt8[Tensor, "n h w"]) -> "Batch":
        """A batch whose images are all of group 0."""
        return cls(images, masks, torch.zeros(len(images), dtype=torch.int64, device=images.device))

    def part(self, of: slice) -> "Batch":
        """Some of its images."""
        return Batch(*(each[of] for each in self))


class _Augmented(Dataset[tuple[Tensor, Tensor, int]]):
    """Randomly augmented items; the index is (position of the item, seed of the augmentation)."""

    def __init__(self, source: Sequence[tuple[Item, int]], size: tuple[int, int], augment: Augment) -> None:
        """`source`: items and the groups that they are of."""
        self.source, self.size = source, size
        self.transform = augmentation.augmentation(size, **augment.model_dump(exclude={"preset"}))

    def __getitem__(self, index: tuple[int, int]) -> tuple[Tensor, Tensor, int]:
        position, seed = index
        item, group = self.source[position]
        full = reading.read_image(item.image, item.sha256)
        mask = item.read_mask(full.shape[:2])
        if mask is None:
            raise AssertionError(f"{item.key} has no mask")
        image, mask = resizing.resize(full, self.size), resizing.resize_mask(mask, self.size)
        changed = augmentation.augment(self.transform, image, mask, seed)
        if item.blocks:  # the first crop that shows enough labels or, of all, the one that shows most
            enough, most = ENOUGH * labelled(mask), labelled(changed[1])
            for attempt in range(1, ATTEMPTS):
                if most >= enough:
                    break
                another = augmentation.augment(self.transform, image, mask, (seed + attempt) % 2**32)
                if labelled(another[1]) > most:
                    changed, most = another, labelled(another[1])
        return torch.from_numpy(changed[0]).permute(2, 0, 1), torch.from_numpy(changed[1]), group


def labelled(mask: UInt8[np.ndarray, "h w"]) -> int:
    """How many pixels have a label."""
    return int(np.count_nonzero(mask != IGNORE))


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
    used = [(number, group, share) for number, (group, share) in enumerate(groups) if share]
    together = sum(share for *_, share in used)
    if together < devices.processes:
        raise UserError(
            f"a batch of {together} images leaves some of {devices.processes} processes without: raise batch"
        )
    everything = _Augmented([(item, number) for number, group, _ in used for item in group], size, augment)
    counts = [(len(group), share) for _, group, share in used]

    def start(first: int) -> Iterator[Batch]:
        schedule = _Schedule(counts, seed, range(first, steps), devices.rank, devices.processes)
        loader = DataLoader(everything, batch_sampler=schedule, num_workers=workers)
        for batch in loading.passed_on(loader, workers):
            yield Batch(*(part.to(devices.device, non_blocking=True) for part in batch))

    return start


def repeated(start: Callable[[int], Iterator[Batch]], times: int) -> Callable[[int], Iterator[Batch]]:
    """The same kind of function, with every batch repeated for `times` steps."""

    def again(first: int) -> Iterator[Batch]:
        left = times - first % times
        for batch in start(first // times):
            yield from itertools.repeat(batch, left)
            left = times

    return again
