"""Region maps as the stage `regions` makes and keeps them, and scores, selections and forecasts by them."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import artifacts, ledger, paths
from pipeline.errors import UserError
from pipeline.images import blocks, region_maps, resizing
from pipeline.ledger.entries import Order
from pipeline.stages import regions
from tests import fakes, repo


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    repo.write(tmp_path)


def run(**changes: Any) -> None:
    settings = repo.params(score={"unit": "region", "region_smallest": 5} | changes)
    regions.run(roots=settings.roots, score=settings.score)


def pool() -> list[str]:
    return list(artifacts.load_manifest("pool")["key"])


def written() -> dict[str, int]:
    """By file, when it was written."""
    return {path.name: path.stat().st_mtime_ns for path in paths.REGIONS.glob("*.png")}


def order(key: str, which: tuple[int, ...] = (0,), round_name: str = "r01", **more: Any) -> Order:
    digest = region_maps.digest(region_maps.load(key))
    made = Order(round_name, blocks.key_of_regions(key, round_name), "oracle", "cityscapes19", 1.0, 1.0, 0.5, "")
    return made._replace(regions=which, region_map=digest, **more)


def test_every_image_is_cut_into_connected_regions_of_its_own_size() -> None:
    run()
    for key in pool():
        found = region_maps.load(key, fakes.SIZE)
        assert np.array_equal(np.unique(found), np.arange(int(found.max()) + 1))
        for region in range(int(found.max()) + 1):
            assert cv2.connectedComponents((found == region).astype(np.uint8), connectivity=8)[0] == 2


def test_only_what_is_missing_or_changed_is_cut() -> None:
    run()
    before, first = written(), pool()[0]
    assert sorted(before) == sorted(f"{key}.png" for key in pool())
    run()
    assert written() == before
    paths.regions(first).unlink()
    run()
    assert {name for name, at in written().items() if at != before[name]} == {f"{first}.png"}
    before = written()
    run(region_smallest=60)
    assert all(at != before[name] for name, at in written().items())


def test_a_changed_image_or_map_is_cut_again() -> None:
    run()
    before, (first, second, *_) = written(), pool()
    was = paths.regions(second).read_bytes()
    paths.regions(second).write_bytes(b"no map")
    row = artifacts.load_manifest("pool", Path("pool")).iloc[0]
    fakes.image(Path(row["image"]), np.random.default_rng(99))
    repo.manifest("pool", "cityscapes")
    run()
    changed = {name for name, at in written().items() if at != before[name]}
    assert changed == {f"{first}.png", f"{second}.png"}
    assert paths.regions(second).read_bytes() == was


def test_without_its_note_all_is_cut_again_the_same() -> None:
    run()
    files = {path.name: path.read_bytes() for path in paths.REGIONS.iterdir()}
    paths.REGIONS_ABOUT.write_text("{")
    run()
    assert files == {path.name: path.read_bytes() for path in paths.REGIONS.iterdir()}


def test_a_map_by_which_something_is_ordered_stays() -> None:
    run()
    bought = pool()[0]
    ledger.append([order(bought)])
    kept = paths.regions(bought).read_bytes()
    before = written()
    run(region_smallest=60)
    assert {name for name, at in written().items() if at == before[name]} == {f"{bought}.png"}
    run(unit="image")  # which the next stage refuses
    assert [path.name for path in paths.REGIONS.glob("*.png")] == [f"{bought}.png"]
    paths.regions(bought).unlink()
    run()  # as it was cut first
    assert paths.regions(bought).read_bytes() == kept


def test_a_lost_map_that_would_be_cut_otherwise_is_a_sentence() -> None:
    run()
    bought = pool()[0]
    ledger.append([order(bought)])
    paths.regions(bought).unlink()
    with pytest.raises(
        UserError, match=rf"regions/{bought}\.png is not the region map that r01 has asked by.*run `dvc"
    ):
        run(region_smallest=60)
    assert not paths.regions(bought).exists()


def test_other_units_have_no_maps() -> None:
    run(unit="image")
    assert [path.name for path in paths.REGIONS.iterdir()] == ["about.json"]
    run()
    run(unit="block")
    assert [path.name for path in paths.REGIONS.iterdir()] == ["about.json"]


def test_a_map_of_another_size_is_a_sentence() -> None:
    key = pool()[0]
    region_maps.save(key, np.zeros((4, 6), np.uint16))
    with pytest.raises(
        UserError, match=r"it is 4x6, its image 24x32 \(height x width\)\): run `dvc repro -s -f regions`"
    ):
        region_maps.load(key, fakes.SIZE)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 60), st.integers(1, 60))
def test_maps_are_resized_as_masks_are(height: int, width: int, rows: int, cols: int) -> None:
    found = np.random.default_rng([height, width]).integers(0, 256, (height, width), np.uint8)
    mask = resizing.resize_mask(found, (rows, cols))
    np.testing.assert_array_equal(region_maps.enlarged(found.astype(np.uint16), (rows, cols)), mask)
