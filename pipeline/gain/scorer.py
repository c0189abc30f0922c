"""An acquisition at work on a network's outputs: what the stages score, predict and report have in common."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from pipeline import paths, streams
from pipeline.artifacts import Features
from pipeline.errors import UserError, choose
from pipeline.gain import (
    ACQUISITIONS,
    Acquisition,
    Entry,
    Posterior,
    Settings,
    Worth,
    annealed,
    expected_iou,
    features,
    minutes,
    worth,
)
from pipeline.gain.features import Pooled
from pipeline.images.blocks import Box
from pipeline.images.items import Item
from pipeline.networks import inference
from pipeline.networks.calibration import NONE, Calibration
from pipeline.networks.devices import Devices
from pipeline.networks.inference import Output
from pipeline.networks.network import Network
from pipeline.params import Compute, Model, Score

SAMPLE = 200
"""Images, evenly spread over those left, that tell J and U where an acquisition needs them before the pass."""


class Scorer(NamedTuple):
    """How a round's images are scored."""

    round_name: str
    after: str
    """The round whose network it is."""
    entry: Entry
    """What the acquisition needs."""
    acquisition: Acquisition
    network: Network
    calibration: Calibration
    smooth: float
    heads: Float[Tensor, "k c d kh kw"] | None
    """Last layers of the members, if the acquisition asks for them."""

    def posterior(self, out: Output, of_pixel: Worth | None = None) -> Posterior | None:
        """What the members say of a batch, at the resolution of the last layer; None if they are not asked."""
        if self.heads is None:
            return None
        if out.grid is None:
            raise AssertionError("members are asked with `outputs(..., grid=True)`")
        with torch.inference_mode():
            members = self.calibration.apply(self.network.by_members(out.grid.features, self.heads)).softmax(2)
        return Posterior(members, out.grid.rows, out.grid.cols, of_pixel)

    def statistics(
        self,
        devices: Devices,
        results: Iterator[Output],
        items: Sequence[Item],
        of_pixel: Worth | None = None,
        look: Callable[[Tensor, Output], None] | None = None,
        boxes: Sequence[Sequence[Box]] | None = None,
    ) -> Float64[Tensor, "m *b c s"]:
        """The acquisition's statistics of all items, of all processes, in their order.

        Args:
            devices: of the run.
            results: what the network says of the items.
            items: of all processes.
            of_pixel: what claims are worth, if the acquisition needs it.
            look: sees the probabilities, too.
            boxes: the b parts of every item, in the network's pixels; None for whole images.

        Raises:
            UserError: probabilities are not finite.
        """

        def observe(probabilities: Tensor, out: Output) -> Tensor:
            if look:
                look(probabilities, out)
            posterior = self.posterior(out, of_pixel)
            if boxes is None:
                return self.acquisition.observe(probabilities, posterior)
            return by_box(self.acquisition.observe, probabilities, posterior, [boxes[i] for i in out.batch.indices])

        sums = statistics(devices, results, self.calibration, observe, len(items))
        broken = ~sums.flatten(1).isfinite().all(1)
        if broken.any():
            raise UserError(
                f"{self.round_name}: the probabilities that {paths.model(self.after)} gives for "
                f"{items[int(broken.nonzero()[0])].key!r} are not finite: train it with a lower lr, or in 32-true"
            )
        return sums

    def gain(self, sums: Float64[Tensor, "m c s"]) -> Float64[Tensor, "m c"]:
        """Gain of the images of a pool by class.

        Raises:
            UserError: a class has no union in the pool, and there is no smoothing.
        """
        with self.about_smoothing():
            return self.acquisition.gain(sums, sums.sum(0))

    @contextmanager
    def about_smoothing(self) -> Iterator[None]:
        """A class without a union is a sentence."""
        try:
            yield
        except ValueError as error:
            raise UserError(f"{self.round_name}: score.smooth is {self.smooth:g}: {error}") from None

    def gain_map(
        self, out: Output, probabilities: Float[Tensor, "n c h w"], pool: Float64[Tensor, "c s"]
    ) -> Float[Tensor, "n h w"]:
        """Gain of every pixel, relative to the totals of the pool.

        Raises:
            ValueError: a class has no union in the pool, and there is no smoothing.
        """
        of_pixel = worth(pool, self.smooth) if self.entry.needs_worth else None
        posterior = self.posterior(out, of_pixel)
        return self.acquisition.gain_map(probabilities, pool, posterior)


