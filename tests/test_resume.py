"""What of a training is taken up again, and what starts anew."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from pipeline import artifacts, params, paths, storage
from pipeline.images.masks import load_mask, save_mask
from pipeline.stages import tune
from pipeline.stages.running import sections
from pipeline.training import fingerprints, losses
from tests import fakes, repo
from tests.conftest import ROOT, copied

KEPT = "tune r01 likelihood: nothing that it depends on has changed"
ANEW = "tune r01 likelihood: data/checkpoints/tune-r01-likelihood.pt was made with other"
RESUMED = "tune r01 likelihood: resumed at step 3 of 6"
REWARD_RESUMED = "tune r01 reward: resumed at step 2 of 4"
REWARD_ANEW = "tune r01 reward: data/checkpoints/tune-r01-reward.pt was made with other"


class Killed(BaseException):
    """Stands for SIGKILL."""


@pytest.fixture(autouse=True)
def project(labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The project, and a copy of the code that fingerprints are of."""
    copied(labelled, tmp_path / "project", monkeypatch)
    shutil.copytree(ROOT / "pipeline", tmp_path / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(fingerprints, "PACKAGE", tmp_path / "pipeline")


def tuned(**changes: dict[str, Any]) -> dict[str, Tensor]:
    """The weights that the stage writes, with parts of `tune` and other sections changed."""
    of = repo.params(compute={"accelerator": "cpu", "workers": 0, "checkpoint_seconds": 0.0})
    both = {"likelihood": {"steps": 6}, "reward": {"steps": 4, "lr": 1e-3}}
    for part in both:
        both[part] |= changes.pop(part, {})
    given = of.tune.model_dump() | {name: of.tune.model_dump()[name] | both[name] for name in both}
    of = of.model_copy(update={"tune": params.Tune.model_validate(given)})
    for name, section in changes.items():
        of = of.model_copy(update={name: getattr(of, name).model_copy(update=section)})
    tune.run("r01", of.budget["r01"], **sections(tune.run, of))
    return artifacts.load_model("r01")[0]


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def fresh(**changes: dict[str, Any]) -> dict[str, Tensor]:
    """What an undisturbed run makes."""
    shutil.rmtree(paths.CHECKPOINTS, ignore_errors=True)
    return tuned(**changes)


@pytest.fixture(scope="module")
def undisturbed(labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tensor], bytes]:
    """Weights and log of an undisturbed run in a project of its own."""
    with pytest.MonkeyPatch.context() as patch:
        copied(labelled, tmp_path_factory.mktemp("undisturbed") / "project", patch)
        return tuned(), paths.log("r01").read_bytes()


