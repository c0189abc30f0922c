"""The stage against second computations, and the adversary: a model whose doubts are where it is right."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from pipeline import artifacts, paths, storage
from pipeline.errors import UserError
from pipeline.evaluation import verdict
from pipeline.gain import ACQUISITIONS, shortfall
from pipeline.images.classes import CLASS_SETS, IGNORE
from pipeline.images.items import Item, id_table_of_labels
from pipeline.images.masks import save_mask
from pipeline.networks import inference, saved
from pipeline.networks.calibration import of_temperature
from pipeline.networks.devices import Devices
from pipeline.params import Params
from pipeline.stages import audit, score, select, tune
from pipeline.stages.running import sections
from tests import repo

CLASSES = CLASS_SETS["cityscapes19"]
SIZE = (16, 32)
TEMPERATURE = 0.5


def settings(acquisition: str = "shortfall") -> Params:
    return repo.params(score={"acquisition": acquisition, "smooth": 0.02})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images at the network's size, of which r01 selects eight; a network that doubts some more than others."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        repo.write(folder, pool=12)
        for number, path in enumerate(artifacts.load_manifest("pool", Path("pool"))["image"]):
            coarse = np.random.default_rng(number).integers(0, 256, (2, 4, 3)) * (number + 1) / 12
            cv2.imwrite(path, cv2.resize(coarse.astype(np.uint8), SIZE[::-1], interpolation=cv2.INTER_CUBIC))
        repo.select("r01", list(repo.manifest("pool", "cityscapes")["key"][:8]))
        of = settings()
        network = saved.new_network(of.model, CLASSES, torch.Generator().manual_seed(3))
        last = [weight for weight in network.parameters() if weight.dim() == 4][-1]
        last.data *= 8  # an untrained network says nearly the same of every class
        artifacts.save_model(
            "r00", network.state_dict(), saved.describe(of.model, CLASSES, of_temperature(TEMPERATURE))
        )
    return folder


@pytest.fixture(autouse=True)
def project(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(made, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    scored("shortfall")


def scored(acquisition: str, round_name: str = "r01") -> None:
    of = settings(acquisition)
    line = of.budget["r01"]
    score.run(round_name, line, seed=1, roots=of.roots, model=of.model, score=of.score, compute=of.compute)


def audited(acquisition: str = "shortfall") -> tuple[pd.DataFrame, dict]:
    of = settings(acquisition)
    line = of.budget["r01"]
    audit.run("r01", line, **sections(audit.run, of))
    return artifacts.load_audit_table("r01"), artifacts.load_audit("r01")


def predicted() -> dict[str, torch.Tensor]:
    """Calibrated probabilities of the round's images."""
    of = settings()
    devices = Devices.start(of.compute)
    network, _ = saved.open_network("r00", of.model, CLASSES)
    pool = artifacts.load_manifest("pool", Path("pool")).set_index("key")
    keys = artifacts.load_selection("r01")["key"]
    items = [Item(key, Path(pool.at[key, "image"]), None, id_table_of_labels(19)) for key in keys]
    outputs = inference.outputs(devices, network, items, SIZE, of.compute, "test")
    logits = torch.cat([out.logits for out in outputs])
    return dict(zip(keys, (logits / TEMPERATURE).softmax(1), strict=True))


def deliver(masks: dict[str, np.ndarray], round_name: str = "r01") -> None:
    rows = [
        {"key": key, "round": round_name, "minutes": 4.0, "sha256": save_mask(paths.mask(key), mask)}
        for key, mask in masks.items()
    ]
    artifacts.save_labels("r01", rows)


def truth(share_wrong: dict[str, float]) -> dict[str, np.ndarray]:
    """Labels that contradict the model on a share of each image."""
    masks = {}
    for key, p in predicted().items():
        claim = p.argmax(0).byte().numpy()
        wrong = np.random.default_rng(0).random(SIZE) < share_wrong[key]
        masks[key] = np.where(wrong, (claim + 1) % 19, claim).astype(np.uint8)
    return masks


def shares(descending: bool) -> dict[str, float]:
    """The images' shares of wrong pixels, rising or falling with the gain that is predicted for them."""
    gains = artifacts.load_scores("r01").set_index("key")["gain"]
    order = sorted(artifacts.load_selection("r01")["key"], key=lambda key: gains[key], reverse=descending)
    return {key: 0.1 + 0.1 * place for place, key in enumerate(order)}


@pytest.mark.parametrize("acquisition", ["shortfall", "evpi", "entropy"])
def test_an_image_without_a_labelled_pixel_has_no_say(acquisition: str) -> None:
    scored(acquisition)
    masks = truth(shares(descending=False))
    void = next(iter(masks))
    deliver({key: mask for key, mask in masks.items() if key != void})
    frame, content = audited(acquisition)
    deliver(masks | {void: np.full(SIZE, IGNORE, np.uint8)})
    again, said = audited(acquisition)
    assert said == content
    assert content["images"] == len(masks) - 1
    pd.testing.assert_frame_equal(again, frame)


