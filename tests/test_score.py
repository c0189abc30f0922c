"""The stage `score` against what its parts say of one image at a time; members and features of the pool."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline import artifacts, datasets, gain, ledger, paths, streams
from pipeline.errors import UserError
from pipeline.gain import ACQUISITIONS, features, shortfall
from pipeline.images import blocks, region_maps, region_scores
from pipeline.images.classes import CLASS_SETS, IGNORE
from pipeline.images.items import items_of
from pipeline.images.masks import save_mask
from pipeline.images.region_scores import RegionScores
from pipeline.ledger.entries import Order
from pipeline.networks import inference, saved
from pipeline.networks.calibration import of_temperature
from pipeline.networks.devices import Devices
from pipeline.params import Compute
from pipeline.stages import score
from tests import fakes, repo

CLASSES = CLASS_SETS["cityscapes19"]
TEMPERATURE = 0.5


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    repo.write(tmp_path)
    paths.scores("r01").unlink()
    source_model()


def source_model(name: str = "small") -> None:
    settings = repo.params(model={"name": name, "size": [16, 32], "width": 32}).model
    network = saved.new_network(settings, CLASSES, torch.Generator().manual_seed(3))
    for part in network.parts.head:
        network.body.get_submodule(part).weight.data *= 8  # an untrained network says the same of every class
    artifacts.save_model("r00", network.state_dict(), saved.describe(settings, CLASSES, of_temperature(TEMPERATURE)))


def run(round_name: str = "r01", batch: int = 3, model: str = "small", **changes: Any) -> np.ndarray:
    """Run the stage; the gains by class, in the pool's order."""
    settings = repo.params(score=changes, model={"name": model, "size": [16, 32], "width": 32})
    compute = Compute(accelerator="cpu", workers=0, batch=batch)
    line = settings.budget[round_name].model_copy(update={"after": "r00"})
    score.run(
        round_name, line, seed=1, roots=settings.roots, model=settings.model, score=settings.score, compute=compute
    )
    scores = artifacts.load_scores(round_name)
    gains = scores[[f"gain_{name}" for name in CLASSES.names]].to_numpy()
    np.testing.assert_allclose(gains.sum(1), scores["gain"], rtol=1e-6)
    return gains


def buy(*rounds: int, mask: np.ndarray | None = None) -> list[str]:
    """Labels of so many images in each round, all the same; the keys."""
    keys = list(artifacts.load_manifest("pool")["key"])[: sum(rounds)]
    names = [f"r{number}" for number, count in enumerate(rounds, 11) for _ in range(count)]
    remember(pd.DataFrame({"key": keys} | dict.fromkeys(("gain", *artifacts.COST_COLUMNS[1:]), 1.0)))
    rows = [{"key": key, "round": name, "minutes": 4, "sha256": ""} for key, name in zip(keys, names, strict=True)]
    artifacts.save_labels("r00", rows)
    for key in keys:
        save_mask(paths.mask(key), np.zeros(fakes.SIZE, np.uint8) if mask is None else mask)
    return keys


def remember(scores: pd.DataFrame) -> None:
    """What the minutes of labels are fitted to, as `annotate` takes it from the scores of their round."""
    artifacts.save_purchases("r00", scores[["key", "gain", *artifacts.COST_COLUMNS[1:]]].to_dict("records"))


def test_images_hold_expected_pixels_and_labelled_ones() -> None:
    """Every row of the labels has three pixels of class 2 and one to ignore; of 24 x 32, the network sees 16 x 32."""
    mask = np.zeros(fakes.SIZE, np.uint8)
    mask[:, :3], mask[:, 3] = 2, IGNORE
    buy(2, 1, mask=mask)
    run(features=True)
    holds = artifacts.load_features("r01").holds
    left = [(out.logits / TEMPERATURE).softmax(1).sum((0, 2, 3)) for out in outputs()[3:]]
    shown = torch.stack(left).double().numpy()
    np.testing.assert_allclose(holds[:5], shown / shown.mean(0), rtol=0.05)  # on cells
    np.testing.assert_allclose(holds[:5].mean(0), 1, rtol=1e-5)
    labelled = 16 * (28 * np.eye(19)[0] + 3 * np.eye(19)[2])
    np.testing.assert_allclose(holds[5:] * shown.mean(0), [labelled] * 3, rtol=0.05)


