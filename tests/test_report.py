"""The panels of the report: the model before and the model after are asked the same way."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipeline import artifacts, paths, storage
from pipeline.evaluation import label_quality, pictures, suspects
from pipeline.images.items import labelled_items
from pipeline.images.masks import save_mask
from pipeline.networks.devices import Devices
from pipeline.stages import predict, report, tune
from pipeline.stages.running import sections
from tests import repo, test_predict

made = test_predict.made


@pytest.fixture(autouse=True)
def project(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A round that has changed nothing: the model after is the model before."""
    shutil.copytree(made, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    shutil.copytree(paths.model("r00"), paths.model("r01"))
    keys = list(artifacts.load_selection("r01")["key"])
    sizes = artifacts.load_manifest("pool").set_index("key")[["height", "width"]]
    rows = []
    for key in keys:
        digest = save_mask(paths.mask(key), np.zeros(sizes.loc[key].tolist(), np.uint8))
        rows.append({"key": key, "round": "r01", "minutes": 4.0, "sha256": digest})
    artifacts.save_labels("r01", rows)
    artifacts.save_audit("r01", pd.DataFrame({"key": keys, "probability": 1.0, "predicted": 1.0}), {"signal": None})
    judged = []
    suspects.clear("r01")
    for row in rows:
        flat = np.zeros((16, 32), np.uint8)
        one = label_quality.judge(19, flat, flat, np.ones(flat.shape, np.float32), np.ones(flat.shape, np.float32))
        judged.append(suspects.write("r01", row["key"], row["sha256"], one, one.contradicted, flat.shape, repo.CLASSES))
    suspects.save("r01", judged)
    storage.save_json(paths.forecast("r01"), {"expected": 0.2, "low": 0.1, "high": 0.3})
    for name in ("r00", "r01"):
        storage.save_json(paths.metrics(name), {"miou": 0.1})
        artifacts.save_log(name, [])


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_model_that_did_not_change_is_drawn_twice_the_same(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[dict[str, Any]] = []

    def panel(**given: Any) -> bytes:
        drawn.append(given)
        return b""

    monkeypatch.setattr(pictures, "panel", panel)
    compute = {"accelerator": "cpu", "workers": 0, "precision": precision}
    of = repo.params(budget={"r01": {"after": "r00", "images": 3}}, compute=compute)
    predict.run("r01", of.budget["r01"], **sections(predict.run, of))
    pool = artifacts.load_images("r01", of.roots.pool).set_index("key")
    items = labelled_items(artifacts.load_selection("r01")["key"], pool, 19)
    tune.show(Devices.start(of.compute), "r01", items, of.model, of.compute)
    report.run(**sections(report.run, of))
    assert len(drawn) == 3
    for given, item in zip(drawn, items, strict=True):  # in the order of their gains
        np.testing.assert_array_equal(given["before"], given["after"])
        assert len(np.unique(given["before"])) > 1
        assert given["image"].shape[:2] == given["truth"].shape == given["gain"].shape == given["after"].shape
        assert (given["truth"] == 0).all()
        assert item.key in given["title"]
