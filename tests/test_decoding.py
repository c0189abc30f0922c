import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.evaluation import metrics
from pipeline.networks import decoding
from pipeline.networks.decoding import Decoder, decode, expected, fit

QUICK = settings(max_examples=25, deadline=None)
SEEDS = st.integers(0, 2**32 - 1)


def pixels(seed: int, count: int = 300, classes: int = 5, never: int = 0, sharp: float = 1.0) -> Tensor:
    """Probabilities of classes from frequent to rare, and of some that never come."""
    bias = torch.cat([torch.linspace(0, -4, classes), torch.full((never,), -30.0)])
    generator = torch.Generator().manual_seed(seed)
    causes = torch.randn(6, classes + never, generator=torch.Generator().manual_seed(seed // 2)) * sharp
    return (torch.randn(count, 6, generator=generator) @ causes + bias).softmax(1)


def labels(probabilities: Tensor, decoder: Decoder) -> Tensor:
    return decode(probabilities.T[None, :, None], decoder)[0, 0]


def worth(probabilities: Tensor, decoder: Decoder) -> float:
    intersection, union = expected(probabilities, labels(probabilities, decoder))
    return float((intersection / union.clamp(min=1e-300)).sum())


def by_loops(p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same by counting pixel by pixel."""
    count, classes = p.shape

    def counted(chosen: list[int]) -> tuple[list[float], list[float]]:
        both, either = [0.0] * classes, [0.0] * classes
        for row, label in zip(p.tolist(), chosen, strict=True):
            for c in range(classes):
                both[c] += row[c] if c == label else 0
                either[c] += 1 if c == label else row[c]
        return both, either

    def value(both: list[float], either: list[float]) -> float:
        return sum(i / u for i, u in zip(both, either, strict=True) if u > 0)

    both, either = counted([int(np.argmax(row)) for row in p])
    known, best = [u >= 1 for u in either], (np.ones(classes), np.zeros(classes), value(both, either))
    for _ in range(4):
        scale, offset = np.zeros(classes), np.zeros(classes)
        for c in range(classes):
            if known[c]:
                j, u = both[c] / either[c], either[c] / count
                scale[c], offset[c] = (1 + j) / u, -j / u
        lowest = min(offset[c] for c in range(classes) if known[c])
        offset = np.where(known, offset, lowest - 1)
        new_both, new_either = counted([int(np.argmax(row * scale + offset)) for row in p])
        if value(new_both, new_either) > best[2]:
            best = scale, offset, value(new_both, new_either)
        both = [(old + new) / 2 for old, new in zip(both, new_both, strict=True)]
        either = [(old + new) / 2 for old, new in zip(either, new_either, strict=True)]
    return best[:2]


def test_expected_counts_by_hand() -> None:
    probabilities = torch.tensor([[0.75, 0.25], [0.25, 0.75], [0.5, 0.5]])
    intersection, union = expected(probabilities, torch.tensor([0, 1, 0], dtype=torch.uint8))
    assert intersection.tolist() == [0.75 + 0.5, 0.75]
    assert union.tolist() == [2 + 0.25, 1 + 0.25 + 0.5]


def test_a_rare_class_is_claimed_before_it_is_the_most_probable() -> None:
    """8 sure pixels of class 0, 4 that are of class 1 with p = 0.4.

    Argmax: I = (10.4, 0), U = (12, 1.6), sum 0.87. Claiming the four: I = (8, 1.6), U = (10.4, 4), sum 1.17.
    By the formula: J = (0.87, 0), and 0.4 / 1.6 = 0.25 is more than (0.6 * 1.87 - 0.87) / 12 = 0.02.
    """
    probabilities = torch.tensor([[1.0, 0.0]] * 8 + [[0.6, 0.4]] * 4)
    decoder = fit(probabilities)
    assert decoder.scale.tolist() == pytest.approx([1 + 10.4 / 12, 12 / 1.6])
    assert decoder.offset.tolist() == pytest.approx([-10.4 / 12, 0])
    assert labels(probabilities, decoder).tolist() == [0] * 8 + [1] * 4
    assert worth(probabilities, decoder) == pytest.approx(8 / 10.4 + 1.6 / 4)
    assert worth(probabilities, decoding.argmax(2)) == pytest.approx(10.4 / 12)


def test_argmax_is_the_most_probable_class() -> None:
    probabilities = pixels(0).T.reshape(1, 5, 20, 15)
    assert decode(probabilities, decoding.argmax(5)).equal(probabilities.argmax(1).byte())


@QUICK
@given(SEEDS, st.integers(1, 60), st.integers(1, 6), st.integers(0, 2))
def test_agrees_with_loops(seed: int, count: int, classes: int, never: int) -> None:
    probabilities = pixels(seed, count, classes, never).double()
    scale, offset = by_loops(probabilities.numpy())
    fitted = fit(probabilities)
    np.testing.assert_allclose(fitted.scale.numpy(), scale, rtol=1e-9)
    np.testing.assert_allclose(fitted.offset.numpy(), offset, rtol=1e-9, atol=1e-12)


@QUICK
@given(SEEDS, st.integers(1, 300), st.integers(1, 8), st.integers(0, 3), st.floats(0.1, 4))
def test_expected_iou_never_falls(seed: int, count: int, classes: int, never: int, sharp: float) -> None:
    probabilities = pixels(seed, count, classes, never, sharp)
    assert worth(probabilities, fit(probabilities)) >= worth(probabilities, decoding.argmax(classes + never))


@pytest.mark.parametrize("never", [0, 4])
def test_on_other_pixels_and_their_drawn_labels_it_beats_argmax(never: int) -> None:
    gains, classes = [], 8 + never
    for seed in range(0, 20, 2):  # pairs of the same classes, other pixels
        decoder, others = fit(pixels(seed, 10_000, 8, never)), pixels(seed + 1, 20_000, 8, never)
        assert worth(others, decoder) > worth(others, decoding.argmax(classes))
        truth = torch.multinomial(others, 1, generator=torch.Generator().manual_seed(seed))[None, None, :, 0]
        miou = [
            metrics.miou(metrics.confusion(labels(others, each)[None, None], truth, classes))
            for each in (decoding.argmax(classes), decoder)
        ]
        gains.append(miou[1] - miou[0])
    assert min(gains) > 0
    assert np.mean(gains) > 0.01


@QUICK
@given(SEEDS)
def test_classes_that_are_alike_keep_their_order(seed: int) -> None:
    probabilities = pixels(seed, 20, 3)
    turned = torch.cat([probabilities.roll(shift, 1) for shift in range(3)])  # every class has the same J and U
    fitted = fit(turned)
    np.testing.assert_allclose(fitted.scale.numpy(), float(fitted.scale[0]), rtol=1e-5)
    assert labels(probabilities, fitted).equal(probabilities.argmax(1).byte())


@QUICK
@given(SEEDS, st.permutations(range(6)))
def test_renamed_classes_are_renamed_in_the_answer(seed: int, order: list[int]) -> None:
    probabilities = pixels(seed, 200, 6).double()
    renamed = probabilities[:, order]
    assert torch.tensor(order)[labels(renamed, fit(renamed)).long()].equal(
        labels(probabilities, fit(probabilities)).long()
    )


@QUICK
@given(st.lists(st.integers(0, 4), min_size=1, max_size=40))
def test_certain_pixels_keep_their_class(classes: list[int]) -> None:
    certain = torch.nn.functional.one_hot(torch.tensor(classes), 5).float()
    assert labels(certain, fit(certain)).tolist() == classes


@pytest.mark.parametrize("unlikely", [0.0, 1e-12, 1e-5])
def test_a_class_that_is_not_expected_is_never_claimed(unlikely: float) -> None:
    """By the formula alone it wins where all others cost more than they bring, or where p/U is large but p is not."""
    sample = torch.cat([pixels(0, 10_000, 8, sharp=1.2), torch.zeros(10_000, 1)], 1)
    sample[:100, 8] = unlikely
    sample /= sample.sum(1, keepdim=True)
    decoder = fit(sample)
    assert (decoder.scale[:8] != 1).all()
    assert all(values.isfinite().all() for values in decoder)
    assert int(labels(sample, decoder).max()) == 7


def test_shape_and_device_are_those_of_the_probabilities() -> None:
    probabilities = pixels(0, 24, 4).T.reshape(4, 2, 3, 4).transpose(0, 1)
    found = decode(probabilities, fit(pixels(1, classes=4)))
    assert (found.shape, found.dtype) == ((2, 3, 4), torch.uint8)


@pytest.mark.parametrize(
    "nonsense",
    [torch.zeros(0, 3), torch.tensor([[math.nan, 1]]), torch.tensor([[2.0, -1.0]]), torch.tensor([[0.5, 0.4]])],
)
def test_nonsense_is_refused(nonsense: Tensor) -> None:
    with pytest.raises(ValueError, match="a decoder needs at least one pixel whose class probabilities"):
        fit(nonsense)


def test_a_decoder_of_other_classes_is_refused() -> None:
    with pytest.raises(ValueError, match="the decoder is of 19 classes, the probabilities are of 11"):
        decode(torch.full((1, 11, 2, 2), 1 / 11), decoding.argmax(19))
