"""What every acquisition must hold to."""

from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline import params
from pipeline.gain import ACQUISITIONS, Acquisition, Entry, Posterior, Settings, shortfall, uncertainty, worth
from pipeline.gain.scorer import start_scorer
from pipeline.networks import architectures
from pipeline.networks.calibration import NONE
from pipeline.params import IN_POINTS

QUICK = settings(max_examples=10, deadline=None)
SEEDS = st.integers(0, 2**32 - 1)
every = pytest.mark.parametrize("entry", ACQUISITIONS.values(), ids=ACQUISITIONS)
LOOKS_AROUND = ("ripu",)
"""Acquisitions whose pixels do not stand alone: cut an image, and those at the cut are others."""


def probabilities(seed: int, sharpness: float = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(3, 5, 8, 9, generator=generator) * sharpness).softmax(1)


def posterior(p: Tensor, smooth: float = 0.01, pool: Tensor | None = None) -> Posterior:
    """Three members on cells of 2 x 2 pixels, the last ones cut off: sharper, blunter, and of the opposite opinion."""
    cells = F.avg_pool2d(p, 2, ceil_mode=True)
    members = torch.stack([cells**2, cells**0.5, 1 - cells])
    rows, cols = (torch.arange(length) // 2 for length in p.shape[2:])
    totals = shortfall.observe(p).sum(0) if pool is None else pool
    return Posterior(members / members.sum(2, keepdim=True), rows, cols, worth(totals, smooth))


def made(entry: Entry, smooth: float = 0.01, blend: float = 0.4) -> Acquisition:
    return entry.make(Settings(smooth, blend))


def gain(entry: Entry, p: Tensor, smooth: float = 0.01, blend: float = 0.4) -> Tensor:
    acquisition = made(entry, smooth, blend)
    statistics = acquisition.observe(p, posterior(p, smooth))
    return acquisition.gain(statistics, statistics.sum(0))


def gain_map(entry: Entry, p: Tensor, smooth: float = 0.01, blend: float = 0.4) -> Tensor:
    acquisition = made(entry, smooth, blend)
    pool = acquisition.observe(p, posterior(p, smooth)).sum(0)
    return acquisition.gain_map(p, pool, posterior(p, smooth))


@every
@QUICK
@given(seed=SEEDS, sharpness=st.floats(0.01, 30), smooth=st.sampled_from([0.001, 0.01, 0.5]), blend=st.floats(0, 1))
def test_the_map_sums_to_the_gain(entry: Entry, seed: int, sharpness: float, smooth: float, blend: float) -> None:
    p = probabilities(seed, sharpness)
    found = gain_map(entry, p, smooth, blend)
    assert found.shape == (3, 8, 9)
    assert (found >= 0).all()
    expected = gain(entry, p, smooth, blend).sum(1).tolist()
    assert found.double().sum((1, 2)).tolist() == pytest.approx(expected, rel=1e-4)


@every
@QUICK
@given(seed=SEEDS)
def test_renaming_the_classes_renames_the_gains(entry: Entry, seed: int) -> None:
    p, order = probabilities(seed), torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    renamed = p[:, order]
    assert torch.allclose(gain(entry, renamed), gain(entry, p)[:, order], rtol=1e-5, atol=1e-6)
    assert torch.allclose(gain_map(entry, renamed), gain_map(entry, p), rtol=1e-4, atol=1e-6)


@every
def test_statistics_are_named_and_additive(entry: Entry) -> None:
    acquisition, p = made(entry), probabilities(0)
    pool = shortfall.observe(p).sum(0)

    def observe(part: Tensor) -> Tensor:
        return acquisition.observe(part, posterior(part, pool=pool))

    whole = observe(p)
    assert whole.shape == (3, 5, len(acquisition.statistics))
    assert torch.equal(whole, torch.cat([observe(p[i : i + 1]) for i in range(3)]))
    if entry not in [ACQUISITIONS[name] for name in LOOKS_AROUND]:
        halves = observe(p[..., :4]) + observe(p[..., 4:])
        assert torch.allclose(whole, halves, rtol=1e-5)


@every
def test_gains_are_finite_not_negative_and_the_input_stays(entry: Entry) -> None:
    acquisition = made(entry)
    corners = torch.eye(5)[torch.arange(3 * 8 * 9) % 5].reshape(3, 8, 9, 5).permute(0, 3, 1, 2)
    for p in (
        corners,
        torch.full((3, 5, 8, 9), 0.2),
        probabilities(0, 50),
        torch.eye(5)[:1].repeat(3, 1)[:, :, None, None],
    ):
        before, members = p.clone(), posterior(p)
        kept = members.members.clone()
        pool = acquisition.observe(p, members).sum(0)
        for gains in (gain(entry, p), acquisition.gain_map(p, pool, members)):
            assert gains.isfinite().all()
            assert (gains >= 0).all()
        assert torch.equal(p, before)
        assert torch.equal(members.members, kept)


@every
def test_the_more_uncertain_image_is_never_second(entry: Entry) -> None:
    sharp = torch.tensor([0.97, 0.01, 0.01, 0.005, 0.005]).reshape(1, 5, 1, 1).expand(1, 5, 8, 9)
    blunt = torch.tensor([0.40, 0.30, 0.20, 0.050, 0.050]).reshape(1, 5, 1, 1).expand(1, 5, 8, 9)
    p = torch.cat([sharp, blunt])
    of_one_mind = posterior(p)._replace(members=F.avg_pool2d(p, 2, ceil_mode=True)[None])
    acquisition = made(entry, blend=1.0)
    statistics = acquisition.observe(p, of_one_mind)
    gains = acquisition.gain(statistics, statistics.sum(0)).sum(1)
    assert gains[1] >= gains[0]


@every
def test_what_is_asked_for_is_what_is_needed(entry: Entry) -> None:
    acquisition, p = made(entry), probabilities(0)
    full = posterior(p)
    expected = acquisition.observe(p, full)
    assert entry.needs_members or not entry.needs_worth
    for needed, less in ((entry.needs_members, None), (entry.needs_worth, full._replace(worth=None))):
        if needed:
            with pytest.raises(ValueError, match=r"members of the posterior|worth of right and wrong"):
                acquisition.observe(p, less)
            with pytest.raises(ValueError, match=r"members of the posterior|worth of right and wrong"):
                acquisition.gain_map(p, expected.sum(0), less)
        else:
            assert torch.equal(acquisition.observe(p, less), expected)


# -- the registry ------------------------------------------------------------------------------------------------------


@every
def test_points_are_a_mean_over_the_classes_and_other_units_are_not(entry: Entry) -> None:
    """One more class, of which there is nothing, takes its share of all points."""
    p, members = probabilities(0), torch.stack([probabilities(seed, sharpness=30) for seed in (1, 2)])
    acquisition, found = made(entry), []
    for more in (0, 1):
        padded, told = (F.pad(maps, (0, 0, 0, 0, 0, more)) for maps in (p, members))
        worths = worth(shortfall.observe(padded).sum(0), 0.01)
        statistics = acquisition.observe(padded, Posterior(told, torch.arange(8), torch.arange(9), worths))
        found.append(float(acquisition.gain(statistics, statistics.sum(0)).sum()))
    assert found[0] > 0
    assert found[1] == pytest.approx(found[0] * (5 / 6 if entry.in_points else 1), rel=1e-5)


def test_params_name_every_member_and_what_it_is_in() -> None:
    assert set(get_args(params.Score.model_fields["acquisition"].annotation)) == set(ACQUISITIONS)
    assert set(IN_POINTS) == {name for name, entry in ACQUISITIONS.items() if entry.in_points}


def test_a_member_is_a_function_and_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def surprise(p: Tensor) -> Tensor:
        return -p.amax(1).log()

    monkeypatch.setitem(ACQUISITIONS, "surprise", Entry(uncertainty.of_pixels(surprise)))
    score = params.Score().model_copy(update={"acquisition": "surprise"})
    network = architectures.build("small", classes=5, encoder="", weights=None, width=8, rng=torch.Generator())
    scorer = start_scorer("r01", "r00", network, NONE, score, seed=1, rounds=0)
    p = probabilities(0)
    statistics = scorer.acquisition.observe(p)
    assert torch.allclose(scorer.gain(statistics, statistics.sum(0)).sum(1).float(), surprise(p).mean((1, 2)))
