"""Estimators against the exact gradient of the expected reward, which small problems let us enumerate."""

from itertools import product

import pytest
import torch
from torch import Tensor

from pipeline import rewards
from pipeline.estimators import ESTIMATORS, Estimator, Problem, Settings, surrogates, units
from pipeline.estimators.counterfactual import relabelling_gains
from pipeline.estimators.units import patches, sample, superpixels
from pipeline.images.classes import IGNORE
from pipeline.rewards import REWARDS, RewardFunction, count
from pipeline.rewards.counts import pooled_miou

NUMBERS = rewards.Settings(
    classes=3,
    weights=torch.tensor([0.5, 1.0, 1.5], dtype=torch.float64),
    costs=torch.tensor([[0, 1, 2], [5, 0, 1], [1, 1, 0]], dtype=torch.float64),
    tolerance=1,
    overlap=0.5,
)
MADE = {name: entry.make(NUMBERS) for name, entry in REWARDS.items()}
COUNTED = {name: reward for name, reward in MADE.items() if reward.of_counts is not None}
every = pytest.mark.parametrize("reward", MADE.values(), ids=MADE)
every_counted = pytest.mark.parametrize("reward", COUNTED.values(), ids=COUNTED)
TRUTH = torch.tensor([[[0, 1], [1, IGNORE]]], dtype=torch.uint8)


def memory_of(reward: RewardFunction, times: float) -> Tensor:
    """Statistics of labellings of a truth like TRUTH, some better than others."""
    rng = torch.Generator().manual_seed(5)
    truth = torch.randint(0, 3, (8, 4, 4), generator=rng).to(torch.uint8)
    labelling = torch.where(torch.rand(truth.shape, generator=rng) < 0.5, truth, 2 - truth)
    return times * reward.statistics(labelling, truth).sum(0)


def size_of(reward: RewardFunction, truth: Tensor) -> Tensor:
    return reward.size(reward.statistics(truth, truth).sum(0))


def make(name: str, **settings: object) -> Estimator:
    return ESTIMATORS[name].make(Settings(**settings))


def policy() -> Tensor:
    return torch.randn(1, 3, 2, 2, generator=torch.Generator().manual_seed(0))


def exact(logits: Tensor, truth: Tensor, reward: RewardFunction, memory: Tensor) -> Tensor:
    """d loss / d logits by enumerating every labelling, loss = - s E[R]."""
    logits = logits.double().requires_grad_()
    probabilities = logits.softmax(1).flatten(2)[0]
    classes, pixels = probabilities.shape
    labellings = torch.tensor(list(product(range(classes), repeat=pixels)), dtype=torch.uint8)
    chance = torch.stack([probabilities[labellings[:, i].long(), i] for i in range(pixels)]).prod(0)
    masks = labellings.view(-1, *truth.shape[1:])
    rewards = reward.value(memory + reward.statistics(masks, truth.expand_as(masks))).total
    mass = size_of(reward, truth)
    (gradient,) = torch.autograd.grad(-(reward.size(memory) + mass) / mass * (chance * rewards).sum(), logits)
    return gradient


