import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.evaluation import metrics
from pipeline.gain import (
    ACQUISITIONS,
    Acquisition,
    Posterior,
    Settings,
    Worth,
    annealed,
    expected_iou,
    observe_truth,
    oracle,
    predicted_miou,
    shortfall,
    worth,
)
from pipeline.images.classes import IGNORE

QUICK = settings(max_examples=5, deadline=None)
SEEDS = st.integers(0, 2**32 - 1)


def made(name: str, smooth: float = 0.0, blend: float = 1.0) -> Acquisition:
    return ACQUISITIONS[name].make(Settings(smooth, blend))


def random_pool(seed: int, classes: int = 6, images: int = 3, size: tuple[int, int] = (25, 40)) -> Tensor:
    """Probabilities with structure, classes from common to rare."""
    generator = torch.Generator().manual_seed(seed)
    frequency = torch.linspace(2, -4, classes).reshape(1, -1, 1, 1)
    return (torch.randn(images, classes, *size, generator=generator) * 2 + frequency).softmax(1)


def draw_truth(probabilities: Tensor, seed: int) -> Tensor:
    n, c, h, w = probabilities.shape
    flat = probabilities.permute(0, 2, 3, 1).reshape(-1, c)
    drawn = torch.multinomial(flat, 1, generator=torch.Generator().manual_seed(seed))
    return drawn.reshape(n, h, w).to(torch.uint8)


def gains_by_force(probabilities: Tensor) -> np.ndarray:
    """Of every pixel: expected IoU points won if its claim became its true class, over its possible true classes."""
    p = probabilities.double().permute(0, 2, 3, 1).reshape(-1, probabilities.shape[1]).numpy()
    n, classes = p.shape
    claim = np.eye(classes)[p.argmax(1)]
    intersection, union = (p * claim).sum(0), np.where(claim > 0, 1, p).sum(0)
    gains = np.zeros(n)
    for i in range(n):
        others = intersection - p[i] * claim[i], union - np.where(claim[i] > 0, 1, p[i])
        for truth in np.eye(classes):
            before = (others[0] + claim[i] * truth) / (others[1] + np.maximum(claim[i], truth))
            after = (others[0] + truth) / (others[1] + truth)
            gains[i] += p[i] @ truth * 100 * (after - before).mean()
    return gains


@QUICK
@given(SEEDS)
def test_shortfall_of_a_pixel_is_what_putting_it_right_would_bring(seed: int) -> None:
    probabilities = random_pool(seed)
    pool = shortfall.observe(probabilities).sum(0)
    predicted = shortfall.gain_map(probabilities, pool, 0.0).flatten().double().numpy()
    exact = gains_by_force(probabilities)
    assert np.corrcoef(predicted, exact)[0, 1] > 0.999
    assert predicted.sum() == pytest.approx(exact.sum(), rel=0.02)


@QUICK
@given(SEEDS)
def test_shortfall_statistics_agree_with_a_loop(seed: int) -> None:
    probabilities = random_pool(seed, classes=3, images=2, size=(4, 5))
    expected = np.zeros((2, 3, 3))
    for n, row, col in np.ndindex(2, 4, 5):
        p = probabilities[n, :, row, col].double().numpy()
        a = p.argmax()
        expected[n, a] += [1, 1 - p[a], 0]
        expected[n, np.arange(3) != a, 2] += p[np.arange(3) != a]
    np.testing.assert_allclose(shortfall.observe(probabilities).numpy(), expected, rtol=1e-5, atol=1e-6)


def test_statistics_are_accurate_on_a_large_image() -> None:
    """A class that takes two million pixels, another that one of them hides."""
    p = torch.full((1, 1, 1024, 2048), 1e-4)
    p[0, 0, 5, 7] = 0.25
    probabilities = torch.cat([1 - p, p], dim=1)
    doubt = float((1 - probabilities[:, 0].double()).sum())
    missed = float(p.double().sum())
    statistics = shortfall.observe(probabilities)[0]
    assert statistics[:, 0].tolist() == [1024 * 2048, 0]
    assert float(statistics[0, 1]) == pytest.approx(doubt, rel=1e-6)
    assert float(statistics[1, 2]) == pytest.approx(missed, rel=1e-6)
    assert statistics[0, 2] == statistics[1, 1] == 0