def test_gains_are_those_of_labelled_pixels_by_plain_loops() -> None:
    masks = truth(shares(descending=False))
    for number, mask in enumerate(masks.values()):
        mask[:number] = IGNORE
    deliver(masks)
    frame, content = audited()
    pool = artifacts.load_pool("r01")
    union = pool[:, 0] + pool[:, 2]
    union = union + 0.02 * union.sum()
    iou = (pool[:, 0] - pool[:, 1]) / union
    for row, (key, p) in zip(frame.to_dict("records"), predicted().items(), strict=True):
        mask, claim = masks[key], p.argmax(0).numpy()
        known = mask != IGNORE
        wrong = known & (claim != mask)
        by_class = np.zeros(19)
        np.add.at(by_class, claim[wrong], iou[claim[wrong]] / union[claim[wrong]])
        np.add.at(by_class, mask[wrong], 1 / union[mask[wrong]])
        assert [row[f"realised_{name}"] for name in CLASSES.names] == pytest.approx(by_class * 100 / 19, rel=1e-6)
        assert row["realised"] == pytest.approx(by_class.sum() * 100 / 19, rel=1e-6)
        expected = shortfall.gain_map(p[None], torch.from_numpy(pool), 0.02)[0].numpy()[known].sum()
        assert row["predicted"] == pytest.approx(float(expected), rel=1e-4)
        assert row["predicted"] == pytest.approx(sum(row[f"predicted_{name}"] for name in CLASSES.names), rel=1e-6)
        assert row["probability"] == 0.25
    confidence = np.concatenate([p.amax(0).numpy()[masks[k] != 255] for k, p in predicted().items()])
    right = np.concatenate([(p.argmax(0).numpy() == masks[k])[masks[k] != 255] for k, p in predicted().items()])
    bins = np.minimum((confidence * 15).astype(int), 14)
    error = sum(abs((confidence - right)[bins == b].sum()) for b in range(15)) / len(right)
    assert content["calibration_error"] == pytest.approx(error, abs=1e-4)
    assert content["predicted"] == pytest.approx(frame["predicted"].sum())
    assert content["realised"] == pytest.approx(frame["realised"].sum())


def test_a_score_that_is_right_carries_a_signal_and_goes_on_choosing() -> None:
    deliver(truth(shares(descending=False)))
    _, content = audited()
    assert content["signal"] is True
    assert content["spearman"] > 0.8
    assert next_method() == {"draw"}


def test_an_adversary_triggers_the_fallback(capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong most where it is surest, right where it doubts: what was predicted to gain least gains most."""
    deliver(truth(shares(descending=True)))
    _, content = audited()
    assert content["signal"] is False
    assert content["spearman"] < -0.5
    assert "no signal in shortfall" in content["conclusion"]
    assert next_method() == {verdict.FALLBACK}
    assert "r02: drawn by class_stratified instead of draw" in capsys.readouterr().out


def next_method() -> set[str]:
    scored("shortfall", "r02")
    line = settings().budget["r02"].model_copy(update={"minutes": None, "images": 3})
    select.run("r02", line, seed=1, select=settings().select, annotate=settings().annotate)
    return set(artifacts.load_selection("r02")["method"])


def test_few_images_wait_for_a_verdict_with_the_rounds_before_them() -> None:
    masks = truth(shares(descending=True))
    some = dict(list(masks.items())[:3])
    deliver(some)
    assert audited()[1]["signal"] is None
    before = [[[0.0, 1.0, 2.0, 3.0, 4.0], [5.0, 4.0, 3.0, 2.0, 1.0]]]
    storage.save_json(paths.audit("r00"), {"signal": None, "judged": before})
    rows = artifacts.load_labels("r01")
    artifacts.save_labels("r01", [{**rows[0], "key": "a", "round": "r00b"}, *rows])
    frame, content = audited()
    assert len(frame) == 3
    assert (content["tested_images"], content["tested_rounds"], content["signal"]) == (8, 2, False)
    # for the next round: its own gains as the table has them, and those before it as far as they were needed
    own = [frame[side].tolist() for side in ("predicted", "realised")]
    assert content["judged"] == [*before, own]
    deliver(masks)
    assert [len(predicted) for predicted, _ in audited()[1]["judged"]] == [8]  # enough for any later verdict
    scored("entropy")
    assert audited("entropy")[1]["judged"] == before  # it adds none


def test_audit_of_an_earlier_version_is_made_again() -> None:
    deliver(truth(shares(descending=False)))
    storage.save_json(paths.audit("r00"), {"signal": None})
    with pytest.raises(
        UserError, match=r"r00/audit\.json is not whole \(it lacks 'judged', .*`dvc repro -s -f prepare`"
    ):
        audited()


@pytest.mark.parametrize("acquisition", [name for name, entry in ACQUISITIONS.items() if not entry.in_points])
def test_what_cannot_be_realised_is_said_and_not_invented(acquisition: str) -> None:
    scored(acquisition)
    deliver(truth(shares(descending=False)))
    frame, content = audited(acquisition)
    assert content["signal"] is None
    assert "no verdict on" in content["conclusion"]
    assert "spearman" not in content
    assert not [column for column in frame.columns if column.startswith("realised")]
    assert (frame["predicted"] >= 0).all()
    assert content["calibration_error"] > 0


def test_labels_without_a_class_are_a_sentence() -> None:
    deliver({key: np.full(SIZE, IGNORE, np.uint8) for key in predicted()})
    with pytest.raises(
        UserError, match=r"r01: no pixel of its labels is of a class: .* `dvc repro -s -f annotate@r01`"
    ):
        audited()
    items = [Item(key, Path(), paths.mask(key), id_table_of_labels(len(CLASSES.names))) for key in predicted()]
    with pytest.raises(UserError, match="no pixel of the 8 labels to learn from is of a class"):
        tune.with_a_class(items)
