"""The stage against a second computation, image by image."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline import artifacts, datasets, paths
from pipeline.errors import UserError
from pipeline.evaluation import metrics
from pipeline.images import reading, resizing
from pipeline.images.classes import CLASS_SETS
from pipeline.images.items import items_of
from pipeline.networks import decoding, inference, saved
from pipeline.networks.calibration import of_temperature
from pipeline.networks.devices import Devices
from pipeline.rewards import REWARDS, Settings
from pipeline.stages import evaluate
from pipeline.stages.running import sections
from pipeline.training import losses
from tests import fakes, repo

TEMPERATURE = 0.1
"""An untrained network says nearly the same of every class."""
CLASSES = CLASS_SETS["cityscapes19"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        repo.write(folder)
        for mask in artifacts.load_manifest("pool", Path("pool"))["mask"]:
            Path(mask).unlink()  # the decoder needs no label
        fakes.write("cityscapes", Path("test"), count=3)
        repo.manifest("test", "cityscapes")
        settings = repo.params()
        network = saved.new_network(settings.model, CLASSES, torch.Generator().manual_seed(3))
        artifacts.save_model(
            "r00", network.state_dict(), saved.describe(settings.model, CLASSES, of_temperature(TEMPERATURE))
        )
    return folder


@pytest.fixture(autouse=True)
def project(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(made, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")


def run_with(**changed: Any) -> dict[str, Any]:
    evaluate.run("r00", **sections(evaluate.run, repo.params(**changed)))
    found: dict[str, Any] = json.loads(paths.metrics("r00").read_text())
    return found


def run(**changes: Any) -> dict[str, Any]:
    return run_with(evaluate=changes)


def probabilities(split: str) -> list[torch.Tensor]:
    """Of every image of a split on its own, at the network's size."""
    network, _ = saved.open_network("r00", repo.params().model, CLASSES)
    table = datasets.table("cityscapes", Path("test"), CLASSES)
    given = repo.params()
    items = items_of(artifacts.load_manifest(split, Path(split)).assign(mask=""), table)
    results = inference.outputs(Devices.start(given.compute), network, items, given.model.size, given.compute, split)
    return [one for out in results for one in out.logits]


@pytest.mark.parametrize("images", [3, 100])
def test_both_decoders_are_measured_and_the_chosen_one_leads(images: int) -> None:
    pool = probabilities("pool")
    looked_at = [pool[place] for place in ((0, 4, 7) if images == 3 else range(8))]
    decoder = decoding.fit(
        torch.cat([(logits / TEMPERATURE).softmax(0).flatten(1).T for logits in looked_at])  # every pixel: they are few
    )
    table = datasets.table("cityscapes", Path("test"), CLASSES)
    counts = {"argmax": torch.zeros(19, 19, dtype=torch.int64), "expected_iou": torch.zeros(19, 19, dtype=torch.int64)}
    for logits, mask in zip(probabilities("test"), artifacts.load_manifest("test", Path("test"))["mask"], strict=True):
        truth = torch.from_numpy(reading.read_mask(Path(mask), table))[None]
        p = (inference.upsample(logits, fakes.SIZE) / TEMPERATURE).softmax(0)[None]
        counts["argmax"] += metrics.confusion(p.argmax(1), truth, 19)
        counts["expected_iou"] += metrics.confusion(decoding.decode(p, decoder), truth, 19)
    assert not counts["argmax"].equal(counts["expected_iou"])
    for chosen, confusion in counts.items():
        found = run(decode=chosen, decode_images=images)
        assert found["miou"] == found[f"miou_{chosen}"] == pytest.approx(metrics.miou(confusion))
        assert found["miou_argmax"] == pytest.approx(metrics.miou(counts["argmax"]))
        assert found["miou_expected_iou"] == pytest.approx(metrics.miou(counts["expected_iou"]))
        written = pd.read_csv(paths.confusion("r00"), index_col="truth", keep_default_na=False)
        np.testing.assert_array_equal(written.to_numpy(), confusion.numpy())
        iou = metrics.iou(confusion)
        assert found["iou"] == pytest.approx(
            {name: float(value) for name, value in zip(CLASSES.names, iou, strict=True) if value == value}
        )


def test_class_wise_calibration_moves_probabilities_and_not_the_labels() -> None:
    plain = run()
    state, about = artifacts.load_model("r00")
    bias = [2.0, -2.0, 1.0, *[0.0] * 16]
    artifacts.save_model("r00", state, about | {"calibration": {"scale": [1 / TEMPERATURE] * 19, "bias": bias}})
    moved = run()
    assert moved["miou_argmax"] == plain["miou_argmax"]
    assert moved["calibration_error"] != plain["calibration_error"]


def test_calibration_error_is_of_as_many_bins_as_params_say() -> None:
    table = datasets.table("cityscapes", Path("test"), CLASSES)
    masks = artifacts.load_manifest("test", Path("test"))["mask"]
    for bins in (2, 40):
        counts = torch.zeros(bins, 3, dtype=torch.float64)
        for logits, mask in zip(probabilities("test"), masks, strict=True):
            p = (inference.upsample(logits, fakes.SIZE) / TEMPERATURE).softmax(0)[None]
            counts += metrics.reliability(p, torch.from_numpy(reading.read_mask(Path(mask), table))[None], bins)
        expected = metrics.expected_calibration_error(counts)
        assert run(calibration_bins=bins)["calibration_error"] == pytest.approx(expected)