@pytest.mark.parametrize("seed", range(3))
def test_truth_statistics_are_what_the_probabilities_expect(seed: int) -> None:
    probabilities = random_pool(seed, size=(100, 100))
    truth = draw_truth(probabilities, seed)
    expected = shortfall.observe(probabilities).sum(0)
    found = observe_truth(probabilities.argmax(1), truth, 6).sum(0)
    assert found[:, 0].tolist() == expected[:, 0].tolist()
    # sums of independent draws, each of variance at most its expectation
    assert ((found - expected).abs() <= 5 * expected.clamp(min=1).sqrt()).all()

    pool = expected
    predicted, realised = (float(shortfall.gain(s[None], pool, 0.01).sum()) for s in (expected, found))
    assert realised == pytest.approx(predicted, rel=0.05)
    actual = metrics.miou(metrics.confusion(probabilities.argmax(1), truth, 6))
    assert predicted_miou(pool) == pytest.approx(actual, abs=0.02)


@QUICK
@given(SEEDS)
def test_truth_statistics_agree_with_the_confusion_matrix(seed: int) -> None:
    rng = np.random.default_rng(seed)
    prediction, truth = (torch.from_numpy(rng.integers(0, 4, (3, 6, 5), dtype=np.uint8)) for _ in range(2))
    truth[torch.from_numpy(rng.random((3, 6, 5)) < 0.3)] = IGNORE
    statistics = observe_truth(prediction, truth, 4)
    for n in range(3):
        counts = metrics.confusion(prediction[n : n + 1], truth[n : n + 1], 4)
        columns = counts.sum(0), counts.sum(0) - counts.diagonal(), counts.sum(1) - counts.diagonal()
        assert statistics[n].tolist() == torch.stack(columns, dim=1).tolist()


def test_of_equally_probable_classes_the_first_is_claimed_once() -> None:
    statistics = shortfall.observe(torch.full((1, 4, 3, 5), 0.25))[0]
    assert statistics[:, 0].tolist() == [15, 0, 0, 0]
    assert statistics[:, 1].tolist() == [0.75 * 15, 0, 0, 0]
    assert statistics[:, 2].tolist() == [0, 3.75, 3.75, 3.75]


def certain(*claims: int, of: int = 3) -> Tensor:
    """One image per claim, four certain pixels each."""
    return torch.eye(of)[torch.tensor(claims)][:, :, None, None].expand(-1, -1, 2, 2).clone()


def test_shortfall_ranks_a_rare_class_before_a_common_one_and_certainty_last() -> None:
    images = certain(0, 0, 0, 0, 0, 1, 2)
    images[0, :, 0, 0] = torch.tensor([0.6, 0.4, 0.0])  # perhaps the rare class was missed
    images[5, :, 0, 0] = torch.tensor([0.4, 0.6, 0.0])  # perhaps the rare class was claimed wrongly
    images[1, :, 0, 0] = torch.tensor([0.9, 0.1, 0.0])
    statistics = shortfall.observe(images)
    gains = shortfall.gain(statistics, statistics.sum(0), 0.01).sum(1)
    assert gains.argsort(descending=True)[:3].tolist() == [0, 5, 1]
    assert gains[[2, 3, 4, 6]].tolist() == [0, 0, 0, 0]
    by_class = shortfall.gain(statistics, statistics.sum(0), 0.01)
    assert by_class[0, 1] > by_class[0, 0] > by_class[0, 2] == 0


