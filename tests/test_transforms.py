from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import UInt8
from torch import Tensor

from pipeline.images import resizing
from pipeline.images.classes import IGNORE
from pipeline.training import augmentation

STILL: dict[str, Any] = {"scale": (1.0, 1.0), "flip": 0.0, "colour": 0.0, "blur": 0.0, "noise": 0.0}
ALL: dict[str, Any] = {"scale": (0.5, 2.0), "flip": 0.5, "colour": 0.3, "blur": 0.5, "noise": 0.5}


def picture(
    height: int = 24, width: int = 32, seed: int = 0
) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"]]:
    """A mask of blocks, and an image that shows each block in a grey of its own."""
    rng = np.random.default_rng(seed)
    mask = rng.integers(1, 6, (height // 4, width // 4), np.uint8).repeat(4, 0).repeat(4, 1)
    return np.repeat(mask[..., None] * 40, 3, axis=2), mask


def change(seed: int, size: tuple[int, int] = (24, 32), **settings: Any) -> tuple[np.ndarray, np.ndarray]:
    return augmentation.augment(augmentation.augmentation(size, **(STILL | settings)), *picture(), seed)


def test_everything_at_0_changes_nothing() -> None:
    image, mask = picture()
    for seed in range(5):
        changed = change(seed)
        np.testing.assert_array_equal(changed[0], image)
        np.testing.assert_array_equal(changed[1], mask)


def test_flip_of_1_mirrors_image_and_mask() -> None:
    image, mask = picture()
    changed = change(0, flip=1.0)
    np.testing.assert_array_equal(changed[0], image[:, ::-1])
    np.testing.assert_array_equal(changed[1], mask[:, ::-1])


def test_flip_of_a_half_mirrors_about_half_the_time() -> None:
    _, mask = picture()
    flips = sum(np.array_equal(change(seed, flip=0.5)[1], mask[:, ::-1]) for seed in range(200))
    assert 70 < flips < 130


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(24, 32), (12, 20), (40, 36)]))
def test_masks_hold_only_ids_they_had_and_ignore(seed: int, size: tuple[int, int]) -> None:
    image, mask = change(seed, size, **ALL)
    assert image.shape == (*size, 3)
    assert mask.shape == size
    assert image.dtype == mask.dtype == np.uint8
    assert set(np.unique(mask)) <= {*np.unique(picture()[1]), IGNORE}


@pytest.mark.parametrize("seed", range(8))
def test_image_and_mask_move_together(seed: int) -> None:
    image, mask = change(seed, scale=(0.5, 2.0), flip=0.5)
    known = mask != IGNORE
    assert (image[~known] == 0).all()
    near = np.abs(image[..., 0].astype(int) - 40 * mask.astype(int)) <= 20
    assert near[known].mean() > 0.7  # the rest are borders, which the image mixes


def test_zoom_stays_within_its_bounds() -> None:
    image = np.zeros((40, 40, 3), np.uint8)
    mask = np.zeros((40, 40), np.uint8)
    transform = augmentation.augmentation((100, 100), **(STILL | {"scale": (0.5, 2.0)}))
    sides = []
    for seed in range(60):
        known = augmentation.augment(transform, image, mask, seed)[1] != IGNORE
        sides.append(int(known.any(0).sum()))
    assert 20 <= min(sides) < 25
    assert 70 < max(sides) <= 80


def test_a_larger_zoom_cuts_out_a_part() -> None:
    mask = change(3, scale=(2.0, 2.0))[1]
    assert not (mask == IGNORE).any()
    blocks = {tuple(row) for row in np.unique(mask, axis=0)}
    assert 3 <= len(blocks) <= 4  # three or four rows of blocks of doubled height


def test_colour_blur_and_noise_leave_the_mask_alone() -> None:
    image, mask = picture()
    for name in ("colour", "blur", "noise"):
        changed = change(1, **{name: 1.0})
        np.testing.assert_array_equal(changed[1], mask)
        assert not np.array_equal(changed[0], image), name


def test_same_seed_same_change_whatever_came_before() -> None:
    transform = augmentation.augmentation((24, 32), **ALL)
    first = augmentation.augment(transform, *picture(), 5)
    other = augmentation.augment(transform, *picture(), 6)
    again = augmentation.augment(transform, *picture(), 5)
    fresh = augmentation.augment(augmentation.augmentation((24, 32), **ALL), *picture(), 5)
    for one in (again, fresh):
        np.testing.assert_array_equal(one[0], first[0])
        np.testing.assert_array_equal(one[1], first[1])
    assert not np.array_equal(other[0], first[0])


def test_the_input_is_not_touched() -> None:
    image, mask = picture()
    kept = image.copy(), mask.copy()
    augmentation.augment(augmentation.augmentation((24, 32), **ALL), image, mask, 4)
    np.testing.assert_array_equal(image, kept[0])
    np.testing.assert_array_equal(mask, kept[1])


def test_resize_averages_what_shrinks_and_keeps_what_fits() -> None:
    image, _ = picture()
    np.testing.assert_array_equal(resizing.resize(image, (24, 32)), image)
    blocks = image.reshape(12, 2, 16, 2, 3).mean((1, 3))
    np.testing.assert_allclose(resizing.resize(image, (12, 16)), blocks, atol=0.5)
    assert resizing.resize(image, (48, 64)).shape == (48, 64, 3)


