"""Blocks: the geometry, then the whole loop on them, in this process, against what is known without it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import __main__, artifacts, datasets, ledger, paths
from pipeline.annotators.oracle import known_label
from pipeline.commands.rehearse import _is_ours
from pipeline.errors import UserError
from pipeline.images import blocks, reading, resizing
from pipeline.images.blocks import Block, Box
from pipeline.images.classes import CLASS_SETS, IGNORE
from pipeline.images.items import Item, by_image, id_table_of_labels, labelled_items
from pipeline.images.masks import load_mask, save_mask
from pipeline.images.seen import seen_boxes, seen_crop
from pipeline.params import Augment
from pipeline.params_file import load, parse, read_yaml
from pipeline.stages import tune
from pipeline.stages.running import run
from pipeline.training import batches
from tests import fakes, repo

CLASSES = CLASS_SETS["cityscapes19"]
GRIDS = st.tuples(st.integers(1, 5), st.integers(1, 5))
SIZES = st.tuples(st.integers(5, 40), st.integers(5, 40))


@settings(max_examples=30)
@given(GRIDS, SIZES)
def test_blocks_tile_the_image_and_pasted_crops_are_the_mask(grid: tuple[int, int], size: tuple[int, int]) -> None:
    mask = np.random.default_rng([*grid, *size]).integers(0, 19, size, np.uint8)
    names = blocks.keys("a", grid)
    times = np.zeros(size, int)
    for name in names:
        block = blocks.parse(name)
        assert block is not None
        top, left, bottom, right = block.box(size)
        times[top:bottom, left:right] += 1
        assert block.box(size).size == (bottom - top, right - left)
        assert abs((bottom - top) - size[0] / grid[0]) <= 1 >= abs((right - left) - size[1] / grid[1])
    assert (times == 1).all()
    crops = [(name, blocks.crop(mask, name)) for name in names]
    np.testing.assert_array_equal(blocks.paste(crops, size), mask)
    assert sum(map(blocks.share, names)) == pytest.approx(1)

    some = blocks.paste(crops[1:], size)  # what nobody bought counts for nothing
    top, left, bottom, right = Block("a", grid, 0, 0).box(size)
    assert (some[top:bottom, left:right] == IGNORE).all()
    assert ((some == mask) | (some == IGNORE)).all()
    assert (some == IGNORE).sum() == (bottom - top) * (right - left)


@settings(max_examples=30)
@given(st.text(min_size=1), GRIDS)
def test_key_says_which_block_it_is(image: str, grid: tuple[int, int]) -> None:
    names = blocks.keys(image, grid)
    assert len(set(names)) == len(names) == grid[0] * grid[1]
    for number, name in enumerate(names):
        assert blocks.parse(name) == Block(image, grid, *divmod(number, grid[1]))
        assert (blocks.image_of(name), blocks.grid_of(name)) == (image, grid)


def test_other_keys_are_those_of_images() -> None:
    for name in (
        "a",
        "a@2x2",
        "a@2x2-2-0",
        "a@2x2-0-2",
        "a@02x2-0-0",
        "a@2x2-00-0",
        "a@0x2-0-0",
        "@2x2-0-0",
        "a@2x2-0-1 ",
    ):
        assert blocks.parse(name) is None
        assert (blocks.keys(name, None), blocks.image_of(name), blocks.share(name)) == ([name], name, 1)
        whole = np.zeros((3, 4), np.uint8)
        assert blocks.crop(whole, name) is whole
        assert blocks.paste([(name, whole)], (3, 4)).shape == (3, 4)


@settings(max_examples=30)
@given(GRIDS, SIZES, SIZES)
def test_network_sees_a_pixel_in_the_block_whose_label_it_gets(
    grid: tuple[int, int], size: tuple[int, int], seen: tuple[int, int]
) -> None:
    names = blocks.keys("a", grid)
    crops = [(name, blocks.crop(np.full(size, number, np.uint8), name)) for number, name in enumerate(names)]
    labels = resizing.resize_mask(blocks.paste(crops, size), seen)
    boxes = seen_boxes(grid, size, seen)
    found = np.full(seen, IGNORE, np.uint8)
    for number, (top, left, bottom, right) in enumerate(boxes):
        found[top:bottom, left:right] = number
    np.testing.assert_array_equal(found, labels)
    for name, box in zip(names, boxes, strict=True):
        assert seen_crop(np.zeros(seen, np.float32), name, size).shape == box.size


@pytest.mark.parametrize(
    ("keys", "said"),
    [(["a"], "1 image"), (["a", "b"], "2 images"), (["a@2x2-0-0"], "1 block"), (["a@2x2-0-0"] * 3, "3 blocks")],
)
def test_they_are_counted_in_words(keys: list[str], said: str) -> None:
    assert blocks.counted(keys) == said


def test_blocks_without_a_pixel_are_a_sentence() -> None:
    assert seen_boxes((1, 1), (24, 32), (16, 32)) == [Box(0, 0, 16, 32)]
    with pytest.raises(
        UserError, match=r"score.blocks is \[17, 2\], but an image of 24x32.*16x32.*: cut it into fewer"
    ):
        seen_boxes((17, 2), (24, 32), (16, 32))


def test_pasting_refuses_a_crop_of_another_size() -> None:
    with pytest.raises(UserError, match=r"the label of 'a@2x2-0-0' is 3x4, its part of the image 2x4"):
        blocks.paste([("a@2x2-0-0", np.zeros((3, 4), np.uint8))], (4, 8))


# training


@pytest.mark.parametrize(
    ("share", "processes", "replayed"), [(0.25, 1, 2), (0.95, 1, 7), (0.95, 2, 6), (0.99, 8, 0), (0.0, 2, 0)]
)
def test_every_process_learns_from_a_bought_label(share: float, processes: int, replayed: int) -> None:
    of = {"likelihood": {"steps": 1, "batch": 8, "lr": 1.0}, "reward": {"steps": 0, "lr": 1.0}, "source_share": share}
    settings = tune.Tune.model_validate(of)
    assert tune.replayed_images(settings, processes) == replayed
    batch = batches.plan([(3, 8 - replayed), (20, replayed)], seed=1, step=3)
    for rank in range(processes):
        assert any(position < 3 for position, _ in batch[rank::processes])


def test_a_crop_that_shows_no_label_is_drawn_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = fakes.image(tmp_path / "a.png", np.random.default_rng(0))
    name = "a@4x4-0-0"
    mask = fakes.mask(tmp_path / f"{name}.png", np.full((6, 8), 3))
    corner = Item("a", image, None, id_table_of_labels(19), ((name, mask),))
    augment = Augment(scale=(2.0, 2.0), flip=0.0, colour=0.0, blur=0.0, noise=0.0)
    drawn = batches._Augmented([(corner, 0)], fakes.SIZE, augment)

    def empty() -> list[bool]:
        return [bool((drawn[0, seed][1] == IGNORE).all()) for seed in range(0, 1000, 50)]

    anew = empty()
    monkeypatch.setattr(batches, "ATTEMPTS", 1)
    once = empty()
    assert 5 < sum(once) < 20  # three of four such crops miss the corner
    assert sum(anew) < sum(once)
    assert all(before or not after for before, after in zip(once, anew, strict=True))


# the loop

PARAMS = """\
budget:
  r01: {after: r00, images: 6}
  r02: {after: r01, minutes: 12.5}
