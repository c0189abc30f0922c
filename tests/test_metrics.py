import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.evaluation.metrics import confusion, expected_calibration_error, iou, miou, pixel_accuracy, reliability
from pipeline.images.classes import IGNORE
from pipeline.rewards import REWARDS, Settings

QUICK = settings(max_examples=15, deadline=None)
SEEDS = st.integers(0, 2**32 - 1)


def masks(seed: int, classes: int, ignored: float = 0.2) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    prediction, truth = rng.integers(0, classes, (2, 2, 5, 7), dtype=np.uint8)
    truth[rng.random(truth.shape) < ignored] = IGNORE
    return torch.from_numpy(prediction), torch.from_numpy(truth)


@QUICK
@given(SEEDS, st.integers(1, 6))
def test_confusion_agrees_with_a_loop(seed: int, classes: int) -> None:
    prediction, truth = masks(seed, classes)
    expected = np.zeros((classes, classes), int)
    for p, t in zip(prediction.flatten().tolist(), truth.flatten().tolist(), strict=True):
        if t != IGNORE:
            expected[t, p] += 1
    assert confusion(prediction, truth, classes).tolist() == expected.tolist()
    assert confusion(prediction.long(), truth.long(), classes).tolist() == expected.tolist()


@QUICK
@given(SEEDS)
def test_iou_and_accuracy_agree_with_sets_of_pixels(seed: int) -> None:
    prediction, truth = masks(seed, 4)
    counted = truth.flatten() != IGNORE
    p, t = prediction.flatten()[counted].numpy(), truth.flatten()[counted].numpy()
    expected = [
        ((p == c) & (t == c)).sum() / ((p == c) | (t == c)).sum() if (t == c).any() else np.nan for c in range(4)
    ]
    counts = confusion(prediction, truth, 4)
    np.testing.assert_allclose(iou(counts).numpy(), expected)
    assert miou(counts) == pytest.approx(np.nanmean(expected))
    assert pixel_accuracy(counts) == pytest.approx((p == t).mean())


def test_known_answer() -> None:
    counts = torch.tensor([[3, 1, 0], [1, 2, 1], [0, 0, 0]])
    assert iou(counts)[:2].tolist() == [3 / 5, 2 / 5]
    assert iou(counts)[2].isnan()  # absent from the truth, although once predicted
    assert miou(counts) == pytest.approx(0.5)
    assert pixel_accuracy(counts) == 5 / 8


KNOWN = {  # truth, prediction, IoU by class (None: not averaged over), mIoU, accuracy; `.` is IGNORE
    "all right": ("0012", "0012", (1, 1, 1), 1, 1),
    "all wrong": ("0011", "1100", (0, 0, None), 0, 0),
    "predicted, and absent from the truth": ("0011", "0211", (1 / 2, 1, None), 3 / 4, 3 / 4),
    "in the truth, and never predicted": ("0012", "0011", (1, 1 / 2, 0), 1 / 2, 3 / 4),
    "in neither": ("0000", "0000", (1, None, None), 1, 1),
    "only one class counts, and it is missed": ("1111", "0000", (None, 0, None), 0, 0),
    "what is predicted where nothing is known": ("0.1.", "0212", (1, 1, None), 1, 1),
    "one pixel": ("2", "2", (None, None, 1), 1, 1),
    "rare and common count the same": ("00000001", "00000000", (7 / 8, 0, None), 7 / 16, 7 / 8),
}


@pytest.mark.parametrize("case", KNOWN)
def test_known_answers_pixel_by_pixel(case: str) -> None:
    truth, prediction, by_class, mean, accuracy = KNOWN[case]
    ids = [torch.tensor([[[IGNORE if c == "." else int(c) for c in row]]]).byte() for row in (truth, prediction)]
    counts = confusion(ids[1], ids[0], 3)
    assert [None if value != value else value for value in iou(counts).tolist()] == pytest.approx(list(by_class))
    assert miou(counts) == pytest.approx(mean)
    assert pixel_accuracy(counts) == pytest.approx(accuracy)
    pooled = REWARDS["pooled_miou"].make(Settings(3, torch.ones(3).double(), torch.zeros(3, 3).double(), 0, 1.0))
    assert float(pooled.value(pooled.statistics(ids[1], ids[0]).sum(0)).total) == pytest.approx(mean)


