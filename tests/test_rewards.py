import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.evaluation import metrics
from pipeline.images.classes import IGNORE
from pipeline.rewards import REWARDS, Reward, Settings, count
from pipeline.rewards.counts import dice, expected_cost, pixel_accuracy, pooled_miou, weighted_iou
from tests import plain

QUICK = settings(max_examples=10, deadline=None)
SEEDS = st.integers(0, 2**32 - 1)
THREE = Settings(
    classes=3,
    weights=torch.tensor([0.5, 1.0, 1.5], dtype=torch.float64),
    costs=torch.tensor([[0, 1, 1], [10, 0, 1], [2, 2, 0]], dtype=torch.float64),
    tolerance=1,
    overlap=0.5,
)
CONFUSION = torch.tensor([[3, 1, 0], [1, 2, 1], [0, 0, 0]], dtype=torch.float64)


def masks(seed: int) -> tuple[Tensor, Tensor]:
    """Two images of blocks or noise, with holes, and a labelling that is partly right."""
    rng = np.random.default_rng(seed)
    block = int(rng.integers(1, 4))
    truth = rng.integers(0, 3, (2, 4, 4), dtype=np.uint8).repeat(block, 1).repeat(block, 2)
    wrong = rng.random(truth.shape) < rng.choice([0.1, 0.5])
    labelling = np.where(wrong, rng.integers(0, 3, truth.shape), np.roll(truth, rng.integers(0, 2), 1)).astype(np.uint8)
    truth[:, 0, :2] = 0, 1  # there is a boundary
    truth[:, 1:][rng.random(truth[:, 1:].shape) < 0.15] = IGNORE
    return torch.from_numpy(labelling), torch.from_numpy(truth)


def picture(*rows: str) -> Tensor:
    """One image; a point is IGNORE."""
    return torch.tensor([[[IGNORE if sign == "." else int(sign) for sign in row] for row in rows]], dtype=torch.uint8)


def valued(name: str, labelling: Tensor, truth: Tensor, **changes) -> Reward:
    reward = REWARDS[name].make(THREE._replace(**changes))
    return reward.value(reward.statistics(labelling, truth).sum(0))


def test_known_answers_of_counts() -> None:
    miou, accuracy, f1 = pooled_miou(CONFUSION), pixel_accuracy(CONFUSION), dice(CONFUSION)
    assert miou.total == pytest.approx(0.5)
    assert miou.terms["iou"].tolist() == [0.6, 0.4, 0.0]  # class 2 is absent from the truth and does not count
    assert accuracy.total == 5 / 8
    assert accuracy.terms["correct"].tolist() == [3 / 8, 2 / 8, 0]
    assert f1.terms["dice"].tolist() == [6 / 8, 4 / 7, 0]
    assert f1.total == pytest.approx((6 / 8 + 4 / 7) / 2)
    weighted = weighted_iou(CONFUSION, THREE.weights)
    assert weighted.total == pytest.approx((0.5 * 0.6 + 1.0 * 0.4) / 1.5)
    assert weighted.terms["iou"].tolist() == [0.6, 0.4, 0.0]
    cost = expected_cost(CONFUSION, THREE.costs)
    assert cost.terms["cost"].tolist() == [-1 / 8, -11 / 8, 0]  # one missed pixel of class 1 costs ten of class 0
    assert cost.total == -12 / 8


def test_known_answer_of_image_miou() -> None:
    truth = torch.cat([picture("0011"), picture("0000"), picture("....")])
    labelling = torch.cat([picture("0010"), picture("0001"), picture("0000")])
    found = valued("image_miou", labelling, truth)
    assert found.total == pytest.approx(((2 / 3 + 1 / 2) / 2 + 3 / 4) / 2)
    assert found.terms["iou"].tolist() == pytest.approx([(2 / 3 + 3 / 4) / 2, 1 / 2, 0])
    pooled = valued("pooled_miou", labelling, truth).total
    assert found.total != pytest.approx(float(pooled))


