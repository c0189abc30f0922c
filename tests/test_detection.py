import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.rewards.detection import THRESHOLDS, DetectionReward, detection_reward
from pipeline.training.losses import class_weights
from tests import plain

WEIGHTS = torch.tensor([0.5, 1.0, 1.5], dtype=torch.float64)
CAR, BIKE = (0.0, 0.0, 0.4, 0.4), (0.5, 0.5, 1.0, 1.0)

GOLDEN_COUNTS = [900, 80, 20]
GOLDEN_PREDICTED = [
    [510, 50, 717, 274, 1004, 2, 480, 73, 688, 241, 1004, 1, 115, 163, 384, 386, 1006, 2, 132, 482, 248, 749, 1005, 0],
    [509, 362, 828, 680, 1005, 2, 531, 371, 795, 680, 1005, 1, 27, 62, 317, 225, 1004, 2, 505, 358, 835, 676, 1005, 0],
    [
        390,
        274,
        614,
        577,
        1004,
        2,
        359,
        303,
        628,
        567,
        1004,
        1,
        439,
        464,
        750,
        528,
        1005,
        2,
        148,
        116,
        483,
        254,
        1006,
        0,
    ],
    [42, 95, 165, 420, 1004, 2, 46, 76, 141, 438, 1004, 1, 27, 86, 133, 429, 1004, 2, 559, 290, 671, 484, 1006, 0],
]
GOLDEN_TRUE = [
    [489, 54, 694, 261, 1004, 2, 110, 145, 376, 391, 1006, 1, 111, 483, 254, 767, 1005, 0],
    [524, 352, 813, 691, 1005, 2, 26, 59, 322, 230, 1004, 1, 202, 262, 381, 524, 1005, 1],
    [375, 290, 637, 564, 1004, 2, 161, 98, 478, 271, 1006, 2, 417, 443, 751, 543, 1005, 2],
    [22, 71, 141, 414, 1004, 2, 274, 237, 609, 411, 1004, 1, 535, 313, 669, 491, 1006, 1],
]
GOLDEN_TOTAL = [1.5366902, 0.7609994, 0.189327, 0.0356504]
GOLDEN_CORRECT = [[2, 2, 2, 0], [2, 2, 2, 0], [2, 2, 2, 0], [2, 2, 2, 0]]


def reward(predicted: list[tuple], true: list[tuple], **options) -> DetectionReward:
    """Of one image; (class, box) exists, (class, box, 0) is padding."""
    sides = []
    for boxes in (predicted, true):
        sides.append(torch.tensor([box for _, box, *_ in boxes], dtype=torch.float64).reshape(1, -1, 4))
        sides.append(torch.tensor([c for c, *_ in boxes], dtype=torch.int64)[None])
        sides.append(torch.tensor([(*rest, 1)[0] for _, _, *rest in boxes], dtype=torch.int64)[None])
    return detection_reward(*sides, WEIGHTS, **options)


def shifted(box: tuple, iou: float) -> tuple:
    """A box of the same size at the given IoU: shifted by s, (1 - s) / (1 + s) of it is shared."""
    shift = (box[2] - box[0]) * (1 - iou) / (1 + iou)
    return (box[0] + shift, box[1], box[2] + shift, box[3])


def test_a_perfect_answer_gets_the_weight_of_every_object() -> None:
    found = reward([(2, BIKE), (0, CAR)], [(0, CAR), (2, BIKE)])
    assert found.total.tolist() == [2.0]
    assert found.terms["num_matches"].tolist() == [2]
    assert found.terms["nms_penalty"].tolist() == [0]
    assert found.correct.tolist() == [[2, 2]]
    assert found.match_iou[0].tolist() == pytest.approx([1, 1])


def test_what_is_missed_gets_nothing_and_false_alarms_are_free() -> None:
    found = reward([(0, CAR), (2, CAR), (0, BIKE)], [(0, CAR), (2, BIKE)])
    assert found.total.tolist() == [0.5]
    assert found.correct.tolist() == [[2, 1, 1]]


def test_a_duplicate_costs_a_share_of_its_weight() -> None:
    near = shifted(CAR, 0.82)
    found = reward([(2, near), (2, CAR)], [(2, CAR)], as_published=False)  # the better one matches, though it is second
    assert found.terms["reward-0.8"].tolist() == pytest.approx([1.5 - 0.3 * 1.5])
    assert found.terms["nms_penalty-0.8"].tolist() == [1.5]
    assert found.terms["reward-0.85"].tolist() == [1.5]
    assert found.terms["nms_penalty"].tolist() == pytest.approx([0.7 * 1.5])
    assert found.total.tolist() == pytest.approx([1.5 - 0.3 * 0.7 * 1.5])
    assert found.correct.tolist() == [[2, 2]]  # duplicates too
    assert found.match_iou[0].tolist() == pytest.approx([0.82, 1])
    assert reward([(2, near), (2, CAR)], [(2, CAR)], nms_weight=0.0).total.tolist() == [1.5]


