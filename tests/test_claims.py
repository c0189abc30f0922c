"""The claim of every pixel."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.images.claims import highest


@given(st.integers(0, 2**32 - 1), st.integers(1, 255), st.booleans())
def test_it_is_what_max_says_even_of_equal_scores(seed: int, classes: int, last: bool) -> None:
    rng = torch.Generator().manual_seed(seed)
    scores = torch.randint(-3, 3, (2, classes, 3, 5), generator=rng).float()  # many are equal
    if last:
        scores = scores.to(memory_format=torch.channels_last)
    best, claim = highest(scores)
    expected = scores.max(1)
    assert torch.equal(best, expected.values)
    assert torch.equal(claim.long(), expected.indices)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_score_that_is_no_number_shows(place: int) -> None:
    scores = torch.zeros(1, 3, 1, 2)
    scores[0, place, 0, 1] = torch.nan
    assert highest(scores)[0].isnan().tolist() == [[[False, True]]]


def test_the_scores_are_left_as_they_are() -> None:
    scores = torch.tensor([1.0, 2.0]).view(1, 2, 1, 1)
    highest(scores)
    assert scores.flatten().tolist() == [1, 2]
