import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.evaluation import pictures, planner
from pipeline.images.classes import CLASS_SETS, IGNORE, colourise

CLASSES = CLASS_SETS["camvid11"]


def opened(data: bytes, kind: str = "PNG") -> np.ndarray:
    with Image.open(io.BytesIO(data)) as file:
        assert file.format == kind
        return np.asarray(file.convert("RGB"))


def panel(truth: np.ndarray, before: np.ndarray, after: np.ndarray, gain: np.ndarray) -> np.ndarray:
    image = np.full((*truth.shape, 3), 90, np.uint8)
    return opened(
        pictures.panel(
            image=image,
            truth=truth,
            before=before,
            after=after,
            gain=pictures.gain_levels(gain),
            classes=CLASSES,
            title="r01 é",
        )
    )


@pytest.mark.parametrize(("size", "zoom"), [((24, 32), 10), ((120, 160), 2), ((250, 300), 1)])
def test_panel_shows_five_pictures_of_one_size(size: tuple[int, int], zoom: int) -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 11, size).astype(np.uint8)
    before = rng.integers(0, 11, size).astype(np.uint8)
    truth[:3] = IGNORE
    sheet = panel(truth, before, truth.clip(max=10), rng.random(size))
    tall, wide = size[0] * zoom, size[1] * zoom
    assert sheet.shape == (tall + pictures.HEADER, 5 * wide + 4 * pictures.GAP, 3)
    shown = [sheet[pictures.HEADER :, place * (wide + pictures.GAP) :][:tall:zoom, :wide:zoom] for place in range(5)]
    assert (shown[0] == 90).all()
    np.testing.assert_array_equal(shown[3], colourise(truth, CLASSES))
    np.testing.assert_array_equal(shown[1], colourise(before, CLASSES))
    np.testing.assert_array_equal(shown[4], colourise(truth.clip(max=10), CLASSES))


def test_gain_map_is_brightest_where_most_is_to_gain() -> None:
    gain = np.zeros((24, 32))
    gain[:, 16:] = 1.0
    blank = np.zeros((24, 32), np.uint8)
    heat = panel(blank, blank, blank, gain)[pictures.HEADER :, 2 * (320 + pictures.GAP) :][:, :320].astype(int)
    assert heat[:, 170:].sum(2).min() > heat[:, :150].sum(2).max() + 300


@pytest.mark.parametrize("gain", [0.0, 1e-30])
def test_panel_of_nothing_to_gain_and_nothing_known(gain: float) -> None:
    unknown = np.full((24, 32), IGNORE, np.uint8)
    blank = np.zeros((24, 32), np.uint8)
    assert panel(unknown, blank, blank, np.full((24, 32), gain)).any()


def overlay(image: np.ndarray, gain: np.ndarray) -> np.ndarray:
    return opened(pictures.gain_overlay(image, gain), "JPEG").astype(int)


