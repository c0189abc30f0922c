import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.images.classes import IGNORE
from pipeline.training.losses import class_weights, cross_entropy, hardest, kept_share, kl

QUICK = settings(max_examples=15, deadline=None)
SEEDS = st.integers(0, 2**32 - 1)


def batch(seed: int, shape: tuple[int, int, int, int] = (2, 3, 4, 5)) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    n, c, h, w = shape
    truth = torch.randint(0, c, (n, h, w), generator=generator).to(torch.uint8)
    truth[torch.rand(n, h, w, generator=generator) < 0.3] = IGNORE
    return torch.randn(shape, generator=generator) * 3, truth, torch.rand(c, generator=generator) + 0.1


def test_class_weights_known_answer() -> None:
    raw = np.array([1 / (90 + 5), 1 / (10 + 5), 1 / 5])
    np.testing.assert_allclose(class_weights(torch.tensor([90, 10, 0]), 0.05).numpy(), raw / raw.mean(), rtol=1e-6)


@QUICK
@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=20).filter(any), st.floats(1e-3, 100))
def test_class_weights_have_mean_one_and_follow_rarity(counts: list[int], smooth: float) -> None:
    weights = class_weights(torch.tensor(counts), smooth)
    assert float(weights.mean()) == pytest.approx(1, rel=1e-5)
    assert (np.diff(weights.numpy()[np.argsort(counts, kind="stable")]) <= 0).all()


def test_class_weights_without_counts_are_refused() -> None:
    for counts, smooth in (([0, 0], 0.05), ([3, 0], 0.0)):
        with pytest.raises(ValueError, match="without a finite weight"):
            class_weights(torch.tensor(counts), smooth)


def one_by_one(logits: Tensor, truth: Tensor, weights: Tensor, poly1: float = 0.0) -> list[float]:
    """The losses of the labelled pixels."""
    found = []
    for n, row, col in np.ndindex(*truth.shape):
        t = int(truth[n, row, col])
        if t != IGNORE:
            z = logits[n, :, row, col].double().numpy()
            entropy = math.log(np.exp(z).sum()) - z[t]
            found.append(float(weights[t]) * (entropy + poly1 * (1 - math.exp(-entropy))))
    return found


@QUICK
@given(SEEDS, st.sampled_from([0.0, 0.5, 2.0]))
def test_cross_entropy_and_poly1_agree_with_a_loop(seed: int, poly1: float) -> None:
    logits, truth, weights = batch(seed)
    expected = one_by_one(logits, truth, weights, poly1)
    mean = sum(expected) / max(len(expected), 1)
    assert float(cross_entropy(logits, truth, weights, poly1=poly1)) == pytest.approx(mean, rel=1e-4)


@QUICK
@given(SEEDS, st.sampled_from([0.0, 1.0]), st.sampled_from([0.05, 0.3, 0.9]))
def test_hard_pixels_are_the_largest_losses_of_a_loop(seed: int, poly1: float, kept: float) -> None:
    logits, truth, weights = batch(seed)
    largest = sorted(one_by_one(logits, truth, weights, poly1), reverse=True)[: int(kept * truth.numel())]
    mean = sum(largest) / max(len(largest), 1)
    assert float(cross_entropy(logits, truth, weights, poly1=poly1, kept=kept)) == pytest.approx(mean, rel=1e-4)


def test_poly1_adds_its_factor_to_the_gradient() -> None:
    logits, truth, weights = batch(3)
    gradients = []
    for poly1 in (0.0, 2.0):
        logits = logits.detach().requires_grad_()
        cross_entropy(logits, truth, weights, poly1=poly1).backward()
        gradients.append(logits.grad)
    p = logits.detach().softmax(1).gather(1, truth.long().clamp(max=2)[:, None])
    torch.testing.assert_close(gradients[1], gradients[0] * (1 + 2 * p))


def test_hardest_known_answer() -> None:
    pixels = torch.tensor([[[4.0, 0.0, 1.0, 3.0], [0.0, 2.0, 0.0, 0.0]]])
    means = {1 / 8: 4.0, 0.25: 3.5, 0.5: 2.5, 0.75: 2.5, 1.0: 2.5}  # DeepLab: zeros among the kept do not count
    assert {kept: float(hardest(pixels, kept)) for kept in means} == means
    assert float(hardest(pixels, 0.01)) == 4.0  # one pixel at least
    assert float(hardest(torch.zeros(1, 2, 2), 0.5)) == 0


def test_easy_pixels_have_no_gradient() -> None:
    logits, truth, weights = batch(1)
    logits.requires_grad_()
    cross_entropy(logits, truth, weights, kept=0.2).backward()
    assert (logits.grad.abs().sum(1) > 0).sum() == int(0.2 * truth.numel())


def test_kept_share_falls_in_a_line_and_stays() -> None:
    assert [kept_share(step, 4.0, 0.2) for step in (0, 1, 2, 4, 9)] == pytest.approx([1, 0.8, 0.6, 0.2, 0.2])
    assert kept_share(0, 0.0, 0.2) == 0.2
    assert {kept_share(step, 7.0, 1.0) for step in range(20)} == {1.0}


def test_weights_count_in_a_batch_of_one_class() -> None:
    logits, weights = torch.zeros(1, 2, 2, 2), torch.tensor([0.5, 1.5])
    losses = [cross_entropy(logits, torch.full((1, 2, 2), c, dtype=torch.uint8), weights) for c in (0, 1)]
    assert [float(loss) for loss in losses] == pytest.approx([0.5 * math.log(2), 1.5 * math.log(2)])


def test_ignored_pixels_have_no_gradient_and_an_empty_batch_a_zero_one() -> None:
    logits, truth, weights = batch(0)
    logits.requires_grad_()
    cross_entropy(logits, truth, weights).backward()
    gradient = logits.grad.abs().sum(1)
    assert (gradient[truth == IGNORE] == 0).all()
    assert (gradient[truth != IGNORE] > 0).all()

    nothing = torch.full_like(truth, IGNORE)
    mined = cross_entropy(logits, nothing, weights, poly1=1.0, kept=0.5)
    for loss in (cross_entropy(logits, nothing, weights), mined, kl(logits, logits.detach() * 2, nothing != IGNORE)):
        logits.grad = None
        loss.backward()
        assert float(loss.detach()) == 0
        assert logits.grad.abs().max() == 0


@QUICK
@given(SEEDS)
def test_kl_agrees_with_numpy(seed: int) -> None:
    logits, truth, _ = batch(seed)
    reference, valid = batch(seed + 1)[0], truth != IGNORE
    valid[0, 0, 0] = True
    p, q = logits.double().softmax(1).numpy(), reference.double().softmax(1).numpy()
    expected = (p * np.log(p / q)).sum(1)[valid.numpy()].mean()
    assert float(kl(logits, reference, valid)) == pytest.approx(expected, rel=1e-4)
    assert float(kl(logits, logits + 5, valid)) == pytest.approx(0, abs=1e-6)


def test_half_precision_logits_lose_nothing_in_the_sum() -> None:
    logits, truth, weights = batch(0, (1, 3, 200, 200))
    half = logits.bfloat16()
    assert float(cross_entropy(half, truth, weights)) == pytest.approx(
        float(cross_entropy(half.float(), truth, weights))
    )
    assert float(kl(half, half * 2, truth != IGNORE)) == pytest.approx(
        float(kl(half.float(), half.float() * 2, truth != IGNORE)), rel=1e-5
    )