def test_images_of_several_sizes_are_one_count() -> None:
    small, large = confusion(*(torch.tensor([[[0, 1]]]).byte(),) * 2, 2), torch.tensor([[0, 0], [6, 0]])
    assert miou(small + large) == pytest.approx((1 / 7 + 1 / 7) / 2)


def test_pooling_is_not_averaging() -> None:
    first, second = torch.tensor([[9, 0], [0, 1]]), torch.tensor([[0, 0], [9, 1]])
    assert miou(first + second) == pytest.approx((9 / 18 + 2 / 11) / 2)
    assert miou(first + second) != pytest.approx((miou(first) + miou(second)) / 2)


def test_ids_out_of_range_are_refused() -> None:
    ids = torch.tensor([[[0, 3]]], dtype=torch.uint8)
    fine = torch.zeros_like(ids)
    with pytest.raises(ValueError, match="truth holds class 3, but there are 3 classes"):
        confusion(fine, ids, 3)
    with pytest.raises(ValueError, match="prediction holds class 3"):
        confusion(ids, fine, 3)
    with pytest.raises(ValueError, match="prediction"):
        confusion(fine.long() - 1, fine, 3)
    assert confusion(ids, torch.tensor([[[0, IGNORE]]], dtype=torch.uint8), 3).sum() == 1  # not counted, not checked


def test_nothing_labelled_is_an_error() -> None:
    prediction, truth = masks(0, 3, ignored=1)
    counts = confusion(prediction, truth, 3)
    sums = reliability(torch.full((2, 3, 5, 7), 1 / 3), truth, 5)
    for measure in (lambda: miou(counts), lambda: pixel_accuracy(counts), lambda: expected_calibration_error(sums)):
        with pytest.raises(ValueError, match="no labelled pixel"):
            measure()


@QUICK
@given(SEEDS, st.integers(1, 20))
def test_reliability_agrees_with_a_loop_and_adds_up(seed: int, bins: int) -> None:
    _, truth = masks(seed, 4)
    logits = torch.randn(2, 4, 5, 7, generator=torch.Generator().manual_seed(seed)) * 3
    probabilities = logits.softmax(1)
    expected = np.zeros((bins, 3))
    for p, t in zip(probabilities.permute(0, 2, 3, 1).reshape(-1, 4).double().numpy(), truth.flatten(), strict=True):
        if t != IGNORE:
            expected[min(int(p.max() * bins), bins - 1)] += [1, p.max(), p.argmax() == t]
    whole = reliability(probabilities, truth, bins)
    np.testing.assert_allclose(whole.numpy(), expected, rtol=1e-12)
    parts = [reliability(probabilities[i : i + 1], truth[i : i + 1], bins) for i in range(2)]
    np.testing.assert_allclose((parts[0] + parts[1]).numpy(), whole.numpy(), rtol=1e-12)
    error = sum(n / expected[:, 0].sum() * abs(k / n - c / n) for n, c, k in expected if n)
    assert expected_calibration_error(whole) == pytest.approx(error)


def test_calibrated_probabilities_have_no_calibration_error() -> None:
    generator = torch.Generator().manual_seed(0)
    probabilities = (torch.randn(1, 3, 300, 300, generator=generator) * 2).softmax(1)
    flat = probabilities.permute(0, 2, 3, 1).reshape(-1, 3)
    truth = torch.multinomial(flat, 1, generator=generator).reshape(1, 300, 300)
    assert expected_calibration_error(reliability(probabilities, truth, 15)) < 0.01
    sharper = probabilities**3 / (probabilities**3).sum(1, keepdim=True)
    assert expected_calibration_error(reliability(sharper, truth, 15)) > 0.1