def many(logits: Tensor, reward: RewardFunction, memory: Tensor, times: int, **how: object) -> Tensor:
    """`times` independent estimates of the gradient at once: each image of a batch is rewarded by itself."""
    name = how.pop("estimator", "reinforce")
    copies = logits.repeat(times, 1, 1, 1).requires_grad_()
    problem = Problem(TRUTH.repeat(times, 1, 1), reward, memory, torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad(make(name, **how)(copies, problem).loss, copies)
    return times * gradient


def check_mean(estimates: Tensor, expected: Tensor, noise: float) -> None:
    estimates = estimates.double()
    error = estimates.std(0) / len(estimates) ** 0.5
    assert ((estimates.mean(0) - expected[0]).abs() <= 4.5 * error + 1e-5).all()
    assert error.max() < noise * expected.abs().max()  # or the line above would accept anything


@every_counted
@pytest.mark.parametrize("remembered", [0, 1])
def test_counterfactual_is_the_policy_gradient_on_average(reward: RewardFunction, remembered: int) -> None:
    memory, rng = memory_of(reward, remembered), torch.Generator().manual_seed(0)
    estimates = []
    for _ in range(200):
        logits = policy().requires_grad_()
        loss = make("counterfactual")(logits, Problem(TRUTH, reward, memory, rng)).loss
        estimates.append(torch.autograd.grad(loss, logits)[0][0])
    expected = exact(policy(), TRUTH, reward, memory)
    check_mean(torch.stack(estimates), expected, 0.1)


@pytest.mark.parametrize(
    ("reward", "estimator", "baseline"),
    [
        *((name, "reinforce", "leave_one_out") for name in MADE if name != "detection"),  # which takes 10 ms an image
        *(("pooled_miou", "reinforce", name) for name in ("none", "two_sample", "other_images", "rolling_mean")),
        ("boundary_f1", "ppo", "leave_one_out"),
    ],
)
def test_sampling_is_the_policy_gradient_on_average(reward: str, estimator: str, baseline: str) -> None:
    made, times = MADE[reward], 800 if reward == "object_recall" else 20000
    memory = memory_of(made, 0.2)
    estimates = many(policy(), made, memory, times, estimator=estimator, baseline=baseline, samples=3)
    check_mean(estimates, exact(policy(), TRUTH, made, memory), 0.35)


@every
def test_local_credit_is_the_policy_gradient_of_a_large_pool(reward: RewardFunction) -> None:
    if reward.credit is None:
        pytest.skip("this reward knows no local credit; test_refusals sees that it says so")
    memory = memory_of(reward, 1e4)
    expected = exact(policy(), TRUTH, reward, memory)
    times = 1000
    estimates = many(policy(), reward, memory, times, credit="local", samples=4)
    # The batch's images share the pool: each is rewarded as one of them, not by itself.
    mass = size_of(reward, TRUTH)
    scale = (reward.size(memory) + mass) / (reward.size(memory) + times * mass)
    check_mean(estimates * scale, expected, 0.1)


def test_local_credit_is_less_noisy_than_an_images() -> None:
    rng = torch.Generator().manual_seed(0)
    truth = (
        torch.randint(0, 3, (1, 4, 4), generator=rng).repeat_interleave(6, 1).repeat_interleave(6, 2).to(torch.uint8)
    )
    logits = 2 * torch.randn(1, 3, 24, 24, generator=rng)
    for name in ("pooled_miou", "boundary_f1"):
        spread = {}
        for credit in ("image", "local"):
            gradients = []
            for seed in range(30):
                leaf = logits.clone().requires_grad_()
                generator = torch.Generator().manual_seed(seed)
                reward = MADE[name]
                memory = reward.statistics(truth, truth).sum(0)
                loss = make("reinforce", credit=credit)(leaf, Problem(truth, reward, memory, generator)).loss
                gradients.append(torch.autograd.grad(loss, leaf)[0].flatten())
            spread[credit] = torch.stack(gradients).var(0).sum()
        assert spread["local"] < 0.2 * spread["image"], (name, spread)


@pytest.mark.parametrize("side", [1, 2, 3])
def test_a_segments_policy_is_enumerated_as_one_label(side: int) -> None:
    """Patches as the only freedom: exact over the patches' labels, logits averaged."""
    rng = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 3, (1, 2, 3), generator=rng).to(torch.uint8)
    truth[0, 0, 0] = IGNORE
    reward, logits = MADE["pooled_miou"], torch.randn(1, 3, 2, 3, generator=rng)
    segments = patches(truth, side)
    memory = memory_of(reward, 0.2)
    leaf = logits.double().requires_grad_()
    means = torch.stack([leaf[0][:, segments[0] == s].mean(1) for s in segments.unique()]).softmax(1)  # s c
    total = torch.zeros((), dtype=torch.float64)
    for labels in product(range(3), repeat=len(means)):
        labelling = torch.tensor(labels, dtype=torch.uint8)[segments]
        chance = torch.stack([means[s, c] for s, c in enumerate(labels)]).prod()
        total = total + chance * reward.value(memory + reward.statistics(labelling, truth)[0]).total
    mass = size_of(reward, truth)
    (expected,) = torch.autograd.grad(-(reward.size(memory) + mass) / mass * total, leaf)
    copies = logits.repeat(20000, 1, 1, 1).requires_grad_()
    problem = Problem(truth.repeat(20000, 1, 1), reward, memory, rng, segments.repeat(20000, 1, 1))
    (estimates,) = torch.autograd.grad(make("reinforce", samples=3)(copies, problem).loss, copies)
    check_mean(20000 * estimates, expected, 0.35)


