"""What every estimator must hold to, with every reward that it is defined for."""

from typing import get_args

import pytest
import torch
from torch import Tensor

from pipeline import params, rewards
from pipeline.estimators import ESTIMATORS, Entry, Estimate, Problem, Settings
from pipeline.estimators.contract import Baseline, Credit, estimate
from pipeline.estimators.units import sample
from pipeline.images.classes import IGNORE, ClassSet
from pipeline.rewards import REWARDS, RewardFunction
from pipeline.training import reward_tuning

NUMBERS = rewards.Settings(
    classes=3,
    weights=torch.ones(3, dtype=torch.float64),
    costs=1 - torch.eye(3, dtype=torch.float64),
    tolerance=1,
    overlap=0.5,
)
MADE = {name: entry.make(NUMBERS) for name, entry in REWARDS.items()}
OF_MIOU = ("pooled_miou", "image_miou")


def defined(estimator: str, reward: str) -> bool:
    entry = ESTIMATORS[estimator]
    return (reward in OF_MIOU or not entry.needs_miou) and (
        MADE[reward].of_counts is not None or not entry.needs_counts
    )


PAIRS = [(e, r) for e in ESTIMATORS for r in MADE]
every = pytest.mark.parametrize(
    ("estimator", "reward"),
    [pytest.param(ESTIMATORS[e], MADE[r], id=f"{e}-{r}") for e, r in PAIRS if defined(e, r)],
)


def scene(seed: int = 0) -> tuple[Tensor, Tensor, torch.Generator]:
    """Two images of areas, a tenth of it unlabelled."""
    rng = torch.Generator().manual_seed(seed)
    truth = torch.randint(0, 3, (2, 3, 4), generator=rng).to(torch.uint8)
    truth = truth.repeat_interleave(2, 1).repeat_interleave(2, 2)
    truth[torch.rand(truth.shape, generator=rng) < 0.1] = IGNORE
    return torch.randn(2, 3, 6, 8, generator=rng).requires_grad_(), truth, rng


def ask(estimator: Entry, logits: Tensor, problem: Problem, **settings: object) -> Estimate:
    return estimator.make(Settings(**settings))(logits, problem)


def nothing(reward: RewardFunction, truth: Tensor) -> Tensor:
    return 0 * reward.statistics(truth, truth)[0]


@every
def test_estimate_is_complete(estimator: Entry, reward: RewardFunction) -> None:
    logits, truth, rng = scene()
    memory = reward.statistics(truth, truth).sum(0)
    before, remembered = logits.detach().clone(), memory.clone()
    estimate = ask(
        estimator, logits, Problem(truth, reward, memory, rng), samples=8
    )  # two may have the same reward by chance
    estimate.loss.backward()
    assert torch.equal(logits, before)
    assert torch.equal(memory, remembered)
    assert logits.grad.isfinite().all()
    assert logits.grad.any()
    assert estimate.statistics.shape == memory.shape
    assert float(estimate.reward) == pytest.approx(float(reward.value(memory + estimate.statistics).total))
    assert estimate.reward_std >= 0
    assert estimate.advantage_std >= 0
    kept = (estimate.reward, estimate.reward_std, estimate.advantage_std, estimate.statistics)
    assert not any(part.requires_grad for part in kept)


@every
def test_ignored_pixels_have_no_gradient(estimator: Entry, reward: RewardFunction) -> None:
    logits, truth, rng = scene()
    ask(estimator, logits, Problem(truth, reward, nothing(reward, truth), rng), samples=8).loss.backward()
    gradient = logits.grad.abs().sum(1)
    assert (gradient[truth == IGNORE] == 0).all()
    assert (gradient[truth != IGNORE] > 0).any()


@every
def test_an_image_without_labels_changes_nothing_for_the_other(estimator: Entry, reward: RewardFunction) -> None:
    logits, truth, rng = scene()
    truth[1] = IGNORE
    memory = reward.statistics(truth, truth).sum(0)
    ask(estimator, logits, Problem(truth, reward, memory, rng), samples=8).loss.backward()
    assert (logits.grad[1] == 0).all()
    assert logits.grad[0].isfinite().all()
    assert logits.grad[0].any()


