import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import datasets, faults, params_file, storage
from pipeline.errors import UserError
from pipeline.images import reading, resizing
from pipeline.images.classes import CLASS_SETS, IGNORE, UNKNOWN
from pipeline.images.items import Item, id_table_of_labels, items_of
from pipeline.networks import inference, loading
from pipeline.networks.devices import Devices
from pipeline.params import Augment
from pipeline.training import batches
from pipeline.training.batches import Batch
from tests import fakes
from tests.conftest import ROOT

CLASSES = CLASS_SETS["cityscapes19"]
STILL = Augment(scale=(1.0, 1.0), flip=0.0, colour=0.0, blur=0.0, noise=0.0)


@pytest.fixture(scope="module")
def devices() -> Devices:
    return Devices()


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> list[Item]:
    root = fakes.write("cityscapes", tmp_path_factory.mktemp("data"), count=5)
    samples = datasets.find("cityscapes", root, "train")
    frame = pd.DataFrame(samples).astype(str).assign(sha256="", mask_sha256="")
    return items_of(frame, datasets.table("cityscapes", root, CLASSES))


groups = st.lists(st.tuples(st.integers(1, 7), st.integers(1, 5)), min_size=1, max_size=3)


@settings(deadline=None, max_examples=60)
@given(groups, st.integers(0, 2**32 - 1))
def test_every_item_comes_once_an_epoch_and_every_group_has_its_share(of: list[tuple[int, int]], seed: int) -> None:
    steps = 8
    taken = [batches.plan(of, seed, step) for step in range(steps)]
    first = 0
    for size, share in of:
        positions = [[p for p, _ in batch if first <= p < first + size] for batch in taken]
        assert [len(batch) for batch in positions] == [share] * steps
        run = [position - first for batch in positions for position in batch]
        for epoch in range(len(run) // size):
            assert sorted(run[epoch * size : (epoch + 1) * size]) == list(range(size))
        first += size


def test_plan_depends_on_seed_and_step_alone_and_never_repeats_a_change() -> None:
    of = [(6, 3), (4, 1)]
    whole = [batches.plan(of, 7, step) for step in range(30)]
    assert [batches.plan(of, 7, step) for step in reversed(range(30))] == whole[::-1]
    assert [batches.plan(of, 8, step) for step in range(30)] != whole
    changes = [change for batch in whole for _, change in batch]
    assert len(set(changes)) == len(changes)
    orders = {tuple(p for batch in whole[start : start + 2] for p, _ in batch if p < 6) for start in range(0, 30, 2)}
    assert len(orders) > 10  # another order every epoch


@given(st.integers(1, 4), st.integers(0, 9))
def test_processes_deal_the_batch_among_themselves(world: int, step: int) -> None:
    of = [(6, 3), (4, 2)]
    shares = [list(batches._Schedule(of, 7, range(step, step + 1), rank, world)) for rank in range(world)]
    dealt = [share[0] for share in shares]
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1
    together = [dealt[place % world][place // world] for place in range(5)]
    assert together == batches.plan(of, 7, step)


def collect(
    devices: Devices, items: list[Item], first: int = 0, workers: int = 0, augment: Augment | None = None
) -> list[Batch]:
    of = [(items[:3], 2), (items[3:], 1)]
    start = batches.training_batches(
        devices, of, fakes.SIZE, augment or Augment(noise=1.0), seed=3, steps=6, workers=workers
    )
    return list(start(first))


def test_a_resumed_run_and_other_workers_see_the_same_batches(devices: Devices, items: list[Item]) -> None:
    whole = collect(devices, items)
    assert len(whole) == 6
    for other in (collect(devices, items, first=4), collect(devices, items, first=4, workers=2)):
        assert len(other) == 2
        for one, expected in zip(other, whole[4:], strict=True):
            assert torch.equal(one.images, expected.images)
            assert torch.equal(one.masks, expected.masks)


def test_batches_hold_the_planned_items(devices: Devices, items: list[Item]) -> None:
    for step, batch in enumerate(collect(devices, items, augment=STILL)):
        planned = [position for position, _ in batches.plan([(3, 2), (2, 1)], 3, step)]
        assert batch.images.dtype == batch.masks.dtype == torch.uint8
        for place, position in enumerate(planned):
            image = reading.read_image(items[position].image)
            np.testing.assert_array_equal(batch.images[place].permute(1, 2, 0), image)
            mask = reading.read_mask(items[position].mask or Path(), items[position].table)
            np.testing.assert_array_equal(batch.masks[place], mask)


@pytest.mark.parametrize("part", ["image", "mask"])
def test_a_file_that_is_not_what_it_was_is_not_read(devices: Devices, tmp_path: Path, part: str) -> None:
    image = fakes.image(tmp_path / "a.png", np.random.default_rng(0))
    mask = fakes.mask(tmp_path / "m.png", np.zeros(fakes.SIZE))
    hashes = {"sha256": storage.sha256(image), "mask_sha256": storage.sha256(mask)}
    item = Item("a", image, mask, id_table_of_labels(19), **hashes)
    assert len(list(inference.whole(devices, [item], (8, 8), batch=1, workers=0))) == 1
    other = np.random.default_rng(1)
    changed = fakes.image(image, other) if part == "image" else fakes.mask(mask, np.ones(fakes.SIZE))
    start = batches.training_batches(devices, [([item], 1)], (8, 8), STILL, seed=1, steps=1, workers=0)
    for read in (lambda: start(0), lambda: inference.whole(devices, [item], (8, 8), batch=1, workers=0)):
        with pytest.raises(UserError, match=f"{changed.name} was changed since `prepare` looked at it: put it back"):
            list(read())


def test_a_group_without_a_share_is_not_touched(devices: Devices, items: list[Item]) -> None:
    nowhere = [Item("x", Path("nowhere.png"), Path("nowhere.png"), items[0].table)]
    start = batches.training_batches(devices, [(items, 2), (nowhere, 0)], (8, 8), STILL, seed=1, steps=9, workers=0)
    assert [len(batch.images) for batch in start(0)] == [2] * 9


def test_every_image_says_which_group_it_is_of(devices: Devices, items: list[Item]) -> None:
    of = [(items[:1], 0), (items[1:3], 2), (items[3:], 1)]  # one without a share keeps its number
    start = batches.training_batches(devices, of, (8, 8), STILL, seed=1, steps=3, workers=0)
    assert [batch.groups.tolist() for batch in start(0)] == [[1, 1, 2]] * 3


def test_whole_gives_all_in_order_masks_at_their_own_size(devices: Devices, items: list[Item]) -> None:
    given = [*items[:2], items[2]._replace(mask=None), *items[3:]]
    loaded = list(inference.whole(devices, given, (12, 16), batch=2, workers=0))
    assert [batch.indices for batch in loaded] == [[0, 1], [2, 3], [4]]
    images = torch.cat([batch.images for batch in loaded])
    masks = [mask for batch in loaded for mask in batch.masks]
    for item, image, mask in zip(given, images, masks, strict=True):
        expected = resizing.resize(reading.read_image(item.image), (12, 16))
        np.testing.assert_array_equal(image.permute(1, 2, 0), expected)
        if item.mask is None:
            assert mask is None
        else:
            assert mask is not None
            np.testing.assert_array_equal(mask, reading.read_mask(item.mask, item.table))


def test_gather_of_one_process_is_what_it_has(devices: Devices) -> None:
    rows = torch.arange(10.0).view(5, 2)
    assert torch.equal(devices.gather(rows, 5), rows)


def test_table_of_delivered_masks_takes_classes_and_ignore_only() -> None:
    table = id_table_of_labels(3)
    assert table[:3].tolist() == [0, 1, 2]
    assert table[IGNORE] == IGNORE
    assert set(table[3:IGNORE].tolist()) == {UNKNOWN}


def test_delivered_mask_with_another_id_is_named(devices: Devices, items: list[Item], tmp_path: Path) -> None:
    path = fakes.mask(tmp_path / "odd.png", np.full(fakes.SIZE, 19, np.uint8))
    odd = [Item("odd", items[0].image, path, id_table_of_labels(19))]
    start = batches.training_batches(devices, [(odd, 1)], (8, 8), STILL, seed=1, steps=1, workers=0)
    with pytest.raises(UserError, match=r"odd\.png holds .*19"):
        list(start(0))


@pytest.mark.parametrize("workers", [0, 1])
def test_the_sentence_of_a_reader_comes_without_its_traceback(
    devices: Devices, items: list[Item], workers: int, tmp_path: Path
) -> None:
    damaged = tmp_path / "a.png"
    damaged.write_bytes(items[1].image.read_bytes()[:50])
    of = [items[0], items[1]._replace(image=damaged)]
    with pytest.raises(UserError) as error:
        list(inference.whole(devices, of, (8, 8), batch=2, workers=workers))
    assert str(damaged) in str(error.value)
    assert "\n" not in str(error.value)
    assert "Traceback" not in str(error.value)


def test_a_killed_reader_is_known_for_what_it_is(
    devices: Devices, items: list[Item], monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)  # as the system does

    monkeypatch.setattr(reading, "read_image", out_of_memory)
    with pytest.raises(RuntimeError) as error:
        list(inference.whole(devices, items, (8, 8), batch=2, workers=1))
    said = faults.sentence(error.value, "score", params_file.load(ROOT / "params.yaml"))
    assert said is not None
    assert "a process that reads images was killed" in said
    assert "set compute.workers (1) lower" in said


@pytest.mark.parametrize(
    "broken", [ConnectionResetError(104, "reset by peer"), EOFError(), FileNotFoundError(2, "gone")]
)
def test_a_reader_killed_while_it_hands_a_batch_over_is_a_killed_reader(
    broken: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "SIGNAL_SECONDS", 0.0)

    def loader() -> Iterator[int]:
        yield 1
        raise broken

    passed = loading.passed_on(loader(), 1)
    assert next(passed) == 1
    with pytest.raises(RuntimeError) as raised:
        next(passed)
    assert "a process that reads images was killed" in (
        str(faults.sentence(raised.value, "pretrain", params_file.load(ROOT / "params.yaml")))
    )


@pytest.mark.parametrize(
    ("workers", "said"), [(1, "Caught FileNotFoundError in DataLoader worker process 0."), (0, "no such file")]
)
def test_what_reading_itself_meets_is_left_as_it_is(workers: int, said: str) -> None:
    def loader() -> Iterator[int]:
        raise FileNotFoundError(said)
        yield

    with pytest.raises(FileNotFoundError, match=said):
        next(loading.passed_on(loader(), workers))
