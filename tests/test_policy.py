from itertools import product

import pytest
import torch
from torch import Tensor

from pipeline import policy
from pipeline.labels import IGNORE
from pipeline.policy import counterfactual, relabelling_gains, sample
from pipeline.rewards import COUNT_REWARDS, CountReward, count, pooled_miou

every = pytest.mark.parametrize("reward", COUNT_REWARDS.values(), ids=COUNT_REWARDS)


def expected_gradient(logits: Tensor, truth: Tensor, reward: CountReward, memory: Tensor) -> Tensor:
    """d E[R] / d logits by enumerating every labelling, times counted pixels over valid ones: minus the loss's."""
    logits = logits.double().requires_grad_()
    probabilities = logits.softmax(1).flatten(2)[0]
    classes, pixels = probabilities.shape
    expected = torch.zeros((), dtype=torch.float64)
    for labels in product(range(classes), repeat=pixels):
        labelling = torch.tensor(labels, dtype=torch.uint8).reshape(truth.shape)
        chance = probabilities[list(labels), range(pixels)].prod()
        expected = expected + chance * reward(memory + count(labelling, truth, classes)).total
    (gradient,) = torch.autograd.grad(expected, logits)
    valid = (truth != IGNORE).sum()
    return gradient * (memory.sum() + valid) / valid


def one_gradient(logits: Tensor, truth: Tensor, reward: CountReward, memory: Tensor, rng: torch.Generator) -> Tensor:
    logits = logits.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(counterfactual(logits, truth, reward, memory, rng).loss, logits)
    return gradient


@every
@pytest.mark.parametrize("remembered", [0, 40])
def test_the_estimate_is_the_policy_gradient_on_average(reward: CountReward, remembered: int) -> None:
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 3, 1, 4, generator=rng)
    truth = torch.tensor([[[0, 1, 1, IGNORE]]], dtype=torch.uint8)
    memory = remembered * torch.rand(3, 3, generator=rng, dtype=torch.float64)
    exact = -expected_gradient(logits, truth, reward, memory)
    estimates = torch.stack([one_gradient(logits, truth, reward, memory, rng) for _ in range(200)]).double()
    error = estimates.std(0) / 200**0.5
    assert ((estimates.mean(0) - exact).abs() <= 4.5 * error + 1e-6).all()
    assert error.max() < 0.1 * exact.abs().max()  # or the line above would accept anything


@every
def test_one_sample_points_where_a_long_average_points(reward: CountReward) -> None:
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 4, 32, 32, generator=rng) * 2
    truth = torch.randint(0, 4, (1, 32, 32), generator=rng).to(torch.uint8)
    memory = torch.zeros(4, 4, dtype=torch.float64)
    average = torch.stack([one_gradient(logits, truth, reward, memory, rng) for _ in range(60)]).mean(0)
    for _ in range(3):
        one = one_gradient(logits, truth, reward, memory, rng)
        assert torch.cosine_similarity(one.flatten(), average.flatten(), dim=0) > 0.99
        assert float(one.norm() / average.norm()) == pytest.approx(1, abs=0.1)


def test_the_loss_does_not_grow_with_the_image_or_the_memory() -> None:
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 3, 16, 16, generator=rng) * 2
    truth = torch.randint(0, 3, (1, 16, 16), generator=rng).to(torch.uint8)
    shape = count(sample(logits.softmax(1), rng), truth, 3)  # a memory like the batch
    sizes = []
    for times, weight in ((1, 0), (4, 0), (1, 1000)):
        tiled = logits.repeat(times, 1, 1, 1), truth.repeat(times, 1, 1)
        sizes.append(float(one_gradient(*tiled, pooled_miou, weight * shape, rng).abs().sum()))
    assert sizes == pytest.approx([sizes[0]] * 3, rel=0.1)


@every
@pytest.mark.parametrize("chunk", [1, 10**6])
def test_relabelling_gains_agree_with_counting_again(
    reward: CountReward, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy, "CHUNK", chunk)
    rng = torch.Generator().manual_seed(0)
    labelling, truth = (torch.randint(0, 3, (1, 2, 3), generator=rng).to(torch.uint8) for _ in range(2))
    memory = torch.rand(3, 3, generator=rng, dtype=torch.float64) * 5
    batch = count(labelling, truth, 3)
    gains = relabelling_gains(memory + batch, batch, reward)
    before = reward(memory + batch).total
    seen = torch.zeros(3, 3, dtype=torch.bool)
    for row, col, c in product(range(2), range(3), range(3)):
        t, y = int(truth[0, row, col]), int(labelling[0, row, col])
        changed = labelling.clone()
        changed[0, row, col] = c
        expected = reward(memory + count(changed, truth, 3)).total - before
        assert float(gains[t, y, c]) == pytest.approx(float(expected), abs=1e-12)
        seen[t, y] = True
    assert (gains[~seen] == 0).all()
    assert 0 < seen.sum() < 9


def test_small_changes_of_a_large_pool_are_not_lost_in_rounding() -> None:
    batch = torch.full((19, 19), 1e3, dtype=torch.float64) + torch.diag(torch.full((19,), 5e7, dtype=torch.float64))
    gains = relabelling_gains(batch, batch, pooled_miou) * batch.sum()
    intersection, union = batch[0, 0], batch[0].sum() + batch[:, 0].sum() - batch[0, 0]
    # from wrong to right: I_t + 1, U_t unchanged; the wrong class loses a pixel of its union
    slope = (1 / union + intersection / union**2) / 19 * batch.sum()
    assert float(gains[0, 1, 0]) == pytest.approx(float(slope), rel=1e-4)


def test_samples_follow_the_probabilities() -> None:
    rng = torch.Generator().manual_seed(0)
    wanted = torch.tensor([0.0, 0.5, 0.0, 0.3, 0.2, 0.0])
    drawn = sample(wanted.reshape(1, 6, 1, 1).expand(1, 6, 200, 200), rng)
    shares = torch.bincount(drawn.flatten().long(), minlength=6) / drawn.numel()
    assert (shares[wanted == 0] <= 1e-4).all()
    assert ((shares - wanted).abs() < 4.5 * (wanted * (1 - wanted) / drawn.numel()).sqrt() + 1e-4).all()
    neighbours = (drawn[0, :, 1:] == drawn[0, :, :-1]).double().mean()  # pixels are independent
    assert float(neighbours) == pytest.approx(float(wanted.square().sum()), abs=0.015)


def test_a_certain_policy_has_no_spread_and_no_gradient() -> None:
    truth = torch.randint(0, 3, (1, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    logits = 200 * torch.nn.functional.one_hot(2 - truth.long(), 3).permute(0, 3, 1, 2).float()
    logits.requires_grad_()
    estimate = counterfactual(logits, truth, pooled_miou, torch.zeros(3, 3, dtype=torch.float64), torch.Generator())
    estimate.loss.backward()
    assert estimate.advantage_std == 0
    assert logits.grad.abs().max() < 1e-6
