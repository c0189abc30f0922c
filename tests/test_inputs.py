"""Files that DVC does not watch are held against what the stages have recorded of them."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline import __main__, artifacts, inputs, ledger, params_file, paths, storage
from pipeline.errors import UserError
from pipeline.ledger.entries import Order
from pipeline.params import SPLITS, Model, Params
from pipeline.stages import prepare
from tests import fakes, repo

NAMES = ["Road", "Sky", "Car", "Tree", "Building", "Pole", "Pavement", "SignSymbol", "Fence", "Pedestrian", "Bicyclist"]
LIST = Path("lists/street.csv")


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three folders of one's own, prepared in the classes of a list of one's own."""
    monkeypatch.chdir(tmp_path)
    for seed, split in enumerate(SPLITS):
        fakes.write("folder", Path(split), seed=seed)
    LIST.parent.mkdir()
    write(NAMES)
    paths.PARAMS.write_text(
        repo.PARAMS.replace("cityscapes19", str(LIST)).replace("gta5", "folder").replace("cityscapes,", "folder,")
    )
    prepare.run(prepare=params().prepare)


def params() -> Params:
    return params_file.load()


def write(names: list[str], more: str = "") -> None:
    LIST.write_text("id,name\n" + "".join(f"{number},{name}\n" for number, name in enumerate(names)) + more)


def order(*names: str, classes: str = "/elsewhere/street.csv") -> None:
    ledger.append([Order("r01", "street 0", "oracle", classes, 1.0, 10.0, 1.0, ledger.now(), "draw", names)])


def test_what_was_prepared_is_what_is_there() -> None:
    assert inputs.changed(params()) == []
    assert artifacts.load_classes().names == tuple(NAMES)


def test_it_is_the_content_that_counts_not_the_place_nor_the_ids_nor_the_void() -> None:
    LIST.write_text("id,name\n" + "".join(f"{3 * number},{name}\n" for number, name in enumerate(NAMES)) + "99,void\n")
    other = Path("other.csv")
    shutil.move(LIST, other)
    paths.PARAMS.write_text(paths.PARAMS.read_text().replace(str(LIST), str(other)))
    assert inputs.changed(params()) == []


def test_a_list_that_is_not_on_this_disk_stops_nobody() -> None:
    LIST.unlink()
    shutil.rmtree("source")
    assert inputs.changed(params()) == []


