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
    each = sorted(one_by_one(logits, truth, weights, poly1), reverse=True)
    largest = each[: max(1, int(kept * len(each)))]
    mean = sum(largest) / max(len(largest), 1)
    assert float(cross_entropy(logits, truth, weights, poly1=poly1, kept=kept)) == pytest.approx(mean, rel=1e-4)


@QUICK
@given(SEEDS, st.sampled_from([0.0, 1.0]), st.sampled_from([1.0, 0.4]), st.booleans())
def test_domains_are_averaged_each_by_itself(seed: int, poly1: float, kept: float, by_pixel: bool) -> None:
    logits, truth, weights = batch(seed, (3, 3, 4, 5))
    truth[0, 1:] = IGNORE  # of the first domain few pixels are labelled
    first = torch.tensor([True, False, False]).view(3, 1, 1)
    if by_pixel:
        first = torch.rand(truth.shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    how = {"poly1": poly1, "kept": kept}
    shares = ((0.7, first), (0.3, ~first))
    found = cross_entropy(logits, truth, weights, domains=shares, **how)
    alone = [float(cross_entropy(logits, truth.where(of, IGNORE), weights, **how)) for _, of in shares]
    assert float(found) == pytest.approx(0.7 * alone[0] + 0.3 * alone[1], rel=1e-5)


def test_a_pixel_of_a_sparse_domain_weighs_more_known_answer() -> None:
    """One labelled pixel of the target beside 12 of the source, half of the loss each."""
    logits, truth = torch.zeros(2, 2, 3, 4, requires_grad=True), torch.zeros(2, 3, 4, dtype=torch.uint8)
    truth[0].flatten()[1:] = IGNORE
    source = torch.tensor([False, True]).view(2, 1, 1)
    loss = cross_entropy(logits, truth, torch.ones(2), domains=[(0.5, ~source), (0.5, source)])
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2))
    assert logits.grad is not None
    np.testing.assert_allclose(logits.grad[0, 0].flatten(), [-0.25] + [0.0] * 11)  # 1/2 * (p - 1)
    np.testing.assert_allclose(logits.grad[1, 0].flatten(), [-0.25 / 12] * 12)


def test_domains_of_dense_labels_are_the_mean_over_all_pixels() -> None:
    logits, truth, weights = batch(5, (4, 3, 4, 5))
    truth = truth.clamp(max=2)
    source = torch.tensor([False, False, False, True]).view(4, 1, 1)
    found = cross_entropy(logits, truth, weights, domains=[(0.75, ~source), (0.25, source)])
    assert float(found) == pytest.approx(float(cross_entropy(logits, truth, weights)), rel=1e-6)


@pytest.mark.parametrize("kept", [1.0, 0.3])
def test_a_domain_without_a_label_adds_nothing(kept: float) -> None:
    logits, truth, weights = batch(5)
    logits.requires_grad_()
    truth[0] = IGNORE
    first = torch.tensor([True, False]).view(2, 1, 1)
    found = cross_entropy(logits, truth, weights, kept=kept, domains=[(0.75, first), (0.25, ~first)])
    assert float(found.detach()) == pytest.approx(
        0.25 * float(cross_entropy(logits.detach(), truth, weights, kept=kept))
    )
    found.backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert (logits.grad[0] == 0).all()


def test_divided_by_all_processes_pixels_parts_have_the_loss_of_the_whole() -> None:
    """However uneven: of the second part one pixel is labelled, and none is of the second domain."""
    logits, truth, weights = batch(5, (4, 3, 4, 5))
    truth[2:].flatten()[1:] = IGNORE
    first = torch.tensor([True, False, True, True]).view(4, 1, 1)
    counts = []

    def domains(of: slice) -> list[tuple[float, Tensor]]:
        return [(0.6, first[of]), (0.4, ~first[of])]

    def noted(here: Tensor) -> Tensor:
        counts.append(here)
        return here.clamp(min=1)

    parts = slice(0, 2), slice(2, 4)
    for of in parts:
        cross_entropy(logits[of], truth[of], weights, domains=domains(of), divisor=noted)
    total = torch.stack(counts).sum(0)
    each = [
        cross_entropy(logits[of], truth[of], weights, domains=domains(of), divisor=lambda _: total / 2) for of in parts
    ]
    whole = cross_entropy(logits, truth, weights, domains=domains(slice(None)))
    assert float(sum(each)) / 2 == pytest.approx(float(whole), rel=1e-5)


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
    pixels = torch.tensor([4.0, 1.0, 3.0, 2.0])
    for kept, expected in ((0.01, [4.0]), (0.25, [4.0]), (0.5, [3.0, 4.0]), (1.0, [1.0, 2.0, 3.0, 4.0])):
        assert sorted(hardest(pixels, kept).tolist()) == expected
    assert len(hardest(torch.zeros(0), 0.5)) == 0


def test_easy_pixels_have_no_gradient() -> None:
    logits, truth, weights = batch(1)
    logits.requires_grad_()
    cross_entropy(logits, truth, weights, kept=0.2).backward()
    assert (logits.grad.abs().sum(1) > 0).sum() == int(0.2 * int((truth != IGNORE).sum()))


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
