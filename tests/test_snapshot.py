"""The pool as a round has it."""

from pathlib import Path

import numpy as np
import pytest

from pipeline import artifacts, ledger, paths
from pipeline.ledger.entries import Order, Skip
from pipeline.stages import snapshot
from tests import fakes, repo


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    repo.write(tmp_path, pool=4)
    for name in ("r01", "r02"):
        snapshot.run(name)


def order(round_name: str, key: str) -> None:
    ledger.append([Order(round_name, key, "oracle", "cityscapes19", 1.0, 10.0, 1.0, ledger.now())])


def keys(round_name: str) -> list[str]:
    return list(artifacts.load_images(round_name)["key"])


def test_until_a_round_buys_it_has_the_pool_of_now() -> None:
    fakes.write("cityscapes", Path("pool"), count=6)
    repo.manifest("pool", "cityscapes")
    snapshot.run("r01")
    assert keys("r01") == list(artifacts.load_manifest("pool")["key"])
    assert len(keys("r01")) == 6


@pytest.mark.parametrize("skipped", [False, True])
def test_what_comes_after_a_round_has_bought_is_for_the_next(skipped: bool) -> None:
    before = paths.images("r01").read_bytes()
    first = keys("r01")[0]
    order("r01", first)
    if skipped:
        ledger.append([Skip("r01", first, "ann@example.org", 1.0, ledger.now())])
    fakes.write("cityscapes", Path("pool"), count=6)
    repo.manifest("pool", "cityscapes")
    for name in ("r01", "r02"):
        snapshot.run(name)
    assert paths.images("r01").read_bytes() == before
    assert len(keys("r02")) == 6


def test_a_changed_image_is_seen_by_past_rounds_and_one_that_is_gone_is_not_read() -> None:
    order("r01", keys("r01")[0])
    images = artifacts.load_manifest("pool", Path("pool"))["image"]
    fakes.image(Path(images[1]), np.random.default_rng(9))
    Path(images[3]).unlink()
    now = repo.manifest("pool", "cityscapes")
    snapshot.run("r01")
    assert keys("r01") == list(now["key"])
    assert artifacts.load_images("r01")["sha256"].tolist() == now["sha256"].tolist()


def test_the_source_model_is_measured_with_the_pool_of_the_first_purchase() -> None:
    artifacts.save_images("r00", ledger.pool_of("r00"))
    before = paths.images("r00").read_bytes()
    order("r02", keys("r02")[0])
    fakes.write("cityscapes", Path("pool"), count=6)
    repo.manifest("pool", "cityscapes")
    artifacts.save_images("r00", ledger.pool_of("r00"))
    assert paths.images("r00").read_bytes() == before


def test_a_round_without_a_record_of_its_pool_has_that_of_now() -> None:
    paths.images("r01").unlink()
    assert artifacts.load_images("r01", Path("pool"))["image"].map(lambda path: Path(path).is_file()).all()
    order("r01", artifacts.load_manifest("pool")["key"][0])  # of a version that kept none
    snapshot.run("r01")
    assert keys("r01") == list(artifacts.load_manifest("pool")["key"])