def test_a_box_without_confidence_does_not_exist() -> None:
    assert reward([(0, CAR, 0)], [(0, CAR)]).total.tolist() == [0]
    assert reward([(0, CAR, 0)], [(0, CAR)]).correct.tolist() == [[0]]
    assert reward([(0, CAR)], [(0, CAR, 0)]).total.tolist() == [0]
    assert reward([(0, CAR, 0), (0, CAR)], [(0, CAR)]).total.tolist() == [0.5]  # and is no duplicate


def test_images_may_have_no_box() -> None:
    for predicted, true in (([], []), ([(0, CAR)], []), ([], [(0, CAR)])):
        found = reward(predicted, true)
        assert found.total.tolist() == [0]
        assert found.correct.tolist() == [[1] * len(predicted)]
        assert found.match_iou.shape == (1, len(predicted))


def test_an_overlap_must_exceed_the_threshold() -> None:
    half, whole = ((0.0, 0.0, 1.0, 0.5), (0.0, 0.0, 1.0, 1.0))
    for first, second in ((half, whole), (whole, half)):
        pair = [torch.tensor([[box]]) for box in (first, second)]  # in 32 bits, as the published code: exactly 0.5
        label, exists = torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1)
        found = detection_reward(pair[0], label, exists, pair[1], label, exists, WEIGHTS.float())
        assert found.total.tolist() == [0]
        assert found.correct.tolist() == [[1]]
    assert reward([(0, (0.0, 0.0, 1.0, 0.501))], [(0, whole)]).terms["reward-0.5"].tolist() == [0.5]


def test_the_first_of_equals_wins() -> None:
    twice = [(0, CAR), (0, CAR)]
    assert reward(twice, twice[:1]).total.tolist() == pytest.approx([0.5 * 0.7])
    # Both take the first true box, so the second stays unmatched, and even the truth itself pays for a duplicate.
    assert reward(twice, twice).total.tolist() == pytest.approx([0.5 * 0.7])
    assert reward(twice[:1], twice).total.tolist() == [0.5]


def test_a_box_claims_only_the_true_box_that_it_overlaps_most() -> None:
    # Both claim the first one. That the second true box is above the threshold for the loser does not help it.
    true = [(0, CAR), (0, shifted(CAR, 0.7))]
    predicted = [(0, CAR), (0, shifted(CAR, 0.85))]
    found = reward(predicted, true)
    assert found.terms["num_matches-0.5"].tolist() == [1]
    assert found.terms["nms_penalty-0.5"].tolist() == [0.5]


def test_corners_may_come_in_any_order_as_in_the_paper_where_such_boxes_overlap_nothing() -> None:
    flipped = (0.4, 0.4, 0.0, 0.0)
    assert reward([(0, flipped)], [(0, CAR)]).total.tolist() == [0]
    assert reward([(0, (0.2, 0.2, 0.2, 0.2))], [(0, (0.2, 0.2, 0.2, 0.2))]).total.tolist() == [0]  # no area


def test_thresholds_of_one_name_count_as_the_last_of_them_as_in_the_published_code() -> None:
    predicted, true = [(1, shifted(CAR, 0.83))], [(1, CAR)]
    published, each = reward(predicted, true), reward(predicted, true, as_published=False)
    assert each.total.tolist() == pytest.approx([0.7])  # 0.5 to 0.8
    assert published.total.tolist() == pytest.approx([0.5])  # 0.5, 0.6, 0.6, 0.7, 0.7
    assert {name for name in published.terms if name.startswith("reward")} == {
        "reward", "reward-0.5", "reward-0.6", "reward-0.7", "reward-0.8", "reward-0.9",
    }  # fmt: skip
    assert {f"nms_penalty-{threshold:g}" for threshold in THRESHOLDS} < set(each.terms)


def test_the_threshold_of_the_boxes_is_one_of_them() -> None:
    with pytest.raises(ValueError, match=r"correct_threshold 0.45 is none of the thresholds \(0.5, 0.55"):
        reward([(0, CAR)], [(0, CAR)], correct_threshold=0.45)
    found = reward([(0, shifted(CAR, 0.6))], [(0, CAR)], correct_threshold=0.75)
    assert found.correct.tolist() == [[1]]
    assert found.match_iou.tolist() == [[0]]


