"""Every file of the stage against a second computation, image by image and with other libraries where there are any."""

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import conv2d

from pipeline import __main__, artifacts, gain, paths, streams
from pipeline.errors import UserError
from pipeline.evaluation import pictures
from pipeline.images.classes import CLASS_SETS
from pipeline.networks import saved
from pipeline.networks.calibration import of_temperature
from pipeline.networks.network import Network
from pipeline.params import Compute, Params
from pipeline.stages import predict, score
from tests import repo
from tests.conftest import ROOT

SIZES = [(24, 32), (50, 41), (16, 32), (9, 70), (33, 33), (24, 32), (40, 20), (12, 12)]
"""Of the pool's images; the network works at 16 x 32."""
TEMPERATURE = 0.25
CLASSES = CLASS_SETS["cityscapes19"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        repo.write(folder)
        frame = artifacts.load_manifest("pool", Path("pool"))
        for number, (path, size) in enumerate(zip(frame["image"], SIZES, strict=True)):
            # blocks of colour, so that the network says different things of different places
            coarse = np.random.default_rng(number).integers(0, 256, (4, 4, 3), np.uint8)
            Image.fromarray(cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC)).save(path)
        repo.manifest("pool", "cityscapes")
        settings = repo.params()
        network = saved.new_network(settings.model, CLASSES, torch.Generator().manual_seed(3))
        last = [weight for weight in network.parameters() if weight.dim() == 4][-1]
        last.data *= 8  # an untrained network says nearly the same of every class
        artifacts.save_model(
            "r00", network.state_dict(), saved.describe(settings.model, CLASSES, of_temperature(TEMPERATURE))
        )
        line = settings.budget["r01"]
        score.run(
            "r01",
            line,
            seed=settings.seed,
            roots=settings.roots,
            model=settings.model,
            score=settings.score,
            compute=one(),
        )
    return folder


@pytest.fixture(autouse=True)
def project(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Scored, and three images of three sizes selected, in the order of their gains and not of the pool."""
    folder = tmp_path / "project"
    shutil.copytree(made, folder)
    monkeypatch.chdir(folder)
    repo.select("r01", [keys()[place] for place in (3, 1, 4)])
    return folder


def one(batch: int = 2) -> Compute:
    return repo.params(compute={"accelerator": "cpu", "workers": 0, "batch": batch}).compute


def run(settings: Params | None = None, batch: int = 2) -> dict[str, bytes]:
    """Run the stage; what is in its folder then."""
    given = settings or repo.params()
    predict.run(
        "r01",
        given.budget["r01"],
        seed=given.seed,
        roots=given.roots,
        model=given.model,
        score=given.score,
        compute=one(batch),
    )
    return files()


def files() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in paths.predictions("r01").iterdir()}


def keys() -> list[str]:
    return list(artifacts.load_manifest("pool")["key"])


def selected() -> list[str]:
    return list(artifacts.load_selection("r01")["key"])


class Said(NamedTuple):
    image: np.ndarray
    logits: torch.Tensor
    """(classes, height, width) of the network's size."""
    posterior: gain.Posterior
    """Members, without temperature: their logits."""


def independent(key: str) -> Said:
    """What the network says of one image on its own."""
    path = artifacts.load_manifest("pool", Path("pool")).set_index("key").at[key, "image"]
    with Image.open(path) as file:
        image = np.array(file)
    state, _ = artifacts.load_model("r00")
    network: Network = saved.new_network(repo.params().model, CLASSES, torch.Generator())
    network.load_state_dict(state)
    flag = cv2.INTER_AREA if image.shape[0] > 16 else cv2.INTER_LINEAR
    small = torch.from_numpy(cv2.resize(image, (32, 16), interpolation=flag))
    with torch.no_grad():
        logits, cells = network.eval().with_cells(small.permute(2, 0, 1)[None])
        seed = streams.seed_of(1, "r01", "members")
        weights = network.thinned(4, 0.5, torch.Generator().manual_seed(seed))
        members = torch.stack([conv2d(cells.features, one, network.last_layer().bias) for one in weights])
        return Said(image, logits[0], gain.Posterior(members, cells.rows, cells.cols))


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_prediction_is_the_most_probable_class_at_the_size_of_the_image(batch: int) -> None:
    run(batch=batch)
    seen = set()
    for key in selected():
        said = independent(key)
        height, width = said.image.shape[:2]
        assert (height, width) == SIZES[keys().index(key)]
        full = np.stack([cv2.resize(plane.numpy(), (width, height)) for plane in said.logits])  # linear
        lowest, highest = np.sort(full, axis=0)[-2:]
        clear = highest - lowest > 1e-3  # elsewhere, rounding decides
        assert clear.mean() > 0.95
        found = artifacts.load_prediction("r01", key)
        assert found.shape == (height, width)
        np.testing.assert_array_equal(found[clear], full.argmax(0)[clear])
        seen |= set(np.unique(found))
        coarse = cv2.resize(
            said.logits.argmax(0).byte().numpy(), (width, height), interpolation=cv2.INTER_NEAREST_EXACT
        )
        assert (coarse == found).mean() < 1 or (height, width) == (16, 32)  # the ids are not enlarged, the logits are
    assert len(seen) >= 3


def test_panels_are_given_what_the_network_sees_of_the_whole_image() -> None:
    settings = repo.params(score={"acquisition": "shortfall"})
    run(settings)
    pool = torch.from_numpy(artifacts.load_pool("r01"))
    for key in selected():
        said = independent(key)
        lowest, highest = said.logits.sort(0).values[-2:].numpy()
        clear = highest - lowest > 1e-3
        predicted, levels = artifacts.load_before("r01", key)
        assert predicted.shape == levels.shape == (16, 32)
        assert clear.mean() > 0.95
        np.testing.assert_array_equal(predicted[clear], said.logits.argmax(0).numpy()[clear])
        p = (said.logits[None] / TEMPERATURE).softmax(1)
        member = gain.ACQUISITIONS["shortfall"].make(gain.Settings(settings.score.smooth))
        expected = pictures.gain_levels(member.gain_map(p, pool, None)[0].numpy())
        assert len(np.unique(levels)) > 16
        assert np.abs(levels.astype(int) - expected)[clear].max() <= 1  # rounding


@pytest.mark.parametrize("calibrate", [True, False])
@pytest.mark.parametrize("acquisition", gain.ACQUISITIONS)
def test_picture_is_the_gain_of_the_rounds_acquisition_over_the_image(acquisition: str, calibrate: bool) -> None:
    settings = repo.params(score={"acquisition": acquisition, "calibrate": calibrate, "dropout": 0.5})
    line = settings.budget["r01"]
    score.run(
        "r01",
        line,
        seed=settings.seed,
        roots=settings.roots,
        model=settings.model,
        score=settings.score,
        compute=one(),
    )
    scores = artifacts.load_scores("r01").set_index("key")["gain"]
    found = run(settings)
    for key in selected():
        said = independent(key)
        gains = {}
        for cooled in (TEMPERATURE, 1.0):
            probabilities = (said.logits[None] / cooled).softmax(1)
            pool = torch.from_numpy(artifacts.load_pool("r01"))
            posterior = said.posterior._replace(members=(said.posterior.members / cooled).softmax(2))
            entry = gain.ACQUISITIONS[acquisition]
            if entry.needs_worth:
                posterior = posterior._replace(worth=gain.worth(pool, settings.score.smooth))
            member = entry.make(gain.Settings(settings.score.smooth))
            gains[cooled] = member.gain_map(probabilities, pool, posterior)
        right, wrong = (TEMPERATURE, 1.0) if calibrate else (1.0, TEMPERATURE)
        assert float(gains[right].sum()) == pytest.approx(scores[key], rel=1e-3)  # the map is of the score
        shown = decoded(found[f"{key}.jpg"])
        assert shown.shape == said.image.shape
        assert distance(shown, decoded(pictures.gain_overlay(said.image, gains[right][0].numpy()))) < 0.5
        if acquisition != "random":
            assert distance(shown, decoded(pictures.gain_overlay(said.image, gains[wrong][0].numpy()))) > 1


def decoded(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as file:
        assert file.format == "JPEG"
        return np.array(file).astype(float)


def distance(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).mean())


def test_image_turned_by_exif_is_predicted_upright() -> None:
    path = Path(artifacts.load_manifest("pool", Path("pool")).set_index("key").at[selected()[0], "image"])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20), "red").save(path, exif=exif)
    repo.manifest("pool", "cityscapes")
    found = run()
    assert artifacts.load_prediction("r01", selected()[0]).shape == (30, 20)
    assert decoded(found[f"{selected()[0]}.jpg"]).shape == (30, 20, 3)


