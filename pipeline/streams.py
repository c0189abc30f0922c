"""Random number streams: one generator per purpose, all of them made here.

Two purposes that shared a stream would not be independent: a round's draw of images, say, and the permutations that its
audit tests them with.
"""

import hashlib
import json

import numpy as np


def rng(seed: int, *purpose: str | int) -> np.random.Generator:
    """A generator for one purpose.

    Args:
        seed: of the run, or of a part of it that has one of its own.
        purpose: words and numbers that nothing else asks with, e.g. `"r01", "select"`.
    """
    return np.random.default_rng(_entropy(seed, *purpose))


def seed_of(seed: int, *purpose: str | int) -> int:
    """A seed in [0, 2^63) for what takes no generator of NumPy's; arguments as `rng`.

    >>> seed_of(1, "r01", "select") == seed_of(1, "r01", "audit")
    False
    """
    return int(np.random.SeedSequence(_entropy(seed, *purpose)).generate_state(1, np.uint64)[0] >> 1)


def _entropy(*parts: str | int) -> int:
    # JSON keeps the parts distinct, 1 from "1" and ("a", "b") from ("ab"). Concatenated bytes would not, and to NumPy
    # the entropies [7] and [7, 0] are the same.
    return int.from_bytes(hashlib.sha256(json.dumps(parts).encode()).digest())