def scenes(seed: int, images: int, m: int, k: int) -> list[Tensor]:
    """Boxes on a coarse grid, so that they meet and tie often; most predictions are truths that were moved."""
    rng = np.random.default_rng(seed)
    corner, size = rng.integers(0, 8, (images, m + k, 2)), rng.integers(-1, 9, (images, m + k, 2))
    boxes = np.concatenate([corner, corner + size], 2)
    labels, conf = rng.integers(0, 3, (images, m + k)), rng.integers(0, 3, (images, m + k))
    image, source = np.arange(images)[:, None], rng.integers(m, m + k, (images, m))
    moved = rng.random((images, m)) < 0.8
    near = boxes[image, source] + rng.integers(-1, 2, (images, m, 4)) * (rng.random((images, m, 1)) < 0.7)
    boxes[:, :m] = np.where(moved[..., None], near, boxes[:, :m])
    labels[:, :m] = np.where(moved, labels[image, source], labels[:, :m])
    parts = [torch.from_numpy(boxes / 20), torch.from_numpy(labels), torch.from_numpy(conf)]
    return [part[:, :m] for part in parts] + [part[:, m:] for part in parts]


@pytest.mark.parametrize("as_published", [True, False])
def test_agrees_with_plain_loops(as_published: bool) -> None:
    images, m, k = 600, 7, 4
    sides = scenes(0, images, m, k)
    found = detection_reward(*sides, WEIGHTS, as_published=as_published)
    last = {f"{threshold:.1f}": threshold for threshold in THRESHOLDS}
    levels = [last[f"{threshold:.1f}"] for threshold in THRESHOLDS] if as_published else THRESHOLDS
    names = [f"{level:.1f}" if as_published else f"{level:g}" for level in THRESHOLDS]
    weights = WEIGHTS.tolist()
    terms, exist = ("reward", "num_matches", "nms_penalty"), sides[2] > 0
    expected, overlaps = np.zeros((images, len(levels), 3)), np.zeros((images, m))
    for i in range(images):
        kept = []
        for boxes, labels, conf in (sides[:3], sides[3:]):
            each = zip(labels[i].tolist(), boxes[i].tolist(), conf[i].tolist(), strict=True)
            kept.append([(c, tuple(box)) for c, box, confidence in each if confidence > 0])
        expected[i] = [plain.detection(*kept, weights, level)[:3] for level in levels]
        overlaps[i, exist[i]] = plain.detection(*kept, weights, 0.5)[3]
    for term, of_levels in zip(terms, expected.transpose(2, 1, 0), strict=True):
        np.testing.assert_allclose(found.terms[term], of_levels.mean(0), rtol=0, atol=1e-6)
        for name, of_level in zip(names, of_levels, strict=True):
            np.testing.assert_allclose(found.terms[f"{term}-{name}"], of_level, rtol=0, atol=1e-6)
    np.testing.assert_allclose(found.match_iou, overlaps, rtol=0, atol=1e-6)
    assert found.correct.tolist() == np.where(exist, 1 + (overlaps > 0), 0).tolist()
    assert torch.equal(found.total, found.terms["reward"])
    assert len(np.unique(expected[:, 0, 0])) > 20
    assert (expected[:, 0, 2] > 0).mean() > 0.2  # duplicates are not rare


def test_images_of_a_batch_do_not_meet() -> None:
    sides = scenes(1, 20, 6, 3)
    together = detection_reward(*sides, WEIGHTS)
    for i in range(20):
        alone = detection_reward(*[side[i : i + 1] for side in sides], WEIGHTS)
        assert alone.total[0] == together.total[i]
        assert torch.equal(alone.correct[0], together.correct[i])


def test_padding_changes_nothing() -> None:
    sides = scenes(2, 50, 6, 3)
    wide = [torch.cat([side, torch.zeros_like(side[:, :2])], dim=1) for side in sides]
    assert torch.equal(detection_reward(*wide, WEIGHTS).total, detection_reward(*sides, WEIGHTS).total)


def decoded(tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes, classes and confidences of the paper's sequences: y, x, y, x, class and confidence of each; 0 pads."""
    values = tokens[..., : tokens.shape[-1] // 6 * 6].unflatten(-1, (-1, 6))
    levels = (values[..., :4] - 3).clamp(0, 1000)  # ids from 1: 2 confidences, 1001 coordinates, 3 classes
    return (levels / 1000).float(), (values[..., 4] - 1004).clamp(0, 2), values[..., 5].clamp(0, 2)


def test_agrees_with_the_published_code() -> None:
    """Totals that big_vision's reward_tune/detection_reward.py returned under JAX, with the counts below as its own."""
    weights = class_weights(torch.tensor(GOLDEN_COUNTS), 0.05)
    predicted, true = (decoded(torch.tensor(side)) for side in (GOLDEN_PREDICTED, GOLDEN_TRUE))
    found = detection_reward(*predicted, *true, weights)
    assert found.total.tolist() == pytest.approx(GOLDEN_TOTAL, abs=1e-6)
    assert found.correct.tolist() == GOLDEN_CORRECT