def killed(at: int, **changes: dict[str, Any]) -> None:
    """Run until the cross-entropy is asked for the `at`-th time: 6 steps of likelihood, then those for the reward."""
    calls = 0

    def dies(*arguments: Any, **named: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == at:
            raise Killed
        return cross_entropy(*arguments, **named)

    cross_entropy = losses.cross_entropy
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "cross_entropy", dies)
        with pytest.raises(Killed):
            tuned(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"reward": {"reward": "dice"}},
        {"reward": {"steps": 0}},
        {"reward": {"estimator": "lovasz", "kl": 0.1}},
    ],
    ids=str,
)
def test_another_reward_starts_from_the_same_likelihood_model(
    changes: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    tuned()
    assert [path.name for path in paths.CHECKPOINTS.iterdir()] == ["tune-r01-likelihood.pt"]
    capsys.readouterr()
    again = tuned(**changes)
    assert KEPT in capsys.readouterr().out
    assert same(again, fresh(**changes))
    assert KEPT not in capsys.readouterr().out


def test_another_calibration_starts_from_the_same_likelihood_model(capsys: pytest.CaptureFixture[str]) -> None:
    before = tuned()
    kept = artifacts.load_model("r01")[1]["calibration"]
    repo.audit(repo.params(calibration={"method": "vector"}))
    capsys.readouterr()
    assert same(tuned(), before)
    assert KEPT in capsys.readouterr().out
    assert artifacts.load_model("r01")[1]["calibration"] != kept


@pytest.mark.parametrize(
    "changes",
    [{"likelihood": {"lr": 5e-3}}, {"model": {"size": (16, 24)}}],
    ids=str,
)
def test_other_settings_of_likelihood_do_not(changes: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    tuned()
    capsys.readouterr()
    again = tuned(**changes)
    assert ANEW in capsys.readouterr().out
    assert same(again, fresh(**changes))


def test_steps_grow_with_the_labels_also_where_a_killed_training_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    rows = artifacts.load_labels("r01")
    artifacts.save_labels("r01", [rows[0] | {"round": "r00b"}, *rows[1:]])  # one label first, three by now
    grown = {"tune": {"growth": 1.0}}
    killed(4, **grown)
    capsys.readouterr()
    ended = tuned(**grown)
    said = capsys.readouterr().out
    assert "tune r01 likelihood: 18 steps for 3 labels, by tune.growth 1\n" in said
    assert "tune r01 likelihood: resumed at step 3 of 18" in said
    log = pd.read_csv(paths.log("r01"))
    assert log["step"][log["stage"] == 0].tolist() == [10, 18]
    assert same(ended, fresh(**grown))
    tuned()
    assert ANEW in capsys.readouterr().out
    log = pd.read_csv(paths.log("r01"))
    assert log["step"][log["stage"] == 0].tolist() == [6]


def test_another_image_or_mask_to_learn_from_starts_anew(capsys: pytest.CaptureFixture[str]) -> None:
    def says(sentence: str) -> None:
        tuned()
        assert sentence in capsys.readouterr().out

    def change(split: str, place: int) -> None:
        frame = artifacts.load_manifest(split)
        image = fakes.image(Path(split) / frame.loc[place, "image"], np.random.default_rng(99))
        frame.loc[place, "sha256"] = storage.sha256(image)
        artifacts.save_manifest(split, frame)

    tuned()
    change("pool", 7)  # not bought
    says(KEPT)
    change("pool", 0)
    says(ANEW)
    change("source", 0)
    says(ANEW)
    rows = artifacts.load_labels("r01")
    artifacts.save_labels("r01", [row | {"minutes": 99} for row in rows])
    says(KEPT)
    mask = load_mask(paths.mask(rows[0]["key"]))
    rows[0]["sha256"] = save_mask(paths.mask(rows[0]["key"]), mask[::-1].copy())
    artifacts.save_labels("r01", rows)
    says(ANEW)


@pytest.mark.parametrize(
    ("edited", "at", "says"),
    [
        (None, 4, {RESUMED}),
        ("commands/status.py", 4, {RESUMED}),
        ("training/losses.py", 4, {ANEW}),
        (None, 9, {KEPT, REWARD_RESUMED}),
        ("rewards/counts.py", 9, {KEPT, REWARD_ANEW}),
        ("training/losses.py", 9, {ANEW, REWARD_ANEW}),
    ],
)
def test_under_edited_code_a_killed_training_starts_anew(
    edited: str | None,
    at: int,
    says: set[str],
    undisturbed: tuple[dict[str, Tensor], bytes],
    capsys: pytest.CaptureFixture[str],
) -> None:
    killed(at)
    if edited:
        file = fingerprints.PACKAGE / edited
        file.write_text(file.read_text() + "# edited\n")  # of a file that is there
    capsys.readouterr()
    ended = tuned()
    said = capsys.readouterr().out
    assert {each for each in (RESUMED, KEPT, ANEW, REWARD_RESUMED, REWARD_ANEW) if each in said} == says
    assert same(ended, undisturbed[0])


def test_killed_at_the_end_ends_the_same(
    undisturbed: tuple[dict[str, Tensor], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        write = artifacts.save_model

        def dies(*arguments: Any) -> None:
            write(*arguments)
            raise Killed

        patch.setattr(artifacts, "save_model", dies)
        with pytest.raises(Killed):
            tuned()
    assert same(tuned(), undisturbed[0])
    assert paths.log("r01").read_bytes() == undisturbed[1]
    assert [path.name for path in paths.CHECKPOINTS.iterdir()] == ["tune-r01-likelihood.pt"]


def test_what_is_kept_is_no_larger_than_the_model() -> None:
    """No optimizer, which is two thirds of what an unfinished training keeps."""
    tuned()
    kept = paths.checkpoint("tune-r01-likelihood").stat().st_size
    killed(4)
    assert kept < 1.2 * (paths.model("r01") / "model.pt").stat().st_size