def test_shortfall_known_answer() -> None:
    probabilities = torch.tensor([[0.75, 0.25], [0.25, 0.75]]).reshape(1, 2, 1, 2)
    statistics = shortfall.observe(probabilities)
    assert statistics.tolist() == [[[1, 0.25, 0.25]] * 2]
    # I = .75, U = 1.25, J = .6: each class gains (.6 / 1.25) .25 + .25 / 1.25 = .32, halved by the mean over classes
    assert shortfall.gain(statistics, statistics[0], 0.0)[0].tolist() == pytest.approx([16.0, 16.0])
    assert shortfall.gain_map(probabilities, statistics[0], 0.0).flatten().tolist() == pytest.approx([16.0, 16.0])
    assert expected_iou(statistics[0]).tolist() == pytest.approx([0.6, 0.6])
    assert predicted_miou(statistics[0]) == pytest.approx(0.6)
    assert predicted_miou(statistics[0], 0.1) == pytest.approx(0.75 / 1.5)


def test_the_gain_is_the_slope_of_the_miou_without_smoothing_and_below_it_with() -> None:
    """One wrong claim in a pool of many is put right."""
    confusion = torch.tensor([[50000, 3000, 100], [2000, 8000, 300], [400, 200, 600]], dtype=torch.float64)
    claimed, true, hit = confusion.sum(0), confusion.sum(1), confusion.diagonal()
    pool = torch.stack([claimed, claimed - hit, true - hit], dim=1)
    better = confusion.clone()
    better[2, 1] -= 1  # of class 2, claimed as 1
    better[2, 2] += 1
    rise = 100 * (metrics.miou(better) - metrics.miou(confusion))
    image = torch.zeros(1, 3, 3, dtype=torch.float64)
    image[0, 1, 1] = image[0, 2, 2] = 1
    assert float(shortfall.gain(image, pool, 0.0).sum()) == pytest.approx(rise, rel=1e-3)
    unions = claimed + true - hit
    lower = 1 / (1 + 0.01 * unions.sum() / unions)  # what smoothing leaves of 1 / U
    parts = shortfall.gain(image, pool, 0.0)[0] * torch.stack([lower[0], lower[1] ** 2, lower[2]])
    torch.testing.assert_close(shortfall.gain(image, pool, 0.01)[0], parts)
    assert float(parts.sum()) < 0.8 * rise


def test_smoothing_keeps_an_absent_class_from_dominating() -> None:
    images = certain(0, 0, 1)
    images[0, :, 0, 0] = torch.tensor([0.999, 0.0, 0.001])  # a trace of class 2, which is claimed nowhere
    images[1, :, 0, 0] = torch.tensor([0.6, 0.4, 0.0])
    statistics = shortfall.observe(images)
    raw, smoothed = (shortfall.gain(statistics, statistics.sum(0), smooth).sum(1) for smooth in (0.0, 0.01))
    assert raw[0] > raw[1]
    assert smoothed[0] < smoothed[1]


def test_a_class_without_union_is_refused_without_smoothing() -> None:
    images = certain(0, 1)
    pool = shortfall.observe(images).sum(0)
    with pytest.raises(ValueError, match=r"classes \[2\] have no union"):
        shortfall.gain_map(images, pool, 0.0)
    assert shortfall.gain_map(images, pool, 0.01).tolist() == torch.zeros(2, 2, 2).tolist()
    assert predicted_miou(pool) == 1


def test_baselines_known_answers() -> None:
    images = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [1 / 3, 1 / 3, 1 / 3]])[:, :, None, None].expand(
        -1, -1, 2, 3
    )
    expected = {
        "entropy": [0, np.log(2), np.log(3)],
        "margin": [0, 1, 1],
        "least_confidence": [0, 1 / 2, 2 / 3],
        "ripu": [0, 0, 0],  # every region is pure
        "random": [1, 1, 1],
    }
    for name, gains in expected.items():
        statistics = made(name).observe(images)
        found = made(name).gain(statistics, statistics.sum(0)).sum(1)
        np.testing.assert_allclose(found.numpy(), gains, rtol=1e-6, err_msg=name)


def random_posterior(seed: int, members: int = 4, spread: float = 1.5) -> Posterior:
    """Members around common logits, on cells of 2 x 3 pixels; the worth is that of their mean."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(1, 2, 5, 4, 6, generator=generator) * 2
    spreads = spread * torch.randn(members, 2, 5, 4, 6, generator=generator)
    rows, cols = torch.arange(8) // 2, torch.arange(18) // 3
    of = Posterior((logits + spreads).softmax(2), rows, cols)
    return of._replace(worth=worth(shortfall.observe(pixels_of(of)).sum(0), 0.01))


def pixels_of(of: Posterior) -> Tensor:
    """Probabilities of pixels, the members' mean."""
    mean = of.members.mean(0)
    return mean[:, :, of.rows[:, None], of.cols]


