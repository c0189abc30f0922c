"""No two purposes share their random numbers."""

import re
from itertools import combinations

import numpy as np

from pipeline import streams
from tests.conftest import ROOT

PURPOSES: list[tuple[str | int, ...]] = [
    (1, "r01", "select"),
    (1, "r01", "audit"),
    (1, "r01", "likelihood"),
    (1, "r01select",),
    (1, "r01", "select", 0),
    (1, "r01", "select", "0"),
    (1, "r01\0", "select"),
    (1, "r0", "1select"),
    (1, "r01"),
    (1,),
    (11, "r01", "select"),
    (0, "r01", "select"),
    (2**32 - 1, "r01", "select"),
    (1, "strasse", "select"),
    (1, "straße", "select"),
    (1, "order", 0, 1),
    (1, "order", 1, 0),
    (1, "order", 1),
    (1, "change", 0, 1),
    (1, "step", 0, 1),
]  # fmt: skip


def test_purposes_are_told_apart_and_each_is_the_same_again() -> None:
    drawn = [streams.rng(*purpose).integers(0, 2**63, 4) for purpose in PURPOSES]
    seeds = [streams.seed_of(*purpose) for purpose in PURPOSES]
    for (one, a), (other, b) in combinations(zip(PURPOSES, drawn, strict=True), 2):
        assert not set(a.tolist()) & set(b.tolist()), (one, other)
    assert len(set(seeds)) == len(PURPOSES)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seeds == [streams.seed_of(*purpose) for purpose in PURPOSES]
    assert all((streams.rng(*p).integers(0, 2**63, 4) == d).all() for p, d in zip(PURPOSES, drawn, strict=True))


def test_plain_numbers_would_not_be_told_apart() -> None:
    """What it is for: entropies of NumPy's that differ in trailing zeros are the same."""
    assert np.random.default_rng([7]).random() == np.random.default_rng([7, 0]).random()
    assert streams.rng(7).random() != streams.rng(7, 0).random()


def test_a_stream_is_made_in_one_place() -> None:
    """The town, which is data and has a seed of its own, is drawn by its own rules."""
    makers = re.compile(r"default_rng\(|SeedSequence\(|RandomState\(|manual_seed\((?!.*(seed|generator|rng)|0\))")
    elsewhere = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in sorted((ROOT / "pipeline").rglob("*.py"))
        if path.name != "streams.py" and path.parent.name != "town"
        for line in path.read_text().splitlines()
        if makers.search(line)
    ]
    assert elsewhere == []