def start_scorer(
    round_name: str, after: str, network: Network, calibration: Calibration, score: Score, *, seed: int, rounds: int
) -> Scorer:
    """The round's scorer: the same in every stage of the round.

    Args:
        round_name: the round that buys.
        after: the round before.
        network: of the round before.
        calibration: that was fitted beside it.
        score: the section of params.yaml.
        seed: of the run; the members are drawn anew in each round.
        rounds: how many have bought before.

    Raises:
        UserError: the acquisition is unknown, or asks for members that the network cannot have.
    """
    entry = choose("score.acquisition", ACQUISITIONS, score.acquisition)
    heads = None
    if entry.needs_members:
        members_rng = torch.Generator().manual_seed(streams.seed_of(seed, round_name, "members"))
        heads = network.thinned(score.members, score.dropout, members_rng)
    acquisition = entry.make(Settings(score.smooth, annealed(rounds, score.blend_end, score.blend_rounds)))
    used = calibration if score.calibrate else NONE
    return Scorer(round_name, after, entry, acquisition, network, used, score.smooth, heads)


class Scored(NamedTuple):
    """What one pass says of the m units left, images or blocks."""

    gains: Float64[np.ndarray, "m c"]
    """Expected gain by class."""
    pool: Float64[np.ndarray, "c s"]
    """Totals of the acquisition's statistics, which the gains are relative to."""
    effort: Float64[np.ndarray, "m 3"]
    """What predicts the minutes: `minutes.FEATURES`."""
    features: Features
    """Of the images left and of those bought; of none where they are not asked for."""


class Cut(NamedTuple):
    """How the images left are cut into blocks, b each."""

    boxes: list[list[Box]]
    """Where the blocks of every image are, in the network's pixels."""
    left: Bool[np.ndarray, "m b"]
    """Which of them may be bought."""


def by_box(
    observe: Callable[[Tensor, Posterior | None], Tensor],
    probabilities: Float[Tensor, "n c h w"],
    posterior: Posterior | None,
    boxes: Sequence[Sequence[Box]],
) -> Tensor:
    """What `observe` says of every box of every image of a batch, as if it were an image: (images, boxes, ...)."""
    images = []
    for place, of in enumerate(boxes):
        parts = []
        for box in of:
            rows, cols = slice(box.top, box.bottom), slice(box.left, box.right)
            part = None if posterior is None else posterior.part(place, rows, cols)
            parts.append(observe(probabilities[place : place + 1, :, rows, cols], part))
        images.append(torch.cat(parts))
    return torch.stack(images)


def score_pool(
    devices: Devices,
    scorer: Scorer,
    items: Sequence[Item],
    left: int,
    model: Model,
    compute: Compute,
    features_seed: int | None = None,
    cut: Cut | None = None,
    labelled: Float64[np.ndarray, "b c"] | None = None,
) -> Scored:
    """Score the first `left` items or their blocks; other items, bought already, are only looked at for their features.

    Args:
        devices: of the run.
        scorer: of the round.
        items: the images left, then those bought.
        left: how many are left.
        model: at which size the network works.
        compute: batch size and readers.
        features_seed: draws the projection of the features; None for no features.
        cut: into blocks, of which those that are left are scored, image by image; None for whole images. The network
            sees every image once and whole either way.
        labelled: pixels of every class, at the network's size, of the items bought already; None if there are none.

    Raises:
        UserError: probabilities are not finite, or a class has no union and there is no smoothing.
    """
    of_pixel = sampled_worth(devices, scorer, items[:left], model, compute, cut) if scorer.entry.needs_worth else None
    grid = scorer.entry.needs_members or features_seed is not None
    results = inference.outputs(devices, scorer.network, items, model.size, compute, f"score {scorer.round_name}", grid)
    pooled: list[Pooled] = []
    if features_seed is not None:
        results = pooling(devices, scorer, results, features_seed, pooled)
    work: list[Tensor] = []

    def look(probabilities: Tensor, out: Output) -> None:
        if cut is None:
            work.append(minutes.observe(probabilities))
        else:
            boxes = [cut.boxes[index] for index in out.batch.indices]
            work.append(by_box(lambda part, _: minutes.observe(part), probabilities, None, boxes))

    kept = slice(left) if cut is None else torch.from_numpy(cut.left)
    sums = scorer.statistics(devices, results, items, of_pixel, look, None if cut is None else cut.boxes)[kept]
    effort = devices.gather(torch.cat(work), len(items))[kept]
    found = Features.none()
    if pooled:
        known = np.zeros((0, sums.shape[-2])) if labelled is None else labelled
        if left + len(known) != len(items):
            raise ValueError(f"{len(items)} items are {left} left and {len(known)} labelled ones")
        found = vectors(devices, pooled, [item.key for item in items], known, scorer.smooth)
    return Scored(scorer.gain(sums).numpy(), sums.sum(0).numpy(), effort.numpy(), found)


