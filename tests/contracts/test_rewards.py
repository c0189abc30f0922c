"""What every reward must hold to."""

from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline import params
from pipeline.images.classes import IGNORE, ClassSet
from pipeline.params import NOT_OF_COUNTS, OF_MIOU, WITHOUT_CREDIT
from pipeline.rewards import REWARDS, Entry, Reward, RewardFunction, Settings, count
from pipeline.rewards.counts import pooled, pooled_miou
from pipeline.training import reward_tuning

QUICK = settings(max_examples=5, deadline=None)
SEEDS = st.integers(0, 2**32 - 1)
CLASSES = 4
SETTINGS = Settings(
    classes=CLASSES,
    weights=torch.tensor([0.2, 0.8, 1.4, 1.6], dtype=torch.float64),
    costs=torch.tensor([[0, 1, 2, 1], [10, 0, 3, 1], [1, 0.5, 0, 7], [1, 1, 1, 0]], dtype=torch.float64),
    tolerance=1,
    overlap=0.6,
)
MADE = {name: entry.make(SETTINGS) for name, entry in REWARDS.items()}
every = pytest.mark.parametrize("reward", MADE.values(), ids=MADE)
every_count = pytest.mark.parametrize(
    "reward", [each for each in MADE.values() if each.of_counts], ids=[name for name in MADE if MADE[name].of_counts]
)