seed: 1
prepare:
  classes: cityscapes19
  source: {dataset: gta5, root: source}
  pool: {dataset: cityscapes, root: pool}
  test: {dataset: cityscapes, root: test, split: val}
model: {name: small, size: [16, 32], width: 8}
pretrain: {steps: 2, batch: 2, lr: 1e-3}
score: {unit: block, blocks: [2, 2]}
annotate: {annotator: oracle, oracle_minutes: 10}
tune:
  likelihood: {steps: 2, batch: 4, lr: 1e-3}
  reward: {steps: 2, lr: 1e-3}
  held_out: 0.3
compute: {accelerator: cpu, workers: 0}
"""


def stage(*words: str) -> None:
    assert __main__.main(list(words)) == 0, words


def buy(name: str, *, train: bool = True) -> None:
    for what in (
        "score",
        "select",
        "forecast",
        "predict",
        "annotate",
        "audit",
        *(("tune", "evaluate") if train else ()),
    ):
        stage(what, name)


@pytest.fixture(scope="module")
def looped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rounds from an untrained model to the report, 4 images of 24x32 in the pool, 4 blocks each."""
    folder = tmp_path_factory.mktemp("looped") / "project"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("DVC_EXP_NAME", raising=False)
        paths.PARAMS.write_text(PARAMS)
        fakes.write("gta5", Path("source"), seed=1, count=3)
        fakes.write("cityscapes", Path("pool"), seed=2, count=4)
        fakes.write("cityscapes", Path("test"), "val", seed=3, count=2)
        repo.initialise(folder)
        stage("prepare")
        stage("pretrain")
        stage("evaluate", "r00")
        buy("r01")
        buy("r02")
        stage("report")
    return folder


