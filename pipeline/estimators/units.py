"""Units, which have one label of their own: a pixel, or a segment (patch, superpixel), whose logits are averaged."""

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

CHUNK = 2**15
"""Pixels per chunk: intermediate results of so many stay in the processor's cache."""
COLOUR = 40.0
"""Difference in colour, 0-255, that counts as much as a distance of one superpixel."""


def field(logits: Float[Tensor, "n c h w"], segments: Int64[Tensor, "n h w"] | None) -> Float[Tensor, "n c h w"]:
    """The logits of every pixel's unit: for segments, the mean over the segment's pixels."""
    if segments is None:
        return logits.float()
    sums = segment_sums(logits.float(), segments)
    return sums / sizes(segments, torch.ones_like(segments, dtype=torch.bool))[:, None]


def patches(truth: UInt8[Tensor, "n h w"], side: int) -> Int64[Tensor, "n h w"]:
    """Ids of square segments of `side` pixels; those at the right and the bottom may be cut.

    >>> patches(torch.zeros(1, 2, 5, dtype=torch.uint8), 2)[0]
    tensor([[0, 0, 1, 1, 2],
            [0, 0, 1, 1, 2]])
    """
    n, height, width = truth.shape
    rows, columns = (torch.arange(size, device=truth.device) // side for size in (height, width))
    return (rows[:, None] * (-(-width // side)) + columns).expand(n, height, width)


def superpixels(images: UInt8[Tensor, "n 3 h w"], side: int, rounds: int = 5) -> Int64[Tensor, "n h w"]:
    """Ids of segments that follow the image, about `side` pixels across.

    SLIC: Achanta et al. 2012, "SLIC superpixels compared to state-of-the-art superpixel methods": k-means in colour and
    place, where a pixel chooses among the centres of the 3 x 3 cells around it. Here those cells are the first ones, so
    that all pixels choose at once; a segment may have stray pixels.
    """
    n, _, height, width = images.shape
    start = patches(images[:, 0], side)
    across, down = -(-width // side), -(-height // side)
    row, column = (torch.arange(size, device=images.device) for size in (height, width))
    place = torch.stack(torch.meshgrid(row / side, column / side, indexing="ij")).expand(n, -1, -1, -1)
    features = torch.cat([images.float() / COLOUR, place], 1)  # n 5 h w
    steps = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    rows = torch.stack([(row // side + dy).clamp(0, down - 1) for dy, _ in steps])
    columns = torch.stack([(column // side + dx).clamp(0, across - 1) for _, dx in steps])
    around = (rows[:, :, None] * across + columns[:, None, :]).expand(n, -1, -1, -1)  # n 9 h w, the nearest centres
    own = start
    for _ in range(rounds):
        index = own.flatten(1)[:, None]
        counts = torch.zeros(n, 1, down * across, device=images.device).scatter_add(
            2, index, torch.ones_like(index, dtype=torch.float32)
        )
        sums = torch.zeros(n, 5, down * across, device=images.device).scatter_add(
            2, index.expand(-1, 5, -1), features.flatten(2)
        )
        centres = sums / counts.clamp(min=1)
        far = torch.stack(
            [
                (features - centres.gather(2, one.flatten(1)[:, None].expand(-1, 5, -1)).view_as(features))
                .square()
                .sum(1)
                + torch.where(counts[:, 0].gather(1, one.flatten(1)).view_as(one) > 0, 0, torch.inf)
                for one in around.unbind(1)
            ],
            1,
        )
        own = around.gather(1, far.argmin(1, keepdim=True))[:, 0]
    return own


def segment_sums(values: Float[Tensor, "n c h w"], segments: Int64[Tensor, "n h w"]) -> Float[Tensor, "n c h w"]:
    """At every pixel, the sum over its segment."""
    n, c = values.shape[:2]
    index = segments.flatten(1)[:, None].expand(-1, c, -1)
    sums = values.new_zeros(n, c, int(segments.max()) + 1).scatter_add(2, index, values.flatten(2))
    return sums.gather(2, index).view_as(values)


def sizes(segments: Int64[Tensor, "n h w"] | None, valid: Bool[Tensor, "n h w"]) -> Float[Tensor, "n h w"]:
    """At every pixel, how many valid ones its unit has, at least 1."""
    if segments is None:
        return torch.ones_like(valid, dtype=torch.float32)
    return segment_sums(valid[:, None].float(), segments)[:, 0].clamp(min=1)


def sample(
    logits: Float[Tensor, "n c h w"], generator: torch.Generator, segments: Int64[Tensor, "n h w"] | None = None
) -> UInt8[Tensor, "n h w"]:
    """One label per unit from softmax(logits), by inverting the cumulative distribution: one uniform number per unit.

    The probabilities are made and forgotten chunk by chunk: on the CPU a tensor of them all would cost more in page
    faults than in arithmetic.
    """
    n, _, height, width = logits.shape
    if segments is None:
        draws = torch.rand((n, height, width), generator=generator, device=logits.device)
    else:
        each = torch.rand((n, int(segments.max()) + 1), generator=generator, device=logits.device)
        draws = each.gather(1, segments.flatten(1))
    labelling = torch.zeros(draws.numel(), dtype=torch.uint8, device=logits.device)
    pieces = (torch.split(part, CHUNK) for part in (pixels(logits), draws.flatten(), labelling))
    for some, left, labels in zip(*pieces, strict=True):
        for p in some.float().softmax(1).T.contiguous()[:-1]:
            left -= p
            labels += left >= 0
    return labelling.view(n, height, width)


def pixels(maps: Float[Tensor, "n c h w"]) -> Float[Tensor, "m c"]:
    """One row of C values per pixel; for channels_last tensors a view, otherwise a copy."""
    return maps.permute(0, 2, 3, 1).flatten(0, 2)
