"""Codec for Label Studio's brush masks: a bit-packed run-length encoding (RLE) of the bytes of an RGBA picture.

A header (32 bits how many values, 5 bits word size - 1, four times 4 bits size - 1), then blocks. A block is one bit
(1: a run, 0: literal values), two bits that choose one of the four sizes, as many bits as it says for how many values
follow - 1, and one word (a run) or that many words. Zeros fill the last byte. Source: @thi.ng/rle-pack, and
label_studio_sdk.converter.brush, whose bytes `encode` reproduces.
"""

import numpy as np
from jaxtyping import Bool, Int, UInt8

CHANNELS = 4
WORD = 8
SIZES = (3, 4, 8, 16)
HEADER = 32 + 5 + 4 * len(SIZES)
"""Bits before the first block."""
LONGEST = 2 ** SIZES[-1] // CHANNELS
"""Pixels that one block of the largest size holds."""
OPAQUE = 128
"""The least alpha that counts as inside: the editor's strokes have anti-aliased edges."""


def _runs() -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """For runs of 0, 1, ... pixels: the block's bits without length and value, and the number of bits of the block."""
    pixels = np.arange(2 ** SIZES[-2] // CHANNELS + 2)  # the last entry stands for all longer runs
    codes = np.searchsorted([2**size // CHANNELS for size in SIZES[:-1]], pixels)
    sizes = np.array(SIZES)[codes]
    return (4 | codes) << (sizes + WORD), 3 + sizes + WORD


BLOCKS, BITS = _runs()


def encode(mask: Bool[np.ndarray, "h w"]) -> UInt8[np.ndarray, " n"]:
    """The brush RLE of a mask: 255 in all four channels inside, 0 outside.

    Raises:
        ValueError: the mask has no pixels, or more values than the header can count.
    """
    flat = mask.ravel()
    _check_size(*mask.shape)
    return _pack(np.flatnonzero(flat[1:] != flat[:-1]) + 1, bool(flat[0]), flat.size)


def encode_classes(ids: UInt8[np.ndarray, "h w"], count: int) -> dict[int, UInt8[np.ndarray, " n"]]:
    """The brush RLE of every class below `count` that occurs in `ids`, by class id, in ascending order.

    Raises:
        ValueError: as of `encode`.
    """
    flat = ids.ravel()
    _check_size(*ids.shape)
    edges = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1, [flat.size]])
    owners = flat[edges[:-1]]
    result = {}
    for number in np.flatnonzero(np.bincount(owners, minlength=count)[:count]):
        runs = np.flatnonzero(owners == number)
        bounds = np.stack([edges[runs], edges[runs + 1]], axis=1).ravel()
        inner = bounds[(bounds > 0) & (bounds < flat.size)]
        result[int(number)] = _pack(inner, bool(bounds[0] == 0), flat.size)
    return result


def decode(rle: bytes, height: int, width: int) -> Bool[np.ndarray, "h w"]:
    """The mask of a brush RLE: where alpha is at least OPAQUE.

    Time and memory are in proportion to the picture and to the RLE, whatever the RLE says.

    Raises:
        ValueError: this is not the RLE of an RGBA picture of that size.
    """
    _check_size(height, width)
    word, sizes = _header(rle, height, width)
    data = np.frombuffer(rle + bytes(4), np.uint8)  # so that a block's first four bytes are there wherever it starts
    literal, words, before, after = _blocks(data, _walk(data, 8 * len(rle), word, sizes), word, sizes, height * width)

    # A pixel's alpha is the last of its four values: the pixel belongs to the block that holds that one.
    first, end = before // CHANNELS, after // CHANNELS
    flat = np.zeros(height * width, np.bool_)
    opaque = ~literal
    opaque[opaque] = _read(data, words[opaque], word) >= OPAQUE
    # One slice per run: scenes have few runs, and repeating the values would visit every pixel of every class.
    for start, stop in zip(first[opaque].tolist(), end[opaque].tolist(), strict=True):
        flat[start:stop] = True
    if literal.any():
        lengths = (end - first)[literal]
        pixels = np.arange(lengths.sum()) + np.repeat(first[literal] - np.cumsum(lengths) + lengths, lengths)
        zeros = np.repeat((words - before * word)[literal], lengths)  # the bit where value 0 would be
        flat[pixels] = _read(data, zeros + (pixels * CHANNELS + CHANNELS - 1) * word, word) >= OPAQUE
    return flat.reshape(height, width)


def _check_size(height: int, width: int) -> None:
    if min(height, width) < 1 or height * width * CHANNELS >= 2**32:
        raise ValueError(f"{height} x {width} pixels cannot be a brush RLE")


def _pack(changes: Int[np.ndarray, " m"], first: bool, size: int) -> UInt8[np.ndarray, " n"]:
    """The RLE of `size` pixels whose value changes at the pixels `changes`, `first` being the value of pixel 0."""
    pixels = np.diff(changes, prepend=0, append=size)
    inside = (np.arange(len(pixels)) & 1) ^ first
    kinds = np.minimum(pixels, len(BITS) - 1)
    if pixels.max() > LONGEST:
        pieces = -(-pixels // LONGEST)
        rest = pixels - (pieces - 1) * LONGEST
        # The rest of a run that was cut keeps the largest size, however short it is, as the SDK has it.
        kinds, inside = np.repeat(kinds, pieces), np.repeat(inside, pieces)
        pixels = np.full(len(kinds), LONGEST)
        pixels[np.cumsum(pieces) - 1] = rest
    blocks = BLOCKS[kinds] | (CHANNELS * pixels - 1) << WORD | inside * 255
    ends = HEADER + np.cumsum(BITS[kinds])
    starts = ends - BITS[kinds]

    # A block of at most 27 bits that starts anywhere in a byte touches at most five bytes. No two blocks start in the
    # same byte, so one assignment per place takes all of them.
    window = blocks << 40 - BITS[kinds] - (starts & 7)
    used = int(ends[-1]) // 8 + 1  # one byte more than needed if the last one is full, as the SDK has it
    rle = np.zeros(used + 4, np.uint8)
    header = CHANNELS * size
    for value, bits in ((WORD - 1, 5), *((each - 1, 4) for each in SIZES)):
        header = header << bits | value
    rle[: HEADER // 8 + 1] = np.frombuffer((header << -HEADER % 8).to_bytes(HEADER // 8 + 1), np.uint8)
    for place in range(5):
        rle[(starts >> 3) + place] |= (window >> 8 * (4 - place)).astype(np.uint8)
    return rle[:used]


def _header(rle: bytes, height: int, width: int) -> tuple[int, list[int]]:
    """Bits of a word, and the four sizes."""
    if 8 * len(rle) < HEADER:
        raise ValueError(f"the RLE ends within its header, after {len(rle)} bytes")
    header = int.from_bytes(rle[: HEADER // 8 + 1]) >> (-HEADER % 8)
    count, word, sizes = header >> 21, (header >> 16 & 31) + 1, [(header >> at & 15) + 1 for at in (12, 8, 4, 0)]
    if count != height * width * CHANNELS:
        raise ValueError(f"the RLE holds {count} values, not {CHANNELS} for each of {height} x {width} pixels")
    if word > WORD:
        raise ValueError(f"the RLE's values have {word} bits, not {WORD}")
    return word, sizes


def _walk(data: UInt8[np.ndarray, " n"], bits: int, word: int, sizes: list[int]) -> Int[np.ndarray, " m"]:
    """The bits at which blocks start, as far as `bits`, the last one perhaps cut short.

    Where a block ends depends on the block before it, so this is a loop. All that it does for a run is to look its
    length up: that was worked out beforehand, for every bit as if a run started there.
    """
    bit = np.unpackbits(data[: bits // 8 + 1])
    codes = bit[:bits] << 2
    codes |= bit[1 : bits + 1] << 1
    codes |= bit[2 : bits + 2]
    table = bytes(4) + bytes(3 + size + word for size in sizes)
    runs = codes.tobytes().translate(table.ljust(256))
    raw = data.tobytes()
    starts, at = [], HEADER
    while at < bits:
        starts.append(at)
        step = runs[at]
        if not step:
            window = int.from_bytes(raw[at >> 3 : (at >> 3) + 4]) << (at & 7)
            size = sizes[window >> 29 & 3]
            step = 3 + size + ((window >> 29 - size & (1 << size) - 1) + 1) * word
        at += step
    return np.array(starts, np.int64)


def _blocks(
    data: UInt8[np.ndarray, " n"], starts: Int[np.ndarray, " m"], word: int, sizes: list[int], pixels: int
) -> tuple[Bool[np.ndarray, " k"], Int[np.ndarray, " k"], Int[np.ndarray, " k"], Int[np.ndarray, " k"]]:
    """The blocks that start at these bits and make up the picture.

    Returns:
        Of each block: whether its values are literal, the bit at which its first word starts, and how many values of
        the picture come before it, and up to its end.

    Raises:
        ValueError: they are fewer or more.
    """
    window = np.lib.stride_tricks.sliding_window_view(data, 4)[starts >> 3].view(">u4")[:, 0].astype(np.uint32)
    window <<= (starts & 7).astype(np.uint32)
    codes = window >> 29
    literal, size = codes < 4, np.array(sizes, np.uint32)[codes & 3]
    lengths = (window << 3 >> 32 - size).astype(np.int64) + 1
    words = starts + 3 + size
    after = np.cumsum(lengths)

    # What follows the last block was walked over as well: the zeros that fill the last byte look like a block.
    total, last = pixels * CHANNELS, int(np.searchsorted(after, pixels * CHANNELS))
    surplus = -1
    if last < len(after):
        surplus = 8 * (len(data) - 4) - int(words[last] + word * (lengths[last] if literal[last] else 1))
    if surplus < 0:
        raise ValueError(f"the RLE ends before its {total} values are complete")
    filling = int.from_bytes(data[-6:-4].tobytes()) & ((1 << min(surplus, 8)) - 1)
    if after[last] != total or surplus > 8 or filling:
        raise ValueError(f"the RLE goes on after its {total} values")
    used = slice(last + 1)
    return literal[used], words[used], (after - lengths)[used], after[used]


def _read(data: UInt8[np.ndarray, " n"], starts: Int[np.ndarray, " m"], word: int) -> UInt8[np.ndarray, " m"]:
    """The words, of at most eight bits, that start at these bits."""
    byte = starts >> 3
    pair = data[byte].astype(np.uint16) << 8 | data[byte + 1]
    words: np.ndarray = (pair << (starts & 7).astype(np.uint16) >> 16 - word).astype(np.uint8)
    return words
