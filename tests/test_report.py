"""The panels of the report: the model before and the model after are asked the same way."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipeline import artifacts, ledger, paths, storage
from pipeline.evaluation import label_quality, pictures, planner, suspects
from pipeline.images.items import labelled_items
from pipeline.images.masks import save_mask
from pipeline.ledger.entries import Order, Skip
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


def test_minutes_lost_on_skipped_images_have_a_column(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "_suspects", lambda *_: None)
    labelled, skipped = artifacts.load_labels("r01"), ("b", "c")
    of = repo.params(budget={"r01": {"after": "r00", "images": 3}})
    for key in (*(row["key"] for row in labelled), *skipped):
        ledger.append([Order("r01", key, "label_studio", "cityscapes19", 0.1, 4.0, 0.5, "")])
    ledger.append([Skip("r01", key, "ann@example.org", 1.25, "") for key in skipped])
    artifacts.save_labels("r01", [])  # no panels, which are another test's
    report.run(**sections(report.run, of))
    table = pd.read_csv(paths.ROUNDS_TABLE)
    assert list(table["minutes_skipped"]) == [0.0, 2.5]
    assert list(table["minutes"]) == [0.0, 0.0]


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


ROWS = [
    {"minutes": 0.0, "miou": 0.2},  # everything was skipped
    {"minutes": 200.0, "miou": 0.359},
    {"minutes": 400.0, "miou": 0.399},
    {"minutes": 600.0, "miou": 0.423},
]


def test_summary_says_what_a_target_takes_and_null_where_it_is_never_reached() -> None:
    curves = report._curves(ROWS)
    assert curves is not None
    found = planner.plan(curves, 43.0)
    said = report._goal(0.423, 43.0, curves)
    assert said == {
        "reach": 0.43,
        "reached": False,
        "reach_minutes": found.expected,
        "reach_minutes_low": found.low,
        "reach_minutes_high": None if np.isinf(found.high) else found.high,
        "reach_never": found.never,
    }
    assert report._goal(0.423, 99.0, curves)["reach_minutes"] is None
    assert report._goal(0.423, 42.0, curves) == {"reach": 0.42, "reached": True}
    assert report._curves(ROWS[:3]) is None


def test_target_is_in_the_summary_and_in_the_curve_while_nothing_can_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for pictures_of_images in ("_panels", "_suspects"):
        monkeypatch.setattr(report, pictures_of_images, lambda *_: None)
    budget = {"r01": {"after": "r00", "images": 3}}
    plain, aimed = repo.params(budget=budget), repo.params(budget=budget, report={"reach": 55.0})
    report.run(**sections(report.run, plain))
    before, curve = storage.load_json(paths.SUMMARY, "report"), paths.CURVE.read_bytes()
    report.run(**sections(report.run, aimed))
    assert storage.load_json(paths.SUMMARY, "report") == before | {"reach": 0.55, "reached": False}
    assert paths.CURVE.read_bytes() != curve