@given(st.integers(1, 40), st.integers(1, 40))
def test_resized_masks_pick_the_pixel_under_the_centre(height: int, width: int) -> None:
    mask = np.random.default_rng(0).integers(0, 256, (24, 32), np.uint8)
    resized = resizing.resize_mask(mask, (height, width))
    rows, columns = ((2 * np.arange(new) + 1) * old / (2 * new) for new, old in ((height, 24), (width, 32)))
    inside = np.ix_(rows % 1 != 0, columns % 1 != 0)  # on the border between two pixels either may be picked
    np.testing.assert_array_equal(resized[inside], mask[np.ix_(rows.astype(int), columns.astype(int))][inside])
    assert resized.shape == (height, width)


def batch(seed: int, count: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Each image shows its number, also that of its group, in red and its mask in green; IGNORE here and there."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.randint(0, 5, (count, 8, 10), generator=generator).to(torch.uint8)
    masks[torch.rand(masks.shape, generator=generator) < 0.2] = IGNORE
    red = torch.arange(count).view(-1, 1, 1).expand(masks.shape).to(torch.uint8)
    return torch.stack([red, masks, masks], 1), masks, torch.arange(count)


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", augmentation.MIXES)
def test_mixing_keeps_shapes_and_follows_the_generator(name: str) -> None:
    images, masks, groups = batch(0)
    kept = images.clone(), masks.clone()
    mixed, again = (augmentation.MIXES[name](images, masks, groups, rng(4)) for _ in range(2))
    assert torch.equal(images, kept[0])
    assert torch.equal(masks, kept[1])
    assert mixed.images.shape == images.shape
    assert mixed.images.dtype == torch.uint8
    assert float(sum(share for share, *_ in mixed.targets)) == pytest.approx(1)
    assert torch.equal(mixed.images, again.images)
    others = [augmentation.MIXES[name](images, masks, groups, rng(seed)).images for seed in range(5, 9)]
    assert any(not torch.equal(mixed.images, other) for other in others) == (name != "none")


def test_mixup_blends_images_as_it_shares_the_loss() -> None:
    images, masks, groups = batch(0)
    shares = []
    for seed in range(200):
        mixed = augmentation.mixup(images, masks, groups, rng(seed))
        (m, first, group), (rest, second, other_group) = mixed.targets
        shares.append(float(m))
        assert torch.equal(first, masks)
        other = [next(k for k in range(len(masks)) if torch.equal(mask, masks[k])) for mask in second]
        assert sorted(other) == list(range(len(masks)))
        assert all(place != number for place, number in enumerate(other))
        assert (group.flatten().tolist(), other_group.flatten().tolist()) == (list(range(len(masks))), other)
        blend = m * images.float() + rest * images[other].float()
        assert (mixed.images.float() - blend).abs().max() <= 0.5001
    assert np.quantile(shares, [0.25, 0.5, 0.75]) == pytest.approx([0.25, 0.5, 0.75], abs=0.1)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_classmix_pastes_half_of_the_classes_with_their_masks(seed: int) -> None:
    images, masks, groups = batch(seed)
    mixed = augmentation.classmix(images, masks, groups, rng(seed))
    ((share, labels, of),) = mixed.targets
    assert share == 1
    assert torch.equal(of, mixed.images[:, 0].long())  # each pixel is of the group of the image that it comes from
    assert torch.equal(mixed.images[:, 1], labels)  # image and mask move together
    for place, numbers in enumerate(mixed.images[:, 0]):
        above = {int(number) for number in numbers.unique()} - {place}
        assert len(above) <= 1
        for number in above:
            pasted = numbers == number
            classes = set(labels[place][pasted].tolist())
            present = set(masks[number].unique().tolist()) - {IGNORE}
            assert len(classes) == len(present) // 2
            assert IGNORE not in classes
            assert torch.equal(pasted, torch.isin(masks[number], torch.tensor(sorted(classes), dtype=torch.uint8)))
        assert torch.equal(labels[place][numbers == place], masks[place][numbers == place])


def test_classmix_draws_every_class_and_pastes_no_image_of_one_class() -> None:
    images, masks, groups = batch(0, count=2)
    drawn = set()
    for seed in range(40):
        mixed = augmentation.classmix(images, masks, groups, rng(seed))
        drawn |= set(mixed.targets[0][1][0][mixed.images[0, 0] == 1].tolist())
    assert drawn == set(range(5))
    same = torch.where(masks == IGNORE, masks, torch.tensor(3, dtype=torch.uint8))
    assert all(torch.equal(augmentation.classmix(images, same, groups, rng(seed)).images, images) for seed in range(5))


@pytest.mark.parametrize("name", ["mixup", "classmix"])
def test_an_image_alone_stays_as_it_is(name: str) -> None:
    images, masks, groups = batch(0, count=1)
    mixed = augmentation.MIXES[name](images, masks, groups, rng(0))
    assert torch.equal(mixed.images, images)
    assert all(torch.equal(target, masks) for _, target, _ in mixed.targets)
