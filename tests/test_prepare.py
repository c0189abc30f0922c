from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import artifacts, ledger, paths, storage
from pipeline.commands import remove
from pipeline.errors import UserError
from pipeline.images.classes import CLASS_SETS
from pipeline.images.masks import save_mask
from pipeline.ledger.entries import Order
from pipeline.params import SPLITS, Data, Prepare, Town
from pipeline.stages import prepare
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
    source, pool, test = (artifacts.load_manifest(split) for split in SPLITS)
    assert [len(source), len(pool), len(test)] == [4, 6, 4]
    assert pool["image"].tolist()[0] == "train/0001TP_000000.jpg"  # below the root, posix
    assert pool["mask"].tolist()[0] == "trainannot/0001TP_000000.png"
    for split, frame in (("source", source), ("pool", pool), ("test", test)):
        for row in frame.itertuples():
            root = Path("raw/gta5" if split == "source" else "raw/camvid")
            assert (row.height, row.width) == fakes.SIZE
            assert storage.sha256(root / row.image) == row.sha256
            assert row.mask_sha256 == ("" if split == "pool" else storage.sha256(root / row.mask))
    assert artifacts.load_images("r00").equals(pool)
    assert artifacts.load_labels("r00") == []
    assert list(paths.TOWN.iterdir()) == []


@pytest.mark.parametrize("split", SPLITS)
def test_every_key_of_a_set_is_heeded(split: str, settings: Prepare) -> None:
    """Another part or folder has other images, another layout is not the one that the folder has."""
    fakes.write("gta5", Path("other/gta5"), seed=4)
    for part in ("train", "val"):
        fakes.write("camvid", Path("other/camvid"), part, seed=5 + len(part))
    fakes.write("camvid", Path("raw/camvid"), "test", seed=6)
    prepare.run(prepare=settings)
    before = artifacts.load_manifest(split)["sha256"].tolist()
    data = getattr(settings, split)
    root = "other/gta5" if split == "source" else "other/camvid"
    prepare.run(prepare=settings.model_copy(update={split: data.model_copy(update={"root": root})}))
    assert set(artifacts.load_manifest(split)["sha256"]).isdisjoint(before)
    if split != "source":  # GTA5 has no parts
        prepare.run(prepare=settings.model_copy(update={split: data.model_copy(update={"split": "test"})}))
        assert set(artifacts.load_manifest(split)["sha256"]).isdisjoint(before)
    wrong = data.model_copy(update={"dataset": "cityscapes"})
    with pytest.raises(UserError, match="leftImg8bit"):
        prepare.run(prepare=settings.model_copy(update={split: wrong}))


@pytest.mark.parametrize("classes", ["camvid11", "cityscapes19"])
def test_classes_are_those_that_params_name(classes: str, settings: Prepare) -> None:
    prepare.run(prepare=settings.model_copy(update={"classes": classes}))
    assert artifacts.load_classes() == CLASS_SETS[classes]
    assert f"n_{CLASS_SETS[classes].names[0]}" in artifacts.load_manifest("source")


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
    assert [len(artifacts.load_manifest(split)) for split in SPLITS] == [3, 2, 1]
    again = [artifacts.load_manifest(split)["sha256"].tolist() for split in SPLITS]
    prepare.run(prepare=town)
    assert again == [artifacts.load_manifest(split)["sha256"].tolist() for split in SPLITS]


def test_train_ids_in_a_layout_of_label_ids_are_refused(settings: Prepare) -> None:
    for path in Path("raw/gta5/labels").iterdir():
        rng = np.random.default_rng(0)
        fakes.mask(path, rng.choice([0, 1, 2, 8, 10, 13, 255], fakes.SIZE, p=[0.4, 0.1, 0.2, 0.1, 0.1, 0.05, 0.05]))
    with pytest.raises(UserError, match=r"source: the masks look like labelTrainIds: .*convert them to labelIds"):
        prepare.run(prepare=settings)
    assert not paths.manifest("source").exists()


