"""The demo town is exact, reproducible and different enough: checked on the files it writes."""

import itertools
import subprocess
import sys
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from pipeline import datasets
from pipeline.errors import UserError
from pipeline.images import reading
from pipeline.images.classes import CLASS_SETS
from pipeline.town.canvas import SMOOTH, SUPERSAMPLING, Camera, Canvas
from pipeline.town.domains import CAMERA, GAME, LOOKS
from pipeline.town.draw import CLIP, GTA5_PALETTE, POOL_CITIES, TEST_CITIES, draw_town
from pipeline.town.plan import plan
from pipeline.town.scene import camera_of, paint
from pipeline.town.sprites import disc

SIZE = (96, 192)
COUNTS = {"source": 14, "pool": 4 * CLIP, "test": 10}
CLASSES = CLASS_SETS["cityscapes19"]
SPLITS = (("gta5", "gta5", "train"), ("cityscapes", "cityscapes", "train"), ("cityscapes", "cityscapes", "val"))


def draw(root: Path, **changes) -> Path:
    draw_town(root, **{**COUNTS, "size": SIZE, "seed": 7, "workers": 1, **changes})
    return root


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*.png"))}


@pytest.fixture(scope="module")
def town(tmp_path_factory) -> Path:
    return draw(tmp_path_factory.mktemp("town"), workers=2)


def samples(town: Path, dataset: str, folder: str, split: str) -> list[tuple[np.ndarray, np.ndarray]]:
    table = datasets.table(dataset, town / folder, CLASSES)
    found = datasets.find(dataset, town / folder, split)
    return [(reading.read_image(it.image), reading.read_mask(it.mask, table)) for it in found]


def test_the_layouts_are_the_official_ones(town):
    names = set(contents(town))
    assert len(names) == 2 * sum(COUNTS.values())
    assert {"gta5/images/00001.png", "gta5/labels/00014.png"} <= names
    first = POOL_CITIES[0]
    assert f"cityscapes/leftImg8bit/train/{first}/{first}_000000_000019_leftImg8bit.png" in names
    assert f"cityscapes/gtFine/train/{first}/{first}_000000_000019_gtFine_labelIds.png" in names
    first = TEST_CITIES[0]
    assert f"cityscapes/leftImg8bit/val/{first}/{first}_000000_000019_leftImg8bit.png" in names
    for (dataset, folder, split), count in zip(SPLITS, COUNTS.values(), strict=True):
        assert len(datasets.find(dataset, town / folder, split)) == count


def test_files_have_the_official_modes_and_palette(town, shared_data):
    with Image.open(town / "gta5/labels/00001.png") as ours, Image.open(shared_data / "gta5/labels/00001.png") as real:
        assert ours.mode == real.mode == "P"
        assert ours.getpalette()[:105] == real.getpalette()[:105] == [c for colour in GTA5_PALETTE for c in colour]
    pairs = [
        (
            next((root / "cityscapes/leftImg8bit/val").rglob("*.png")),
            next((root / "cityscapes").rglob("*_labelIds.png")),
        )
        for root in (town, shared_data)
    ]
    for ours, real in zip(*pairs, strict=True):
        with Image.open(ours) as one, Image.open(real) as other:
            assert one.mode == other.mode


def test_every_label_is_legal_and_of_the_size_asked_for(town):
    for path in [*(town / "gta5/labels").iterdir(), *(town / "cityscapes/gtFine").rglob("*.png")]:
        with Image.open(path) as label:
            ids = np.asarray(label)
        assert ids.shape == SIZE
        assert ids.max() <= 33
    for path in [*(town / "gta5/images").iterdir(), *(town / "cityscapes/leftImg8bit").rglob("*.png")]:
        with Image.open(path) as image:
            assert (image.mode, image.size) == ("RGB", SIZE[::-1])


@pytest.mark.parametrize(("dataset", "folder", "split"), SPLITS)
def test_every_class_but_the_tram_occurs(town, dataset, folder, split):
    counts = Counter()
    for _, mask in samples(town, dataset, folder, split):
        counts.update({int(value): 1 for value in np.unique(mask)})
    assert {CLASSES.names[value] for value in counts if value < 255} == set(CLASSES.names) - {"train"}
    assert counts[255], "void occurs too, as in the real sets"


def test_another_number_of_workers_or_images_changes_nothing(town, tmp_path):
    again = contents(draw(tmp_path, source=3, pool=2, test=1))
    assert again == {name: content for name, content in contents(town).items() if name in again}
    assert len(again) == 12


def test_another_process_draws_the_same(town, tmp_path):
    code = (
        "from pathlib import Path; from pipeline.town.draw import draw_town; "
        f"draw_town(Path({str(tmp_path)!r}), source=2, pool=1, test=1, size={SIZE}, seed=7, workers=1)"
    )
    root = Path(__file__).parent.parent
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, capture_output=True)
    again = contents(tmp_path)
    assert again == {name: content for name, content in contents(town).items() if name in again}
    assert len(again) == 8