@every
@pytest.mark.parametrize("seed", range(3))
def test_what_is_said_where_nothing_is_labelled_has_no_effect(
    seed: int, estimator: Entry, reward: RewardFunction
) -> None:
    """A few labelled regions in two images, none in a third: what the network says elsewhere changes nothing."""
    rng = torch.Generator().manual_seed(seed)
    truth = torch.full((3, 6, 8), IGNORE, dtype=torch.uint8)
    truth[0, 1:4, 2:6] = torch.randint(0, 3, (3, 4), generator=rng).to(torch.uint8)
    truth[1, 4:, :2] = torch.randint(0, 3, (2, 2), generator=rng).to(torch.uint8)
    valid = (truth != IGNORE)[:, None]
    said, other = torch.randn(2, 3, 3, 6, 8, generator=rng)
    found = []
    for logits in (said, said.where(valid, other)):
        leaf = logits.clone().requires_grad_()
        problem = Problem(truth, reward, nothing(reward, truth), torch.Generator().manual_seed(seed))
        estimate = ask(estimator, leaf, problem, samples=8)
        found.append((estimate.loss.detach(), *torch.autograd.grad(estimate.loss, leaf), estimate.reward))
    for one, same in zip(*found, strict=True):
        torch.testing.assert_close(one, same, equal_nan=True)


@every
@pytest.mark.parametrize("credit", ["image", "local"])
@pytest.mark.parametrize("beside", ["another", "none", "an unlabelled one"])
def test_an_image_of_one_class_is_no_fault(beside: str, credit: str, estimator: Entry, reward: RewardFunction) -> None:
    """It has pixels, and no boundary."""
    logits, truth, rng = scene()
    truth[1] = 2
    if beside != "another":
        truth[0] = 2 if beside == "none" else IGNORE
    if reward.credit is None and credit == "local":
        pytest.skip("this reward knows no local credit")
    for memory in (nothing(reward, truth), reward.statistics(*[scene()[1]] * 2).sum(0)):
        logits.grad = None
        estimate = ask(estimator, logits, Problem(truth, reward, memory, rng), samples=8, credit=credit)
        estimate.loss.backward()
        assert estimate.loss.isfinite()
        assert logits.grad.isfinite().all()
        assert estimate.advantage_std.isfinite()
        assert estimate.reward_std.isfinite()


@every
def test_a_batch_without_labels_teaches_nothing(estimator: Entry, reward: RewardFunction) -> None:
    logits, truth, rng = scene()
    unlabelled = torch.full_like(truth, IGNORE)
    estimate = ask(estimator, logits, Problem(unlabelled, reward, reward.statistics(truth, truth).sum(0), rng))
    estimate.loss.backward()
    assert float(estimate.loss.detach()) == 0
    assert logits.grad.abs().max() == 0
    logits.grad = None
    estimate = ask(estimator, logits, Problem(unlabelled, reward, nothing(reward, truth), rng))  # nor has it a reward
    estimate.loss.backward()
    assert float(estimate.loss.detach()) == logits.grad.abs().max() == 0
    assert estimate.reward.isnan()


MEANS = ("pixel_accuracy", "expected_cost", "image_miou", "detection")
WITHOUT_MEMORY = ("lovasz", "reward_weighted")


def gradient(estimator: Entry, reward: RewardFunction, logits: Tensor, truth: Tensor, memory: Tensor) -> Tensor:
    leaf = logits.detach().clone().requires_grad_()
    problem = Problem(truth, reward, memory, torch.Generator().manual_seed(2))
    return torch.autograd.grad(ask(estimator, leaf, problem, samples=8).loss, leaf)[0]


@pytest.mark.parametrize(
    ("estimator", "reward"),
    [
        pytest.param(ESTIMATORS[e], MADE[r], id=f"{e}-{r}")
        for e, r in PAIRS
        if defined(e, r) and (r in MEANS or e in WITHOUT_MEMORY)
    ],
)
def test_what_the_memory_holds_is_nothing_to_a_mean(estimator: Entry, reward: RewardFunction) -> None:
    logits, truth, _ = scene()
    right = reward.statistics(truth, truth).sum(0)
    wrong = reward.statistics((truth != IGNORE).byte() - truth.clamp(max=1), truth).sum(0)
    expected = gradient(estimator, reward, logits, truth, nothing(reward, truth))
    assert expected.norm() > 0
    for memory in (right, 20 * wrong, 1000 * right + wrong):
        torch.testing.assert_close(gradient(estimator, reward, logits, truth, memory), expected, rtol=1e-3, atol=1e-5)


@every
def test_the_size_of_the_memory_is_not_that_of_the_gradient(estimator: Entry, reward: RewardFunction) -> None:
    rng = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 3, (2, 4, 4), generator=rng).to(torch.uint8)
    truth = truth.repeat_interleave(8, 1).repeat_interleave(8, 2)
    logits = torch.randn(2, 3, 4, 4, generator=rng).repeat_interleave(8, 2).repeat_interleave(8, 3)
    logits = 3 * logits + torch.randn(logits.shape, generator=rng)
    alike = torch.stack([reward.statistics(sample(logits, rng), truth).sum(0) for _ in range(8)]).mean(0)
    norms = [float(gradient(estimator, reward, logits, truth, n * alike).norm()) for n in (0, 1, 1000)]
    assert norms == pytest.approx([norms[2]] * 3, rel=0.3)