def test_argmax_unless_chosen_otherwise() -> None:
    found = run()
    assert found["miou"] == found["miou_argmax"]


TUNED = {"costs": {"road": {"any": 5.0}}, "tolerance": 1, "overlap": 0.3}


@pytest.mark.parametrize("name", REWARDS)
def test_the_tuned_reward_is_measured_as_it_is_tuned(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the most probable labels at the network's size, with class weights of the test set."""
    decoded, read = [], reading.read_mask
    monkeypatch.setattr(reading, "read_mask", lambda path, *given: decoded.append(path) or read(path, *given))
    tune = repo.params().tune.model_dump()
    found = run_with(
        tune=tune | {"reward": tune["reward"] | TUNED | {"reward": name, "estimator": "reinforce", "credit": "image"}}
    )
    assert len(decoded) == len(set(decoded)) * (2 if REWARDS[name].needs_weights else 1) > 0
    table = datasets.table("cityscapes", Path("test"), CLASSES)
    masks = [reading.read_mask(Path(mask), table) for mask in artifacts.load_manifest("test", Path("test"))["mask"]]
    pixels = sum(np.bincount(mask.ravel(), minlength=256)[:19] for mask in masks)
    settings = Settings(
        classes=19,
        weights=losses.class_weights(torch.from_numpy(pixels), 0.05).double(),
        costs=1 - torch.eye(19, dtype=torch.float64),
        tolerance=1,
        overlap=0.3,
    )
    settings.costs[0, 1:] = 5
    reward = REWARDS[name].make(settings)
    truth = torch.stack([torch.from_numpy(resizing.resize_mask(mask, repo.params().model.size)) for mask in masks])
    labelling = torch.stack([logits.argmax(0) for logits in probabilities("test")])
    expected = reward.value(reward.statistics(labelling, truth).sum(0)).total
    assert found[f"reward_{name}"] == pytest.approx(float(expected), rel=1e-5)
    assert [key for key in found if key.startswith("reward")] == [f"reward_{name}"]


def test_pooled_reward_by_hand_where_the_sizes_agree() -> None:
    """With the network at the labels' size the pooled rewards are those of the confusion matrix that is written."""
    model = repo.params().model.model_dump() | {"size": fakes.SIZE}
    for name in ("pooled_miou", "pixel_accuracy", "dice"):
        tune = repo.params().tune.model_dump()
        found = run_with(model=model, tune=tune | {"reward": tune["reward"] | {"reward": name}})
        counts = pd.read_csv(paths.confusion("r00"), index_col="truth", keep_default_na=False).to_numpy()
        hits, true, said = counts.diagonal(), counts.sum(1), counts.sum(0)
        by_hand = {
            "pooled_miou": np.mean(hits / (true + said - hits)),
            "pixel_accuracy": hits.sum() / counts.sum(),
            "dice": np.mean(2 * hits / (true + said)),
        }
        assert (true > 0).all()
        assert found[f"reward_{name}"] == pytest.approx(by_hand[name], rel=1e-9)


def test_a_reward_that_the_test_set_cannot_show_is_left_out() -> None:
    for mask in artifacts.load_manifest("test", Path("test"))["mask"]:
        fakes.mask(Path(mask), np.full(fakes.SIZE, 7))  # road everywhere, which has no boundary
    repo.manifest("test", "cityscapes")
    tune = repo.params().tune.model_dump()
    found = run_with(
        tune=tune | {"reward": tune["reward"] | {"reward": "boundary_f1", "estimator": "reinforce", "credit": "image"}}
    )
    assert "reward_boundary_f1" not in found
    assert set(found["iou"]) == {"road"}


def test_model_without_probabilities_is_a_sentence() -> None:
    state, about = artifacts.load_model("r00")
    weight = next(weight for name, weight in state.items() if name.endswith("weight"))
    weight[(0,) * weight.dim()] = 3e38  # finite, but what comes of it is not
    artifacts.save_model("r00", state, about)
    with pytest.raises(UserError, match=r"data/models/r00: a decoder needs .* sum to 1: train it with a lower lr"):
        run()


@pytest.mark.parametrize("size", [(16, 32), (96, 192), (180, 240), (512, 1024), (1024, 2048), (40, 1000)])
def test_pixels_are_spread_over_height_and_width(size: tuple[int, int]) -> None:
    places = torch.arange(size[0] * size[1]).reshape(1, *size)
    found = inference.every_nth(places)[0]
    assert min(1024, places.numel()) <= len(found) <= 1700
    assert found.equal(inference.every_nth(places[0]))
    rows, columns = (np.unique(line) for line in np.divmod(found.numpy(), size[1]))
    assert len(rows) * len(columns) == len(found)
    for line, length in ((rows, size[0]), (columns, size[1])):
        gaps = np.diff([-1, *line, length])  # the edges are no further away than the next pixel
        assert gaps.max() <= max(1, np.diff(line).max()) + 1
