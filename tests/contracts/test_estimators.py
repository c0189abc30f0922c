"""What every estimator must hold to, with every reward."""

import pytest
import torch
from torch import Tensor

from pipeline.labels import IGNORE
from pipeline.policy import ESTIMATORS, Estimator
from pipeline.rewards import COUNT_REWARDS, CountReward

every = pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS)
every_reward = pytest.mark.parametrize("reward", COUNT_REWARDS.values(), ids=COUNT_REWARDS)
NOTHING = torch.zeros(3, 3, dtype=torch.float64)


def problem(seed: int = 0) -> tuple[Tensor, Tensor, torch.Generator]:
    rng = torch.Generator().manual_seed(seed)
    truth = torch.randint(0, 3, (2, 6, 7), generator=rng).to(torch.uint8)
    truth[torch.rand(truth.shape, generator=rng) < 0.3] = IGNORE
    return torch.randn(2, 3, 6, 7, generator=rng).requires_grad_(), truth, rng


@every
@every_reward
def test_estimate_is_complete(estimator: Estimator, reward: CountReward) -> None:
    logits, truth, rng = problem()
    before, memory = logits.detach().clone(), torch.full((3, 3), 2.5, dtype=torch.float64)
    estimate = estimator(logits, truth, reward, memory, rng)
    estimate.loss.backward()
    assert torch.equal(logits, before)
    assert torch.equal(memory, torch.full((3, 3), 2.5, dtype=torch.float64))
    assert logits.grad.isfinite().all()
    assert estimate.confusion.sum() == (truth != IGNORE).sum()
    assert float(estimate.reward) == pytest.approx(float(reward(memory + estimate.confusion).total))
    assert estimate.advantage_std > 0
    assert not any(part.requires_grad for part in (estimate.reward, estimate.advantage_std, estimate.confusion))


@every
@every_reward
def test_ignored_pixels_have_no_gradient(estimator: Estimator, reward: CountReward) -> None:
    logits, truth, rng = problem()
    estimator(logits, truth, reward, NOTHING, rng).loss.backward()
    gradient = logits.grad.abs().sum(1)
    assert (gradient[truth == IGNORE] == 0).all()
    assert (gradient[truth != IGNORE] > 0).any()


@every
@every_reward
def test_a_batch_without_labels_teaches_nothing(estimator: Estimator, reward: CountReward) -> None:
    logits, truth, rng = problem()
    nothing = torch.full_like(truth, IGNORE)
    estimate = estimator(logits, nothing, reward, torch.ones(3, 3, dtype=torch.float64), rng)
    estimate.loss.backward()
    assert float(estimate.loss.detach()) == 0
    assert logits.grad.abs().max() == 0
    with pytest.raises(ValueError, match="nothing to reward"):
        estimator(logits, nothing, reward, NOTHING, rng)


@every
@every_reward
def test_the_generator_decides(estimator: Estimator, reward: CountReward) -> None:
    def run(seed: int) -> Tensor:
        logits, truth, _ = problem()
        return estimator(logits, truth, reward, NOTHING, torch.Generator().manual_seed(seed)).confusion

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))


@every
@every_reward
def test_following_the_gradient_raises_the_reward(estimator: Estimator, reward: CountReward) -> None:
    logits, truth, rng = problem()
    rewards = []
    for _ in range(60):
        estimate = estimator(logits, truth, reward, NOTHING, rng)
        rewards.append(float(estimate.reward))
        (gradient,) = torch.autograd.grad(estimate.loss, logits)
        logits = (logits - 30 * gradient).detach().requires_grad_()
    assert sum(rewards[-5:]) / 5 > 0.9 > 0.6 > sum(rewards[:2]) / 2