@pytest.mark.parametrize(
    ("size", "shown"),
    [((24, 32), (24, 32)), ((1024, 1024), (1024, 1024)), ((600, 1500), (410, 1024)), ((2048, 1030), (1024, 515))],
)
def test_overlay_is_the_image_at_its_size_but_never_above_the_longest(
    size: tuple[int, int], shown: tuple[int, int]
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    assert overlay(image, np.ones((12, 16))).shape == (*shown, 3)


@settings(deadline=None, max_examples=30)
@given(
    st.tuples(st.integers(0, 255), st.integers(0, 255)),
    st.tuples(st.integers(0, 3), st.integers(0, 5)),
    st.floats(1e-6, 1e6),
)
def test_overlay_is_brightest_where_most_is_to_gain_whatever_the_image(
    greys: tuple[int, int], place: tuple[int, int], highest: float
) -> None:
    image = np.full((64, 96, 3), greys[0], np.uint8)
    row, column = 16 * place[0], 16 * place[1]
    image[row : row + 16, column : column + 16] = greys[1]
    gain = np.zeros((32, 48))  # half the image's size
    gain[row // 2 :, column // 2 :][:8, :8] = highest
    picture = overlay(image, gain).sum(2)
    inside = picture[row + 2 : row + 14, column + 2 : column + 14].copy()
    picture[max(0, row - 2) : row + 18, max(0, column - 2) : column + 18] = 0  # an enlarged map is mixed at its edges
    assert inside.min() > picture.max() + 40


def test_overlay_shows_the_image_darkened_where_nothing_is_to_gain() -> None:
    image = np.zeros((64, 96, 3), np.uint8)
    image[:, 48:] = 200
    picture = overlay(image, np.zeros((32, 48)))
    assert picture[:, :40].max() < 10
    assert 60 <= picture[:, 56:].min() <= picture[:, 56:].max() <= 80  # 0.35 of 200
    assert (np.ptp(picture, axis=2) < 10).all()


def test_the_same_overlay_is_the_same_file() -> None:
    rng = np.random.default_rng(0)
    image, gain = rng.integers(0, 256, (24, 32, 3), np.uint8), rng.random((24, 32))
    assert pictures.gain_overlay(image, gain) == pictures.gain_overlay(image.copy(), gain.copy())


@pytest.mark.parametrize("rounds", [1, 4])
def test_curve_opens_and_shows_more_for_more_rounds(rounds: int) -> None:
    names = [f"r{number:02}" for number in range(rounds)]
    picture = opened(pictures.curve(list(range(rounds)), [0.1 * n for n in range(rounds)], names))
    assert picture.shape == (520, 910, 3)
    blue = (np.abs(picture.astype(int) - [0x1F, 0x6F, 0x8B]).sum(2) < 30).sum()
    assert blue > (20 if rounds == 1 else 1000)


def test_curve_shows_what_is_to_come_and_the_target() -> None:
    miou, minutes, names = [0.16, 0.359, 0.399, 0.423], [0.0, 200.0, 400.0, 600.0], ["r00", "r01", "r02", "r03"]
    curves = planner.fit(minutes[1:], [100 * share for share in miou[1:]])

    def near(picture: np.ndarray, colour: tuple[int, ...]) -> np.ndarray:
        return np.abs(picture.astype(int) - colour).sum(2) < 12

    red, pale = (0xC8, 0x55, 0x3D), (0xE4, 0xEE, 0xF1)
    plain, target, both = (
        opened(pictures.curve(minutes, miou, names, "images", *more))
        for more in ((None, None), (None, 45.0), (curves, 45.0))
    )
    assert not near(plain, red).any()
    assert near(target, red).sum() > 300
    assert near(both, red).sum() > 300
    assert near(both, pale).sum() > max(10_000, 20 * near(target, pale).sum())  # edges of letters have it, too
    rows = np.flatnonzero(near(both, red).sum(1) > 200)
    band = np.flatnonzero(near(both, pale).sum(1) > 100)
    assert band.min() < rows.mean() < band.max()  # 45 lies in what is to be expected


def test_the_same_curve_is_the_same_file() -> None:
    one, other = (pictures.curve([0, 20], [0.1, 0.4], ["r00", "r01"]) for _ in range(2))
    assert one == other


def audit(gain: float, fit: tuple[float, float] | None) -> np.ndarray:
    x = np.linspace(0.1, 0.4, 12)
    frame = {"predicted": x, "realised": gain * x}
    frame |= {f"{side}_{name}": frame[side] / 11 for side in tuple(frame) for name in CLASSES.names}
    return opened(pictures.audit(frame, CLASSES, fit, "r01: what was found"))


def test_audit_shows_images_classes_and_the_line_if_there_is_one() -> None:
    with_line, without = audit(0.5, (0.0, 0.5)), audit(0.5, None)
    assert with_line.shape == without.shape == (572, 1300, 3)
    images, classes = np.split(with_line, [580], axis=1)
    assert painted(images, RED).sum() > 300 > 30 > painted(without[:, :580], RED).sum()
    assert painted(classes, BLUE).sum() > 1.7 * painted(classes, RED).sum() > 1000  # predicted is twice the realised


def test_audit_of_nothing_to_gain_is_drawn_and_the_same_file() -> None:
    assert np.array_equal(audit(0.0, None), audit(0.0, None))


BLUE, RED = (0x1F, 0x6F, 0x8B), (0xC8, 0x55, 0x3D)
"""Of likelihood and reward."""


def log(rows: int, **signals: float) -> list[dict[str, float]]:
    """A log of both stages; only the second knows the signals."""
    both = [
        {"stage": float(stage), "step": 10.0 * (n + 1), "lr": 1e-3, "loss": 1 / (n + 1)}
        for stage in (0, 1)
        for n in range(rows)
    ]
    return [{**row, **(signals if row["stage"] else {})} for row in both]


def painted(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    found: np.ndarray = np.abs(picture.astype(int) - colour).sum(2) < 40
    return found


@pytest.mark.parametrize(
    ("signals", "size"),
    [
        ([], (377, 936)),
        (["reward", "advantage_std", "cross_entropy", "kl"], (663, 1404)),
        (["reward", "reward_std", "advantage_std", "gradient_cosine", "cross_entropy", "kl", "new"], (949, 1404)),
    ],
)
def test_training_has_a_panel_per_signal(signals: list[str], size: tuple[int, int]) -> None:
    picture = opened(pictures.training_curves(log(30, **dict.fromkeys(signals, 0.5))))
    assert picture.shape[:2] == size
    rows, columns = size[0] // 286, min(3, len(signals) + 2)
    inside = picture[91:]
    red = [
        painted(part, RED).any()
        for line in np.array_split(inside, rows)
        for part in np.array_split(line, columns, axis=1)
    ]
    assert sum(red) == len(signals) + 2


def test_training_goes_on_for_the_reward_where_likelihood_ended() -> None:
    picture = opened(pictures.training_curves(log(30)))[60:, :468]  # the first panel, without the legend
    blue, red = (np.flatnonzero(painted(picture, colour).any(0)) for colour in (BLUE, RED))
    assert blue.size > 100
    assert red.size > 100
    assert blue.max() < red.min() + 5


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [{"step": 10.0, "lr": 1e-3, "loss": 0.5}],  # r00, and the logs of before stages were told apart
        log(1),
        log(2)[2:],
        [{"stage": 0.0, "step": 10.0}],
        [{**row, "validation": 0.4} if row["step"] == 50 else row for row in log(9, kl=0.0)],
    ],
)
def test_training_of_few_rows_and_columns_is_drawn(rows: list[dict[str, float]]) -> None:
    picture = opened(pictures.training_curves(rows))
    drawn = painted(picture, BLUE).any() or painted(picture, RED).any()
    assert drawn == bool(rows)


def test_the_same_training_is_the_same_file() -> None:
    assert pictures.training_curves(log(5, kl=0.1)) == pictures.training_curves(log(5, kl=0.1))
