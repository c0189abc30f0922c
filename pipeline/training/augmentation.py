"""Random augmentation of images with their masks.

Each by itself as it is read (albumentations): geometry on image and mask alike, colour on the image alone. Then, if
asked for, the images of a batch are mixed with each other (mixup, ClassMix), on the device that trains.
"""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from pipeline.images.classes import IGNORE

if TYPE_CHECKING:
    import albumentations as A


def augmentation(
    size: tuple[int, int], *, scale: tuple[float, float], flip: float, colour: float, blur: float, noise: float
) -> "A.Compose":
    """The transform: random zoom, crop to `size` (height, width), flip, colour, blur, noise, as in params.Augment."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask the network for a newer version on import
    import albumentations as A  # takes a second to import, and only training needs it

    return A.Compose(
        [
            A.RandomScale(scale_limit=(scale[0] - 1, scale[1] - 1), mask_interpolation=cv2.INTER_NEAREST_EXACT, p=1.0),
            A.PadIfNeeded(*size, border_mode=cv2.BORDER_CONSTANT, fill=0, fill_mask=IGNORE),
            A.RandomCrop(*size),
            A.HorizontalFlip(p=flip),
            A.ColorJitter(
                brightness=(1 - colour, 1 + colour),
                contrast=(1 - colour, 1 + colour),
                saturation=(1 - colour, 1 + colour),
                hue=(-colour / 10, colour / 10),
                p=1.0 if colour else 0.0,
            ),
            A.GaussianBlur(blur_limit=(3, 5), p=blur),
            A.GaussNoise(std_range=(0.01, 0.05), p=noise),
        ]
    )


def augment(
    transform: "A.Compose", image: UInt8[np.ndarray, "h w 3"], mask: UInt8[np.ndarray, "h w"], seed: int
) -> tuple[UInt8[np.ndarray, "h2 w2 3"], UInt8[np.ndarray, "h2 w2"]]:
    """The image and mask after one random transform, the same for the same seed."""
    transform.set_random_seed(seed)
    changed = transform(image=image, mask=mask)
    return changed["image"], changed["mask"]


class Mixed(NamedTuple):
    """A batch after mixing."""

    images: UInt8[Tensor, "n 3 h w"]
    targets: list[tuple[float | Float[Tensor, ""], UInt8[Tensor, "n h w"], Int64[Tensor, "n #h #w"]]]
    """(share of the loss, masks, group that each pixel is of); the shares sum to 1."""


Mix = Callable[[UInt8[Tensor, "n 3 h w"], UInt8[Tensor, "n h w"], Int64[Tensor, " n"], torch.Generator], Mixed]
"""(images, masks, group that each image is of, generator) -> the mixed batch."""


def unmixed(
    images: UInt8[Tensor, "n 3 h w"],
    masks: UInt8[Tensor, "n h w"],
    groups: Int64[Tensor, " n"],
    generator: torch.Generator,
) -> Mixed:
    """The batch unchanged, as a `Mixed`."""
    return Mixed(images, [(1.0, masks, groups[:, None, None])])


def mixup(
    images: UInt8[Tensor, "n 3 h w"],
    masks: UInt8[Tensor, "n h w"],
    groups: Int64[Tensor, " n"],
    generator: torch.Generator,
) -> Mixed:
    """Every image blended with another of the batch: Zhang et al. 2018, "mixup: Beyond Empirical Risk Minimization".

    image = m a + (1 - m) b and loss = m loss(a) + (1 - m) loss(b), with one m for the batch out of Beta(1, 1), which
    is uniform: the paper's choice for CIFAR.
    """
    other = _others(images, generator)
    m = torch.rand((), generator=generator, device=images.device)
    blended = (m * images + (1 - m) * images[other]).round().to(torch.uint8)
    of = groups[:, None, None]
    return Mixed(blended, [(m, masks, of), (1 - m, masks[other], of[other])])


def classmix(
    images: UInt8[Tensor, "n 3 h w"],
    masks: UInt8[Tensor, "n h w"],
    groups: Int64[Tensor, " n"],
    generator: torch.Generator,
) -> Mixed:
    """Half of the classes of another image of the batch pasted on every image: Olsson et al. 2021, "ClassMix".

    The half is rounded down, as in the paper's code, so an image of one class is pasted nowhere. IGNORE is no class.
    Here the classes are those of the labels; the paper takes predicted ones, for images without labels.
    """
    n, device = len(images), images.device
    other = _others(images, generator)
    above, above_masks = images[other], masks[other]
    ids = above_masks.flatten(1).long()
    present = torch.zeros((n, 256), dtype=torch.bool, device=device).scatter_(1, ids, True)
    present[:, IGNORE] = False
    lots = torch.rand((n, 256), generator=generator, device=device).masked_fill(~present, -1)
    rank = lots.argsort(1, descending=True).argsort(1)
    chosen = rank < present.sum(1, keepdim=True) // 2
    pasted = chosen.gather(1, ids).view_as(masks)
    of = groups[:, None, None]
    target = (1.0, torch.where(pasted, above_masks, masks), torch.where(pasted, of[other], of))
    return Mixed(torch.where(pasted[:, None], above, images), [target])


def _others(images: UInt8[Tensor, "n 3 h w"], generator: torch.Generator) -> Int64[Tensor, " n"]:
    """For every image the index of another one: a random cyclic shift, since a permutation may have fixed points."""
    n, device = len(images), images.device
    turn = torch.randint(1, max(n, 2), (), generator=generator, device=device)
    return (torch.arange(n, device=device) + turn) % n


MIXES: dict[str, Mix] = {"none": unmixed, "mixup": mixup, "classmix": classmix}