def masks(seed: int, shape: tuple[int, int, int] = (3, 7, 8)) -> tuple[Tensor, Tensor]:
    """Two images of noise or blocks, one without a label, and a labelling near the truth or far from it."""
    rng = np.random.default_rng(seed)
    n, height, width = shape
    block = int(rng.integers(1, 5))
    small = rng.integers(0, CLASSES, (n, -(-height // block), -(-width // block)), dtype=np.uint8)
    small[:, 0, 0], small[:, -1, -1] = 0, 1  # there is a boundary
    truth = small.repeat(block, 1).repeat(block, 2)[:, :height, :width].copy()
    wrong = rng.random(shape) < rng.choice([0.05, 0.3, 1])
    labelling = np.where(wrong, rng.integers(0, CLASSES, shape), truth).astype(np.uint8)
    ignored = rng.random(shape) < rng.choice([0, 0.3])
    ignored[:, 2:4, 3:6] = True
    truth[ignored] = IGNORE
    if n > 2:
        truth[2] = IGNORE
    return torch.from_numpy(labelling), torch.from_numpy(truth)


def total(reward: RewardFunction, labelling: Tensor, truth: Tensor) -> float:
    return float(reward.value(reward.statistics(labelling, truth).sum(0)).total)


def of_chance(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", MADE)
@QUICK
@given(seed=SEEDS)
def test_nothing_beats_the_truth(name: str, seed: int) -> None:
    reward = MADE[name]
    labelling, truth = masks(seed)
    best = total(reward, truth, truth)
    assert total(reward, labelling, truth) <= best + 1e-12
    assert total(reward, torch.where(truth == IGNORE, labelling, truth), truth) == best
    if name != "detection":  # which grows with the number of objects
        assert best == pytest.approx(0 if name == "expected_cost" else 1)


@every_count
@QUICK
@given(seed=SEEDS)
def test_one_more_right_pixel_is_better(reward: RewardFunction, seed: int) -> None:
    labelling, truth = masks(seed)
    labelling[0, 0, 0], truth[0, 0, 0] = 3, 2
    before = total(reward, labelling, truth)
    wrong = torch.nonzero((truth != IGNORE) & (labelling != truth))
    place = tuple(wrong[seed % len(wrong)])
    labelling[place] = truth[place]
    assert total(reward, labelling, truth) > before


@every
@QUICK
@given(seed=SEEDS)
def test_ignored_pixels_change_nothing(reward: RewardFunction, seed: int) -> None:
    labelling, truth = masks(seed)
    statistics = reward.statistics(labelling, truth)
    for other in (3 - labelling, torch.full_like(labelling, IGNORE), torch.full_like(labelling, CLASSES)):
        changed = torch.where(truth == IGNORE, other, labelling)
        assert torch.equal(reward.statistics(changed, truth), statistics)
    assert (statistics[2] == 0).all()  # an image without labels, as if it were not there


@every
@QUICK
@given(seed=SEEDS)
def test_ignored_surroundings_are_like_the_edge_of_the_image(reward: RewardFunction, seed: int) -> None:
    labelling, truth = masks(seed)
    wide = F.pad(labelling, (2, 1, 3, 2), value=1), F.pad(truth, (2, 1, 3, 2), value=IGNORE)
    assert torch.equal(reward.statistics(*wide), reward.statistics(labelling, truth))


@every
@QUICK
@given(seed=SEEDS)
def test_statistics_are_of_each_image_by_itself(reward: RewardFunction, seed: int) -> None:
    first, second = masks(seed), masks(seed + 1)
    together = reward.statistics(*(torch.cat(pair) for pair in zip(first, second, strict=True)))
    assert torch.equal(together, torch.cat([reward.statistics(*first), reward.statistics(*second)]))
    for i in range(3):
        alone = reward.statistics(first[0][i : i + 1], first[1][i : i + 1])
        assert torch.equal(alone[0], together[i])


@every
def test_inputs_stay_as_they_are_in_either_type(reward: RewardFunction) -> None:
    labelling, truth = masks(0)
    before = labelling.clone(), truth.clone()
    statistics = reward.statistics(labelling, truth)
    assert torch.equal(reward.statistics(labelling.long(), truth), statistics)
    if reward.credit:
        weights = of_chance((statistics.shape[1],), 0)
        kept = weights.clone()
        credit = reward.credit(labelling, truth, weights)
        assert torch.equal(reward.credit(labelling.long(), truth, weights), credit)
        assert torch.equal(weights, kept)
    assert torch.equal(labelling, before[0])
    assert torch.equal(truth, before[1])


@every
@QUICK
@given(seed=SEEDS)
def test_many_sums_are_valued_as_one_by_one_and_stay_as_they_are(reward: RewardFunction, seed: int) -> None:
    pools = of_chance((2, 3, 3), seed) @ reward.statistics(*masks(seed))  # fractions: a memory decays
    before = pools.clone()
    together = reward.value(pools)
    assert torch.equal(pools, before)
    assert together.total.shape == (2, 3)
    assert together.total.isfinite().all()
    assert together.terms
    for i, j in np.ndindex(2, 3):
        alone = reward.value(pools[i, j])
        assert float(together.total[i, j]) == pytest.approx(float(alone.total), rel=1e-12)
        assert together.terms.keys() == alone.terms.keys()
        for name, values in alone.terms.items():
            assert values.shape in ((CLASSES,), (1,))
            assert values.isfinite().all()
            assert together.terms[name][i, j].tolist() == pytest.approx(values.tolist(), rel=1e-12)


@every
@QUICK
@given(seed=SEEDS)
def test_only_the_proportions_count(reward: RewardFunction, seed: int) -> None:
    pool = reward.statistics(*masks(seed)).sum(0)
    assert float(reward.value(7.5 * pool).total) == pytest.approx(float(reward.value(pool).total), rel=1e-12)


@every
@QUICK
@given(seed=SEEDS)
def test_the_gradient_of_the_value_is_finite(reward: RewardFunction, seed: int) -> None:
    labelling, truth = masks(seed)
    labelling[truth != IGNORE] %= 2  # classes 2 and 3 are in neither
    truth[truth != IGNORE] %= 2
    pool = reward.statistics(labelling, truth).sum(0).requires_grad_()
    (gradient,) = torch.autograd.grad(reward.value(pool).total, pool)
    assert gradient.isfinite().all()


@every
def test_without_a_labelled_pixel_there_is_no_reward(reward: RewardFunction) -> None:
    labelling, truth = masks(0)
    assert np.isnan(total(reward, labelling, torch.full_like(truth, IGNORE)))


@every_count
@QUICK
@given(seed=SEEDS)
def test_count_rewards_are_what_their_confusion_matrices_say(reward: RewardFunction, seed: int) -> None:
    labelling, truth = masks(seed)
    matrices = [count(labelling[i : i + 1], truth[i : i + 1], CLASSES) for i in range(3)]
    if reward.per_image:
        expected = sum(float(reward.of_counts(matrix).total) for matrix in matrices[:2]) / 2
    else:
        assert torch.equal(reward.statistics(labelling, truth), torch.stack(matrices).flatten(1))
        expected = float(reward.of_counts(torch.stack(matrices).sum(0)).total)
    assert total(reward, labelling, truth) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "tolerance"), [(name, 1) for name in MADE if MADE[name].credit] + [("boundary_f1", 0), ("boundary_f1", 2)]
)
def test_relabelling_a_pixel_changes_its_credit_as_it_changes_the_statistics(name: str, tolerance: int) -> None:
    reward = REWARDS[name].make(SETTINGS._replace(tolerance=tolerance))
    moved = 0
    for seed in range(4):
        labelling, truth = masks(seed, (1, 7, 8))
        rows, columns = torch.cartesian_prod(torch.arange(7), torch.arange(8)).repeat_interleave(CLASSES, 0).T
        changed = labelling.repeat(len(rows), 1, 1)  # every pixel with every label, one image each
        every = torch.arange(len(rows))
        changed[every, rows, columns] = (every % CLASSES).to(torch.uint8)
        alike = truth.repeat(len(rows), 1, 1)

        weights = of_chance((reward.statistics(labelling, truth).shape[1],), seed) - 0.5
        gains = (reward.statistics(changed, alike) - reward.statistics(labelling, truth)) @ weights
        credit = reward.credit(labelling, truth, weights)
        assert credit.shape == truth.shape
        assert (credit[truth == IGNORE] == 0).all()
        differences = reward.credit(changed, alike, weights)[every, rows, columns] - credit[0, rows, columns]
        assert torch.allclose(differences, gains, rtol=0, atol=1e-12)
        moved += int((gains != 0).sum())
    assert moved > 20


@every
def test_a_class_that_there_is_not_is_refused(reward: RewardFunction) -> None:
    labelling, truth = masks(0)
    place = tuple(torch.nonzero(truth != IGNORE)[0])
    for name, which in (("labelling", 0), ("truth", 1)):
        maps = [labelling.clone(), truth.clone()]
        maps[which][place] = CLASSES
        with pytest.raises(ValueError, match=f"{name} holds class 4, but there are 4 classes"):
            reward.statistics(*maps)


@pytest.mark.parametrize("name", REWARDS)
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"classes": 0}, "there are 0 classes"),
        ({"weights": torch.ones(3, dtype=torch.float64)}, "give 4 numbers above 0"),
        ({"weights": torch.tensor([0, 1, 1, 2], dtype=torch.float64)}, "weights are"),
        ({"weights": torch.full((4,), 2, dtype=torch.float64)}, "mean 1"),
        ({"weights": torch.full((4,), torch.nan, dtype=torch.float64)}, "weights are"),
        ({"costs": torch.ones(4, 4, dtype=torch.float64)}, "0 on the diagonal"),
        ({"costs": -SETTINGS.costs}, "none below 0"),
        ({"costs": SETTINGS.costs[:3]}, "give 4 x 4 numbers"),
        ({"costs": SETTINGS.costs * torch.inf}, "costs are"),
        ({"tolerance": -1}, "tolerance is -1"),
        ({"overlap": 0.0}, "overlap is 0.0"),
        ({"overlap": 1.1}, "overlap is 1.1"),
    ],
)
def test_nonsense_is_refused(name: str, wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        REWARDS[name].make(SETTINGS._replace(**wrong))


# -- the registry ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REWARDS)
def test_who_needs_weights_and_nobody_else_goes_by_them(name: str) -> None:
    other = REWARDS[name].make(SETTINGS._replace(weights=SETTINGS.weights.flip(0)))
    changed = [total(MADE[name], *masks(seed)) != total(other, *masks(seed)) for seed in range(5)]
    assert any(changed) == REWARDS[name].needs_weights


def test_params_name_every_member_and_what_it_offers() -> None:
    assert set(get_args(params.Reward.model_fields["reward"].annotation)) == set(REWARDS)
    assert set(NOT_OF_COUNTS) == {name for name, reward in MADE.items() if reward.of_counts is None}
    assert set(OF_MIOU) == {name for name, reward in MADE.items() if reward.of_counts is pooled_miou}
    assert set(WITHOUT_CREDIT) == {name for name, reward in MADE.items() if reward.credit is None}


def test_a_member_is_a_function_and_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def worst_class(confusion: Tensor) -> Reward:
        iou = pooled_miou(confusion).terms["iou"]
        return Reward(iou.amin(-1), {"iou": iou})

    monkeypatch.setitem(REWARDS, "worst_class", Entry(lambda settings: pooled(settings, worst_class)))
    settings = params.Reward(steps=1, lr=1.0).model_copy(update={"reward": "worst_class"})
    two = ClassSet("two", ("road", "car"), ((0, 0, 0), (1, 1, 1)))
    reward = reward_tuning.reward_function(settings, torch.ones(2), two)
    truth, labelling = torch.tensor([[[0, 0, 1, 1]], [[0, 0, 1, 0]]], dtype=torch.uint8).split(1)
    assert total(reward, labelling, truth) == 1 / 2
    reward_tuning.check(settings, two)
