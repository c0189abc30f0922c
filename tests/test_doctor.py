import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import ledger, paths
from pipeline.commands import doctor
from pipeline.images.classes import CLASS_SETS
from pipeline.ledger.entries import Order
from pipeline.params import BudgetLine, Compute, Data, Model, Params, Prepare, Reward, Score, Town, Training, Tune
from pipeline.stages import prepare
from pipeline.training import trial
from tests import fakes
from tests.conftest import ROOT


def settings(**sets: object) -> Params:
    training = Training(steps=1, batch=2, lr=0.1)
    data = {
        "classes": "camvid11",
        "source": Data(dataset="gta5", root="raw/gta5"),
        "pool": Data(dataset="camvid", root="raw/camvid", split="train"),
        "test": Data(dataset="camvid", root="raw/camvid", split="val"),
    }
    return Params(
        seed=0,
        budget={"r01": BudgetLine(after="r00", images=4), "r02": BudgetLine(after="r01", minutes=30)},
        prepare=Prepare(**(data | sets)),
        model=Model(name="small", size=(8, 8)),
        pretrain=training,
        tune=Tune(likelihood=training, reward=Reward(steps=0, lr=0.1)),
    )


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three small sets without fault in the working directory."""
    monkeypatch.chdir(tmp_path)
    fakes.write("gta5", Path("raw/gta5"), seed=1)
    fakes.write("camvid", Path("raw/camvid"), "train", seed=2, count=6)
    fakes.write("camvid", Path("raw/camvid"), "val", seed=3)
    return tmp_path / "raw"


def report(capsys: pytest.CaptureFixture[str], params: Params) -> tuple[int, str]:
    status = doctor.run(params)
    return status, capsys.readouterr().out


def test_good_data_is_all_good(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, text = report(capsys, settings())
    assert status == 0
    assert text.splitlines()[-1] == "all good"
    assert not re.search("^(warning|problem):", text, re.MULTILINE)
    assert "pool: camvid in raw/camvid, 6 images\n  width x height: 32x24 (6)\n" in text
    assert "masks: 6, which belong to the oracle" in text


def test_a_reward_that_its_estimator_cannot_raise_is_a_problem(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    params = settings()  # params.yaml cannot say so
    reward = Reward(steps=1, lr=0.1).model_copy(update={"reward": "boundary_f1"})
    status, text = report(capsys, params.model_copy(update={"tune": params.tune.model_copy(update={"reward": reward})}))
    assert status == 1
    assert (
        "problem: tune.reward: estimator counterfactual with reward boundary_f1: counterfactual needs a reward" in text
    )


def test_label_studio_that_cannot_be_used_is_a_problem(
    raw: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LABEL_STUDIO_API_KEY", raising=False)
    params = settings()
    people = params.annotate.model_copy(update={"annotator": "label_studio"})
    status, text = report(capsys, params.model_copy(update={"annotate": people}))
    assert status == 1
    assert "problem: LABEL_STUDIO_API_KEY is not set: copy a token from http://127.0.0.1:8080/user/account" in text


MACHINE = {
    "no GPU": ({"compute": Compute(accelerator="cuda")}, "compute.accelerator is cuda, but torch sees no GPU here"),
    "half on the CPU": (
        {"compute": Compute(accelerator="cpu", precision="16-mixed")},
        "compute.precision is 16-mixed, which needs a GPU, and compute.accelerator cpu is the CPU here: set",
    ),
    "batch norm of one": (
        {"pretrain": Training(steps=1, batch=1, lr=0.1)},
        "pretrain.batch is 1 and small at [8, 8] has a batch norm that sees one value per image",
    ),
    "too many processes": (
        {"compute": Compute(accelerator="cpu", processes=3)},
        "tune.likelihood.batch is 2, which leaves some of 3 processes without an image: raise it to 3 or more",
    ),
    "no such weights": (
        {"model": Model(name="unet", size=(8, 8), weights="w.pth")},
        "model.weights 'w.pth' not found in",
    ),
    "no members": (
        {"model": Model(name="lraspp_mobilenet_v3_large", size=(8, 8)), "score": Score(acquisition="bald")},
        "this model has 2 last layers, and members and features need one",
    ),
    "no encoder": (
        {"pretrain": Training(steps=1, batch=2, lr=0.1, lr_encoder=0.1)},
        "lr_encoder is 0.1, but this model has no encoder",
    ),
    "out of all bounds": (
        {"pretrain": Training(steps=1, batch=2, lr=0.1, auxiliary=0.4, poly1=1e300)},
        "in which the first loss is inf",
    ),
}


@pytest.mark.parametrize("name", MACHINE)
@pytest.mark.skipif(torch.cuda.is_available(), reason="of machines without a GPU")
def test_what_the_machine_or_the_network_will_not_do_is_a_problem(name: str) -> None:
    changes, says = MACHINE[name]
    problems = trial.run(settings().model_copy(update=changes), CLASS_SETS["camvid11"])
    assert any(says in problem for problem in problems), problems


def test_the_network_is_tried_as_it_will_be_trained(capsys: pytest.CaptureFixture[str]) -> None:
    params = settings().model_copy(
        update={"compute": Compute(accelerator="cpu", precision="bf16-mixed"), "score": Score(features=True)}
    )
    assert trial.run(params, CLASS_SETS["camvid11"]) == []
    assert "model: small at 8x8, one step of 2 images on cpu in bf16-mixed" in capsys.readouterr().out


def test_shares_are_those_of_the_masks(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    native = np.concatenate([np.asarray(Image.open(path)) for path in sorted(Path("raw/camvid/valannot").iterdir())])
    road = 100 * (native == 3).sum() / (native < 11).sum()
    _, text = report(capsys, settings())
    line = next(line for line in text.splitlines() if line.startswith("  Road "))
    assert re.findall(r"[\d.]+", line)[1] == f"{road:.1f}"


def test_every_fault_is_listed_and_none_stops_it(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (raw / "gta5/images/00001.png").write_bytes(b"")
    (raw / "gta5/labels/00002.png").unlink()
    fakes.mask(raw / "gta5/labels/00003.png", np.full((5, 5), 77))
    (raw / "camvid/train/0001TP_000000.jpg").write_bytes((raw / "camvid/train/0001TP_000000.jpg").read_bytes()[:-9])
    fakes.mask(raw / "camvid/valannot/0001TP_000001.png", np.full(fakes.SIZE, 12))
    status, text = report(capsys, settings())
    assert status == 1
    for expected in (
        "problem: source: 1 of 4 images: unreadable, first: the image raw/gta5/images/00001.png is empty",
        "problem: source: 1 of 4 images: no mask, first: the image raw/gta5/images/00002.png has no mask",
        "problem: source: 1 of 4 images: size mismatch, first: the mask raw/gta5/labels/00003.png is 5x5, its image",
        "problem: source: 1 of 4 images: unknown ids, first: the mask raw/gta5/labels/00003.png holds unknown ids 77",
        "problem: pool: 1 of 6 images: unreadable, first: the image raw/camvid/train/0001TP_000000.jpg is cut short",
        "problem: test: 1 of 4 images: unknown ids, first: the mask raw/camvid/valannot/0001TP_000001.png holds",
    ):
        assert expected in text
    assert text.splitlines()[-1] == "6 problems"


def test_a_mismatch_that_is_skipped_is_a_warning(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fakes.mask(raw / "gta5/labels/00003.png", np.full((5, 5), 7))
    params = settings(size_mismatch="skip")
    status, text = report(capsys, params)
    assert status == 0
    assert "warning: source: 1 of 4 images are left out, their masks differ in size" in text
    prepare.run(prepare=params.prepare)
    assert report(capsys, params)[0] == 0  # the manifest leaves it out too


def test_more_than_ten_are_counted(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fakes.write("camvid", raw / "camvid", "val", seed=3, count=13)
    for path in (raw / "camvid/valannot").iterdir():
        path.write_bytes(b"")
    status, text = report(capsys, settings())
    assert (status, text.count("is empty (0 bytes)")) == (1, 11)  # ten examples and one in the problem's line
    assert "unreadable: 13\n" in text
    assert "    and 3 more\n" in text


def test_the_pools_masks_stay_closed(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (raw / "camvid/trainannot").iterdir():
        path.write_text("nobody may look at this")
    assert report(capsys, settings())[0] == 0


def test_missing_sets_and_an_unknown_class_set(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, text = report(
        capsys,
        settings(
            classes="voc", source=Data(dataset="gta5", root="raw/none"), test=Data(dataset="folder", root="raw/camvid")
        ),
    )
    assert status == 1
    assert "problem: unknown class set 'voc': choose one of cityscapes19, camvid11, idd7" in text
    assert "problem: source: raw/none is no folder" in text
    assert "problem: test: no folder images in raw/camvid" in text
    assert "pool: camvid in raw/camvid, 6 images" in text


def test_classes_that_a_set_lacks(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (raw / "gta5/labels").iterdir():
        ids = np.asarray(Image.open(path)).copy()
        ids[np.isin(ids, (24, 25, 32, 33))] = 7
        fakes.mask(path, ids)
    status, text = report(capsys, settings())
    assert status == 0
    assert "warning: the source lacks Pedestrian, Bicyclist: they can only be learnt from bought labels" in text
    for path in (raw / "camvid/valannot").iterdir():
        fakes.mask(path, np.full(fakes.SIZE, 11))
    status, text = report(capsys, settings())
    assert status == 1
    assert "problem: test: no pixel of any mask is of a class" in text


def test_the_same_image_in_pool_and_test(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (raw / "camvid/val/0001TP_000001.png").write_bytes((raw / "camvid/train/0001TP_000003.png").read_bytes())
    status, text = report(capsys, settings())
    assert status == 1
    pair = "raw/camvid/train/0001TP_000003.png = raw/camvid/val/0001TP_000001.png"
    assert f"problem: pool and test share 1 images (same content): {pair}" in text
    assert "across pool and test: 0 pairs" in text


def test_nearly_the_same_image_in_pool_and_test(
    shared_data: Path, raw: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = min((shared_data / "camvid/train").glob("*.jpg"))
    with Image.open(frame) as file:
        file.resize((32, 24)).save(raw / "camvid/train/0001TP_000000.jpg", quality=95)
        file.resize((64, 48)).resize((32, 24)).save(raw / "camvid/val/0001TP_000002.jpg", quality=60)
        file.resize((32, 24)).save(raw / "camvid/train/0001TP_000002.jpg", quality=70)
    status, text = report(capsys, settings())
    assert status == 0
    assert "warning: pool and test hold 2 near-duplicates, look at them: raw/camvid/train/0001TP_000000.jpg ~ " in text
    assert "within the pool: 1 pairs, 2 of 6 images" in text


def test_a_budget_larger_than_the_pool(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    params = settings().model_copy(
        update={"budget": {"r01": BudgetLine(after="r00", images=4), "r02": BudgetLine(after="r01", images=3)}}
    )
    status, text = report(capsys, params)
    assert status == 1
    assert "problem: the budget asks for 7 images, the pool has 6: lower `budget`" in text


def test_manifests_that_are_out_of_date(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare.run(prepare=settings().prepare)
    assert report(capsys, settings())[0] == 0
    rng = np.random.default_rng(9)
    (raw / "camvid/train/0001TP_000001.png").unlink()
    fakes.image(raw / "camvid/train/0001TP_000002.jpg", rng)
    for name in "ab":
        fakes.image(raw / f"camvid/train/new_{name}.png", rng)
    status, text = report(capsys, settings())
    assert status == 1
    changes = "1 gone ('0001TP_000001'), 2 new ('new_a'), 1 changed ('0001TP_000002')"
    assert f"pool.csv is not what is on the disk, images or masks: {changes}; run `dvc repro -f prepare`, then" in text
    paths.manifest("pool").write_text("key,image\n")
    assert "problem: data/manifests/pool.csv lacks the columns" in report(capsys, settings())[1]


def test_files_that_are_passed_over_are_warnings(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (raw / "gta5/images/a.heic").write_bytes(b"x")
    (raw / "camvid/val/Thumbs.db").write_bytes(b"x")
    fakes.mask(raw / "camvid/trainannot/lost.png", np.zeros(fakes.SIZE))
    status, text = report(capsys, settings())
    assert status == 0
    assert (
        "warning: source: 1 files have a suffix that is not read (.heic) and are passed over, raw/gta5/images/a.heic"
        in text
    )
    assert (
        "warning: pool: 1 files are masks without an image and are passed over, raw/camvid/trainannot/lost.png" in text
    )
    assert "test: 1 files are left by systems and editors, raw/camvid/val/Thumbs.db first" in text


def test_ids_that_mean_something_else(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (raw / "camvid/valannot").iterdir():  # of a CamVid that counts from 1 and has void as 0
        fakes.mask(
            path, np.random.default_rng(0).choice([1, 2, 3, 4, 6, 9], fakes.SIZE, p=[0.2, 0.2, 0.1, 0.3, 0.1, 0.1])
        )
    status, text = report(capsys, settings())
    assert status == 0
    assert "warning: test: SignSymbol" not in text
    assert re.search(r"warning: test: Pole is \d\d% of the pixels, which no street has", text)
    for path in (raw / "gta5/labels").iterdir():
        fakes.mask(path, np.random.default_rng(0).choice([0, 1, 2, 8, 255], fakes.SIZE, p=[0.4, 0.2, 0.2, 0.1, 0.1]))
    status, text = report(capsys, settings())
    assert status == 1
    assert "problem: source: the masks look like labelTrainIds" in text


def test_a_bought_image_that_left_the_pool(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger.append([Order("r01", "0001TP_000002", "oracle", "camvid11", 0.5, 5.0, 0.5, "")])
    assert report(capsys, settings())[0] == 0
    (raw / "camvid/train/0001TP_000002.jpg").unlink()
    status, text = report(capsys, settings())
    assert status == 1
    assert "problem: the pool lacks '0001TP_000002', which r01 has bought: put its file back" in text


def test_doubles_within_a_set(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder, name in (("camvid/train", "0001TP_000001.png"), ("gta5/images", "00001.png")):
        (raw / folder / f"copy_{name}").write_bytes((raw / folder / name).read_bytes())
    (raw / "gta5/labels/copy_00001.png").write_bytes((raw / "gta5/labels/00001.png").read_bytes())
    params = settings().model_copy(update={"budget": {"r01": BudgetLine(after="r00", images=7)}})
    status, text = report(capsys, params)
    assert (
        "warning: pool: 1 images have the same content as another, raw/camvid/train/copy_0001TP_000001.png as " in text
    )
    assert "warning: source: 1 images are there more than once (same content): raw/gta5/images/00001.png = " in text
    assert "problem: the budget asks for 7 images, the pool has 6" in text  # different ones
    assert status == 1


def test_a_pool_that_the_oracle_cannot_label(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    masks = sorted((raw / "camvid/trainannot").iterdir())
    masks[0].unlink()
    status, text = report(capsys, settings())
    assert status == 0
    assert "warning: annotate.annotator is oracle, and 1 of 6 images of the pool have no mask, '0001TP_000000'" in text
    for mask in masks[1:]:
        mask.unlink()
    status, text = report(capsys, settings())
    assert status == 1
    assert "6 of 6 images of the pool have no mask: let people label (annotate.annotator: label_studio)" in text


def test_what_the_oracle_would_deliver_is_looked_at(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    masks = sorted((raw / "camvid/trainannot").iterdir())
    masks[3].write_text("nobody can read this")
    rng = np.random.default_rng(0)
    for mask in masks[:3] + masks[4:]:
        fakes.mask(mask, rng.choice([1, 2, 3, 4, 6, 9], fakes.SIZE, p=[0.2, 0.2, 0.1, 0.3, 0.1, 0.1]))
    params = settings()
    status, text = report(capsys, params)
    assert status == 0
    assert (
        f"warning: pool: the oracle cannot deliver 1 of 6 masks: the mask {masks[3].relative_to(raw.parent)} is cut"
        in text
    )
    assert re.search(r"warning: pool: Pole is \d\d% of the pixels, which no street has", text)
    people = params.annotate.model_copy(update={"annotator": "label_studio"})
    assert "warning: pool:" not in report(capsys, params.model_copy(update={"annotate": people}))[1]


def test_names_that_windows_has_not(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fakes.image(raw / "camvid/train/12:30.png", np.random.default_rng(5))
    assert "warning: the pool has 1 names that Windows cannot store: '12:30'" in report(capsys, settings())[1]


def test_a_town_that_is_not_drawn(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    params = settings(town=Town(source=1, pool=1, test=1, size=(8, 8), seed=0))
    status, text = report(capsys, params)
    assert (status, text) == (1, "the demo town is not drawn yet (data/town is empty): run `dvc repro prepare` first\n")


def test_real_data(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    camvid = str(shared_data / "camvid")
    params = settings(
        classes="cityscapes19",
        source=Data(dataset="gta5", root=str(shared_data / "gta5")),
        pool=Data(dataset="camvid", root=camvid, split="train"),
        test=Data(dataset="camvid", root=camvid, split="val"),
    )
    status, text = report(capsys, params)
    assert status == 0
    assert "warning: the source lacks rider, bus, train, bicycle: they can only be learnt from bought labels" in text
    assert "across pool and test: 0 pairs" in text
    assert "within the pool: 94 pairs" in text


def test_real_idd_lite(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = shared_data / "idd_lite"
    if not root.is_dir():
        pytest.skip(f"IDD-Lite is not here: {root} is absent")
    monkeypatch.chdir(tmp_path)
    params = settings(
        classes="idd7",
        source=Data(dataset="gta5", root=str(shared_data / "gta5")),
        pool=Data(dataset="idd_lite", root=str(root), split="train"),
        test=Data(dataset="idd_lite", root=str(root), split="val"),
    )
    status, text = report(capsys, params)
    assert status == 0
    assert "pool: idd_lite in" in text
    assert "1403 images\n  width x height: 320x227 (1403)\n" in text
    assert "passed over" not in text
    assert "across pool and test: 0 pairs" in text


def test_it_starts_without_torch() -> None:
    code = "import sys, pipeline.commands.doctor, pipeline.stages.prepare; print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout == "False\n"
