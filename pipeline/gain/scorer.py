"""How the images of a round are scored: an acquisition at work on the outputs of a network."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from pipeline import streams
from pipeline.errors import UserError, choose
from pipeline.gain import ACQUISITIONS, Acquisition, Entry, Posterior, Settings, Worth, annealed, worth
from pipeline.networks.calibration import NONE, Calibration
from pipeline.networks.inference import Output
from pipeline.networks.network import Network
from pipeline.params import Score


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
        if out.cells is None:
            raise AssertionError("members are asked with `outputs(..., with_cells=True)`")
        with torch.inference_mode():
            members = self.calibration.apply(self.network.by_members(out.cells.features, self.heads)).softmax(2)
        return Posterior(members, out.cells.rows, out.cells.cols, of_pixel)

    def gain(self, sums: Float64[Tensor, "m c s"], pool: Float64[Tensor, "c s"]) -> Float64[Tensor, "m c"]:
        """Gain of units by class, relative to the totals of the pool.

        Raises:
            UserError: a class has no union in the pool, and there is no smoothing.
        """
        with self.about_smoothing():
            return self.acquisition.gain(sums, pool)

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
