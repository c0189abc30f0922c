import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.gain import expected_iou, features, shortfall

QUICK = settings(max_examples=10, deadline=None)
SEEDS = st.integers(0, 2**32 - 1)
N, C, D, SIZE = 3, 4, 6, (5, 7)


def seen(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Features, logits and last layer's weights; the logits are of them, from sure to unsure."""
    rng = torch.Generator().manual_seed(seed)
    found, weights = torch.randn(N, D, *SIZE, generator=rng), torch.randn(C, D, generator=rng)
    return found, torch.einsum("cd,ndhw->nchw", weights, found), weights


def one_each() -> Tensor:
    return torch.ones(SIZE)


@QUICK
@given(SEEDS)
def test_mean_feature_counts_every_pixel_once(seed: int) -> None:
    found, logits, _ = seen(seed)
    pixels = torch.randint(0, 5, SIZE, generator=torch.Generator().manual_seed(seed)).float()
    pixels[0, 0] = 1
    projected = features.projection(C, D, torch.Generator().manual_seed(0))
    pooled = features.pool(found, logits.softmax(1), pixels, projected)
    large = found.numpy().reshape(N, D, -1).repeat(pixels.flatten().long().numpy(), axis=2)
    np.testing.assert_allclose(pooled.image.numpy(), large.mean(2), atol=1e-5)
    repeated = np.s_[:, :, None, :]
    wide = [
        torch.from_numpy(large[repeated]),
        logits.flatten(2).repeat_interleave(pixels.flatten().long(), 2)[:, :, None],
    ]
    again = features.pool(wide[0], wide[1].softmax(1), torch.ones(wide[0].shape[2:]), projected)
    for one, other in zip(pooled, again, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-3, atol=2e-3)


@QUICK
@given(SEEDS)
def test_by_class_is_the_mean_weighted_by_the_shortfall_of_the_class(seed: int) -> None:
    """Pixel by pixel, with J and U of the pool."""
    found, logits, _ = seen(seed)
    p = logits.softmax(1)
    pooled = features.pool(found, p, one_each(), features.projection(C, D, torch.Generator()))
    statistics = shortfall.observe(p)
    torch.testing.assert_close(pooled.statistics, statistics, rtol=1e-4, atol=1e-4)
    iou = expected_iou(statistics.sum(0), 0.01)
    claimed, _, missed = statistics.sum(0).unbind(1)
    union = claimed + missed
    union = union + 0.01 * union.sum()
    expected = np.zeros((N, C, D))
    for n, c in np.ndindex(N, C):
        weights = np.zeros(SIZE)
        for row, col in np.ndindex(*SIZE):
            own = int(p[n, :, row, col].argmax()) == c
            of = float(p[n, c, row, col])
            weights[row, col] = float(iou[c] / union[c]) * (1 - of) if own else of / float(union[c])
        expected[n, c] = (found[n].numpy() * weights).sum((1, 2)) / weights.sum()
    by_class = features.by_class(pooled.parts, pooled.statistics, iou)
    assert by_class.dtype == torch.float16
    np.testing.assert_allclose(by_class.float().numpy(), expected, atol=5e-3)


@QUICK
@given(SEEDS)
def test_gradient_is_that_of_the_last_layer_if_the_claims_were_true(seed: int) -> None:
    """By automatic differentiation of the cross-entropy; descent, so the sign is turned."""
    found, logits, weights = seen(seed)
    projected = features.projection(C, D, torch.Generator().manual_seed(seed))
    pooled = features.pool(found, logits.softmax(1), one_each(), projected)
    for n in range(N):
        weights.requires_grad_()
        again = torch.einsum("cd,ndhw->nchw", weights, found[n : n + 1])
        loss = torch.nn.functional.cross_entropy(again, again.argmax(1))
        (gradient,) = torch.autograd.grad(loss, weights)
        torch.testing.assert_close(pooled.gradient[n], -gradient.flatten() @ projected, rtol=1e-3, atol=1e-4)


def test_projection_keeps_distances() -> None:
    vectors = torch.randn(30, 19 * 16, generator=torch.Generator().manual_seed(1))
    projected = vectors @ features.projection(19, 16, torch.Generator().manual_seed(2))
    ratio = torch.pdist(projected) / torch.pdist(vectors)
    assert float(ratio.mean()) == pytest.approx(1, abs=0.02)
    assert float((ratio - 1).abs().max()) < 5 / 512**0.5


def test_image_without_doubt_has_no_feature_by_class() -> None:
    p = torch.eye(C)[[1]].reshape(1, C, 1, 1).expand(1, C, *SIZE)
    pooled = features.pool(torch.ones(1, D, *SIZE), p, one_each(), features.projection(C, D, torch.Generator()))
    iou = torch.tensor([torch.nan, 1, 0.5, 0], dtype=torch.float64)
    assert features.by_class(pooled.parts, pooled.statistics, iou).abs().max() == 0
    assert pooled.gradient.abs().max() == 0
    assert torch.equal(pooled.image, torch.ones(1, D))
