import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import datasets
from pipeline.annotators.label_studio import brush
from pipeline.images import reading
from pipeline.images.classes import CLASS_SETS, IGNORE
from tests import sdk

QUICK = settings(max_examples=150, deadline=None)
LONGEST = 2**16 // 4
"""Pixels, of four values each, that one block holds at most."""
LENGTHS = [1, 2, 3, 4, 5, 63, 64, 65, LONGEST - 1, LONGEST, LONGEST + 1, 2 * LONGEST, 2 * LONGEST + 3, 3 * LONGEST - 1]


def alternating(first: bool, lengths: list[int]) -> np.ndarray:
    """A mask of one row out of runs of these lengths."""
    values = (np.arange(len(lengths)) + first) % 2 == 1
    return np.repeat(values, lengths)[None]


def check(mask: np.ndarray) -> None:
    expected = sdk.encode(mask)
    assert brush.encode(mask).tobytes() == expected
    np.testing.assert_array_equal(brush.decode(expected, *mask.shape), mask)


def masks(most: int = 20) -> st.SearchStrategy[np.ndarray]:
    """Random ids 0-3 and IGNORE, in runs and as noise."""

    def make(height: int, width: int, seed: int, run: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        ids = rng.choice(np.array([0, 1, 2, 3, IGNORE], np.uint8), -(-height * width // run))
        return np.repeat(ids, run)[: height * width].reshape(height, width)

    side = st.integers(1, most)
    return st.builds(make, side, side, st.integers(0, 2**32 - 1), st.sampled_from([1, 1, 2, 5, 30]))


def bits(*fields: tuple[int, int]) -> bytes:
    """Fields of (value, bits), and zeros up to a full byte."""
    text = "".join(f"{value:0{size}b}" for value, size in fields)
    text += "0" * (-len(text) % 8)
    return bytes(int(text[at : at + 8], 2) for at in range(0, len(text), 8))


def header(values: int, word: int = 8, sizes: tuple[int, ...] = (3, 4, 8, 16)) -> list[tuple[int, int]]:
    return [(values, 32), (word - 1, 5), *((size - 1, 4) for size in sizes)]


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("length", LENGTHS)
def test_bytes_of_runs_of_every_length_are_the_sdks(length: int, first: bool) -> None:
    for lengths in ([length], [length, 1], [2, length], [1, length, 7], [length, length + 1, length]):
        check(alternating(first, lengths))


@pytest.mark.parametrize("corner", [(0, 0), (0, -1), (-1, 0), (-1, -1)])
def test_one_pixel(corner: tuple[int, int]) -> None:
    mask = np.zeros((70, 300), np.bool_)
    mask[corner] = True
    check(mask)
    check(~mask)


def test_mask_that_is_not_contiguous() -> None:
    mask = np.random.default_rng(0).random((30, 40)) < 0.5
    check(mask.T)
    check(mask[::2, ::-3])


@QUICK
@given(ids=masks())
def test_bytes_of_every_class_are_the_sdks(ids: np.ndarray) -> None:
    check(ids == 1)
    encoded = brush.encode_classes(ids, 3)
    assert list(encoded) == [number for number in range(3) if (ids == number).any()]
    for number, rle in encoded.items():
        assert rle.tobytes() == sdk.encode(ids == number)


@pytest.mark.parametrize("name", ["camvid", "cityscapes", "gta5"])
def test_real_masks(shared_data: Path, name: str) -> None:
    folder, pattern = {
        "camvid": ("camvid/trainannot", "*.png"),
        "cityscapes": ("cityscapes/gtFine", "**/*_labelIds.png"),
        "gta5": ("gta5/labels", "*.png"),
    }[name]
    classes = CLASS_SETS["cityscapes19"]
    path = min((shared_data / folder).glob(pattern))
    ids = reading.read_mask(path, datasets.table(name, shared_data / name, classes))
    encoded = brush.encode_classes(ids, len(classes.names))
    assert set(encoded) == set(np.unique(ids)) - {IGNORE}
    for number, rle in encoded.items():
        assert rle.tobytes() == sdk.encode(ids == number)
        np.testing.assert_array_equal(brush.decode(rle.tobytes(), *ids.shape), ids == number)


def test_too_small_and_too_large() -> None:
    for mask in (np.zeros((0, 5), np.bool_), np.broadcast_to(np.False_, (2**15, 2**15))):
        with pytest.raises(ValueError, match=f"^{mask.shape[0]} x {mask.shape[1]} pixels cannot be a brush RLE"):
            brush.decode(b"", *mask.shape)
    with pytest.raises(ValueError, match="0 x 5 pixels"):
        brush.encode(np.zeros((0, 5), np.bool_))
    with pytest.raises(ValueError, match="5 x 0 pixels"):
        brush.encode_classes(np.zeros((5, 0), np.uint8), 19)


def test_known_streams() -> None:
    """Two pixels, written down by hand."""
    literals = [(value, 8) for value in (128, 1, 2, 3, 127)]
    rle = bits(*header(8), (0b100, 3), (2, 3), (200, 8), (0b000, 3), (4, 3), *literals)  # three times 200 first
    assert brush.decode(rle, 1, 2).tolist() == sdk.decode(rle, 1, 2).tolist() == [[True, False]]
    rle = bits(*header(8), (0b111, 3), (6, 16), (127, 8), (0b001, 3), (0, 4), (128, 8))  # seven times 127, then 128
    assert brush.decode(rle, 2, 1).tolist() == sdk.decode(rle, 2, 1).tolist() == [[False], [True]]


@QUICK
@given(seed=st.integers(0, 2**32 - 1), height=st.integers(1, 9), width=st.integers(1, 9))
def test_anti_aliased_edges(seed: int, height: int, width: int) -> None:
    """The SDK writes no literals, but its runs end anywhere within a pixel."""
    rng = np.random.default_rng(seed)
    picture = rng.choice([0, 126, 127, 128, 129, 255], (height * width, 4))
    picture[rng.random(len(picture)) < 0.5] = 255
    picture[:, :3] = np.where(rng.random((len(picture), 1)) < 0.5, picture[:, :3], picture[:, 3:])
    mask = brush.decode(sdk.encode_values(picture.ravel()), height, width)
    np.testing.assert_array_equal(mask, (picture[:, 3] >= 128).reshape(height, width))


@QUICK
@given(data=st.data())
def test_any_stream_of_runs_and_literals(data: st.DataObject) -> None:
    """Blocks that begin and end anywhere, in any of the sizes, with any sizes and any words of up to eight bits."""
    height, width = data.draw(st.tuples(st.integers(1, 8), st.integers(1, 8)))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    word = int(rng.choice([8, 8, 8, 7, 5, 1]))
    sizes = tuple(rng.permutation([int(size) for size in rng.integers(1, 17, 3)] + [3]).tolist())
    values = 4 * height * width
    fields, expected = header(values, word, sizes), []
    while len(expected) < values:
        code = int(rng.integers(4))
        length = int(rng.integers(1, min(2 ** sizes[code], 40, values - len(expected)) + 1))
        run = bool(rng.random() < 0.5)
        block = rng.integers(0, 2**word, 1 if run else length).tolist()
        fields += [(run, 1), (code, 2), (length - 1, sizes[code]), *((value, word) for value in block)]
        expected += block * length if run else block
    rle = bits(*fields)
    mask = brush.decode(rle, height, width)
    np.testing.assert_array_equal(mask, np.reshape(expected, (height, width, 4))[..., 3] >= 128)
    np.testing.assert_array_equal(mask, sdk.decode(rle, height, width))


def test_large_picture_of_literals_only() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (300, 400, 4))
    values = picture.ravel().tolist()
    fields = header(len(values))
    for at in range(0, len(values), 2**16):
        block = values[at : at + 2**16]
        fields += [(0b011, 3), (len(block) - 1, 16), *((value, 8) for value in block)]
    np.testing.assert_array_equal(brush.decode(bits(*fields), 300, 400), picture[..., 3] >= 128)


def test_last_byte_of_zeros_may_be_there_or_not() -> None:
    """The SDK adds one where the last byte is full already, Label Studio's editor does not."""
    mask = np.ones((1, 5), np.bool_)
    rle = sdk.encode(mask)
    assert len(rle) == 10, "53 bits of header and 19 of a run fill 9 bytes"
    np.testing.assert_array_equal(brush.decode(rle, 1, 5), mask)
    np.testing.assert_array_equal(brush.decode(rle[:-1], 1, 5), mask)


def test_what_is_wrong_is_said() -> None:
    rle = sdk.encode(np.ones((1, 5), np.bool_))
    for wrong, says in [
        (b"", "ends within its header, after 0 bytes"),
        (rle[:6], "ends within its header, after 6 bytes"),
        (sdk.encode(np.ones((1, 6), np.bool_)), "holds 24 values, not 4 for each of 1 x 5 pixels"),
        (bits(*header(2**32 - 1)), "holds 4294967295 values"),
        (bits(*header(20, word=9), (0b110, 3), (19, 8), (255, 9)), "values have 9 bits, not 8"),
        (rle[:7], "ends before its 20 values are complete"),
        (rle[:8], "ends before its 20 values are complete"),
        (rle + b"\0", "goes on after its 20 values"),
        (rle[:-1] + b"\1", "goes on after its 20 values"),
        (bits(*header(20), (0b110, 3), (20, 8), (255, 8)), "goes on after its 20 values"),
        (bits(*header(20), (0b010, 3), (19, 8), (255, 8)), "ends before its 20 values are complete"),
        (bits(*header(20), (0b110, 3), (18, 8), (255, 8), (0, 8)), "ends before its 20 values are complete"),
    ]:
        with pytest.raises(ValueError, match=f"^the RLE('s)? {says}"):
            brush.decode(wrong, 1, 5)


def right_or_refused(rle: bytes, height: int, width: int) -> bool:
    """Whether a stream was read; if so, the SDK reads the same."""
    try:
        mask = brush.decode(rle, height, width)
    except ValueError:
        return False
    np.testing.assert_array_equal(mask, sdk.decode(rle, height, width))
    return True


def streams() -> list[tuple[bytes, int, int]]:
    """A valid one of runs, and one of runs and literals."""
    mask = np.random.default_rng(1).random((4, 5)) < 0.5
    values = np.random.default_rng(2).integers(0, 256, 20).tolist()
    literals = bits(*header(24), (0b101, 3), (3, 4), (255, 8), (0b010, 3), (19, 8), *((value, 8) for value in values))
    return [(sdk.encode(mask), 4, 5), (literals, 2, 3)]


@pytest.mark.parametrize(("rle", "height", "width"), streams())
def test_streams_cut_short_are_refused(rle: bytes, height: int, width: int) -> None:
    assert right_or_refused(rle, height, width)
    for end in range(len(rle) - 1):
        with pytest.raises(ValueError, match="the RLE"):
            brush.decode(rle[:end], height, width)


@pytest.mark.parametrize(("rle", "height", "width"), streams())
def test_every_flipped_bit_is_refused_or_read_as_the_sdk_reads_it(rle: bytes, height: int, width: int) -> None:
    read = 0
    for place in range(8 * len(rle)):
        flipped = bytearray(rle)
        flipped[place >> 3] ^= 1 << (place & 7)
        read += right_or_refused(bytes(flipped), height, width)
    assert 0 < read < 8 * len(rle)  # a value may well be another one


@QUICK
@given(tail=st.binary(max_size=60), word=st.integers(1, 32), sizes=st.tuples(*[st.integers(1, 16)] * 4))
def test_random_bytes_behind_a_header_are_refused_or_read_as_the_sdk_reads_them(
    tail: bytes, word: int, sizes: tuple[int, ...]
) -> None:
    right_or_refused(bits(*header(8, word, sizes), *((byte, 8) for byte in tail)), 1, 2)
    right_or_refused(tail, 1, 2)


@pytest.mark.parametrize("code", [0b000, 0b011, 0b100, 0b111])
@pytest.mark.parametrize("field", [0, 0xFF])
def test_malicious_streams_take_memory_in_proportion(code: int, field: int) -> None:
    """Headers that promise much, and the densest and the longest blocks there are."""
    height, width, size = 100, 100, 20_000
    tail = bytes([field]) * size
    heads = [
        header(4 * height * width, word, sizes) for word in (1, 8, 32) for sizes in ((1, 1, 1, 1), (16, 16, 16, 16))
    ]
    for fields in [*heads, header(2**32 - 1)]:
        tracemalloc.start()
        right_or_refused(bits(*fields, (code, 3)) + tail, height, width)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 300 * (height * width + size)