def test_known_answers_of_boundary_f1() -> None:
    truth, labelling = picture("00011111"), picture("00000111")  # the boundary is two pixels off
    assert [float(valued("boundary_f1", labelling, truth, tolerance=reach).total) for reach in range(3)] == [0, 0, 1]
    # On a second row it is right: half of what is there matches, on either side.
    truth, labelling = picture("00011111", "........", "00011111"), picture("00000111", "11111111", "00011111")
    assert float(valued("boundary_f1", labelling, truth, tolerance=0).total) == 0.5
    # Class 1 is missed: nothing of it matches, and 0 has no boundary.
    assert valued("boundary_f1", picture("0000"), picture("0011")).total == 0
    # A false alarm has boundaries: for 0, pixels 1 and 2 match, 4 and 6 do not; for 1, pixel 3 and not 5.
    found = valued("boundary_f1", picture("11101011"[::-1]), picture("11100000"[::-1]), tolerance=0)
    assert found.terms["precision"].tolist() == [1 / 2, 1 / 3, 0]
    assert found.terms["recall"].tolist() == [1, 1, 0]
    assert found.terms["f1"].tolist() == pytest.approx([2 / 3, 1 / 2, 0])
    assert found.total == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_ignored_pixels_are_no_boundary() -> None:
    assert valued("boundary_f1", picture("0111"), picture("0.11")).total.isnan()  # nothing meets anything
    statistics = REWARDS["boundary_f1"].make(THREE).statistics
    assert not statistics(picture("0121"), picture("0.11"))[:, 3::4].any()
    assert statistics(picture("0121"), picture("0.11"))[0].tolist() == [0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0]


def test_a_truth_without_a_boundary_has_no_boundary_f1() -> None:
    assert valued("boundary_f1", picture("0011"), picture("0000")).total.isnan()


def test_known_answers_of_object_recall() -> None:
    truth = picture("11000", "00100", "00000", "0.011", "00011")  # 1: three pixels across a corner, and four
    labelling = picture("11000", "00000", "00000", "00010", "00000")
    found = valued("object_recall", labelling, truth)
    assert found.terms["recall"].tolist() == [1, 0.5, 0]  # 2 of 3 pixels, and 1 of 4
    assert found.total == 0.75
    assert valued("object_recall", labelling, truth, overlap=2 / 3).terms["recall"].tolist()[1] == 0.5
    assert valued("object_recall", labelling, truth, overlap=0.67).terms["recall"].tolist()[1] == 0
    assert valued("object_recall", labelling, truth, overlap=0.25).terms["recall"].tolist()[1] == 1


def test_objects_are_pooled_over_images() -> None:
    truth = torch.cat([picture("10101"), picture("11111")])
    labelling = torch.cat([picture("10000"), picture("11111")])
    assert valued("object_recall", labelling, truth).terms["recall"].tolist() == [1, 0.5, 0]  # 2 of 4, not 2/3


def test_known_answers_of_detection() -> None:
    truth = picture("22220000", "22220000", "00000000", "00000011")
    alone = picture("22220000", "22220000", "00000000", "00000000")  # class 1 is missed, the box of 0 is the same
    assert valued("detection", truth, truth).total == 0.5 + 1.0 + 1.5
    assert valued("detection", alone, truth).total == 0.5 + 1.5
    smaller = picture("22200000", "22200000", "00000000", "00000011")  # IoU 6/8 with class 2: thresholds up to 0.7
    found = valued("detection", smaller, truth)
    assert found.total == pytest.approx(0.5 + 1.0 + 0.5 * 1.5)
    assert {name: float(value) for name, value in found.terms.items()} == pytest.approx(
        {"reward": 2.25, "num_matches": 2.5, "nms_penalty": 0}
    )
    both = torch.cat([smaller, alone, alone]), torch.cat([truth, truth, torch.full_like(truth, IGNORE)])
    assert valued("detection", *both).total == pytest.approx((2.25 + 2.0) / 2)


