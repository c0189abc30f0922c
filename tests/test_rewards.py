import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import metrics
from pipeline.labels import IGNORE
from pipeline.rewards import count, pixel_accuracy, pooled_miou

QUICK = settings(max_examples=15, deadline=None)
SEEDS = st.integers(0, 2**32 - 1)


def test_known_answers() -> None:
    confusion = torch.tensor([[3.0, 1, 0], [1, 2, 1], [0, 0, 0]], dtype=torch.float64)
    miou, accuracy = pooled_miou(confusion), pixel_accuracy(confusion)
    assert miou.total == pytest.approx(0.5)
    assert miou.terms["iou"].tolist() == [0.6, 0.4, 0.0]  # class 2 is absent from the truth and does not count
    assert accuracy.total == 5 / 8
    assert accuracy.terms["correct"].tolist() == [3 / 8, 2 / 8, 0]


@QUICK
@given(SEEDS)
def test_rewards_are_the_reported_metrics(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labelling, truth = (torch.from_numpy(rng.integers(0, 4, (2, 5, 6), dtype=np.uint8)) for _ in range(2))
    truth[torch.from_numpy(rng.random((2, 5, 6)) < 0.3)] = IGNORE
    confusion = count(labelling, truth, 4)
    assert float(pooled_miou(confusion).total) == pytest.approx(metrics.miou(confusion))
    assert float(pixel_accuracy(confusion).total) == pytest.approx(metrics.pixel_accuracy(confusion))
