"""What every acquisition must hold to."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.acquisitions import ACQUISITIONS, Acquisition

QUICK = settings(max_examples=10, deadline=None)
SEEDS = st.integers(0, 2**32 - 1)
every = pytest.mark.parametrize("acquisition", ACQUISITIONS.values(), ids=ACQUISITIONS)


def probabilities(seed: int, sharpness: float = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(3, 5, 8, 9, generator=generator) * sharpness).softmax(1)


def gain(acquisition: Acquisition, p: Tensor, smooth: float = 0.01) -> Tensor:
    statistics = acquisition.observe(p)
    return acquisition.gain(statistics, statistics.sum(0), smooth)


@every
@QUICK
@given(seed=SEEDS, sharpness=st.floats(0.01, 30), smooth=st.sampled_from([0.001, 0.01, 0.5]))
def test_the_map_sums_to_the_gain(acquisition: Acquisition, seed: int, sharpness: float, smooth: float) -> None:
    p = probabilities(seed, sharpness)
    pool = acquisition.observe(p).sum(0)
    gain_map = acquisition.gain_map(p, pool, smooth)
    assert (gain_map >= 0).all()
    summed = gain_map.double().sum((1, 2))
    assert summed.tolist() == pytest.approx(gain(acquisition, p, smooth).sum(1).tolist(), rel=1e-4)


@every
@QUICK
@given(seed=SEEDS)
def test_renaming_the_classes_renames_the_gains(acquisition: Acquisition, seed: int) -> None:
    p, order = probabilities(seed), torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    renamed = p[:, order]
    assert torch.allclose(gain(acquisition, renamed), gain(acquisition, p)[:, order], rtol=1e-5)
    maps = [acquisition.gain_map(x, acquisition.observe(x).sum(0), 0.01) for x in (p, renamed)]
    assert torch.allclose(maps[0], maps[1], rtol=1e-4)


@every
def test_statistics_are_named_and_additive(acquisition: Acquisition) -> None:
    p = probabilities(0)
    whole = acquisition.observe(p)
    assert whole.shape == (3, 5, len(acquisition.statistics))
    assert torch.equal(whole, torch.cat([acquisition.observe(p[i : i + 1]) for i in range(3)]))
    halves = acquisition.observe(p[..., :4]) + acquisition.observe(p[..., 4:])
    assert torch.allclose(whole, halves, rtol=1e-5)


@every
def test_gains_are_finite_not_negative_and_the_input_stays(acquisition: Acquisition) -> None:
    corners = torch.eye(5)[torch.arange(3 * 8 * 9) % 5].reshape(3, 8, 9, 5).permute(0, 3, 1, 2)
    for p in (
        corners,
        torch.full((3, 5, 8, 9), 0.2),
        probabilities(0, 50),
        torch.eye(5)[:1].repeat(3, 1)[:, :, None, None],
    ):
        before = p.clone()
        pool = acquisition.observe(p).sum(0)
        for gains in (gain(acquisition, p), acquisition.gain_map(p, pool, 0.01)):
            assert gains.isfinite().all()
            assert (gains >= 0).all()
        assert torch.equal(p, before)


@every
def test_the_more_uncertain_image_is_never_second(acquisition: Acquisition) -> None:
    sharp = torch.tensor([0.97, 0.01, 0.01, 0.005, 0.005]).reshape(1, 5, 1, 1).expand(1, 5, 8, 9)
    blunt = torch.tensor([0.40, 0.30, 0.20, 0.050, 0.050]).reshape(1, 5, 1, 1).expand(1, 5, 8, 9)
    gains = gain(acquisition, torch.cat([sharp, blunt])).sum(1)
    assert gains[1] >= gains[0]