def test_the_truth_has_no_duplicates_however_its_areas_wind() -> None:
    spiral = picture("11110", "00010", "11010", "10000", "10111", "11110")
    tangled = torch.from_numpy(np.random.default_rng(0).integers(0, 2, (60, 6, 6), dtype=np.uint8))
    for labels in (picture("011", "1.1", "110"), spiral, tangled):
        assert float(valued("detection", labels, labels).terms["nms_penalty"]) == 0


@QUICK
@given(SEEDS)
def test_rewards_are_the_reported_metrics(seed: int) -> None:
    confusion = count(*masks(seed), 3)
    assert float(pooled_miou(confusion).total) == pytest.approx(metrics.miou(confusion))
    assert float(pixel_accuracy(confusion).total) == pytest.approx(metrics.pixel_accuracy(confusion))


@pytest.mark.parametrize("name", REWARDS)
@QUICK
@given(seed=SEEDS)
def test_agrees_with_plain_loops(name: str, seed: int) -> None:
    labelling, truth = masks(seed)
    found = float(valued(name, labelling, truth).total)
    ours, theirs = labelling.numpy(), truth.numpy()
    counts, weights, equal = plain.confusion(ours, theirs, 3), THREE.weights.tolist(), [1.0] * 3
    if name == "pooled_miou":
        expected = plain.of_present_classes(counts, plain.iou, equal)
    elif name == "weighted_iou":
        expected = plain.of_present_classes(counts, plain.iou, weights)
    elif name == "dice":
        expected = plain.of_present_classes(counts, plain.dice, equal)
    elif name == "pixel_accuracy":
        expected = 1 + plain.cost(ours, theirs, [[float(t != p) for p in range(3)] for t in range(3)])
    elif name == "expected_cost":
        expected = plain.cost(ours, theirs, THREE.costs.tolist())
    elif name == "image_miou":
        images = [plain.confusion(*pair, 3) for pair in zip(ours, theirs, strict=True)]
        expected = sum(plain.of_present_classes(each, plain.iou, equal) for each in images) / 2
    elif name == "boundary_f1":
        expected = plain.boundary_f1(ours, theirs, 3, THREE.tolerance)
    elif name == "object_recall":
        expected = plain.object_recall(ours, theirs, THREE.overlap)
    else:
        assert name == "detection", f"{name} has no second implementation"
        levels, expected = (0.5, 0.6, 0.6, 0.7, 0.7, 0.85, 0.85, 0.85, 0.95, 0.95), 0
        for labels, truth_labels in zip(ours, theirs, strict=True):
            boxes = [plain.boxes(each, truth_labels == IGNORE) for each in (labels, truth_labels)]
            expected += sum(plain.detection(*boxes, weights, level)[0] for level in levels) / 10 / 2
    assert found == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("tolerance", [0, 1, 2, 9])
def test_boundaries_agree_with_distance_loops(tolerance: int) -> None:
    for seed in range(5):
        labelling, truth = masks(seed)
        expected = plain.boundary_f1(labelling.numpy(), truth.numpy(), 3, tolerance)
        assert float(valued("boundary_f1", labelling, truth, tolerance=tolerance).total) == pytest.approx(expected)


def test_credit_of_a_count_reward_is_the_weight_of_its_pair() -> None:
    weights = torch.arange(9, dtype=torch.float64) + 1
    credit = REWARDS["pooled_miou"].make(THREE).credit(picture("012"), picture("1.0"), weights)
    assert credit.tolist() == [[[4, 0, 3]]]  # (1, 0), IGNORE, (0, 2)


def test_credit_of_a_boundary_stays_near_it() -> None:
    truth, labelling = picture("0000001111111"), picture("0000001111111")
    credit = REWARDS["boundary_f1"].make(THREE).credit(labelling, truth, torch.ones(12, dtype=torch.float64))
    # A boundary pixel counts as labelled, matched labelled and matched true; its reach is the tolerance and one more.
    assert credit.tolist() == [[[0, 0, 0, 3, 6, 6, 6, 6, 3, 0, 0, 0, 0]]]
