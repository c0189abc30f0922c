import contextlib
import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import artifacts, paths, storage
from pipeline.errors import UserError
from pipeline.images.classes import IGNORE, UNKNOWN, ClassSet
from pipeline.images.masks import load_mask, save_mask
from pipeline.networks.calibration import Calibration, of_temperature
from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_write_makes_folders_and_replaces_what_was_there(folder: Path) -> None:
    path = folder / "a/b/file"
    storage.write(path, b"old")
    storage.write(path, b"new")
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o644
    assert files(folder) == ["file"]


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_failure_in_the_middle_leaves_the_old_file_and_no_litter(
    broken: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write(folder / "file", b"old")

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, broken, fail)
    with pytest.raises(KeyboardInterrupt):
        storage.write(folder / "file", b"new")
    assert (folder / "file").read_bytes() == b"old"
    assert files(folder) == ["file"]


def test_a_full_disk_is_a_sentence_and_leaves_the_old_file(folder: Path) -> None:
    storage.write(folder / "file", b"old")
    (folder / ".file.part").symlink_to("/dev/full")  # the kernel answers every write with ENOSPC
    with pytest.raises(UserError, match=r"no space left on the disk for .*file \(3 bytes\): free some and run again"):
        storage.write(folder / "file", b"new")
    assert (folder / "file").read_bytes() == b"old"
    assert files(folder) == ["file"]