def test_another_seed_is_another_town(town, tmp_path):
    other = contents(draw(tmp_path, source=2, pool=2, test=2, seed=8))
    assert not any(content == contents(town)[name] for name, content in other.items())


def test_clips_are_near_duplicates_and_the_test_set_shares_none(town):
    pool = [mask for _, mask in samples(town, *SPLITS[1])]
    test = [mask for _, mask in samples(town, *SPLITS[2])]
    agree = [(np.mean(one == other), i % CLIP < CLIP - 1) for i, (one, other) in enumerate(itertools.pairwise(pool))]
    within, between = ([share for share, same_clip in agree if same_clip == wanted] for wanted in (True, False))
    across = [np.mean(one == other) for one in pool for other in test]
    assert np.median(within) > 0.85
    assert min(within) > max(across + between)
    images = [image for image, _ in samples(town, *SPLITS[1])]
    assert not any(np.array_equal(one, other) for one, other in itertools.pairwise(images))


def test_a_smaller_town_is_not_mixed_with_a_larger_one(town):
    with pytest.raises(UserError, match="no image of the demo town"):
        draw(town, source=3)


def edges(values: np.ndarray) -> np.ndarray:
    """How much neighbours differ, (h, w)."""
    values = values.astype(float).reshape(*values.shape[:2], -1)
    across, down = np.zeros(values.shape[:2]), np.zeros(values.shape[:2])
    across[:, 1:] = np.abs(np.diff(values, axis=1)).mean(axis=-1)
    down[1:] = np.abs(np.diff(values, axis=0)).mean(axis=-1)
    return across + down


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_label_edges_lie_on_image_edges(look):
    # Shifting the label by a pixel in any direction must take its edges off the edges of the image.
    fits = Counter()
    for number in range(3):
        image, label = paint(plan(look, np.random.default_rng([3, number])), 0, SIZE, np.random.default_rng(number))
        strength, border = edges(image), edges(label[..., None]) > 0
        for down in (-2, -1, 0, 1, 2):
            for right in (-2, -1, 0, 1, 2):
                fits[down, right] += strength[np.roll(border, (down, right), (0, 1))].mean()
    assert fits.most_common(1)[0][0] == (0, 0)


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
@pytest.mark.parametrize("size", [(96, 192), (131, 77)])
def test_without_textures_light_and_lens_a_surface_has_one_colour(look, size):
    # The label is sampled in the middle of a pixel; where a pixel is wholly inside a surface, no other colour shows.
    canvas = Canvas(camera_of(plan(look, np.random.default_rng(0)), 0, size))
    canvas.face(0, 200, np.array([[-900.0, -900], [900, -900], [900, 900], [-900, 900]]), 23, (0.0, 0.0, 255.0))
    canvas.order = 10
    canvas.face(0, 10, disc(-0.5, 1.2, 2.5, 1.7, corners=9), 26, (255.0, 0.0, 0.0), SMOOTH)
    raster = canvas.raster()
    is_car = raster.label == 26
    assert set(np.unique(raster.label)) == {23, 26}
    inside, outside = (cv2.erode(part.astype(np.uint8), np.ones((3, 3))) == 1 for part in (is_car, ~is_car))
    assert inside.any()
    assert (raster.colour[inside] == (255, 0, 0)).all()
    assert (raster.colour[outside] == (0, 0, 255)).all()
    # On the border the middle sample decides: it is one of the samples that the colour averages.
    least = 255 / SUPERSAMPLING**2 - 1
    assert (raster.colour[is_car][:, 0] >= least).all()
    assert (raster.colour[~is_car][:, 2] >= least).all()


def test_the_camera_is_a_pinhole():
    camera = Camera(height=96, width=192, focal=100, column=90, horizon=40, eye=1.5, x=1, s=5, curve=0)
    points = np.array([[1.0, 1.5, 15], [2, 1.5, 15], [1, 0, 10], [1, 0, 1e9]])
    np.testing.assert_allclose(camera.project(points), [[90, 40], [100, 40], [90, 70], [90, 40]], atol=1e-5)
    bottom = np.array([[1.0, 0, camera.s + camera.nearest_ground()]])
    np.testing.assert_allclose(camera.project(bottom)[0, 1], 96)


def test_depth_of_the_ground_follows_from_the_row():
    camera = Camera(height=96, width=192, focal=100, column=96, horizon=40, eye=1.5, x=0, s=0, curve=0)
    canvas = Canvas(camera)
    canvas.ground(canvas.strip(-50, 50, 0, 100), 7, (90.0, 90.0, 90.0), 1)
    depth = canvas.raster().depth
    np.testing.assert_allclose(depth[60, 96], 100 * 1.5 / (60.5 - 40), rtol=1e-5)


def test_the_looks_differ_in_what_they_measure():
    assert set(GAME.palette) == set(CAMERA.palette)
    assert set(GAME.rates) == set(CAMERA.rates)
    assert sum(GAME.sign_shapes) == pytest.approx(1)
    assert sum(CAMERA.sign_shapes) == pytest.approx(1)
