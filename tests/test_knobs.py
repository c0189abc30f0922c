"""The stages that train by likelihood hand every knob of params.Training on."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline import artifacts, paths
from pipeline.images.classes import CLASS_SETS
from pipeline.images.items import Item, id_table_of_labels
from pipeline.images.masks import save_mask
from pipeline.networks import inference, saved
from pipeline.networks.devices import Devices
from pipeline.params import BudgetLine, Training
from pipeline.stages import audit, pretrain, score, tune
from pipeline.stages.running import sections
from tests import fakes, repo

CLASSES = CLASS_SETS["cityscapes19"].names
KNOBS: dict[str, Any] = {
    "lr_head": 10.0,
    "decay_norms": False,
    "clip": 0.01,
    "hard_pixels": 0.2,
    "poly1": 5.0,
    "auxiliary": 0.4,
    "mix": "classmix",
    "augment": {"preset": "none"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a source, three labels of the target and a source model."""
    made = tmp_path_factory.mktemp("knobs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made)
        repo.write(made)
        fakes.write("gta5", Path("source"))
        repo.manifest("source", "gta5", **{f"n_{name}": 100 for name in CLASSES})
        rows = []
        for key in artifacts.load_selection("r01")["key"]:
            mask = np.random.default_rng(1).integers(0, 19, fakes.SIZE, np.uint8)
            rows.append({"key": key, "round": "r01", "minutes": 4, "sha256": save_mask(paths.mask(key), mask)})
        artifacts.save_labels("r01", rows)
        trained("pretrain")
        audited("temperature")
    return made


def audited(method: str) -> None:
    """What `tune` needs of `audit`: its calibration."""
    of = repo.params(calibration={"method": method})
    for stage in (score, audit):
        stage.run("r01", of.budget["r01"], **sections(stage.run, of))


def trained(stage: str, **knobs: Any) -> tuple[dict[str, torch.Tensor], pd.DataFrame]:
    """Weights and log of a stage with the knobs set."""
    of = repo.params()
    settings = Training.model_validate(of.pretrain.model_dump() | knobs)
    if stage == "pretrain":
        pretrain.run(
            seed=1,
            roots=of.roots,
            model=of.model,
            pretrain=settings,
            calibration=of.calibration,
            compute=of.compute,
        )
        name = paths.SOURCE_ROUND
    else:
        changed = of.tune.model_copy(update={"likelihood": settings, "reward": of.tune.reward})
        line = BudgetLine(after="r00", images=3)
        tune.run(
            "r01",
            line,
            seed=1,
            roots=of.roots,
            model=of.model,
            tune=changed,
            compute=of.compute,
        )
        name = "r01"
    return artifacts.load_model(name)[0], pd.read_csv(paths.model(name) / "log.csv")


@pytest.mark.parametrize("stage", ["tune", "pretrain"])
def test_every_knob_reaches_the_training(stage: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    plain, log = trained(stage)
    assert "auxiliary" not in log
    for name, value in KNOBS.items():
        weights, log = trained(stage, **{name: value})
        assert weights.keys() == plain.keys()
        assert any(not torch.equal(weights[key], plain[key]) for key in plain), name
        assert ("auxiliary" in log) == (name == "auxiliary")


@pytest.mark.parametrize(("method", "numbers"), [("temperature", (1, 0)), ("vector", (19, 19))])
def test_calibration_is_fitted_on_the_labels_by_the_method(
    method: str, numbers: tuple[int, int], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    audited(method)
    trained("tune")
    settings = repo.params()
    _, fitted = saved.open_network("r01", settings.model, CLASS_SETS["cityscapes19"])
    assert (len(fitted.scale), len(fitted.bias)) == numbers
    before, _ = saved.open_network("r00", settings.model, CLASS_SETS["cityscapes19"])
    pool = artifacts.load_manifest("pool", Path("pool"))[:3]
    items = [Item(row.key, Path(row.image), paths.mask(row.key), id_table_of_labels(19)) for row in pool.itertuples()]
    devices = Devices.start(settings.compute)
    pixels = inference.calibration_pixels(devices, before, items, settings.model.size, settings.compute, [4.0] * 3)
    assert pixels.fit(method) == fitted  # of the model before, whose labels these still are new to