def test_a_file_size_limit_is_a_sentence_and_leaves_the_old_file(folder: Path) -> None:
    code = """
import resource, signal
from pathlib import Path
from pipeline import storage
from pipeline.errors import UserError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
storage.write(Path("file"), b"old")
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    storage.write(Path("file"), bytes(1_000_000))
except UserError as error:
    print(error)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout == "file cannot be written (File too large): mend that and run again\n", done.stderr
    assert (folder / "file").read_bytes() == b"old"
    assert files(folder) == ["file"]


def test_a_file_where_a_folder_should_be_is_a_sentence(folder: Path) -> None:
    (folder / "data").write_text("")
    with pytest.raises(UserError, match=r"data/metrics/r01\.json cannot be written"):
        storage.save_json(paths.metrics("r01"), {})


def manifest(keys: list[str]) -> pd.DataFrame:
    frame = pd.DataFrame({"key": keys, "image": [f"images/{key}.png" for key in keys], "mask": ""})
    return frame.assign(height=3, width=4, sha256="ab" * 32, mask_sha256="", n_road=[100 * 2**31 + 1] * len(keys))


def scores(keys: list[str]) -> pd.DataFrame:
    return pd.DataFrame({"key": keys, "gain": np.linspace(0.1, 0.9, len(keys)), "minutes": 10.0})


def selection(keys: list[str]) -> pd.DataFrame:
    return scores(keys).assign(probability=0.25, method="draw", regions="")


TABLES = {
    "manifest": (artifacts.save_manifest, artifacts.load_manifest, manifest, "pool"),
    "scores": (artifacts.save_scores, artifacts.load_scores, scores, "r01"),
    "selection": (artifacts.save_selection, artifacts.load_selection, selection, "r01"),
}
every_table = pytest.mark.parametrize("kind", TABLES)

# what a CSV reader takes for something else: numbers, missing values, truth values, dates
ODD_KEYS = ["0001", "1e5", "NA", "nan", "null", "None", "True", "2020-01-01", "", " a ", 'say "a", b', "é", "-1", "#"]


@every_table
def test_table_survives_with_keys_that_look_like_something_else(kind: str) -> None:
    save, load, make, name = TABLES[kind]
    frame = make(ODD_KEYS)
    save(name, frame)
    pd.testing.assert_frame_equal(load(name), frame, check_dtype=False)
    assert list(load(name)["key"]) == ODD_KEYS


@every_table
def test_table_of_numbers_only_keeps_its_keys_as_text(kind: str) -> None:
    save, load, make, name = TABLES[kind]
    save(name, make(["0001", "0002"]))
    assert list(load(name)["key"]) == ["0001", "0002"]


@every_table
def test_key_that_stands_twice_is_refused(kind: str) -> None:
    save, _, make, name = TABLES[kind]
    with pytest.raises(UserError, match="the key 'b' stands twice"):
        save(name, make(["a", "b", "b"]))


@every_table
def test_missing_table_says_what_makes_it(kind: str) -> None:
    _, load, _, name = TABLES[kind]
    maker = {"manifest": "prepare", "scores": "score@r01", "selection": "select@r01"}[kind]
    with pytest.raises(UserError, match=f"not found: run `dvc pull` .* or `dvc repro {maker}`"):
        load(name)


@every_table
def test_lacking_column_is_named(kind: str) -> None:
    save, load, make, name = TABLES[kind]
    save(name, make(["a"]))
    path = next(Path().rglob("*.csv"))
    path.write_text(path.read_text().replace("key,", "name,"))
    with pytest.raises(UserError, match="lacks the columns key"):
        load(name)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_score_that_is_not_finite_is_refused_by_key(value: float) -> None:
    frame = scores(["a", "b", "c"])
    frame.loc[1, "gain"] = value
    with pytest.raises(UserError, match=r"scores\.csv: a value of 'b' is not finite"):
        artifacts.save_scores("r01", frame)
    assert not paths.scores("r01").exists()


@pytest.mark.parametrize("written", ["", "nan", "NaN", "inf", "many"])
def test_written_score_that_is_no_finite_number_is_refused(written: str) -> None:
    artifacts.save_scores("r01", scores(["a", "b"]))
    paths.scores("r01").write_text(f"key,gain,minutes\na,0.5,10\nb,{written},10\n")
    with pytest.raises(UserError, match=r"scores\.csv: .*(gain|'b')"):
        artifacts.load_scores("r01")


MERGED = "<<<<<<< HEAD\n{0}=======\n{0}>>>>>>> other\n"


@pytest.mark.parametrize("head", ["", "key,gain,minutes,probability\n"])
def test_table_left_by_a_merge_is_a_sentence(head: str) -> None:
    artifacts.save_selection("r01", selection(["a"]))
    paths.selection("r01").write_text(head + MERGED.format("key,gain,minutes,probability\na,0.5,10,0.5\n"))
    with pytest.raises(UserError, match=r"selection\.csv"):
        artifacts.load_selection("r01")


def test_empty_table_is_a_sentence() -> None:
    paths.selection("r01").parent.mkdir(parents=True)
    paths.selection("r01").write_text("")
    with pytest.raises(UserError, match=r"selection\.csv"):
        artifacts.load_selection("r01")


@settings(deadline=None, max_examples=20)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=6), unique=True, min_size=1))
def test_any_keys_survive(keys: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        artifacts.save_manifest("pool", manifest(keys))
        assert list(artifacts.load_manifest("pool")["key"]) == keys


def test_pool_statistics_survive() -> None:
    sums = np.array([[1e-9, 123456789.0], [0.0, 3.25]])
    artifacts.save_pool("r01", ["NA", "road"], ["inter", "union"], sums)
    np.testing.assert_allclose(artifacts.load_pool("r01"), sums, rtol=1e-8)


def test_metrics_and_confusion_survive() -> None:
    confusion = np.array([[3, 1], [0, 10**12]], np.int64)
    artifacts.save_metrics("r01", {"miou": 0.1 + 0.2}, ["NA", "road"], confusion)
    assert storage.load_json(paths.metrics("r01"), "evaluate@r01") == {"miou": 0.1 + 0.2}
    read = pd.read_csv(paths.confusion("r01"), index_col="truth", keep_default_na=False)
    assert list(read.columns) == list(read.index) == ["NA", "road"]
    np.testing.assert_array_equal(read.to_numpy(), confusion)


def test_metric_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        storage.save_json(paths.metrics("r01"), {"miou": float("nan")})
    assert not paths.metrics("r01").exists()


def test_json_left_by_a_merge_is_a_sentence() -> None:
    artifacts.save_labels("r01", [])
    paths.labels("r01").write_text(MERGED.format("[]\n"))
    with pytest.raises(UserError, match=r"labels\.json is not whole.*`dvc repro -s -f annotate@r01`"):
        artifacts.load_labels("r01")


def test_missing_json_says_what_makes_it() -> None:
    with pytest.raises(UserError, match=r"labels\.json not found.*`dvc repro annotate@r01`"):
        artifacts.load_labels("r01")


def test_report_survives_and_is_summed_up() -> None:
    rows = pd.DataFrame({"round": ["r00", "r01"], "labels": [0, 20], "minutes": [0.0, 61.5], "miou": [0.25, 0.375]})
    artifacts.save_report(rows.assign(gain_predicted=[None, 0.1]))
    assert storage.load_json(paths.SUMMARY, "report") == {
        "round": "r01",
        "labels": 20,
        "minutes": 61.5,
        "miou": 0.375,
        "miou_gained": 0.125,
    }
    pd.testing.assert_frame_equal(pd.read_csv(paths.ROUNDS_TABLE).iloc[:, :4], rows, check_dtype=False)


def test_labels_survive() -> None:
    rows = [{"key": "é", "round": "r01", "minutes": 2.5, "sha256": "00"}]
    artifacts.save_labels("r01", rows)
    assert artifacts.load_labels("r01") == rows


def test_mask_survives_and_its_hash_is_that_of_the_file() -> None:
    mask = np.arange(256, dtype=np.uint8).reshape(8, 32)
    digest = save_mask(paths.mask("a"), mask)
    assert digest == storage.sha256(paths.mask("a"))
    np.testing.assert_array_equal(load_mask(paths.mask("a")), mask)
    assert save_mask(paths.mask("b"), mask) == digest


def test_missing_and_damaged_masks_say_how_to_get_them_back() -> None:
    with pytest.raises(UserError, match=r"data/labels/a\.png is not here: run `python -m pipeline join`"):
        load_mask(paths.mask("a"))
    save_mask(paths.mask("a"), np.zeros((40, 50), np.uint8))
    paths.mask("a").write_bytes(paths.mask("a").read_bytes()[:30])
    with pytest.raises(UserError, match=r"data/labels/a\.png is damaged"):
        load_mask(paths.mask("a"))


def test_prediction_survives() -> None:
    mask = np.arange(200, dtype=np.uint8).reshape(8, 25)
    save_mask(paths.prediction("r01", "é"), mask)
    np.testing.assert_array_equal(artifacts.load_prediction("r01", "é"), mask)


def test_missing_and_damaged_predictions_say_what_makes_them() -> None:
    with pytest.raises(UserError, match=r"predictions/a\.png not found: run `dvc pull` .* or `dvc repro predict@r01`"):
        artifacts.load_prediction("r01", "a")
    path = paths.prediction("r01", "a")
    save_mask(path, np.zeros((40, 50), np.uint8))
    colour = cv2.imencode(".png", np.zeros((40, 50, 3), np.uint8))[1].tobytes()
    for damaged in (b"", path.read_bytes()[:30], colour):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"predictions/a\.png is not whole.*`dvc repro -s -f predict@r01`"):
            artifacts.load_prediction("r01", "a")


@pytest.mark.parametrize(
    ("load", "path", "maker"),
    [
        (artifacts.load_before, paths.predicted_before, "predict@r01"),
        (artifacts.load_before, paths.gain_before, "predict@r01"),
        (artifacts.load_after, paths.predicted_after, "tune@r01"),
    ],
)
def test_what_a_panel_needs_and_lacks_says_what_makes_it(
    load: Callable[[str, str], object], path: Callable[[str, str], Path], maker: str
) -> None:
    for one in (paths.predicted_before, paths.gain_before, paths.predicted_after):
        save_mask(one("r01", "a"), np.zeros((4, 5), np.uint8))
    load("r01", "a")
    path("r01", "a").unlink()
    with pytest.raises(UserError, match=rf"a\.png not found: run `dvc pull` .* or `dvc repro {maker}`"):
        load("r01", "a")
    path("r01", "a").write_bytes(b"")
    with pytest.raises(UserError, match=rf"a\.png is not whole.*`dvc repro -s -f {maker}`"):
        load("r01", "a")


def test_a_calibration_is_the_same_to_the_last_bit_when_it_is_read_again() -> None:
    with pytest.raises(UserError, match=r"r01/calibration\.json not found: .* or `dvc repro audit@r01`"):
        artifacts.load_calibration("r01")
    for fitted in (of_temperature(1 / 3), Calibration((0.1 + 0.2, 1e-9), (-1 / 7, 0.0))):
        artifacts.save_calibration("r01", fitted.lists())
        assert Calibration.of_lists(artifacts.load_calibration("r01")) == fitted


def network(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"a.weight": torch.randn(3, 4, generator=generator), "a.seen": torch.tensor(7)}


def test_model_survives_and_is_the_same_bytes_when_saved_again() -> None:
    about = {"name": "small", "classes": ["road", "NA"], "calibration": {"scale": [0.8], "bias": []}}
    artifacts.save_model("r00", network(1), about)
    path = paths.model("r00") / "model.pt"
    first = path.read_bytes()
    state, read = artifacts.load_model("r00")
    assert read == about
    assert {name: value.tolist() for name, value in state.items()} == {k: v.tolist() for k, v in network(1).items()}
    artifacts.save_model("r00", state, read)
    assert path.read_bytes() == first
    artifacts.save_model("r00", network(2), about)
    assert path.read_bytes() != first


@pytest.mark.parametrize(("name", "maker"), [("r00", "pretrain"), ("r02", "tune@r02")])
def test_missing_model_says_what_makes_it(name: str, maker: str) -> None:
    with pytest.raises(UserError, match=f"data/models/{name}/model.pt not found.*`dvc repro {maker}`"):
        artifacts.load_model(name)


def test_log_survives() -> None:
    rows = [{"stage": 0.0, "step": 10.0, "loss": 0.5}, {"stage": 1.0, "step": 10.0, "loss": 0.25, "kl": 0.125}]
    for written in (rows, []):
        artifacts.save_log("r01", written)
        assert artifacts.load_log("r01") == written  # what a row does not know stays absent


@pytest.mark.parametrize(("name", "maker"), [("r00", "pretrain"), ("r02", "tune@r02")])
def test_missing_and_damaged_logs_say_what_makes_them(name: str, maker: str) -> None:
    with pytest.raises(UserError, match=f"data/models/{name}/log.csv not found.*`dvc repro {maker}`"):
        artifacts.load_log(name)
    paths.model(name).mkdir(parents=True)
    for damaged in ("step,loss\n10,0.5\n20,ha", "loss\n0.5\n", "step,loss\n10,inf\n", "step,loss\n1,2,3\n1,2,3,4\n"):
        paths.log(name).write_text(damaged)
        with pytest.raises(UserError, match=rf"log\.csv is not whole.*`dvc repro -s -f {maker}`"):
            artifacts.load_log(name)


def features(keys: list[str], classes: int = 3) -> artifacts.Features:
    rng, m = np.random.default_rng(0), len(keys)
    by_class = rng.normal(size=(m, classes, 4)).astype(np.float16)
    image, gradient, holds = (rng.normal(size=(m, size)).astype(np.float32) for size in (4, 8, classes))
    return artifacts.Features(keys, image, by_class, gradient, holds, rng.random(classes))


def test_features_survive_and_are_the_same_bytes_when_saved_again() -> None:
    saved = features(ODD_KEYS)
    artifacts.save_features("r01", saved)
    first = paths.features("r01").read_bytes()
    read = artifacts.load_features("r01")
    assert read.keys == ODD_KEYS
    for ours, theirs in zip(read[1:], saved[1:], strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
    artifacts.save_features("r01", read)
    assert paths.features("r01").read_bytes() == first


def test_features_of_no_image_survive() -> None:
    artifacts.save_features("r01", artifacts.Features.none())
    read = artifacts.load_features("r01")
    assert read.keys == []
    assert [array.shape for array in read[1:]] == [(0, 0), (0, 0, 0), (0, 0), (0, 0), (0,)]


def test_features_that_are_not_of_the_keys_are_refused() -> None:
    fine = features(["a", "b", "c"])
    with pytest.raises(UserError, match=r"features\.npz: the key 'b' stands twice"):
        artifacts.save_features("r01", fine._replace(keys=["a", "b", "b"]))
    with pytest.raises(UserError, match=r"features\.npz: features of 2 images have the lengths"):
        artifacts.save_features("r01", fine._replace(keys=["a", "b"]))
    for name in ("image", "by_class", "gradient"):
        broken = getattr(fine, name).copy()
        broken[1] = np.inf
        with pytest.raises(UserError, match=rf"features\.npz: a value in {name} of 'b' is not finite"):
            artifacts.save_features("r01", fine._replace(**{name: broken}))
    assert not paths.features("r01").exists()


def test_missing_and_damaged_features_say_what_makes_them() -> None:
    with pytest.raises(UserError, match=r"features\.npz not found.*`dvc repro score@r01`"):
        artifacts.load_features("r01")
    artifacts.save_features("r01", features(["a", "b"]))
    whole = paths.features("r01").read_bytes()
    other = io.BytesIO()
    np.savez(other, keys=np.array(["a"]))
    single = io.BytesIO()
    np.save(single, np.zeros(3))
    for damaged in (b"", whole[:-300], whole[:100], whole.replace(b"by_class.npy", b"by_glass.npy"), b"key,gain\n"):
        paths.features("r01").write_bytes(damaged)
        with pytest.raises(UserError, match=r"features\.npz is not whole.*`dvc repro -s -f score@r01`"):
            artifacts.load_features("r01")
    for damaged in (other.getvalue(), single.getvalue()):
        paths.features("r01").write_bytes(damaged)
        with pytest.raises(UserError, match=r"features\.npz is not whole.*`dvc repro -s -f score@r01`"):
            artifacts.load_features("r01")
    middle = whole.index(features(["a", "b"]).image.tobytes()) + 5  # some of the zip file's own bytes do not count
    paths.features("r01").write_bytes(whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :])
    with pytest.raises(UserError, match=r"features\.npz is not whole"):
        artifacts.load_features("r01")


CLASSES = ClassSet("own", ("road", "NA", "a, b"), ((1, 2, 3), (4, 5, 6), (7, 8, 9)))


def test_class_tables_are_read_as_they_were_written() -> None:
    table = np.full(256, UNKNOWN, np.uint8)
    table[[7, 3, 9]] = [0, 2, IGNORE]
    artifacts.save_classes(CLASSES)
    artifacts.save_ids("pool", table, CLASSES)
    assert artifacts.load_classes()[1:] == CLASSES[1:]
    np.testing.assert_array_equal(artifacts.load_ids("pool", CLASSES), table)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("id,name\n0,road\n0,sky\n", "the key 0 stands twice"),
        ("number,name\n0,road\n", "lacks the columns id: it was not written by this version"),
        ("id,name\nzero,road\n", "is not whole .*'zero'.*dvc repro -s -f prepare"),
        ("id,name\n0\n", "is not whole .line 2 has another number of columns"),
        ("id,name\n0,road,1\n", "is not whole .line 2 has another number of columns"),
        ("", "lacks the columns id, name"),
    ],
)
def test_damaged_class_tables_are_sentences(text: str, says: str) -> None:
    artifacts.save_classes(CLASSES)
    paths.CLASSES.write_text(text)
    with pytest.raises(UserError, match=says):
        artifacts.load_classes()