def sampled_worth(
    devices: Devices, scorer: Scorer, left: Sequence[Item], model: Model, compute: Compute, cut: Cut | None = None
) -> Worth:
    """What right and wrong claims are worth, before the pass in which an acquisition needs it for every pixel.

    J and U are those of at most SAMPLE images (of what is left of them, where blocks are bought), evenly spread over
    those left, U scaled up to all of them. That is exact for a pool no larger, and an estimate for a larger one: good
    for common classes; a class that the sample misses has its smoothing for a union. The pass itself counts all images,
    and what is written of the pool is their total: so the map of an image, drawn with that, sums to its gain up to the
    error of the estimate.

    Raises:
        UserError: probabilities are not finite, or a class has no union and there is no smoothing.
    """
    places = np.unique(np.linspace(0, len(left) - 1, SAMPLE).round().astype(int))
    sample = [left[place] for place in places]
    name = f"score {scorer.round_name}, J and U"
    results = inference.outputs(devices, scorer.network, sample, model.size, compute, name)
    plain = scorer._replace(acquisition=ACQUISITIONS["shortfall"].make(Settings(scorer.smooth)), heads=None)
    if cut is None:
        sums, all_of_them = plain.statistics(devices, results, sample), len(left)
    else:
        kept = torch.from_numpy(cut.left[places])
        sums = plain.statistics(devices, results, sample, boxes=[cut.boxes[place] for place in places])[kept]
        all_of_them = int(cut.left.sum())
    with scorer.about_smoothing():
        return worth(sums.sum(0) * all_of_them / len(sums), scorer.smooth)


def statistics(
    devices: Devices,
    results: Iterator[Output],
    calibration: Calibration,
    observe: Callable[[Tensor, Output], Tensor],
    total: int,
) -> Float64[Tensor, "m *b c s"]:
    """Sums, per image or block, of the calibrated probabilities of `outputs`, of all processes, in the items' order.

    `observe` is given the probabilities of a batch and what else there is of it, but for the logits: they are used up.
    """
    rows: list[Tensor] = []
    probabilities = torch.empty(0)
    with torch.inference_mode():
        for out in results:
            # In place and into one tensor for all batches: on the CPU, fresh ones of this size cost as much in page
            # faults as the softmax does in arithmetic.
            if probabilities.shape != out.logits.shape:
                probabilities = torch.empty_like(out.logits)
            torch.softmax(calibration.apply(out.logits, out=out.logits), 1, out=probabilities)
            rows.append(observe(probabilities, out).double().cpu())
    if not rows:
        raise ValueError("a process without images: use fewer processes than there are images")
    return devices.gather(torch.cat(rows), total)


def pooling(
    devices: Devices, scorer: Scorer, results: Iterator[Output], seed: int, into: list[Pooled]
) -> Iterator[Output]:
    """The results as they come; on the way, the features of every batch are pooled."""
    run_rng = torch.Generator().manual_seed(seed)
    last = scorer.network.last_layer()
    projected = features.projection(last.out_channels, last.in_channels, run_rng).to(devices.device)
    for out in results:
        if out.grid is None:
            raise AssertionError("features come with `outputs(..., grid=True)`")
        with torch.inference_mode():
            probabilities = scorer.calibration.apply(out.grid.logits).softmax(1)
            pixels = Posterior(probabilities[None], out.grid.rows, out.grid.cols).pixels()
            found = features.pool(out.grid.features, probabilities, pixels, projected)
        into.append(Pooled(*(part.cpu() for part in found)))
        yield out


def vectors(
    devices: Devices,
    pooled: Sequence[Pooled],
    keys: list[str],
    labelled: Float64[np.ndarray, "b c"],
    smooth: float,
) -> Features:
    """Of all processes, in the order of the keys, of which the last b are labelled and the others make up the pool."""
    left = len(keys) - len(labelled)
    whole = Pooled(*(devices.gather(torch.cat(parts), len(keys)) for parts in zip(*pooled, strict=True)))
    iou = expected_iou(whole.statistics[:left].sum(0), smooth)
    by_class = features.by_class(whole.parts, whole.statistics, iou)
    claimed, doubted, missed = whole.statistics[:left].numpy().transpose(2, 0, 1)
    shown = claimed - doubted + missed
    average = shown.mean(0)
    pixels = np.concatenate([shown, labelled])
    holds = np.divide(pixels, average, out=np.zeros_like(pixels), where=average > 0).astype(np.float32)
    return Features(
        keys, whole.image.numpy(), by_class.numpy(), whole.gradient.numpy(), holds, iou.nan_to_num(0).numpy()
    )
