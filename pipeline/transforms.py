"""Joint augmentation of image and mask (albumentations): geometry together, colour on the image alone."""

import os
from typing import TYPE_CHECKING

import cv2
import numpy as np
from jaxtyping import UInt8

from pipeline.labels import IGNORE

if TYPE_CHECKING:
    import albumentations as A


def resize(image: UInt8[np.ndarray, "h w 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "h2 w2 3"]:
    """The image at (height, width) `size`: averaged when it shrinks, linear when it grows."""
    shrinks = size[0] < image.shape[0]
    resized: np.ndarray = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return resized


def resize_mask(mask: UInt8[np.ndarray, "h w"], size: tuple[int, int]) -> UInt8[np.ndarray, "h2 w2"]:
    """The mask at (height, width) `size`; class ids are picked, never mixed."""
    resized: np.ndarray = cv2.resize(mask, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    return resized


def augmentation(
    size: tuple[int, int], *, scale: tuple[float, float], flip: float, colour: float, blur: float, noise: float
) -> "A.Compose":
    """Random zoom and crop to `size` (height, width), flip, colour, blur and noise, as in params.Augment."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask the network for a newer version on import
    import albumentations as A  # a second of start-up that only training needs

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
    """One random change, the same for the same seed."""
    transform.set_random_seed(seed)
    changed = transform(image=image, mask=mask)
    return changed["image"], changed["mask"]
