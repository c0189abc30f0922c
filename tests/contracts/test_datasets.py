"""What every dataset layout must do. A new member needs a fake in tests/fakes.py and nothing here."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline import datasets
from pipeline.errors import UserError
from pipeline.images import reading
from pipeline.images.classes import CLASS_SETS, IGNORE, ClassSet
from tests import fakes

every_dataset = pytest.mark.parametrize("name", datasets.DATASETS)


def classes_of(name: str) -> ClassSet:
    return CLASS_SETS[fakes.CLASS_SET.get(name, "camvid11")]


@every_dataset
def test_images_and_masks_fit_and_hold_only_classes(name: str, tmp_path: Path) -> None:
    samples = datasets.find(name, fakes.write(name, tmp_path), "train")
    classes = classes_of(name)
    table = datasets.table(name, tmp_path, classes)
    seen: set[int] = set()
    for sample in samples:
        assert sample.mask is not None
        image, mask = reading.read_image(sample.image), reading.read_mask(sample.mask, table)
        assert image.shape == (*fakes.SIZE, 3)
        assert image.dtype == mask.dtype == np.uint8
        assert mask.shape == image.shape[:2]
        seen |= set(np.unique(mask).tolist())
    assert seen == {*range(len(classes.names)), IGNORE}


@every_dataset
def test_order_is_that_of_the_keys_and_keys_are_file_names(name: str, tmp_path: Path) -> None:
    fakes.write(name, tmp_path, count=12)
    keys = [sample.key for sample in datasets.find(name, tmp_path, "train")]
    assert len(keys) == len(set(keys)) == 12
    assert keys == sorted(keys)
    assert all(key and "/" not in key and not key.startswith(".") for key in keys)
    assert keys == [sample.key for sample in datasets.find(name, tmp_path, "train")]


@every_dataset
def test_masks_may_be_absent(name: str, tmp_path: Path) -> None:
    fakes.write(name, tmp_path)
    for part in ("labels", "gtFine", "trainannot", "masks"):
        shutil.rmtree(tmp_path / part, ignore_errors=True)
    samples = datasets.find(name, tmp_path, "train")
    assert len(samples) == 4
    assert all(sample.mask is None for sample in samples)


@every_dataset
def test_what_the_system_leaves_in_folders_is_no_image(name: str, tmp_path: Path) -> None:
    fakes.write(name, tmp_path)
    before = datasets.find(name, tmp_path, "train")
    for sample in before:
        sample.image.with_name(f"._{sample.image.name}").write_bytes(b"macOS")
        sample.image.with_name("Thumbs.db").write_bytes(b"Windows")
    assert datasets.find(name, tmp_path, "train") == before


@every_dataset
def test_missing_root_says_what_to_put_there(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        datasets.find(name, tmp_path / "nowhere", "train")
    assert str(tmp_path / "nowhere") in str(error.value)
    assert name in str(error.value)
    assert datasets.DATASETS[name].expects in str(error.value)


@every_dataset
def test_empty_split_is_an_error_that_says_what_is_there(name: str, tmp_path: Path) -> None:
    (tmp_path / "something").mkdir()
    with pytest.raises(UserError, match=r"split 'val'.*found there: something") as error:
        datasets.find(name, tmp_path, "val")
    assert datasets.DATASETS[name].expects in str(error.value)


@every_dataset
def test_table_covers_every_byte(name: str, tmp_path: Path) -> None:
    fakes.write(name, tmp_path)
    classes = classes_of(name)
    table = datasets.table(name, tmp_path, classes)
    assert table.shape == (256,)
    assert table[IGNORE] == IGNORE
    assert set(table.tolist()) <= {*range(len(classes.names)), IGNORE, 254}