@pytest.mark.parametrize(
    "names", [[*NAMES, "Bus"], NAMES[::-1], NAMES[:-1], ["road", *NAMES[1:]]], ids=["more", "order", "fewer", "renamed"]
)
def test_another_list_is_noticed_by_every_stage_and_prepared_anew(
    names: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    write(names)
    (sentence,) = inputs.changed(params())
    assert "prepare.classes (lists/street.csv) is no longer what data/manifests/classes.csv has" in sentence
    assert "run `dvc repro -f prepare`, then `dvc repro`" in sentence
    assert __main__.main(["select", "r01"]) == 1
    assert sentence in capsys.readouterr().err
    write([*NAMES, "Bus"])  # the others lack a class of the folders' own lists
    assert __main__.main(["prepare"]) == 0
    assert inputs.changed(params()) == []


def test_a_list_that_cannot_be_read_is_one_sentence_among_the_others() -> None:
    LIST.write_text("a list of names\nroad\n")
    (sentence,) = inputs.changed(params())
    assert sentence.startswith("lists/street.csv line")


def test_another_list_after_labels_were_bought_is_refused_before_anything_is_made_anew(
    capsys: pytest.CaptureFixture[str],
) -> None:
    order(*NAMES)
    before = paths.CLASSES.read_bytes()
    write(["Bus", *NAMES])
    for command in ("prepare", "pretrain", "annotate"):
        assert __main__.main([command] if command != "annotate" else [command, "r01"]) == 1
        error = capsys.readouterr().err
        assert "labels were bought in the classes Road, Sky, " in error
        assert "(r01), but now they are Bus, Road, " in error
    assert paths.CLASSES.read_bytes() == before


def test_the_same_list_elsewhere_goes_on_with_what_was_bought() -> None:
    order(*NAMES)
    assert ledger.classes().names == tuple(NAMES)
    prepare.run(prepare=params().prepare)


@pytest.mark.parametrize("known", [True, False])
def test_an_older_order_names_a_path_and_the_source_model_its_classes(known: bool) -> None:
    order()
    assert ledger.load().orders[0].class_names == ()
    if known:
        artifacts.save_model("r00", {}, {"classes": NAMES[::-1]})
        with pytest.raises(UserError, match="labels were bought in the classes Bicyclist, "):
            prepare.run(prepare=params().prepare)
        artifacts.save_model("r00", {}, {"classes": NAMES})
    prepare.run(prepare=params().prepare)


def test_an_older_order_in_a_set_of_ours_is_known_by_its_name() -> None:
    order(classes="camvid11")
    with pytest.raises(UserError, match="labels were bought in the classes Sky, Building, "):
        ledger.classes()


def test_a_colour_is_noticed_but_changes_no_class() -> None:
    before = paths.CLASSES.read_bytes(), paths.COLOURS.read_bytes()
    LIST.write_text("id,name,red,green,blue\n" + "".join(f"{n},{name},{n},0,0\n" for n, name in enumerate(NAMES)))
    order(*NAMES)
    assert len(inputs.changed(params())) == 1
    prepare.run(prepare=params().prepare)
    assert paths.CLASSES.read_bytes() == before[0]  # what the trainings depend on
    assert paths.COLOURS.read_bytes() != before[1]


@pytest.mark.parametrize("listed", [True, False])
def test_a_pool_without_masks_has_no_ids_to_mean_anything(listed: bool) -> None:
    shutil.rmtree("pool/masks")
    if not listed:
        Path("pool/classes.csv").unlink()
    prepare.run(prepare=params().prepare)
    assert inputs.changed(params()) == []


def test_a_folders_own_list_with_other_ids_is_noticed() -> None:
    path = Path("test/classes.csv")
    path.write_text(path.read_text().replace("1,Bicyclist", "1,Car").replace("3,Car", "3,Bicyclist"))
    (sentence,) = inputs.changed(params())
    assert "what the ids in the masks of prepare.test (test) mean is no longer what data/manifests/test_ids" in sentence
    before = paths.manifest("source").read_bytes(), paths.ids("source").read_bytes(), paths.ids("test").read_bytes()
    prepare.run(prepare=params().prepare)
    after = paths.manifest("source").read_bytes(), paths.ids("source").read_bytes(), paths.ids("test").read_bytes()
    assert before[:2] == after[:2]  # so no training runs again
    assert before[2] != after[2]


def test_a_corrected_test_mask_changes_the_tests_manifest_alone() -> None:
    files = sorted(paths.MANIFESTS.iterdir())
    before = {path.name: path.read_bytes() for path in files}
    fakes.mask(next(Path("test/masks").iterdir()), np.ones(fakes.SIZE))
    prepare.run(prepare=params().prepare)
    assert [path.name for path in files if path.read_bytes() != before[path.name]] == ["test.csv"]


def test_the_same_data_under_another_root_is_the_same() -> None:
    before = {path.name: path.read_bytes() for path in paths.MANIFESTS.iterdir()}
    for split in SPLITS:
        shutil.move(split, f"moved {split}")
    paths.PARAMS.write_text(paths.PARAMS.read_text().replace("root: ", "root: ./moved "))
    prepare.run(prepare=params().prepare)
    assert {path.name: path.read_bytes() for path in paths.MANIFESTS.iterdir()} == before


def test_weights_that_were_changed_in_place_are_noticed() -> None:
    file = Path("encoder.pt")
    file.write_bytes(b"one")
    model = Model(name="unet", size=(32, 64), weights=str(file))
    assert inputs.weights(model) == []  # nothing is trained yet
    storage.save_json(paths.weights("r00"), {"sha256": storage.sha256(file)})
    assert inputs.weights(model) == []
    file.write_bytes(b"two")
    (sentence,) = inputs.weights(model)
    assert "model.weights (encoder.pt) is not the file that the source model was trained from" in sentence
    assert "`dvc repro -s -f pretrain`" in sentence