@every
def test_the_generator_decides(estimator: Entry, reward: RewardFunction) -> None:
    def run(seed: int) -> Tensor:
        logits, truth, _ = scene()
        generator = torch.Generator().manual_seed(seed)
        problem = Problem(truth, reward, nothing(reward, truth), generator)
        (gradient,) = torch.autograd.grad(ask(estimator, logits, problem, samples=8).loss, logits)
        return gradient

    assert torch.equal(run(1), run(1))
    samples = estimator.needs_samples or estimator is ESTIMATORS["counterfactual"]
    assert samples != torch.equal(run(1), run(2))


@every
def test_following_the_gradient_raises_the_reward(estimator: Entry, reward: RewardFunction) -> None:
    """With the least noise that the estimator offers: half of the way to the best, in 40 steps.

    In 80 where one reward of a whole image has to do for all of its sampled labels.
    """
    logits, truth, rng = scene()
    steps = 80 if estimator.needs_samples and reward.credit is None else 40
    credit = "local" if reward.credit is not None else "image"
    how = {"samples": 8, "credit": credit} if estimator.needs_samples else {}

    def worth(logits: Tensor) -> float:
        return float(reward.value(reward.statistics(logits.argmax(1).byte(), truth).sum(0)).total)

    start, last = worth(logits), []
    state: dict[str, Tensor] = {"first": torch.zeros_like(logits), "second": torch.zeros(())}
    for step in range(steps):
        estimate = ask(estimator, logits, Problem(truth, reward, nothing(reward, truth), rng), **how)
        (gradient,) = torch.autograd.grad(estimate.loss, logits)
        if step >= steps - 5:
            last.append(worth(logits))
        # Adam with one scale for all: the size of a loss differs from reward to reward
        state["first"] = 0.8 * state["first"] + 0.2 * gradient
        state["second"] = 0.95 * state["second"] + 0.05 * gradient.square().mean()
        scale = (state["second"] / (1 - 0.95 ** (step + 1))).sqrt() + 1e-12
        logits = (logits - 0.1 * state["first"] / scale).detach().requires_grad_()
    best, end = float(reward.value(reward.statistics(truth, truth).sum(0)).total), sum(last) / 5
    assert best - end < 0.5 * (best - start), (start, end, best)


# -- the registry ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("estimator", "reward"), [pair for pair in PAIRS if not defined(*pair)])
def test_who_lacks_what_it_needs_refuses(estimator: str, reward: str) -> None:
    logits, truth, rng = scene()
    with pytest.raises(ValueError, match=r"needs a reward of pixel counts|made for pooled_miou and image_miou"):
        ask(ESTIMATORS[estimator], logits, Problem(truth, MADE[reward], nothing(MADE[reward], truth), rng))


@pytest.mark.parametrize("name", ESTIMATORS)
def test_who_needs_samples_and_nobody_else_goes_by_the_settings(name: str) -> None:
    logits, truth, _ = scene()
    reward = MADE["pooled_miou"]

    def gradient_with(**settings: object) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        loss = ask(ESTIMATORS[name], logits, Problem(truth, reward, nothing(reward, truth), generator), **settings).loss
        return torch.autograd.grad(loss, logits)[0]

    for settings in ({"samples": 8}, {"baseline": "none"}, {"credit": "local"}):
        assert torch.equal(gradient_with(), gradient_with(**settings)) != ESTIMATORS[name].needs_samples


def test_params_name_every_member_and_what_it_needs() -> None:
    assert set(get_args(params.Reward.model_fields["estimator"].annotation)) == set(ESTIMATORS)
    for field in ("needs_counts", "needs_miou", "needs_samples"):
        needing = {name for name, entry in ESTIMATORS.items() if getattr(entry, field)}
        assert set(getattr(params, field.upper())) == needing
    assert params.OF_MIOU == OF_MIOU
    fields = params.Reward.model_fields
    assert set(get_args(fields["baseline"].annotation)) == set(get_args(Baseline))
    assert set(get_args(fields["credit"].annotation)) == set(get_args(Credit))
    assert set(get_args(fields["unit"].annotation)) == set(reward_tuning.UNITS)


def test_a_member_is_a_function_and_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def flatter(logits: Tensor, problem: Problem) -> Estimate:
        asked.append(problem)
        return estimate(logits.square().mean(), logits.argmax(1).byte(), problem)

    monkeypatch.setitem(ESTIMATORS, "flatter", Entry(lambda _: flatter))
    settings = params.Reward(steps=1, lr=1.0).model_copy(update={"estimator": "flatter"})
    reward_tuning.check(settings, ClassSet("two", ("road", "car"), ((0, 0, 0), (1, 1, 1))))
    assert len(asked) == 1