def test_the_folder_holds_exactly_the_selection() -> None:
    first = run()
    assert set(first) == {f"{key}.{kind}" for key in selected() for kind in ("png", "jpg")}
    for stale in ("gone.png", ".gone.jpg.part"):
        (paths.predictions("r01") / stale).write_bytes(b"")
    paths.predicted_before("r01", "gone").write_bytes(b"")
    repo.select("r01", [selected()[1], keys()[0]])
    second = run()
    assert set(second) == {f"{key}.{kind}" for key in selected() for kind in ("png", "jpg")}
    assert second[f"{selected()[0]}.png"] == first[f"{selected()[0]}.png"]
    for path in (paths.predicted_before, paths.gain_before):
        assert {found.stem for found in path("r01", "any").parent.iterdir()} == set(selected())


def test_the_same_run_writes_the_same_bytes() -> None:
    assert run() == run()


def test_many_processes_write_what_one_writes(project: Path) -> None:
    """Three images for four processes: one has nothing to do."""
    before = run(batch=1)  # so that an image's arithmetic does not depend on its neighbours in a batch
    shutil.rmtree(paths.predictions("r01"))
    done = command(project, processes=4)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("r01: 3 images predicted") == 1
    assert files() == before


def command(project: Path, processes: int) -> "subprocess.CompletedProcess[str]":
    text = paths.PARAMS.read_text()
    settings = f"compute: {{accelerator: cpu, workers: 0, batch: 1, processes: {processes}}}"
    paths.PARAMS.write_text(text.replace("compute: {accelerator: cpu, workers: 0}", settings))
    words = [sys.executable, "-m", "pipeline", "predict", "r01", "--after", "r00"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(words, cwd=project, env=environment, capture_output=True, text=True, check=False, timeout=300)


def break_model() -> None:
    """Finite weights whose outputs are not."""
    state, about = artifacts.load_model("r00")
    for name, weight in state.items():
        if name.endswith("weight") and weight.dim() == 4:
            weight.fill_(3e38)
    artifacts.save_model("r00", state, about)


def test_outputs_that_are_not_finite_are_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    break_model()
    assert __main__.main(["predict", "r01", "--after", "r00"]) == 1
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("predict: ")]
    assert said == [
        f"predict: r01: what data/models/r00 says of {selected()[0]!r} is not finite: train it with a lower lr, "
        "or in 32-true"
    ]
    assert files() == {}


def test_selected_image_that_the_pool_no_longer_has_is_a_sentence() -> None:
    frame = artifacts.load_manifest("pool")
    gone = selected()[1]
    artifacts.save_manifest("pool", frame[frame["key"] != gone])
    with pytest.raises(UserError, match=f"r01/selection.csv has '{gone}', which the pool has not: set"):
        run()
