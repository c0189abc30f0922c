"""The demo town as a plan: a street, what lines its sides, and the things on it. A clip is one plan."""

from typing import NamedTuple

import numpy as np

from pipeline.town.look import Look, Weather

LENGTH = 100.0
"""Length of the street, metres."""


class Segment(NamedTuple):
    """What lines one side of the street from s0 to s1."""

    kind: str
    side: int
    """-1 left, 1 right."""
    s0: float
    s1: float
    seed: int


class Thing(NamedTuple):
    """A sprite, where it stands in the first frame, and how it moves."""

    kind: str
    x: float
    s: float
    dx: float
    """Movement across per frame, metres."""
    ds: float
    """Movement along per frame, metres."""
    variant: int
    """Direction, phase or state, as the sprite understands it."""
    seed: int


class Plan(NamedTuple):
    """One clip."""

    look: Look
    weather: Weather
    half: float
    """Half width of the road, metres."""
    walk: float
    """Width of each sidewalk, metres."""
    verge: float
    """Width of the grass between sidewalk and houses, metres."""
    crossing: tuple[float, float] | None
    """Where another street crosses: from, to."""
    segments: tuple[Segment, ...]
    things: tuple[Thing, ...]
    eye: float
    view: float
    horizon: float
    column: float
    """Column of the vanishing point, share of the width."""
    curve: float
    lane: float
    """Where the camera drives, metres from the middle of the street."""
    speed: float
    """Metres per frame."""
    hood: bool
    """Whether the bonnet of the own car is visible."""
    shade: float
    """How far houses on the right (negative: on the left) throw their shadow over the road, share of its width."""
    seed: int


def plan(look: Look, rng: np.random.Generator) -> Plan:
    """Draws a clip's street."""
    half, walk = float(rng.uniform(*look.road)), float(rng.uniform(*look.sidewalk))
    verge = float(rng.uniform(0.8, 2.5)) if rng.random() < 0.5 else 0.0
    start = float(rng.uniform(16, 45))
    crossing = (start, start + float(rng.uniform(6, 9))) if rng.random() < 0.5 else None
    segments = tuple(segment for side in (-1, 1) for segment in _segments(look, side, crossing, rng))
    lane = half * float(rng.uniform(0.3, 0.5)) if half > 4 else float(rng.uniform(0.2, 0.9))
    things = tuple(_things(look, half, walk, lane, crossing, rng))
    return Plan(
        look=look,
        weather=look.weathers[rng.integers(len(look.weathers))],
        half=half,
        walk=walk,
        verge=verge,
        crossing=crossing,
        segments=segments,
        things=things,
        eye=float(rng.uniform(*look.eye)),
        view=float(rng.uniform(*look.view)),
        horizon=float(rng.uniform(*look.horizon)),
        column=float(rng.uniform(0.4, 0.6)),
        curve=float(rng.uniform(-1, 1)) * look.curve,
        lane=lane,
        speed=float(rng.uniform(0.1, 0.5)),
        hood=bool(rng.random() < look.hood),
        shade=float(rng.uniform(-1, 1)),
        seed=_seed(rng),
    )


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**31))


def _segments(look: Look, side: int, crossing: tuple[float, float] | None, rng: np.random.Generator) -> list[Segment]:
    found, s = [], -4.0
    kinds, shares = list(look.sides), np.array(list(look.sides.values()))
    while s < LENGTH:
        kind = kinds[rng.choice(len(kinds), p=shares / shares.sum())]
        end = s + float(rng.uniform(7, 14) if kind == "house" else rng.uniform(10, 22))
        if crossing is not None and s < crossing[1] and end > crossing[0]:
            if crossing[0] - s > 3:
                found.append(Segment(kind, side, s, crossing[0] - 1.5, _seed(rng)))
            s = crossing[1] + 1.5
            continue
        found.append(Segment(kind, side, s, end, _seed(rng)))
        s = end
    return found


def _things(
    look: Look, half: float, walk: float, lane: float, crossing: tuple[float, float] | None, rng: np.random.Generator
) -> list[Thing]:
    """Scatters the sprites where they belong; what would stand inside another one is left out."""
    wanted: list[Thing] = []

    def add(kind: str, x: float, s: float, dx: float = 0.0, ds: float = 0.0, variant: int = 0) -> None:
        wanted.append(Thing(kind, x, s, dx, ds, variant, _seed(rng)))

    if crossing is not None:
        for side in (-1, 1):
            add("traffic_light", side * (half + 0.5), crossing[0] - 0.7, variant=int(rng.integers(3)))
            if rng.random() < 0.5:
                s = 0.5 * (crossing[0] + crossing[1]) + 1.4 * side
                add("car_across", side * float(rng.uniform(1, 9)), s, dx=0.25 * side, variant=side)
    for side in (-1, 1):
        for s in np.arange(3.0 + float(rng.uniform(0, 6)), 50, 6.0).tolist():
            if rng.random() < look.parked:
                add("car", side * (half - 1.0), s, variant=int(side < 0))
    for kind, rate in look.rates.items():
        for _ in range(rng.poisson(rate)):
            side = int(rng.choice([-1, 1]))
            s = 4.5 + float(rng.beta(1, 2.2)) * 42  # nearer is likelier: what is far is too small to learn from
            walking = side * float(rng.uniform(half + 0.35, half + walk - 0.3))
            kerb = side * (half + 0.35)
            if kind in ("car", "bus", "truck"):
                x = lane + float(rng.uniform(-0.3, 0.3)) if side > 0 else -max(0.45 * half, 1.3)
                add(kind, x, s + 5, ds=0.2 * side + 0.15, variant=int(side < 0))
            elif kind in ("cyclist", "motorcyclist") and rng.random() < 0.5:
                add(kind, float(rng.uniform(-half, half)), s, dx=0.12 * side, variant=side)
            elif kind in ("cyclist", "motorcyclist"):
                add(kind, side * (half - 0.6), s, ds=0.15 * side)
            elif kind == "person" and rng.random() < 0.25:
                add(kind, float(rng.uniform(-half, half)), s, dx=0.06 * side)
            elif kind == "person":
                add(kind, walking, s, ds=0.05 * side, variant=int(rng.integers(6)))
            elif kind in ("tree", "bush"):
                add(kind, side * (half + (0.9 if rng.random() < 0.5 else walk - 0.3)), s + 2)
            elif kind in ("bicycle", "motorcycle"):
                add(kind, walking, s, variant=int(rng.integers(-1, 2)))
            elif kind == "bin":
                add(kind, walking, s)
            else:
                add(kind, kerb, s, variant=int(rng.integers(3)))
    found: list[Thing] = []
    for thing in sorted(wanted, key=lambda it: it.kind not in ("bus", "truck")):  # else parked cars leave them no room
        on_crossing = crossing is not None and crossing[0] - 1 < thing.s < crossing[1] + 1
        if on_crossing and thing.kind not in ("car_across", "person", "cyclist", "motorcyclist", "car", "bus", "truck"):
            continue
        if not any(_overlap(thing, other) for other in found):
            found.append(thing)
    return found


_ROOM = {"car": (0.95, 5.2), "car_across": (2.3, 1.8), "bus": (1.3, 11.0), "truck": (1.3, 8.5)}
"""Half width and length of what takes much room, metres."""


def _overlap(one: Thing, other: Thing) -> bool:
    wide, long = _ROOM.get(one.kind, (0.25, 0.3))
    other_wide, other_long = _ROOM.get(other.kind, (0.25, 0.3))
    return abs(one.x - other.x) < wide + other_wide and -other_long < other.s - one.s < long