@every_counted
def test_one_counterfactual_sample_points_where_a_long_average_points(reward: RewardFunction) -> None:
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 3, 32, 32, generator=rng) * 2
    truth = torch.randint(0, 3, (1, 32, 32), generator=rng).to(torch.uint8)
    memory = 0 * memory_of(reward, 1)

    def one(estimator: str = "counterfactual") -> Tensor:
        leaf = logits.clone().requires_grad_()
        loss = make(estimator)(leaf, Problem(truth, reward, memory, rng)).loss
        return torch.autograd.grad(loss, leaf)[0].flatten()

    average = torch.stack([one() for _ in range(60)]).mean(0)
    for gradient in (one(), one(), one("soft_iou")):  # expected counts are what the counts of many pixels come to
        assert torch.cosine_similarity(gradient, average, dim=0) > 0.99
        assert float(gradient.norm() / average.norm()) == pytest.approx(1, abs=0.1)


def test_the_loss_does_not_grow_with_the_image_or_the_memory() -> None:
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 3, 16, 16, generator=rng) * 2
    truth = torch.randint(0, 3, (1, 16, 16), generator=rng).to(torch.uint8)
    shape = count(sample(logits, rng), truth, 3).flatten()  # a memory like the batch
    for estimator in ("counterfactual", "soft_iou"):
        sizes = []
        for times, weight in ((1, 0), (4, 0), (1, 1000)):
            tiled = logits.repeat(times, 1, 1, 1).requires_grad_(), truth.repeat(times, 1, 1)
            problem = Problem(tiled[1], MADE["pooled_miou"], weight * shape, rng)
            sizes.append(float(torch.autograd.grad(make(estimator)(tiled[0], problem).loss, tiled[0])[0].abs().sum()))
        assert sizes == pytest.approx([sizes[0]] * 3, rel=0.1)


@every_counted
@pytest.mark.parametrize("chunk", [1, 10**6])
def test_relabelling_gains_agree_with_counting_again(
    reward: RewardFunction, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.estimators.counterfactual.CHUNK", chunk)
    rng = torch.Generator().manual_seed(0)
    labelling, truth = (torch.randint(0, 3, (1, 2, 3), generator=rng).to(torch.uint8) for _ in range(2))
    memory = torch.rand(3, 3, generator=rng, dtype=torch.float64) * 5
    batch = count(labelling, truth, 3)
    gains = relabelling_gains(memory + batch, batch, reward.of_counts)
    before = reward.of_counts(memory + batch).total
    seen = torch.zeros(3, 3, dtype=torch.bool)
    for row, col, c in product(range(2), range(3), range(3)):
        t, y = int(truth[0, row, col]), int(labelling[0, row, col])
        changed = labelling.clone()
        changed[0, row, col] = c
        expected = reward.of_counts(memory + count(changed, truth, 3)).total - before
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


def test_the_counterfactual_gradient_is_given_once_and_not_wrongly_twice() -> None:
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 3, 4, 4, generator=rng).requires_grad_()
    truth = torch.randint(0, 3, (1, 4, 4), generator=rng).to(torch.uint8)
    reward = REWARDS["pooled_miou"].make(rewards.Settings(3, torch.ones(3), 1 - torch.eye(3), 1, 0.5))
    problem = Problem(truth, reward, torch.zeros(9, dtype=torch.float64), rng)
    loss = make("counterfactual")(logits, problem).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="used up: ask the estimator again"):
        loss.backward()


def test_samples_follow_the_probabilities() -> None:
    rng = torch.Generator().manual_seed(0)
    wanted = torch.tensor([0.0, 0.5, 0.0, 0.3, 0.2, 0.0])
    drawn = sample(wanted.log().reshape(1, 6, 1, 1).expand(1, 6, 200, 200), rng)
    shares = torch.bincount(drawn.flatten().long(), minlength=6) / drawn.numel()
    assert (shares[wanted == 0] <= 1e-4).all()
    assert ((shares - wanted).abs() < 4.5 * (wanted * (1 - wanted) / drawn.numel()).sqrt() + 1e-4).all()
    neighbours = (drawn[0, :, 1:] == drawn[0, :, :-1]).double().mean()  # pixels are independent
    assert float(neighbours) == pytest.approx(float(wanted.square().sum()), abs=0.015)


