"""What every reward must hold to."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.labels import IGNORE
from pipeline.rewards import REWARDS, CountReward, count

QUICK = settings(max_examples=15, deadline=None)
SEEDS = st.integers(0, 2**32 - 1)
every = pytest.mark.parametrize("reward", REWARDS.values(), ids=REWARDS)


def masks(seed: int) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    labelling, truth = (torch.from_numpy(rng.integers(0, 4, (2, 5, 6), dtype=np.uint8)) for _ in range(2))
    truth[torch.from_numpy(rng.random((2, 5, 6)) < 0.3)] = IGNORE
    return labelling, truth


@every
@QUICK
@given(seed=SEEDS)
def test_nothing_beats_the_truth(reward: CountReward, seed: int) -> None:
    labelling, truth = masks(seed)
    best = reward(count(truth, truth, 4)).total
    assert best == pytest.approx(1)
    assert reward(count(labelling, truth, 4)).total < best


@every
@QUICK
@given(seed=SEEDS)
def test_one_more_right_pixel_is_never_worse(reward: CountReward, seed: int) -> None:
    labelling, truth = masks(seed)
    wrong = torch.nonzero((truth != IGNORE) & (labelling != truth))
    before = reward(count(labelling, truth, 4)).total
    place = tuple(wrong[seed % len(wrong)])
    labelling[place] = truth[place]
    assert reward(count(labelling, truth, 4)).total > before


@every
def test_ignored_pixels_change_nothing(reward: CountReward) -> None:
    labelling, truth = masks(0)
    other = torch.where(truth == IGNORE, 3 - labelling, labelling)
    assert reward(count(labelling, truth, 4)).total == reward(count(other, truth, 4)).total


@every
@QUICK
@given(seed=SEEDS)
def test_many_matrices_are_valued_as_one_by_one_and_stay_as_they_are(reward: CountReward, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    matrices = torch.rand(2, 3, 4, 4, generator=generator, dtype=torch.float64) * 1e6  # fractions: a memory decays
    before = matrices.clone()
    together = reward(matrices)
    assert torch.equal(matrices, before)
    assert together.total.shape == (2, 3)
    for i, j in np.ndindex(2, 3):
        alone = reward(matrices[i, j])
        assert float(together.total[i, j]) == pytest.approx(float(alone.total), rel=1e-12)
        assert together.terms.keys() == alone.terms.keys()
        for name, values in alone.terms.items():
            assert values.shape == (4,)
            assert values.isfinite().all()
            assert together.terms[name][i, j].tolist() == pytest.approx(values.tolist(), rel=1e-12)


@every
def test_only_the_proportions_count(reward: CountReward) -> None:
    confusion = count(*masks(0), 4)
    assert float(reward(7.5 * confusion).total) == pytest.approx(float(reward(confusion).total), rel=1e-12)
