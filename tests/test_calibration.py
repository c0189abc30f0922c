import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.networks.calibration import (
    COLDEST,
    HOTTEST,
    NONE,
    SHRINKAGE,
    Calibration,
    fit_temperature,
    fit_vector,
    of_temperature,
)

QUICK = settings(max_examples=10, deadline=None)
KNOWN = Calibration((0.4, 0.7, 1.0, 0.5, 0.6), (-1.0, 0.0, 0.5, 1.5, -1.0))
"""Its biases sum to 0: more of all of them is no other softmax, and the penalty takes the smallest."""


def labelled(pixels: int, calibration: Calibration, seed: int = 0, classes: int = 5) -> tuple[Tensor, Tensor]:
    """Logits, and classes drawn from the softmax of the calibrated logits."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(pixels, classes, generator=generator) * 3
    p = applied(calibration, logits).softmax(1)
    return logits, torch.multinomial(p, 1, generator=generator).squeeze(1)


def applied(calibration: Calibration, logits: Tensor) -> Tensor:
    """A second implementation, for rows of logits."""
    bias = torch.tensor(calibration.bias or (0.0,), dtype=torch.float64)
    return logits.double() * torch.tensor(calibration.scale, dtype=torch.float64) + bias


def temperature(logits: Tensor, truth: Tensor, weights: Tensor | None = None) -> float:
    """That was fitted, as a number."""
    (scale,), bias = fit_temperature(logits, truth, weights)
    assert bias == ()
    return 1 / scale


def nll(logits: Tensor, truth: Tensor, weights: Tensor, calibration: Calibration) -> float:
    log_p = applied(calibration, logits).log_softmax(1)[torch.arange(len(truth)), truth.long()]
    return -float((weights.double() * log_p).sum())


@pytest.mark.parametrize("known", [0.5, 1.7, 4.0])
def test_a_known_temperature_is_found(known: float) -> None:
    assert temperature(*labelled(30_000, of_temperature(known))) == pytest.approx(known, rel=0.02)


@QUICK
@given(st.integers(1, 200), st.integers(0, 2**32 - 1))
def test_no_temperature_of_a_grid_is_better_and_1_least_of_all(pixels: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(pixels, 4, generator=generator) * 10
    truth = torch.randint(0, 4, (pixels,), generator=generator, dtype=torch.uint8)
    weights = torch.rand(pixels, generator=generator) + 0.01
    fitted = temperature(logits, truth, weights)
    assert COLDEST * (1 - 1e-6) <= fitted <= HOTTEST * (1 + 1e-6)
    best = nll(logits, truth, weights, of_temperature(fitted))
    for other in (1.0, *np.geomspace(COLDEST, HOTTEST, 20)):
        assert best <= nll(logits, truth, weights, of_temperature(other)) * (1 + 1e-6)


def test_a_known_scale_and_bias_are_found() -> None:
    found = fit_vector(*labelled(60_000, KNOWN), shrinkage=1e-3)
    assert found.scale == pytest.approx(KNOWN.scale, rel=0.05)
    assert found.bias == pytest.approx(KNOWN.bias, abs=0.05)


def test_shrinkage_leads_from_the_data_to_the_temperature() -> None:
    logits, truth = labelled(3_000, KNOWN)
    fits = [fit_vector(logits, truth, shrinkage=strength) for strength in (1e-3, 1e2, 1e4, 1e9)]
    losses = [nll(logits, truth, torch.ones(3_000), fit) for fit in fits]
    assert losses == sorted(losses)
    moved = [np.linalg.norm(fit.bias) for fit in fits]
    assert moved == sorted(moved, reverse=True)
    base = fit_temperature(logits, truth)
    assert fits[-1].scale == pytest.approx(base.scale * 5, rel=1e-3)
    assert fits[-1].bias == pytest.approx([0.0] * 5, abs=1e-3)


def test_a_bias_is_what_labels_and_predictions_differ_by_over_the_shrinkage() -> None:
    logits, truth = labelled(4_000, KNOWN)
    weights = torch.rand(4_000, generator=torch.Generator().manual_seed(2)) + 0.1
    shrinkage = 200.0
    found = fit_vector(logits, truth, weights, shrinkage=shrinkage)
    mass = weights.double() / weights.double().mean()
    predicted = mass @ applied(found, logits).softmax(1)
    seen = torch.bincount(truth, mass, minlength=5)
    np.testing.assert_allclose(shrinkage * np.array(found.bias), seen - predicted, atol=4_000 * 2e-5)


@QUICK
@given(st.integers(1, 60), st.integers(0, 2**32 - 1))
def test_nothing_near_a_vector_is_better(pixels: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(pixels, 4, generator=generator) * 10
    truth = torch.randint(0, 4, (pixels,), generator=generator)
    weights = torch.rand(pixels, generator=generator) + 0.01
    base = fit_temperature(logits, truth, weights).scale[0]

    def objective(calibration: Calibration) -> float:
        moved = [scale / base - 1 for scale in calibration.scale] + list(calibration.bias)
        return nll(logits, truth, weights / weights.mean(), calibration) + 50 / 2 * float(np.square(moved).sum())

    found = fit_vector(logits, truth, weights, shrinkage=50.0)
    assert all(1 / HOTTEST * (1 - 1e-6) <= scale <= 1 / COLDEST * (1 + 1e-6) for scale in found.scale)
    best = objective(found)
    rng = np.random.default_rng(seed)
    for _ in range(20):
        scale = np.clip(np.array(found.scale) * np.exp(rng.normal(0, 0.1, 4)), 1 / HOTTEST, 1 / COLDEST)
        other = Calibration(tuple(scale), tuple(found.bias + rng.normal(0, 0.1, 4)))
        assert best <= objective(other) + 1e-4 * pixels


def test_a_class_seen_on_a_few_pixels_stays_with_the_temperature() -> None:
    logits, truth = labelled(5_000, of_temperature(1.5))
    logits[:, 4] -= 40  # predicted nowhere
    truth[truth == 4] = 0
    truth[:3] = 4  # and labelled on three pixels
    held, loose = fit_vector(logits, truth), fit_vector(logits, truth, shrinkage=1e-3)
    assert 0 < held.bias[4] <= 3 / SHRINKAGE * 1.01
    assert float(applied(held, logits).softmax(1)[:, 4].sum()) < 0.1
    assert float(applied(loose, logits).softmax(1)[:, 4].sum()) == pytest.approx(3, abs=0.1)


def test_weights_undo_a_biased_choice_of_pixels() -> None:
    logits, truth = labelled(50_000, of_temperature(2.0))
    right = logits.argmax(1) == truth
    kept_with = torch.where(right, 0.2, 1.0)  # mistakes are five times as likely to be labelled
    kept = torch.rand(len(truth), generator=torch.Generator().manual_seed(1)) < kept_with
    chosen = logits[kept], truth[kept]
    assert temperature(*chosen, 1 / kept_with[kept]) == pytest.approx(2.0, rel=0.03)
    assert temperature(*chosen) > 2.4


def test_ends_of_the_range() -> None:
    logits = torch.tensor([[4.0, 0.0], [0.0, 4.0]])
    assert temperature(logits, torch.tensor([0, 1])) == pytest.approx(COLDEST)
    assert temperature(logits, torch.tensor([1, 0])) == pytest.approx(HOTTEST)


@pytest.mark.parametrize("calibration", [NONE, of_temperature(2.5), KNOWN])
@pytest.mark.parametrize("shape", [(5, 4, 6), (2, 5, 4, 6), (3, 2, 5, 4, 6)])
def test_applied_to_maps_as_to_rows_and_in_place_if_asked(calibration: Calibration, shape: tuple[int, ...]) -> None:
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    expected = applied(calibration, logits.movedim(-3, -1)).movedim(-1, -3).float()
    kept = logits.clone()
    torch.testing.assert_close(calibration.apply(logits), expected)
    assert torch.equal(logits, kept)
    with torch.inference_mode():
        assert calibration.apply(logits, out=logits) is logits
    torch.testing.assert_close(logits, expected)


def test_fit_that_does_not_converge_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.networks.calibration.STEPS", 1)
    with pytest.raises(ValueError, match="class-wise scaling of 3000 pixels did not converge"):
        fit_vector(*labelled(3_000, KNOWN), shrinkage=1e-3)


def test_logits_that_are_huge_converge() -> None:
    logits, truth = labelled(500, KNOWN)
    assert all(math.isfinite(value) for part in fit_vector(logits * 1e3, truth) for value in part)