def test_a_certain_policy_has_no_spread_and_no_gradient() -> None:
    truth = torch.randint(0, 3, (1, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    logits = 200 * torch.nn.functional.one_hot(2 - truth.long(), 3).permute(0, 3, 1, 2).float()
    for estimator in ("counterfactual", "reinforce", "ppo"):
        leaf = logits.clone().requires_grad_()
        reward = MADE["pooled_miou"]
        problem = Problem(truth, reward, 0 * memory_of(reward, 1), torch.Generator())
        estimate = make(estimator)(leaf, problem)
        estimate.loss.backward()
        assert estimate.advantage_std == 0
        assert leaf.grad.abs().max() < 1e-6


# -- ppo ---------------------------------------------------------------------------------------------------------------


def test_ppo_stops_where_the_ratio_leaves_its_bounds() -> None:
    """Second step on a sample: labels that were good and are already likelier by more than `clip` have no gradient."""
    reward, rng = MADE["pooled_miou"], torch.Generator().manual_seed(0)
    memory = memory_of(reward, 0.2)
    ppo, problem = make("ppo", samples=4), Problem(TRUTH, reward, memory, rng)
    first = ppo(policy().requires_grad_(), problem)
    drawn = first.rollout
    again = problem._replace(rollout=drawn)
    moved = (policy() + torch.randn(1, 3, 2, 2, generator=rng)).requires_grad_()
    (gradient,) = torch.autograd.grad(ppo(moved, again).loss, moved)

    by_hand = torch.zeros(1, 3, 2, 2)
    log_p = moved.detach().log_softmax(1)
    for k, row, column in product(range(4), range(2), range(2)):
        if TRUTH[0, row, column] == IGNORE:
            continue
        label, advantage = int(drawn.labellings[k, 0, row, column]), float(drawn.advantages[k, 0, 0, 0])
        ratio = float((log_p[0, label, row, column] - drawn.log_p[k, 0, row, column]).exp())
        if (advantage > 0 and ratio > 1.2) or (advantage < 0 and ratio < 0.8):
            continue
        p = log_p[0, :, row, column].exp()
        by_hand[0, :, row, column] -= advantage * ratio * (torch.eye(3)[label] - p) / 4
    torch.testing.assert_close(gradient, by_hand)
    assert (by_hand != 0).any()


def test_ppo_with_an_unmoved_policy_is_reinforce() -> None:
    reward = MADE["boundary_f1"]
    gradients = [
        many(policy(), reward, memory_of(reward, 1), 50, estimator=name, samples=2) for name in ("ppo", "reinforce")
    ]
    torch.testing.assert_close(*gradients)


# -- surrogates --------------------------------------------------------------------------------------------------------


def test_lovasz_of_hard_labels_is_one_minus_the_miou_of_the_classes_that_are_there() -> None:
    rng = torch.Generator().manual_seed(0)
    truth, labelling = (torch.randint(0, 3, (2, 5, 4), generator=rng).to(torch.uint8) for _ in range(2))
    truth[0, 0] = IGNORE
    logits = 200 * torch.nn.functional.one_hot(labelling.long(), 3).permute(0, 3, 1, 2).float()
    for name in ("pooled_miou", "image_miou"):
        reward = MADE[name]
        statistics = reward.statistics(labelling, truth)
        loss = make("lovasz")(logits, Problem(truth, reward, 0 * statistics[0], rng)).loss
        assert float(loss) == pytest.approx(1 - float(reward.value(statistics.sum(0)).total), abs=1e-5)


def test_lovasz_against_loops() -> None:
    """Berman et al. 2018, algorithm 1, pixel by pixel."""
    rng = torch.Generator().manual_seed(3)
    truth = torch.randint(0, 3, (1, 4, 5), generator=rng).to(torch.uint8)
    p = torch.randn(1, 3, 4, 5, generator=rng).softmax(1)
    losses = []
    for c in range(3):
        errors = [
            (float(abs(float(t == c) - q)), bool(t == c))
            for q, t in zip(p[0, c].flatten(), truth.flatten(), strict=True)
        ]
        errors.sort(key=lambda one: -one[0])
        positives, before, loss = sum(t for _, t in errors), 0.0, 0.0
        for i in range(len(errors)):
            lost = sum(t for _, t in errors[: i + 1])
            wrong = sum(not t for _, t in errors[: i + 1])
            jaccard = 1 - (positives - lost) / (positives + wrong)
            loss, before = loss + errors[i][0] * (jaccard - before), jaccard
        losses.append(loss)
    whole = surrogates._lovasz_softmax(p[0].flatten(1), truth.flatten())
    assert float(whole) == pytest.approx(sum(losses) / 3, abs=1e-6)


def test_soft_iou_is_the_reward_of_expected_counts() -> None:
    rng = torch.Generator().manual_seed(0)
    truth = torch.tensor([[[0, 1, IGNORE, 1]]], dtype=torch.uint8)
    logits = torch.randn(1, 3, 1, 4, generator=rng)
    p = logits.softmax(1)[0, :, 0]
    expected = torch.zeros(3, 3, dtype=torch.float64)
    for i, t in enumerate([0, 1, None, 1]):
        if t is not None:
            expected[t] += p[:, i]
    memory = 3 * torch.eye(3, dtype=torch.float64)
    loss = make("soft_iou")(logits, Problem(truth, MADE["pooled_miou"], memory.flatten(), rng)).loss
    assert float(loss) == pytest.approx(-12 / 3 * float(pooled_miou(memory + expected).total), rel=1e-6)


def test_reward_weighted_is_cross_entropy_weighted_by_what_an_image_lacks() -> None:
    rng = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 3, (3, 4, 4), generator=rng).to(torch.uint8)
    truth[2] = IGNORE
    logits = torch.randn(3, 3, 4, 4, generator=rng)
    reward = MADE["pooled_miou"]
    statistics = reward.statistics(logits.argmax(1).byte(), truth)
    lack = [1 - float(reward.value(one).total) for one in statistics[:2]]
    entropy = [float(torch.nn.functional.cross_entropy(logits[[n]], truth[[n]].long())) for n in range(2)]
    expected = ((lack[0] - 0.1 * lack[1]) * entropy[0] + (lack[1] - 0.1 * lack[0]) * entropy[1]) / 2
    loss = make("reward_weighted")(logits, Problem(truth, reward, 0 * statistics[0], rng)).loss
    assert float(loss) == pytest.approx(expected, rel=1e-5)


# -- units -------------------------------------------------------------------------------------------------------------


def test_superpixels_follow_an_edge_that_patches_cut() -> None:
    image = torch.zeros(1, 3, 24, 24, dtype=torch.uint8)
    image[..., 11:] = 255  # between two columns of 8-pixel patches
    left, right = superpixels(image, 8)[0, :, :11].unique(), superpixels(image, 8)[0, :, 11:].unique()
    assert not set(left.tolist()) & set(right.tolist())
    cut = patches(image[:, 0], 8)[0]
    assert set(cut[:, :11].unique().tolist()) & set(cut[:, 11:].unique().tolist())


def test_a_segment_has_the_mean_logits_and_one_label() -> None:
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 5, 7, generator=rng)
    segments = torch.randint(0, 4, (2, 5, 7), generator=rng)
    pooled = units.field(logits, segments)
    labelling = sample(pooled, rng, segments)
    for n, s in product(range(2), range(4)):
        of = segments[n] == s
        torch.testing.assert_close(pooled[n][:, of], logits[n][:, of].mean(1, keepdim=True).expand(-1, int(of.sum())))
        assert len(labelling[n][of].unique()) == 1


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("estimator", "reward", "how", "says"),
    [
        ("counterfactual", "boundary_f1", {}, "needs a reward of pixel counts: take reinforce"),
        ("soft_iou", "detection", {}, "needs a reward of pixel counts"),
        ("lovasz", "dice", {}, "made for pooled_miou and image_miou"),
        ("reinforce", "pooled_miou", {"samples": 1}, "leave_one_out needs at least 2 samples, not 1"),
        ("ppo", "pooled_miou", {"baseline": "two_sample", "samples": 1}, "two_sample needs at least 2 samples"),
        ("reinforce", "pooled_miou", {"baseline": "other_images"}, "at least 2 labelled images"),
        ("reinforce", "detection", {"credit": "local"}, "knows no local credit: set credit to image"),
        ("reinforce", "pooled_miou", {"credit": "local", "baseline": "rolling_mean"}, "rolling_mean knows no local"),
        ("reinforce", "boundary_f1", {"credit": "local", "segments": patches(TRUTH, 2)}, "set unit to pixel"),
    ],
)
def test_refusals(estimator: str, reward: str, how: dict[str, object], says: str) -> None:
    how = dict(how)
    made = MADE[reward]
    segments = how.pop("segments", None)
    with pytest.raises(ValueError, match=says):
        make(estimator, **how)(policy(), Problem(TRUTH, made, memory_of(made, 1), torch.Generator(), segments))