def test_what_is_odd_but_may_be_meant_is_told(settings: Prepare, capsys: pytest.CaptureFixture[str]) -> None:
    for path in Path("raw/gta5/labels").iterdir():
        fakes.mask(path, np.where(np.asarray(Image.open(path)) == 7, 7, 23))
    for path in Path("raw/camvid/valannot").iterdir():
        fakes.mask(path, np.full(fakes.SIZE, 1))
    Path("raw/gta5/images/IMG_1.heic").write_bytes(b"x")
    exif = Image.Exif()
    exif[0x0112] = 3
    with Image.open("raw/camvid/val/0001TP_000000.jpg") as file:
        file.save("raw/camvid/val/0001TP_000000.jpg", exif=exif)
    prepare.run(prepare=settings)
    said = capsys.readouterr().out
    assert "warning: source: 1 files have a suffix that is not read (.heic) and are passed over" in said
    assert "warning: test: raw/camvid/val/0001TP_000000.jpg is turned by its EXIF tag, its mask is not: see" in said
    assert "Building is 0.0% of the source and 100.0% of the test: do their ids mean the same?" in said


def test_an_unlabelled_folder_of_photos_needs_no_class_list(settings: Prepare) -> None:
    for number in range(3):
        fakes.image(Path(f"raw/photos/images/{number}.jpg"), np.random.default_rng(number))
    photos = settings.model_copy(update={"pool": Data(dataset="folder", root="raw/photos")})
    prepare.run(prepare=photos)
    assert artifacts.load_manifest("pool")["key"].tolist() == ["0", "1", "2"]
    fakes.mask(Path("raw/photos/masks/0.png"), np.zeros(fakes.SIZE))
    with pytest.raises(UserError, match=r"the class list raw/photos/classes\.csv is missing"):
        prepare.run(prepare=photos)


def bought(key: str, image: str = "") -> None:
    ledger.append([Order("r01", key, "oracle", "camvid11", 0.5, 5.0, 0.5, "", "draw", image=image)])


POOL = Path("raw/camvid/train")


def test_a_bought_image_that_left_the_pool_is_named_and_put_back(settings: Prepare) -> None:
    bought("0001TP_000002")
    path, kept = POOL / "0001TP_000002.jpg", Path("kept.jpg")
    path.rename(kept)
    with pytest.raises(UserError, match="the pool lacks '0001TP_000002', which r01 has bought: put its file back and"):
        prepare.run(prepare=settings)
    assert not paths.manifest("pool").exists()
    kept.rename(path)
    prepare.run(prepare=settings)


def test_a_bought_image_that_has_to_stay_out_can(settings: Prepare) -> None:
    bought("0001TP_000002@1x2-0-1")
    (POOL / "0001TP_000002.jpg").unlink()
    with pytest.raises(UserError, match=r"run `python -m pipeline (remove 0001TP_000002)`") as error:
        prepare.run(prepare=settings)
    word = str(error.value).rpartition("remove ")[2].strip("`")
    remove.run([word])
    prepare.run(prepare=settings)
    assert "0001TP_000002" not in artifacts.load_manifest("pool")["key"].tolist()


def test_a_bought_image_that_was_renamed_is_found_by_its_content(settings: Prepare) -> None:
    bought("0001TP_000002", storage.sha256(POOL / "0001TP_000002.jpg"))
    (POOL / "0001TP_000002.jpg").rename(POOL / "street.jpg")
    with pytest.raises(UserError, match="'0001TP_000002', which r01 has bought: it is called 'street' now, so give"):
        prepare.run(prepare=settings)


def test_a_bought_image_that_was_changed_is_told_or_refused(
    settings: Prepare, capsys: pytest.CaptureFixture[str]
) -> None:
    path = POOL / "0001TP_000002.jpg"
    bought("0001TP_000002", storage.sha256(path))
    save_mask(paths.mask("0001TP_000002"), np.zeros(fakes.SIZE, np.uint8))
    fakes.image(path, np.random.default_rng(9))
    prepare.run(prepare=settings)
    assert "warning: pool: 1 images were changed after they had been bought, '0001TP_000002'" in capsys.readouterr().out
    fakes.image(path, np.random.default_rng(9), (12, 16))
    with pytest.raises(UserError, match="which r01 has bought, is 16x12 now, and its label 32x24: put the image back"):
        prepare.run(prepare=settings)


def test_doubles_in_the_pool_are_told(settings: Prepare, capsys: pytest.CaptureFixture[str]) -> None:
    (POOL / "copy.jpg").write_bytes((POOL / "0001TP_000000.jpg").read_bytes())
    prepare.run(prepare=settings)
    assert (
        "warning: pool: 1 images have the same content as another, raw/camvid/train/copy.jpg" in capsys.readouterr().out
    )
