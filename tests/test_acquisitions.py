import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline import metrics
from pipeline.acquisitions import ACQUISITIONS, observe_truth, predicted_miou
from pipeline.labels import IGNORE

QUICK = settings(max_examples=5, deadline=None)
SEEDS = st.integers(0, 2**32 - 1)
SHORTFALL = ACQUISITIONS["shortfall"]


def random_pool(seed: int, classes: int = 6, images: int = 3, size: tuple[int, int] = (25, 40)) -> Tensor:
    """Probabilities with structure, classes from common to rare."""
    generator = torch.Generator().manual_seed(seed)
    frequency = torch.linspace(2, -4, classes).reshape(1, -1, 1, 1)
    return (torch.randn(images, classes, *size, generator=generator) * 2 + frequency).softmax(1)


def draw_truth(probabilities: Tensor, seed: int) -> Tensor:
    n, c, h, w = probabilities.shape
    flat = probabilities.permute(0, 2, 3, 1).reshape(-1, c)
    drawn = torch.multinomial(flat, 1, generator=torch.Generator().manual_seed(seed))
    return drawn.reshape(n, h, w).to(torch.uint8)


def gains_by_force(probabilities: Tensor) -> np.ndarray:
    """Of every pixel: expected IoU points won if its claim became its true class, over its possible true classes."""
    p = probabilities.double().permute(0, 2, 3, 1).reshape(-1, probabilities.shape[1]).numpy()
    n, classes = p.shape
    claim = np.eye(classes)[p.argmax(1)]
    intersection, union = (p * claim).sum(0), np.where(claim > 0, 1, p).sum(0)
    gains = np.zeros(n)
    for i in range(n):
        others = intersection - p[i] * claim[i], union - np.where(claim[i] > 0, 1, p[i])
        for truth in np.eye(classes):
            before = (others[0] + claim[i] * truth) / (others[1] + np.maximum(claim[i], truth))
            after = (others[0] + truth) / (others[1] + truth)
            gains[i] += p[i] @ truth * 100 * (after - before).mean()
    return gains


@QUICK
@given(SEEDS)
def test_shortfall_of_a_pixel_is_what_putting_it_right_would_bring(seed: int) -> None:
    probabilities = random_pool(seed)
    pool = SHORTFALL.observe(probabilities).sum(0)
    predicted = SHORTFALL.gain_map(probabilities, pool, 0.0).flatten().double().numpy()
    exact = gains_by_force(probabilities)
    assert np.corrcoef(predicted, exact)[0, 1] > 0.999
    assert predicted.sum() == pytest.approx(exact.sum(), rel=0.02)


@QUICK
@given(SEEDS)
def test_shortfall_statistics_agree_with_a_loop(seed: int) -> None:
    probabilities = random_pool(seed, classes=3, images=2, size=(4, 5))
    expected = np.zeros((2, 3, 3))
    for n, row, col in np.ndindex(2, 4, 5):
        p = probabilities[n, :, row, col].double().numpy()
        a = p.argmax()
        expected[n, a] += [1, 1 - p[a], 0]
        expected[n, np.arange(3) != a, 2] += p[np.arange(3) != a]
    np.testing.assert_allclose(SHORTFALL.observe(probabilities).numpy(), expected, rtol=1e-5, atol=1e-6)


def test_statistics_are_accurate_on_a_large_image() -> None:
    """A class that takes two million pixels, another that one of them hides."""
    p = torch.full((1, 1, 1024, 2048), 1e-4)
    p[0, 0, 5, 7] = 0.25
    probabilities = torch.cat([1 - p, p], dim=1)
    doubt = float((1 - probabilities[:, 0].double()).sum())
    missed = float(p.double().sum())
    statistics = SHORTFALL.observe(probabilities)[0]
    assert statistics[:, 0].tolist() == [1024 * 2048, 0]
    assert float(statistics[0, 1]) == pytest.approx(doubt, rel=1e-6)
    assert float(statistics[1, 2]) == pytest.approx(missed, rel=1e-6)
    assert statistics[0, 2] == statistics[1, 1] == 0


@pytest.mark.parametrize("seed", range(3))
def test_truth_statistics_are_what_the_probabilities_expect(seed: int) -> None:
    probabilities = random_pool(seed, size=(100, 100))
    truth = draw_truth(probabilities, seed)
    expected = SHORTFALL.observe(probabilities).sum(0)
    found = observe_truth(probabilities.argmax(1), truth, 6).sum(0)
    assert found[:, 0].tolist() == expected[:, 0].tolist()
    # sums of independent draws, each of variance at most its expectation
    assert ((found - expected).abs() <= 5 * expected.clamp(min=1).sqrt()).all()

    pool = expected
    predicted, realised = (float(SHORTFALL.gain(s[None], pool, 0.01).sum()) for s in (expected, found))
    assert realised == pytest.approx(predicted, rel=0.05)
    actual = metrics.miou(metrics.confusion(probabilities.argmax(1), truth, 6))
    assert predicted_miou(pool) == pytest.approx(actual, abs=0.02)


