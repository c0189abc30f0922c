"""On what the source model is calibrated."""

from pathlib import Path

import pytest
import torch

from pipeline import artifacts, datasets, paths
from pipeline.errors import UserError
from pipeline.images.classes import CLASS_SETS
from pipeline.images.items import items_of
from pipeline.networks import inference, saved
from pipeline.networks.calibration import NONE
from pipeline.networks.devices import Devices
from pipeline.stages import pretrain
from pipeline.stages.running import sections
from tests import fakes, repo

CLASSES = CLASS_SETS["cityscapes19"]


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool, and a source."""
    monkeypatch.chdir(tmp_path)
    repo.write(tmp_path)
    fakes.write("gta5", Path("source"), count=20)
    repo.manifest("source", "gta5", **{f"n_{name}": 100 for name in CLASSES.names})


def test_logits_that_are_not_finite_are_a_sentence() -> None:
    pixels = inference.Pixels(torch.full((2, 3), torch.nan), torch.tensor([0, 1]), torch.ones(2))
    with pytest.raises(UserError, match=r"calibration.method vector: a calibration needs .*: train with a lower lr"):
        pixels.fit("vector")


@pytest.mark.parametrize("start", ["none", "source"])
def test_the_stage_calibrates_on_what_it_is_told(start: str) -> None:
    of = repo.params(calibration={"method": "vector", "start": start})
    pretrain.run(**sections(pretrain.run, of))
    network, fitted = saved.open_network(paths.SOURCE_ROUND, of.model, CLASSES)
    table = datasets.table("gta5", Path("source"), CLASSES)
    source = items_of(artifacts.load_manifest("source", Path("source")), table)
    held_out = source[pretrain.HELD_OUT - 1 :: pretrain.HELD_OUT]
    assert len(held_out) == 1
    expected = {
        "none": lambda: NONE,
        "source": lambda: inference.calibration_pixels(
            Devices.start(of.compute), network, held_out, of.model.size, of.compute
        ).fit("vector"),
    }
    assert fitted == expected[start]()


def test_source_without_an_image_to_spare_is_a_sentence() -> None:
    artifacts.save_manifest("source", artifacts.load_manifest("source")[:4])
    of = repo.params(calibration={"start": "source"})
    with pytest.raises(
        UserError, match=r"calibration.start is source, but 4 source images leave none .*: set it to none"
    ):
        pretrain.run(**sections(pretrain.run, of))