@pytest.fixture
def project(looped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(looped, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.delenv("DVC_EXP_NAME", raising=False)
    return tmp_path / "project"


def truth(key: str) -> np.ndarray:
    """The known mask of a whole image."""
    mask = artifacts.load_manifest("pool", Path("pool")).set_index("key").at[blocks.image_of(key), "mask"]
    return reading.read_mask(Path(mask), datasets.table("cityscapes", Path("pool"), CLASSES))


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What a stage refuses with, on one line."""
    capsys.readouterr()
    assert __main__.main(list(words)) == 1
    return " ".join(capsys.readouterr().err.split("\n")).strip()


def test_every_block_is_scored_once_bought_once_and_stays_the_crop_of_its_label(project: Path) -> None:
    pool = list(artifacts.load_manifest("pool")["key"])
    every = [name for key in pool for name in blocks.keys(key, (2, 2))]
    first, second = (artifacts.load_scores(name) for name in ("r01", "r02"))
    earlier, later = (list(artifacts.load_selection(name)["key"]) for name in ("r01", "r02"))
    bought = earlier + later
    assert [len(earlier), len(later)] == [6, 5]  # 12.5 minutes at a quarter of 10 each
    assert list(first["key"]) == every
    assert list(first["image"]) == [key for key in pool for _ in range(4)]
    assert list(second["key"]) == [name for name in every if name not in earlier]
    assert len({blocks.image_of(key) for key in earlier}) < 6  # several of one image

    book = ledger.load()
    assert [order.key for order in book.orders] == [delivery.key for delivery in book.deliveries] == bought
    assert len(set(bought)) == 11
    assert {delivery.minutes for delivery in book.deliveries} == {2.5}
    assert second["minutes"].to_numpy() == pytest.approx(2.5)
    assert sorted(path.stem for path in paths.LABELS.glob("*.png")) == sorted(bought)
    for key in bought:
        block = blocks.parse(key)
        assert block is not None
        half = truth(key)[12 * block.row : 12 * (block.row + 1), 16 * block.col : 16 * (block.col + 1)]
        np.testing.assert_array_equal(load_mask(paths.mask(key)), half)

    before = paths.LEDGER.read_bytes(), paths.labels("r02").read_bytes()
    for name in ("select", "annotate"):
        stage(name, "r02")
    assert before == (paths.LEDGER.read_bytes(), paths.labels("r02").read_bytes())


def test_blocks_of_one_image_are_one_to_learn_from(project: Path) -> None:
    keys = [row["key"] for row in artifacts.load_labels("r02")]
    labels = labelled_items(keys, artifacts.load_manifest("pool").set_index("key"), 19)
    assert [one.key for one in labels] == keys
    merged = by_image(labels)
    assert [one.key for one in merged] == list(dict.fromkeys(map(blocks.image_of, keys)))
    for one in [*labels, *merged]:
        mask, of = one.read_mask(fakes.SIZE), {key for key, _ in one.blocks}
        expected = np.full(fakes.SIZE, IGNORE, np.uint8)
        for name in of:
            top, left, bottom, right = blocks.parse(name).box(fakes.SIZE)
            expected[top:bottom, left:right] = truth(name)[top:bottom, left:right]
        np.testing.assert_array_equal(mask, expected)
    assert sorted(path for one in merged for path in one.masks) == sorted(map(paths.mask, keys))
    learnt, held_out = tune._hold_out(merged, 0.3)
    assert {one.key for one in learnt}.isdisjoint({one.key for one in held_out})
    assert held_out


def test_audit_predicts_of_a_block_what_its_score_said(project: Path) -> None:
    rng = np.random.default_rng(0)
    rows = artifacts.load_labels("r01")
    for row in rows:  # labels without IGNORE
        row["sha256"] = save_mask(paths.mask(row["key"]), rng.integers(0, 19, (12, 16), np.uint8))
    artifacts.save_labels("r01", rows)
    stage("audit", "r01")
    table, scores = artifacts.load_audit_table("r01"), artifacts.load_scores("r01").set_index("key")
    assert list(table["key"]) == [row["key"] for row in rows]
    np.testing.assert_allclose(table["predicted"], scores.loc[table["key"], "gain"], rtol=1e-4)
    parts = [f"gain_{name}" for name in CLASSES.names]
    np.testing.assert_allclose(
        table[[f"predicted_{name}" for name in CLASSES.names]], scores.loc[table["key"], parts], rtol=1e-3, atol=1e-6
    )
    assert (table["realised"] > 0).all()


def test_prediction_of_a_block_is_cut_out_of_that_of_its_image(project: Path) -> None:
    image = artifacts.load_manifest("pool")["key"].iloc[1]
    repo.select("r01", [image, *blocks.keys(image, (2, 2))])
    stage("predict", "r01")
    whole = artifacts.load_prediction("r01", image)
    crops = [(name, artifacts.load_prediction("r01", name)) for name in blocks.keys(image, (2, 2))]
    np.testing.assert_array_equal(blocks.paste(crops, fakes.SIZE), whole)
    for name, _ in crops:
        assert reading.read_image(paths.gain_picture("r01", name)).shape == (12, 16, 3)


def test_forecast_counts_a_block_as_its_share_of_an_image(project: Path) -> None:
    image = artifacts.load_manifest("pool")["key"].iloc[0]
    found = []
    for keys in ([image], blocks.keys(image, (2, 2))):
        repo.select("r01", keys)
        selection = artifacts.load_selection("r01").assign(gain=1 / len(keys))
        artifacts.save_selection("r01", selection)
        stage("forecast", "r01")
        found.append(artifacts.load_forecast("r01"))
    assert [one["images"] for one in found] == [1, 4]
    for name in ("expected", "low", "high"):
        assert found[0][name] == pytest.approx(found[1][name])


def test_no_more_panels_are_drawn_than_params_say(project: Path) -> None:
    shutil.rmtree(paths.REPORTS)  # as DVC does before it runs the stage
    run("report", parse(read_yaml(paths.PARAMS) | {"report": {"panels": 2}}, "params.yaml"))
    assert len(list(paths.SAMPLES.glob("*.png"))) == 4  # of each of two rounds, of which one bought 6 and one 5


def test_report_and_status_count_blocks(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(pd.read_csv(paths.ROUNDS_TABLE)["labels"]) == [0, 6, 11]
    panels = sorted(path.name for path in paths.SAMPLES.glob("*.png"))
    assert len(panels) == 11
    assert all("@2x2-" in name for name in panels)
    capsys.readouterr()
    assert __main__.main(["status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["spent"] == {"images": 11, "minutes": 27.5}


@pytest.mark.parametrize(
    ("now", "called"),
    [
        ("{}", "image"),
        ("{unit: image, blocks: [2, 2]}", "image"),
        ("{unit: block, blocks: [1, 2]}", r"block with score.blocks [1, 2]"),
    ],
)
def test_another_unit_is_refused_once_something_is_bought(
    project: Path, now: str, called: str, capsys: pytest.CaptureFixture[str]
) -> None:
    book, masks = paths.LEDGER.read_bytes(), sorted(paths.LABELS.glob("*"))
    paths.PARAMS.write_text(PARAMS.replace("{unit: block, blocks: [2, 2]}", now))
    says = f"score.unit is {called}, but data/ledger.jsonl has"
    before = "and its unit is block with score.blocks [2, 2]: set score.unit back to block with score.blocks [2, 2], or"
    for name in ("r01", "r02"):
        found = said(capsys, "score", name)
        assert says in found
        assert before in found

    # scores and a selection of the other unit may come from elsewhere: DVC's run cache, another branch
    pool = artifacts.load_manifest("pool")["key"]
    others = [name for key in pool for name in blocks.keys(key, load().score.grid)][:7]
    scores = artifacts.load_scores("r01")[:7].assign(key=others[:7] if len(others) > 6 else others + list("xyz"))
    artifacts.save_scores("r02", scores)
    assert says in said(capsys, "select", "r02")
    repo.select("r02", others[:1])
    assert says in said(capsys, "annotate", "r02")
    assert paths.LEDGER.read_bytes() == book
    assert sorted(paths.LABELS.glob("*")) == masks


def test_methods_that_compare_features_are_refused(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths.PARAMS.write_text(PARAMS + "select: {method: coverage}\n")
    assert "select.method is coverage, which compares features, and score.unit is block" in said(
        capsys, "select", "r01"
    )
    paths.PARAMS.write_text(PARAMS + "select: {start: clue, method: draw}\n")
    assert "select.start is clue, which compares features, and score.unit is block" in said(capsys, "select", "r01")
    paths.PARAMS.write_text(PARAMS.replace("unit: block,", "unit: block, features: true,"))
    assert "features is true and unit is block, but features are of whole images" in said(capsys, "score", "r01")


def test_an_image_that_is_called_like_a_block_is_refused(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = next(Path("pool").rglob("*_leftImg8bit.png"))
    image.rename(image.with_name("ulm@2x2-0-1_leftImg8bit.png"))
    assert "the image 'ulm@2x2-0-1' of the pool is called like a block of 'ulm'" in said(capsys, "prepare")


def test_doctor_counts_blocks_and_knows_where_there_are_none(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    several = PARAMS.replace("images: 6", "images: 17")
    paths.PARAMS.write_text(several)
    assert __main__.main(["doctor"]) == 1
    assert "problem: the budget asks for 17 blocks, the pool has 16: lower `budget`" in capsys.readouterr().out
    paths.PARAMS.write_text(several.replace("oracle_minutes: 10", "images: 's3://b/{key}.png'"))
    assert __main__.main(["status"]) == 1  # every command knows
    said = capsys.readouterr().err
    assert "annotate.images is 's3://b/{key}.png', where no blocks are: set it to upload or local_files" in said


def test_known_label_of_a_block_is_asked_by_whoever_answers(project: Path) -> None:
    pool = artifacts.load_manifest("pool", Path("pool")).set_index("key", drop=False)
    table = artifacts.load_ids("pool", CLASSES)
    name = blocks.keys(pool.index[2], (2, 2))[3]
    np.testing.assert_array_equal(known_label(name, pool, table), truth(name)[12:, 16:])
    digest = pool["sha256"].iloc[2]
    assert _is_ours({"key": f"r01/{name}", "sha256": digest}, pool)
    assert not _is_ours({"key": f"r01/{pool.index[2]}@2x2-9-9", "sha256": digest}, pool)
    pool["height"] = 25
    with pytest.raises(UserError, match=f"is 24x32, its image 25x32 .* the oracle cannot cut '{name}' out"):
        known_label(name, pool, table)