@QUICK
@given(SEEDS)
def test_truth_statistics_agree_with_the_confusion_matrix(seed: int) -> None:
    rng = np.random.default_rng(seed)
    prediction, truth = (torch.from_numpy(rng.integers(0, 4, (3, 6, 5), dtype=np.uint8)) for _ in range(2))
    truth[torch.from_numpy(rng.random((3, 6, 5)) < 0.3)] = IGNORE
    statistics = observe_truth(prediction, truth, 4)
    for n in range(3):
        counts = metrics.confusion(prediction[n : n + 1], truth[n : n + 1], 4)
        columns = counts.sum(0), counts.sum(0) - counts.diagonal(), counts.sum(1) - counts.diagonal()
        assert statistics[n].tolist() == torch.stack(columns, dim=1).tolist()


def test_of_equally_probable_classes_the_first_is_claimed_once() -> None:
    statistics = SHORTFALL.observe(torch.full((1, 4, 3, 5), 0.25))[0]
    assert statistics[:, 0].tolist() == [15, 0, 0, 0]
    assert statistics[:, 1].tolist() == [0.75 * 15, 0, 0, 0]
    assert statistics[:, 2].tolist() == [0, 3.75, 3.75, 3.75]


def certain(*claims: int, of: int = 3) -> Tensor:
    """One image per claim, four certain pixels each."""
    return torch.eye(of)[torch.tensor(claims)][:, :, None, None].expand(-1, -1, 2, 2).clone()


def test_shortfall_ranks_a_rare_class_before_a_common_one_and_certainty_last() -> None:
    images = certain(0, 0, 0, 0, 0, 1, 2)
    images[0, :, 0, 0] = torch.tensor([0.6, 0.4, 0.0])  # perhaps the rare class was missed
    images[5, :, 0, 0] = torch.tensor([0.4, 0.6, 0.0])  # perhaps the rare class was claimed wrongly
    images[1, :, 0, 0] = torch.tensor([0.9, 0.1, 0.0])
    statistics = SHORTFALL.observe(images)
    gains = SHORTFALL.gain(statistics, statistics.sum(0), 0.01).sum(1)
    assert gains.argsort(descending=True)[:3].tolist() == [0, 5, 1]
    assert gains[[2, 3, 4, 6]].tolist() == [0, 0, 0, 0]
    by_class = SHORTFALL.gain(statistics, statistics.sum(0), 0.01)
    assert by_class[0, 1] > by_class[0, 0] > by_class[0, 2] == 0


def test_shortfall_known_answer() -> None:
    probabilities = torch.tensor([[0.75, 0.25], [0.25, 0.75]]).reshape(1, 2, 1, 2)
    statistics = SHORTFALL.observe(probabilities)
    assert statistics.tolist() == [[[1, 0.25, 0.25]] * 2]
    # I = .75, U = 1.25, J = .6: each class gains (.6 / 1.25) .25 + .25 / 1.25 = .32, halved by the mean over classes
    assert SHORTFALL.gain(statistics, statistics[0], 0.0)[0].tolist() == pytest.approx([16.0, 16.0])
    assert SHORTFALL.gain_map(probabilities, statistics[0], 0.0).flatten().tolist() == pytest.approx([16.0, 16.0])
    assert predicted_miou(statistics[0]) == pytest.approx(0.6)
    assert predicted_miou(statistics[0], 0.1) == pytest.approx(0.75 / 1.5)


def test_smoothing_keeps_an_absent_class_from_dominating() -> None:
    images = certain(0, 0, 1)
    images[0, :, 0, 0] = torch.tensor([0.999, 0.0, 0.001])  # a trace of class 2, which is claimed nowhere
    images[1, :, 0, 0] = torch.tensor([0.6, 0.4, 0.0])
    statistics = SHORTFALL.observe(images)
    raw, smoothed = (SHORTFALL.gain(statistics, statistics.sum(0), smooth).sum(1) for smooth in (0.0, 0.01))
    assert raw[0] > raw[1]
    assert smoothed[0] < smoothed[1]


def test_a_class_without_union_is_refused_without_smoothing() -> None:
    images = certain(0, 1)
    pool = SHORTFALL.observe(images).sum(0)
    with pytest.raises(ValueError, match=r"classes \[2\] have no union"):
        SHORTFALL.gain_map(images, pool, 0.0)
    assert SHORTFALL.gain_map(images, pool, 0.01).tolist() == torch.zeros(2, 2, 2).tolist()
    assert predicted_miou(pool) == 1


def test_baselines_known_answers() -> None:
    images = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [1 / 3, 1 / 3, 1 / 3]])[:, :, None, None].expand(
        -1, -1, 2, 3
    )
    expected = {"entropy": [0, np.log(2), np.log(3)], "margin": [0, 1, 1], "random": [1, 1, 1]}
    for name, gains in expected.items():
        statistics = ACQUISITIONS[name].observe(images)
        found = ACQUISITIONS[name].gain(statistics, statistics.sum(0), 0.0).sum(1)
        np.testing.assert_allclose(found.numpy(), gains, rtol=1e-6, err_msg=name)
