from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import artifacts, paths, prepare
from pipeline.errors import UserError
from pipeline.labels import CLASS_SETS
from pipeline.params import Data, Prepare, Town
from tests import fakes


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prepare:
    """Three small sets in the working directory."""
    monkeypatch.chdir(tmp_path)
    fakes.write("gta5", Path("raw/gta5"), seed=1)
    fakes.write("camvid", Path("raw/camvid"), "train", seed=2, count=6)
    fakes.write("camvid", Path("raw/camvid"), "val", seed=3)
    return Prepare(
        classes="camvid11",
        source=Data(dataset="gta5", root="raw/gta5"),
        pool=Data(dataset="camvid", root="raw/camvid", split="train"),
        test=Data(dataset="camvid", root="raw/camvid", split="val"),
    )


def shrink(path: Path) -> None:
    """Cut a row off a mask."""
    with Image.open(path) as file:
        file.crop((0, 0, file.width, file.height - 1)).save(path)


def test_manifests_say_what_is_there(settings: Prepare) -> None:
    prepare.run(prepare=settings)
    source, pool, test = (artifacts.load_manifest(split) for split in prepare.SPLITS)
    assert [len(source), len(pool), len(test)] == [4, 6, 4]
    assert pool["image"].tolist()[0] == "train/0001TP_000000.jpg"  # below the root, posix
    assert pool["mask"].tolist()[0] == "trainannot/0001TP_000000.png"
    for split, frame in (("source", source), ("pool", pool), ("test", test)):
        for row in frame.itertuples():
            root = Path("raw/gta5" if split == "source" else "raw/camvid")
            assert (row.height, row.width) == fakes.SIZE
            assert artifacts.sha256(root / row.image) == row.sha256
            assert row.mask_sha256 == ("" if split == "pool" else artifacts.sha256(root / row.mask))
    assert artifacts.load_images("r00").equals(pool)
    assert artifacts.load_labels("r00") == []
    assert list(paths.TOWN.iterdir()) == []


def test_source_counts_are_those_of_its_masks(settings: Prepare) -> None:
    prepare.run(prepare=settings)
    source = artifacts.load_manifest("source")
    classes = CLASS_SETS["camvid11"]
    columns = [column for column in source.columns if column.startswith("n_")]
    assert columns == [f"n_{name}" for name in classes.names]
    for row in source.to_dict("records"):
        native = np.asarray(Image.open(Path("raw/gta5") / row["mask"]))
        assert row["n_Building"] == np.isin(native, (11, 12, 15, 16)).sum()
        assert row["n_Road"] == (native == 7).sum()
    assert not [column for column in artifacts.load_manifest("pool").columns if column.startswith("n_")]


def test_masks_of_the_pool_stay_closed(settings: Prepare) -> None:
    for path in Path("raw/camvid/trainannot").iterdir():
        path.write_text("nobody may look at this")
    prepare.run(prepare=settings)
    assert artifacts.load_manifest("pool")["mask"].str.len().gt(0).all()


def test_a_pool_without_masks_is_a_pool(settings: Prepare) -> None:
    for path in Path("raw/camvid/trainannot").iterdir():
        path.unlink()
    prepare.run(prepare=settings)
    assert artifacts.load_manifest("pool")["mask"].tolist() == [""] * 6


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("raw/gta5/labels/00002.png", r"source \(gta5 in raw/gta5\): the image raw/gta5/images/00002.png has no mask"),
        ("raw/camvid/valannot/0001TP_000001.png", r"test .*the image .*val/0001TP_000001.png has no mask"),
    ],
)
def test_source_and_test_need_masks(settings: Prepare, path: str, message: str) -> None:
    Path(path).unlink()
    with pytest.raises(UserError, match=message):
        prepare.run(prepare=settings)
    assert not paths.manifest("source").exists()


@pytest.mark.parametrize(
    "path",
    [
        *("raw/gta5/images/00003.png", "raw/gta5/labels/00003.png", "raw/camvid/train/0001TP_000002.jpg"),
        *("raw/camvid/val/0001TP_000001.png", "raw/camvid/valannot/0001TP_000001.png"),
    ],
)
def test_files_cut_short_are_named(settings: Prepare, path: str) -> None:
    Path(path).write_bytes(Path(path).read_bytes()[:-40])
    with pytest.raises(UserError, match=rf"{path} is cut short.*`python -m pipeline doctor`"):
        prepare.run(prepare=settings)


