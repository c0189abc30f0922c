"""The simulated annotator's errors. That its answers arrive is seen in tests/server/test_rehearse.py."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import __main__, paths
from pipeline.commands import rehearse
from pipeline.commands.rehearse import Noise, Work
from pipeline.errors import UserError
from pipeline.images.classes import IGNORE
from tests import repo

SIZE = (40, 60)
EXACT = Noise(jitter=0.0, swaps=0.0, skips=0.0, seconds=90.0, seed=1)


@st.composite
def masks(draw: st.DrawFn) -> np.ndarray:
    """Blocks of a few classes and IGNORE."""
    ids = draw(st.lists(st.sampled_from([0, 3, 7, 18, IGNORE]), min_size=6, max_size=6))
    return np.array(ids, np.uint8).reshape(2, 3).repeat(20, 0).repeat(20, 1)


def random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@given(masks())
def test_no_jitter_and_no_swaps_change_nothing(mask: np.ndarray) -> None:
    np.testing.assert_array_equal(rehearse.jitter(mask, 0.0, random()), mask)
    np.testing.assert_array_equal(rehearse.swap(mask, 0.0, random()), mask)


@given(masks(), st.floats(0, 50), st.floats(0, 1), st.integers(0, 2**32))
def test_only_what_is_in_the_image_is_painted(mask: np.ndarray, pixels: float, share: float, seed: int) -> None:
    before = mask.copy()
    for noisy in (rehearse.jitter(mask, pixels, random(seed)), rehearse.swap(mask, share, random(seed))):
        assert noisy.shape == mask.shape
        assert set(np.unique(noisy)) <= set(np.unique(mask))
    np.testing.assert_array_equal(mask, before)


@pytest.mark.parametrize("across", [0, 1])
@pytest.mark.parametrize("pixels", [0.5, 2.0, 4.0])
def test_jitter_displaces_a_boundary_by_what_is_said(pixels: float, across: int) -> None:
    middle, length = 60, 4000  # some 100 independent pieces of boundary
    mask = (np.arange(2 * middle) >= middle).astype(np.uint8)[:, None].repeat(length, 1)
    if across:
        mask = np.ascontiguousarray(mask.T)
    moved = rehearse.jitter(mask, pixels, random())
    displacement = middle - moved.sum(axis=across, dtype=np.intp)
    assert abs(displacement.mean()) < 0.3 * pixels
    # A displacement of whole pixels has the variance of rounding, 1/12, as well.
    assert displacement.std() == pytest.approx(np.sqrt(pixels**2 + 1 / 12), rel=0.2)
    assert np.abs(np.diff(displacement)).mean() < 0.2 * pixels, "it is smooth along the boundary: else 1.1 times"


@given(masks())
def test_every_area_is_swapped_whole_and_nothing_else_is(mask: np.ndarray) -> None:
    swapped = rehearse.swap(mask, 1.0, random())
    ignored = mask == IGNORE
    np.testing.assert_array_equal(swapped == IGNORE, ignored)
    if len(np.unique(mask[~ignored])) < 2:
        np.testing.assert_array_equal(swapped, mask)
        return
    assert (swapped[~ignored] != mask[~ignored]).all()
    for number in np.unique(mask[~ignored]):
        count, areas = cv2.connectedComponents((mask == number).astype(np.uint8))
        assert all(len(np.unique(swapped[areas == area])) == 1 for area in range(1, count))


def test_share_of_areas_is_swapped() -> None:
    mask = np.zeros((100, 100), np.uint8)
    mask[::2, ::2] = 1  # 2500 areas of one pixel each
    swapped = rehearse.swap(mask, 0.3, random(1))
    assert swapped[1, 1] == mask[1, 1]  # the one large area was spared
    assert np.count_nonzero(swapped != mask) == pytest.approx(750, abs=4 * np.sqrt(2500 * 0.3 * 0.7))


def same(one: Work, other: Work) -> bool:
    return np.array_equal(one.mask, other.mask) and one[1:] == other[1:]


def test_work_is_the_same_again_and_another_for_another_image_or_seed() -> None:
    truth = random().integers(0, 3, (4, 6), np.uint8).repeat(10, 0).repeat(10, 1)
    noise = Noise(jitter=2.0, swaps=0.2, skips=0.5, seconds=90.0, seed=1)
    work = rehearse.annotated(truth, noise, "r01/a")
    assert same(rehearse.annotated(truth, noise, "r01/a"), work)
    others = [(noise, "r01/b"), (noise, "r02/a"), (noise._replace(seed=2), "r01/a")]
    assert not any(same(rehearse.annotated(truth, *other), work) for other in others)


def test_exact_work_is_the_truth() -> None:
    truth = random().choice(np.array([0, 5, IGNORE], np.uint8), SIZE)
    work = rehearse.annotated(truth, EXACT, "r01/a")
    np.testing.assert_array_equal(work.mask, truth)
    assert not work.skipped


def test_skips_and_times_are_as_many_and_as_long_as_said() -> None:
    truth, noise = np.zeros((2, 2), np.uint8), EXACT._replace(skips=0.3, seconds=40.0)
    works = [rehearse.annotated(truth, noise, f"r01/{number}") for number in range(500)]
    assert sum(work.skipped for work in works) == pytest.approx(150, abs=4 * np.sqrt(500 * 0.3 * 0.7))
    logs = np.log([work.seconds for work in works])
    assert np.exp(np.median(logs)) == pytest.approx(40, rel=0.15)
    assert logs.std() == pytest.approx(rehearse.SPREAD, rel=0.15)


def test_image_without_anything_to_paint_is_skipped() -> None:
    assert rehearse.annotated(np.full(SIZE, IGNORE, np.uint8), EXACT, "r01/a").skipped


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("jitter", -1),
        ("jitter", "nan"),
        ("jitter", "inf"),
        ("swaps", 1.5),
        ("swaps", "nan"),
        ("skips", -0.5),
        ("seconds", 0),
        ("seconds", "inf"),
        ("seed", -1),
    ],
)
def test_noise_that_cannot_be_is_refused(
    flag: str, value: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    paths.PARAMS.write_text(repo.PARAMS)
    assert __main__.main(["rehearse", f"--{flag}", str(value)]) == 1
    assert f"rehearse: --{flag} is {value}" in capsys.readouterr().err


def test_missing_key_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths.PARAMS.write_text(repo.PARAMS)
    monkeypatch.delenv("LABEL_STUDIO_API_KEY", raising=False)
    with pytest.raises(UserError, match="LABEL_STUDIO_API_KEY is not set"):
        rehearse.run(repo.params(), EXACT)