def by_class(name: str, of: Posterior, blend: float = 1.0) -> Tensor:
    acquisition = made(name, 0.01, blend)
    statistics = acquisition.observe(pixels_of(of), of)
    return acquisition.gain(statistics, statistics.sum(0))


@QUICK
@given(SEEDS)
def test_evpi_is_the_best_claim_of_every_member_less_the_best_of_all(seed: int) -> None:
    """By enumeration: every claim's utility under every truth."""
    of = random_posterior(seed)
    per_doubt, per_miss = (table.numpy() for table in of.worth)
    utility = np.where(np.eye(5) > 0, per_miss[:, None], -per_doubt[:, None])  # (claim, truth)
    p = of.members.double().numpy()
    expected = np.zeros((2, 5))
    for n, row, col in np.ndindex(2, 8, 18):
        told = p[:, n, :, row // 2, col // 3]
        known = np.mean([max(utility[a] @ member for a in range(5)) for member in told])
        unknown = max(utility[a] @ told.mean(0) for a in range(5))
        expected[n, told.mean(0).argmax()] += known - unknown
    np.testing.assert_allclose(by_class("evpi", of).numpy(), expected, rtol=1e-4, atol=1e-6)


@QUICK
@given(SEEDS)
def test_what_can_be_learnt_is_never_more_than_what_is_missing(seed: int) -> None:
    of = random_posterior(seed)
    p = pixels_of(of)
    pool = torch.cat([shortfall.observe(p).sum(0), torch.zeros(5, 1)], dim=1)
    missing = shortfall.gain_map(p, pool[:, :3], 0.01)
    learnt = made("evpi").gain_map(p, pool, of)
    assert (learnt >= 0).all()
    assert (learnt <= missing + 1e-6).all()
    certain_members = of._replace(
        members=torch.eye(5)[[0, 1, 2, 3, 4, 1]][:, None, :, None, None].expand(-1, 2, -1, 4, 6)
    )
    told = made("evpi").gain_map(pixels_of(certain_members), pool, certain_members)
    assert (told > 0).all()


def test_evpi_known_answer() -> None:
    """A coin that the members know and their mean does not; and one that nobody knows."""
    members = torch.tensor([[1.0, 0.0], [0.0, 1.0]])[:, None, :, None, None]
    one = torch.zeros(1, dtype=torch.int64)
    of = Posterior(members, one, one, Worth(torch.tensor([1.0, 1.0]).double(), torch.tensor([2.0, 2.0]).double()))
    p = torch.full((1, 2, 1, 1), 0.5)
    assert made("evpi").observe(p, of)[0, :, 3].tolist() == [1.5, 0]  # 2 with the truth, (2 - 1) / 2 without
    unknown = of._replace(members=torch.full((2, 1, 2, 1, 1), 0.5))
    assert made("evpi").observe(p, unknown)[0, :, 3].tolist() == [0, 0]
    assert float(shortfall.gain(shortfall.observe(p), shortfall.observe(p)[0], 0.01).sum()) > 0


@pytest.mark.parametrize("name", ["evpi", "bald"])
@pytest.mark.parametrize("members", [1, 2, 3, 8])
def test_members_of_one_mind_leave_nothing_to_learn(name: str, members: int) -> None:
    of = random_posterior(0, members)
    same = of._replace(members=of.members[:1].expand(members, -1, -1, -1, -1))
    assert by_class(name, same).abs().max() < 1e-4
    if members > 1:
        assert (by_class(name, of).sum(1) > 0.01).all()


@QUICK
@given(SEEDS)
def test_bald_agrees_with_the_divergence_from_the_mean(seed: int) -> None:
    """Mutual information is also the mean Kullback-Leibler divergence of the members from their mean."""
    of = random_posterior(seed)
    p = of.members.double().numpy()
    mean = p.mean(0)
    divergence = (p * np.log(p / mean)).sum(2).mean(0)  # (n, rows, cols)
    claimed = mean.argmax(1)
    expected = [[(divergence[n] * (claimed[n] == c)).sum() / 24 for c in range(5)] for n in range(2)]
    np.testing.assert_allclose(by_class("bald", of).numpy(), expected, rtol=1e-4, atol=1e-6)


@QUICK
@given(SEEDS, st.floats(0, 1))
def test_gain_blends_what_is_missing_with_what_can_be_learnt(seed: int, blend: float) -> None:
    of = random_posterior(seed)
    missing, learnt = by_class("shortfall", of), by_class("evpi", of)
    np.testing.assert_allclose(by_class("gain", of, blend), blend * missing + (1 - blend) * learnt, rtol=1e-9)
    assert torch.equal(by_class("gain", of, 1.0), missing)
    assert torch.equal(by_class("gain", of, 0.0), learnt)


def test_blend_falls_along_a_line_and_stays() -> None:
    assert [annealed(rounds, 0.2, 4) for rounds in range(7)] == pytest.approx([1, 0.8, 0.6, 0.4, 0.2, 0.2, 0.2])
    assert [annealed(rounds, 0.5, 1) for rounds in range(3)] == [1, 0.5, 0.5]


@QUICK
@given(SEEDS)
def test_cells_stand_for_their_pixels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, cols = (torch.from_numpy(np.sort(rng.integers(0, 5, length))) for length in (7, 9))
    of = Posterior(torch.rand(1, 2, 3, 5, 5), rows, cols)
    cells = torch.rand(2, 5, 5)
    found = of.spread(cells)
    assert all(found[n, r, c] == cells[n, rows[r], cols[c]] for n, r, c in np.ndindex(2, 7, 9))
    assert (cells * of.pixels()).sum((1, 2)).tolist() == pytest.approx(found.sum((1, 2)).tolist())


@QUICK
@given(SEEDS)
def test_ripu_agrees_with_a_loop(seed: int) -> None:
    probabilities = random_pool(seed, classes=4, images=2, size=(5, 6))
    p = probabilities.double().numpy()
    claim, expected = p.argmax(1), np.zeros((2, 4))
    entropy = -(p * np.log(p)).sum(1)
    for n, row, col in np.ndindex(2, 5, 6):
        window = np.s_[n, max(row - 1, 0) : row + 2, max(col - 1, 0) : col + 2]
        shares = np.bincount(claim[window].ravel()) / claim[window].size
        shares = shares[shares > 0]
        expected[n, claim[n, row, col]] += -(shares * np.log(shares)).sum() * entropy[window].mean() / 30
    statistics = made("ripu").observe(probabilities)
    found = made("ripu").gain(statistics, statistics.sum(0))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-6)


@QUICK
@given(SEEDS)
def test_oracle_is_what_mending_each_wrong_pixel_wins(seed: int) -> None:
    """One pixel at a time, by the pool's real confusion matrix."""
    generator = torch.Generator().manual_seed(seed)
    truth, guess = (torch.randint(0, 4, (3, 50, 50), generator=generator, dtype=torch.uint8) for _ in range(2))
    prediction = torch.where(torch.rand(3, 50, 50, generator=generator) < 0.5, guess, truth)
    found = oracle(observe_truth(prediction, truth, 4), 0.0).sum(1)
    pool = metrics.confusion(prediction, truth, 4)
    for n in range(3):
        own, won = metrics.confusion(prediction[n : n + 1], truth[n : n + 1], 4), 0.0
        for true, claim in np.argwhere(np.eye(4) == 0):
            mended = pool.clone()
            mended[true, claim] -= 1
            mended[true, true] += 1
            won += 100 * int(own[true, claim]) * (metrics.miou(mended) - metrics.miou(pool))
        assert float(found[n]) == pytest.approx(won, rel=0.01)
    assert oracle(observe_truth(truth, truth, 4), 0.0).abs().max() == 0