def test_masks_of_another_size(settings: Prepare, capsys: pytest.CaptureFixture[str]) -> None:
    for number in (1, 4):
        shrink(Path(f"raw/gta5/labels/0000{number}.png"))
    wrong = r"mask raw/gta5/labels/00001.png is 32x23, its image .* 32x24, and 1 more: .*prepare.size_mismatch: skip"
    with pytest.raises(UserError, match=wrong):
        prepare.run(prepare=settings)
    prepare.run(prepare=settings.model_copy(update={"size_mismatch": "skip"}))
    assert artifacts.load_manifest("source")["key"].tolist() == ["00002", "00003"]
    assert "source (gta5 in raw/gta5): skipped 2 of 4 images" in capsys.readouterr().out


def test_skipping_hides_no_other_fault_and_not_everything(settings: Prepare) -> None:
    skip = settings.model_copy(update={"size_mismatch": "skip"})
    for number in (1, 2, 3):
        shrink(Path(f"raw/gta5/labels/0000{number}.png"))
    fakes.mask(Path("raw/gta5/labels/00004.png"), np.full(fakes.SIZE, 99))
    with pytest.raises(UserError, match=r"labels/00004\.png holds unknown ids 99: run"):
        prepare.run(prepare=skip)
    shrink(Path("raw/gta5/labels/00004.png"))
    fakes.mask(Path("raw/gta5/labels/00004.png"), np.full((3, 3), 7))
    with pytest.raises(UserError, match="no image is left, every mask has another size"):
        prepare.run(prepare=skip)


def test_masks_without_any_class(settings: Prepare) -> None:
    for path in Path("raw/gta5/labels").iterdir():
        fakes.mask(path, np.zeros(fakes.SIZE))
    with pytest.raises(UserError, match=r"source .*no pixel of any mask is of a class: check prepare\.classes"):
        prepare.run(prepare=settings)


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        ("raw/camvid/train/0001TP_000002.jpg", "raw/camvid/val/0001TP_000000.jpg", "pool and test share an image"),
        ("raw/gta5/images/00001.png", "raw/camvid/val/0001TP_000003.png", "source and test share an image"),
        ("raw/gta5/images/00001.png", "raw/camvid/train/0001TP_000003.png", "source and pool share an image"),
    ],
)
def test_sets_that_share_an_image(settings: Prepare, one: str, other: str, message: str) -> None:
    Path(other).write_bytes(Path(one).read_bytes())
    with pytest.raises(UserError, match=rf"{message}: {one} and {other}"):
        prepare.run(prepare=settings)


def test_data_in_the_towns_place_is_not_thrown_away(settings: Prepare) -> None:
    fakes.write("gta5", paths.TOWN / "mine")
    mine = settings.model_copy(update={"source": Data(dataset="gta5", root="data/town/mine")})
    with pytest.raises(UserError, match=r"prepare\.source\.root is data/town/mine, but prepare\.town is not set"):
        prepare.run(prepare=mine)
    assert (paths.TOWN / "mine/images/00001.png").exists()


def test_an_old_town_is_emptied(settings: Prepare) -> None:
    fakes.write("gta5", paths.TOWN)
    prepare.run(prepare=settings)
    assert list(paths.TOWN.iterdir()) == []


def test_the_town_is_drawn_and_prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    town = Prepare(
        classes="cityscapes19",
        source=Data(dataset="gta5", root="data/town/gta5"),
        pool=Data(dataset="cityscapes", root="data/town/cityscapes", split="train"),
        test=Data(dataset="cityscapes", root="data/town/cityscapes", split="val"),
        town=Town(source=3, pool=2, test=1, size=(32, 64), seed=0),
    )
    prepare.run(prepare=town)
    assert [len(artifacts.load_manifest(split)) for split in prepare.SPLITS] == [3, 2, 1]
    again = [artifacts.load_manifest(split)["sha256"].tolist() for split in prepare.SPLITS]
    prepare.run(prepare=town)
    assert again == [artifacts.load_manifest(split)["sha256"].tolist() for split in prepare.SPLITS]