def test_a_class_that_the_pool_does_not_show_has_nothing_to_teach(monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = torch.tensor([float("nan")] + [0.25] * 18, dtype=torch.float64)  # intersection and union are 0
    monkeypatch.setattr("pipeline.gain.pool.expected_iou", lambda pool, smooth: unknown)
    run(features=True)
    assert artifacts.load_features("r01").iou.tolist() == [0.0] + [0.25] * 18


def test_a_label_that_is_not_here_is_a_sentence() -> None:
    (key,) = buy(1)
    paths.mask(key).unlink()
    with pytest.raises(UserError, match=rf"the label .*{key}.* is not here: run `python -m pipeline join`"):
        run(features=True)


def outputs() -> list[inference.Output]:
    """Of every image of the pool on its own."""
    settings = repo.params(model={"name": "small", "size": [16, 32], "width": 32})
    network, calibration = saved.open_network("r00", settings.model, CLASSES)
    assert calibration == of_temperature(TEMPERATURE)
    frame = artifacts.load_manifest("pool", Path("pool")).assign(mask="")
    items = items_of(frame, datasets.table("cityscapes", Path("pool"), CLASSES))
    compute = Compute(accelerator="cpu", workers=0, batch=1)
    devices = Devices.start(compute)
    return list(inference.outputs(devices, network, items, settings.model.size, compute, "all", with_cells=True))


@pytest.mark.parametrize("name", ACQUISITIONS)
def test_gains_do_not_depend_on_the_batch_nor_on_what_else_is_written(name: str) -> None:
    gains = run(acquisition=name)
    assert (gains >= 0).all()
    assert gains.any()
    kept = paths.scores("r01").read_bytes(), paths.pool("r01").read_bytes()
    np.testing.assert_allclose(run(batch=1, acquisition=name), gains, rtol=1e-3, atol=1e-6)
    run(acquisition=name, features=True)
    assert kept == (paths.scores("r01").read_bytes(), paths.pool("r01").read_bytes())


@pytest.mark.parametrize("name", ["evpi", "bald"])
def test_members_are_drawn_for_the_round_and_more_dropout_tells_them_further_apart(name: str) -> None:
    gains = run(acquisition=name)
    assert np.array_equal(run(acquisition=name), gains)
    assert not np.array_equal(run("r02", acquisition=name), gains)
    assert run(acquisition=name, dropout=0.0).sum() < 1e-3 * gains.sum()
    assert run(acquisition=name, dropout=0.5).sum() > gains.sum()


def test_blend_falls_with_the_rounds_that_have_bought() -> None:
    schedule = {"blend_end": 0.2, "blend_rounds": 2}
    np.testing.assert_allclose(run(acquisition="gain", **schedule), run(acquisition="shortfall"), rtol=1e-6)
    for rounds, blend in (((2,), 0.6), ((2, 1), 0.2), ((2, 1, 1), 0.2)):
        buy(*rounds)
        missing, learnt = run(acquisition="shortfall"), run(acquisition="evpi")
        expected = blend * missing + (1 - blend) * learnt
        np.testing.assert_allclose(run(acquisition="gain", **schedule), expected, rtol=1e-6, atol=1e-9)


def test_worth_comes_from_a_sample_and_the_pool_from_all(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = run(acquisition="evpi")
    pool = artifacts.load_pool("r01")
    shortfalls = [shortfall.observe((out.logits / TEMPERATURE).softmax(1)) for out in outputs()]
    np.testing.assert_allclose(pool[:, :3], torch.cat(shortfalls).sum(0), rtol=1e-4, atol=1e-3)
    asked = []
    original = gain.worth
    monkeypatch.setattr("pipeline.gain.pool.worth", lambda pool, smooth: asked.append(pool) or original(pool, smooth))
    monkeypatch.setattr("pipeline.gain.pool.SAMPLE", 3)
    estimated = run(acquisition="evpi")
    (total,) = asked
    spread = torch.cat([shortfalls[place] for place in (0, 4, 7)]).sum(0) * 8 / 3  # of eight images
    torch.testing.assert_close(total, spread, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(artifacts.load_pool("r01")[:, :3], pool[:, :3], rtol=1e-6)
    assert not np.array_equal(estimated, exact)
    assert np.corrcoef(estimated.sum(1), exact.sum(1))[0, 1] > 0.9


def test_features_are_of_what_is_left_and_of_what_was_bought() -> None:
    bought = buy(2, 1)
    run(features=True)
    found = artifacts.load_features("r01")
    keys = list(artifacts.load_manifest("pool")["key"])
    assert found.keys == [*keys[3:], *bought]
    assert [found.image.dtype, found.by_class.dtype, found.gradient.dtype] == [np.float32, np.float16, np.float32]
    every = outputs()
    order = [keys.index(key) for key in found.keys]
    said = [(every[place].cells.features, (every[place].cells.logits / TEMPERATURE).softmax(1)) for place in order]
    np.testing.assert_allclose(found.image, [f.mean((0, 2, 3)).numpy() for f, _ in said], rtol=1e-4, atol=1e-5)
    features_seed = streams.seed_of(1, "r01", "features")
    projected = features.projection(19, said[0][0].shape[1], torch.Generator().manual_seed(features_seed))
    statistics = torch.cat([shortfall.observe(p) for _, p in said[:5]])  # the pool is what is left
    iou = gain.expected_iou(statistics.sum(0), 0.01)
    for row, (feature, p) in enumerate(said):
        pooled = features.pool(feature, p, torch.full(p.shape[2:], 4.0), projected)  # cells of 2 x 2 pixels
        np.testing.assert_allclose(found.gradient[row], pooled.gradient[0], rtol=1e-3, atol=1e-5)
        alone = features.by_class(pooled.parts, pooled.statistics, iou)[0]
        np.testing.assert_allclose(found.by_class[row].astype(float), alone.double(), rtol=5e-3, atol=5e-3)
    before = paths.features("r01").read_bytes()
    run(features=True, batch=8)
    again = artifacts.load_features("r01")
    np.testing.assert_allclose(again.gradient, found.gradient, rtol=1e-3, atol=1e-5)
    run(features=True)
    assert paths.features("r01").read_bytes() == before


def test_features_that_were_not_asked_for_are_of_no_image() -> None:
    run()
    assert artifacts.load_features("r01").keys == []


def test_model_without_one_last_layer_is_scored_by_what_it_can_do() -> None:
    source_model("lraspp_mobilenet_v3_large")
    assert run(model="lraspp_mobilenet_v3_large").any()
    for asked in ({"acquisition": "evpi"}, {"acquisition": "bald"}, {"features": True}):
        with pytest.raises(UserError, match="this model has 2 last layers"):
            run(model="lraspp_mobilenet_v3_large", **asked)


@pytest.mark.parametrize("name", ["shortfall", "evpi", "gain", "entropy", "bald"])
def test_outputs_that_are_not_finite_are_a_sentence(name: str) -> None:
    state, about = artifacts.load_model("r00")
    for weight in state.values():
        if weight.dim() == 4:
            weight.fill_(3e38)
    artifacts.save_model("r00", state, about)
    first = artifacts.load_manifest("pool")["key"].iloc[0]
    with pytest.raises(UserError, match=f"r01: the probabilities that data/models/r00 gives for '{first}' are not fin"):
        run(acquisition=name, features=True)
    assert not paths.scores("r01").exists()
    assert not paths.features("r01").exists()


# blocks


@pytest.mark.parametrize("name", ["shortfall", "evpi", "gain"])
def test_gains_of_blocks_sum_to_that_of_their_image(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    of_images, pool = run(acquisition=name), artifacts.load_pool("r01")
    effort = artifacts.load_costs("r01")
    passed = []
    original = inference.outputs
    monkeypatch.setattr(
        inference, "outputs", lambda *args, **more: passed.append(len(args[2])) or original(*args, **more)
    )
    of_blocks = run(acquisition=name, unit="block", blocks=[2, 3])
    assert passed == [8] * (1 if name == "shortfall" else 2)  # every image once, and once more for its J and U
    np.testing.assert_allclose(of_blocks.reshape(8, 6, 19).sum(1), of_images, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(artifacts.load_pool("r01"), pool, rtol=1e-4, atol=1e-3)
    scores = artifacts.load_scores("r01")
    images = list(artifacts.load_manifest("pool")["key"])
    assert list(scores["key"]) == [f"{key}@2x3-{row}-{col}" for key in images for row in range(2) for col in range(3)]
    assert scores["minutes"].to_numpy() == pytest.approx(10 / 6)
    assert (artifacts.load_costs("r01")["regions"] >= 1).all()

    whole = run(acquisition=name, unit="block", blocks=[1, 1])
    np.testing.assert_allclose(whole, of_images, rtol=1e-5, atol=1e-9)
    alike = artifacts.load_costs("r01")
    np.testing.assert_allclose(alike.drop(columns="key"), effort.drop(columns="key"), rtol=1e-6)


@pytest.mark.parametrize("name", [name for name, entry in ACQUISITIONS.items() if not entry.in_points])
def test_one_block_is_the_image_and_others_are_means_of_their_own(name: str) -> None:
    of_images = run(acquisition=name)
    np.testing.assert_allclose(run(acquisition=name, unit="block", blocks=[1, 1]), of_images, rtol=1e-5, atol=1e-9)
    if name == "ripu":
        return  # its regions end at the block's border
    halves = run(acquisition=name, unit="block", blocks=[2, 1]).sum(1).reshape(8, 2)
    np.testing.assert_allclose(halves.mean(1), of_images.sum(1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["shortfall", "gain"])
def test_what_is_bought_of_an_image_is_no_longer_of_the_pool(name: str) -> None:
    everything = run(acquisition=name, unit="block")
    keys = list(artifacts.load_scores("r01")["key"])
    bought = [*keys[1:3], *keys[4:8]]  # two blocks of the first image, all of the second
    artifacts.save_labels("r00", [{"key": key, "round": "r11", "minutes": 3.0, "sha256": ""} for key in bought])
    remember(artifacts.load_scores("r01"))
    left = run(acquisition=name, unit="block")
    scores = artifacts.load_scores("r01")
    assert list(scores["key"]) == [key for key in keys if key not in bought]
    assert scores["minutes"].to_numpy() == pytest.approx(3.0)
    claimed = artifacts.load_pool("r01")[:, 0].sum()
    assert claimed == 16 * 32 * 8 * (32 - 6) / 32  # pixels of all blocks less those of the bought ones
    assert len(left) == 26 < len(everything)


def test_a_pool_without_a_block_left_is_a_sentence() -> None:
    run(unit="block")
    keys = list(artifacts.load_scores("r01")["key"])
    artifacts.save_labels("r00", [{"key": key, "round": "r11", "minutes": 3.0, "sha256": ""} for key in keys])
    with pytest.raises(UserError, match="r01: all 32 blocks of the pool are labelled"):
        run(unit="block")


# regions


def of_regions(**changes: Any) -> RegionScores:
    """Run the stage over regions."""
    run(unit="region", **changes)
    scores, table = region_scores.load("r01"), artifacts.load_scores("r01")
    summed = np.bincount(scores.image, scores.gain, minlength=len(table))
    np.testing.assert_allclose(table["gain"], summed, rtol=1e-6)
    np.testing.assert_allclose(scores.parts.sum(1), scores.gain, rtol=1e-5)
    return scores


def cut(rows: int, cols: int) -> None:
    """A map of a grid for every image of the pool."""
    height, width = fakes.SIZE
    for key in artifacts.load_manifest("pool")["key"]:
        boxes = [block.box(fakes.SIZE) for name in blocks.keys(key, (rows, cols)) if (block := blocks.parse(name))]
        regions = np.zeros((height, width), np.uint16)
        for number, box in enumerate(boxes):
            regions[box.top : box.bottom, box.left : box.right] = number
        region_maps.save(key, regions)


def scatter(seed: int = 0) -> None:
    """Maps whose regions lie anywhere, and are of all sizes."""
    for number, key in enumerate(artifacts.load_manifest("pool")["key"]):
        rng = np.random.default_rng([seed, number])
        region_maps.save(key, np.minimum(rng.geometric(0.2, fakes.SIZE), 9).astype(np.uint16) - 1)


def ask(*asked: tuple[str, tuple[int, ...], float]) -> None:
    """Labels of r11 for some regions of images, with the minutes that they took."""
    for image, regions, took in asked:
        key, digest = blocks.key_of_regions(image, "r11"), region_maps.digest(region_maps.load(image))
        order = Order("r11", key, "oracle", "cityscapes19", 1.0, 1.0, 1.0, "")
        ledger.append([order._replace(regions=regions, region_map=digest)])
        mask = np.where(np.isin(region_maps.load(image), regions), 2, IGNORE).astype(np.uint8)
        save_mask(paths.mask(key), mask)
        rows = [*artifacts.load_labels("r00"), {"key": key, "round": "r11", "minutes": took, "sha256": ""}]
        artifacts.save_labels("r00", rows)


@pytest.mark.parametrize("name", ACQUISITIONS)
def test_gains_of_regions_sum_to_that_of_their_image(name: str) -> None:
    whole, pool = run(acquisition=name), artifacts.load_pool("r01")
    scatter()
    found = of_regions(acquisition=name)
    parts = np.stack([np.bincount(found.image, column, minlength=8) for column in found.parts.T], axis=1)
    np.testing.assert_allclose(parts, whole, rtol=1e-4, atol=1e-6 * whole.max())
    np.testing.assert_allclose(artifacts.load_pool("r01"), pool, rtol=1e-4, atol=1e-3)
    assert np.bincount(found.image, found.pixels).tolist() == [16 * 32] * 8


def test_a_region_has_the_gain_of_its_pixels_and_their_commonest_claim() -> None:
    scatter()
    found = of_regions()
    table = torch.from_numpy(artifacts.load_pool("r01"))
    for image, (key, out) in enumerate(zip(artifacts.load_manifest("pool")["key"], outputs(), strict=True)):
        probabilities = (out.logits / TEMPERATURE).softmax(1)
        gains = shortfall.gain_map(probabilities, table, 0.01)[0].numpy()
        claims, regions = probabilities[0].argmax(0).numpy(), region_maps.enlarged(region_maps.load(key), (16, 32))
        for place in np.flatnonzero(found.image == image):
            own = regions == found.region[place]
            assert found.pixels[place] == own.sum()
            assert found.gain[place] == pytest.approx(gains[own].sum(), rel=1e-3)
            counts = np.bincount(claims[own], minlength=19)
            assert counts[found.claim[place]] == counts.max()


@pytest.mark.parametrize("name", ["shortfall", "evpi", "gain"])
def test_regions_of_a_grid_are_its_blocks(name: str) -> None:
    of_blocks, pool = run(acquisition=name, unit="block", blocks=[2, 3]), artifacts.load_pool("r01")
    cut(2, 3)
    np.testing.assert_allclose(of_regions(acquisition=name).parts, of_blocks, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(artifacts.load_pool("r01"), pool, rtol=1e-6)


def test_a_region_that_the_network_does_not_see_is_not_offered() -> None:
    cut(1, 1)
    key = artifacts.load_manifest("pool")["key"].iloc[0]
    regions = np.zeros(fakes.SIZE, np.uint16)
    regions[1, 0] = 1  # of 24 rows the network sees 16: 0, 2, 3, 5, ...
    regions[:, 9] = 2
    region_maps.save(key, regions)
    found = of_regions()
    assert found.region[found.image == 0].tolist() == [0, 2]


@pytest.mark.parametrize("features_too", [False, True])
def test_regions_that_were_asked_about_are_not_offered_again(features_too: bool) -> None:
    cut(2, 2)
    keys = list(artifacts.load_manifest("pool")["key"])
    ask((keys[0], (1, 3), 1.0), (keys[2], (0, 1, 2, 3), 2.0))
    found = of_regions(features=features_too)
    assert list(artifacts.load_scores("r01")["key"]) == [key for key in keys if key != keys[2]]
    assert found.region[found.image == 0].tolist() == [0, 2]
    assert len(found.region) == 2 + 6 * 4
    assert artifacts.load_pool("r01")[:, 0].sum() == 16 * 32 * 6.5
    if features_too:
        looked_at = artifacts.load_features("r01")
        assert looked_at.keys == [key for key in keys if key != keys[2]] + [keys[2]]
        assert np.flatnonzero(looked_at.holds[-1]).tolist() == [2]
    ask(*((image, (0, 1, 2, 3), 1.0) for image in [keys[1], *keys[3:]]))
    assert of_regions().region.tolist() == [0, 2]


def test_a_pool_without_a_region_left_is_a_sentence() -> None:
    cut(1, 2)
    ask(*((key, (0, 1), 1.0) for key in artifacts.load_manifest("pool")["key"]))
    with pytest.raises(UserError, match="r01: all 16 regions of the pool are labelled"):
        run(unit="region")


def test_a_pool_with_nothing_left_but_what_the_network_does_not_see_is_a_sentence() -> None:
    regions = np.zeros(fakes.SIZE, np.uint16)
    regions[1, 0] = 1  # as above
    keys = list(artifacts.load_manifest("pool")["key"])
    for key in keys:
        region_maps.save(key, regions)
    ask(*((key, (0,), 1.0) for key in keys))
    with pytest.raises(UserError, match=r"r01: nothing of the pool is left but regions without a pixel at model\.size"):
        run(unit="region")


def test_a_map_that_is_not_there_or_of_another_size_is_a_sentence() -> None:
    with pytest.raises(UserError, match=r"data/regions/.*\.png not found: run .* `dvc repro regions`"):
        run(unit="region")
    cut(1, 2)
    region_maps.save(artifacts.load_manifest("pool")["key"].iloc[3], np.zeros((5, 5), np.uint16))
    with pytest.raises(UserError, match="it is 5x5, its image 24x32"):
        run(unit="region")


def test_the_price_of_an_answer_is_told_and_then_measured() -> None:
    cut(2, 3)
    told = of_regions(seconds_to_open=30, seconds_per_answer=6).price
    np.testing.assert_allclose(told, [0.5, 0.1])
    np.testing.assert_allclose(artifacts.load_scores("r01")["minutes"], 0.5 + 6 * 0.1)
    keys = artifacts.load_manifest("pool")["key"]
    ask(*((key, tuple(range(n)), 2 + 0.5 * n) for key, n in zip(keys[:6], (1, 2, 3, 1, 2, 3), strict=True)))
    measured = of_regions(seconds_to_open=30, seconds_per_answer=6).price
    assert measured @ [1, 2] == pytest.approx(3.0, rel=0.02)
    assert measured[0] == pytest.approx(2.0, rel=0.15)


def test_regions_do_not_depend_on_the_batch() -> None:
    scatter()
    one, other = of_regions(batch=3), of_regions(batch=1)
    np.testing.assert_allclose(one.gain, other.gain, rtol=1e-3, atol=1e-6)
    assert np.array_equal(one.region, other.region)
