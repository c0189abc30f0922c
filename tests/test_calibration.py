import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.calibration import COLDEST, HOTTEST, fit_temperature

QUICK = settings(max_examples=10, deadline=None)


def labelled(pixels: int, temperature: float, seed: int = 0, classes: int = 5) -> tuple[Tensor, Tensor]:
    """Logits, and classes drawn from softmax(logits / temperature)."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(pixels, classes, generator=generator) * 3
    return logits, torch.multinomial((logits / temperature).softmax(1), 1, generator=generator).squeeze(1)


def nll(logits: Tensor, truth: Tensor, weights: Tensor, temperature: float) -> float:
    log_p = (logits.double() / temperature).log_softmax(1)[torch.arange(len(truth)), truth.long()]
    return -float((weights.double() * log_p).sum())


@pytest.mark.parametrize("temperature", [0.5, 1.7, 4.0])
def test_a_known_temperature_is_found(temperature: float) -> None:
    assert fit_temperature(*labelled(30_000, temperature)) == pytest.approx(temperature, rel=0.02)


@QUICK
@given(st.integers(1, 200), st.integers(0, 2**32 - 1))
def test_no_temperature_of_a_grid_is_better_and_1_least_of_all(pixels: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(pixels, 4, generator=generator) * 10
    truth = torch.randint(0, 4, (pixels,), generator=generator, dtype=torch.uint8)
    weights = torch.rand(pixels, generator=generator) + 0.01
    fitted = fit_temperature(logits, truth, weights)
    assert COLDEST <= fitted <= HOTTEST
    best = nll(logits, truth, weights, fitted)
    for temperature in (1.0, *np.geomspace(COLDEST, HOTTEST, 20)):
        assert best <= nll(logits, truth, weights, temperature) * (1 + 1e-6)


def test_weights_undo_a_biased_choice_of_pixels() -> None:
    logits, truth = labelled(50_000, 2.0)
    right = logits.argmax(1) == truth
    kept_with = torch.where(right, 0.2, 1.0)  # mistakes are five times as likely to be labelled
    kept = torch.rand(len(truth), generator=torch.Generator().manual_seed(1)) < kept_with
    chosen = logits[kept], truth[kept]
    assert fit_temperature(*chosen, 1 / kept_with[kept]) == pytest.approx(2.0, rel=0.03)
    assert fit_temperature(*chosen) > 2.4


def test_a_pixel_of_weight_two_is_two_pixels() -> None:
    logits, truth = labelled(500, 2.0)
    weights = torch.ones(500)
    weights[:100] = 2
    twice = fit_temperature(torch.cat([logits, logits[:100]]), torch.cat([truth, truth[:100]]))
    assert fit_temperature(logits, truth, weights) == pytest.approx(twice, rel=1e-5)
    assert fit_temperature(logits, truth, 7 * weights) == pytest.approx(twice, rel=1e-5)


def test_ends_of_the_range() -> None:
    logits = torch.tensor([[4.0, 0.0], [0.0, 4.0]])
    assert fit_temperature(logits, torch.tensor([0, 1])) == pytest.approx(COLDEST)
    assert fit_temperature(logits, torch.tensor([1, 0])) == pytest.approx(HOTTEST)


@pytest.mark.parametrize(
    ("logits", "truth", "weights"),
    [
        (torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), None),
        (torch.tensor([[math.nan, 0]]), torch.tensor([0]), None),
        (torch.zeros(1, 2), torch.tensor([0]), torch.tensor([math.inf])),
        (torch.zeros(1, 2), torch.tensor([0]), torch.tensor([0.0])),
        (torch.zeros(2, 2), torch.tensor([0, 1]), torch.tensor([2.0, -1.0])),
        (torch.zeros(1, 2), torch.tensor([2]), None),
        (torch.zeros(1, 2), torch.tensor([255], dtype=torch.uint8), None),
    ],
)
def test_bad_input_is_refused(logits: Tensor, truth: Tensor, weights: Tensor | None) -> None:
    with pytest.raises(ValueError, match=r"temperature needs|truth holds class"):
        fit_temperature(logits, truth, weights)
