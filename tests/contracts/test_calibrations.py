"""What every calibration must hold to."""

import math

import pytest
import torch
from torch import Tensor

from pipeline.networks.calibration import CALIBRATIONS, NONE, Calibration, Fit

every = pytest.mark.parametrize("fit", CALIBRATIONS.values(), ids=CALIBRATIONS)


def problem(pixels: int = 2_000) -> tuple[Tensor, Tensor]:
    """Over-confident logits of four classes, one of them claimed too seldom."""
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(pixels, 4, generator=generator) * 3
    p = (logits / 2 + torch.tensor([0.0, 0.0, 0.0, 1.0])).softmax(1)
    return logits, torch.multinomial(p, 1, generator=generator).squeeze(1)


def loss(calibration: Calibration, logits: Tensor, truth: Tensor) -> float:
    log_p = calibration.apply(logits.T[:, None]).log_softmax(0)[:, 0]
    return -float(log_p.gather(0, truth[None]).mean())


def numbers(calibration: Calibration) -> list[float]:
    return [*calibration.scale, *calibration.bias]


@every
def test_it_is_better_than_none_and_fits_any_map(fit: Fit) -> None:
    logits, truth = problem()
    found = fit(logits, truth, None)
    assert len(found.scale) in (1, 4)
    assert len(found.bias) in (0, len(found.scale))
    assert all(scale > 0 for scale in found.scale)
    assert loss(found, logits, truth) < loss(NONE, logits, truth)


@every
def test_the_input_stays_and_the_same_input_gives_the_same(fit: Fit) -> None:
    logits, truth = problem()
    kept = logits.clone(), truth.clone()
    assert fit(logits, truth, None) == fit(logits, truth.to(torch.uint8), torch.ones(len(truth)))
    assert torch.equal(logits, kept[0])
    assert torch.equal(truth, kept[1])


@every
def test_a_pixel_of_weight_two_is_two_pixels(fit: Fit) -> None:
    """Penalties count pixels: so as many are added of weight 0 as the repeated ones make more."""
    logits, truth = problem(500)
    weights = torch.ones(500)
    weights[:100] = 2
    twice = fit(torch.cat([logits, logits[:100]]), torch.cat([truth, truth[:100]]), None)
    padded = torch.cat([logits, logits[100:200]]), torch.cat([truth, truth[100:200]])
    once = fit(*padded, torch.cat([weights, torch.zeros(100)]))
    assert numbers(once) == pytest.approx(numbers(twice), rel=1e-4, abs=1e-4)
    assert numbers(fit(logits, truth, 7 * weights)) == pytest.approx(numbers(fit(logits, truth, weights)), rel=1e-5)


@every
def test_renaming_the_classes_renames_the_numbers(fit: Fit) -> None:
    logits, truth = problem()
    order = torch.tensor([2, 0, 3, 1])
    place = torch.argsort(order)
    found, renamed = fit(logits, truth, None), fit(logits[:, order], place[truth], None)
    for one, other in zip(found, renamed, strict=True):
        expected = [one[i] for i in order.tolist()] if len(one) > 1 else one
        assert other == pytest.approx(expected, rel=1e-3, abs=1e-3)


@every
def test_one_pixel_is_enough(fit: Fit) -> None:
    found = fit(torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([0]), None)
    assert all(math.isfinite(number) for number in numbers(found))


@every
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
def test_bad_input_is_refused(fit: Fit, logits: Tensor, truth: Tensor, weights: Tensor | None) -> None:
    with pytest.raises(ValueError, match=r"calibration needs|truth holds class"):
        fit(logits, truth, weights)
