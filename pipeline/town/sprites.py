"""What stands at the streets of the demo town: trees, poles, signs, lights, bins; and what all sprites are made of.

Every sprite has the signature `(brush, x, s, variant)`: it stands at x metres across and s metres along the street.
"""

import functools
import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from pipeline.town.canvas import LEAVES, SMOOTH, Canvas, Colour, Number, tone
from pipeline.town.look import Look

# Cityscapes labelIds, https://github.com/mcordts/cityscapesScripts
UNLABELED, EGO_VEHICLE, STATIC, ROAD, SIDEWALK, PARKING = 0, 1, 4, 7, 8, 9
BUILDING, WALL, FENCE, POLE, TRAFFIC_LIGHT, TRAFFIC_SIGN = 11, 12, 13, 17, 19, 20
VEGETATION, TERRAIN, SKY_ID, PERSON, RIDER, CAR = 21, 22, 23, 24, 25, 26
TRUCK, BUS, MOTORCYCLE, BICYCLE = 27, 28, 32, 33

Outline = Float[np.ndarray, "n 2"]


class Brush(NamedTuple):
    """A canvas with the colours of a look and the randomness of one thing."""

    canvas: Canvas
    rng: np.random.Generator
    look: Look
    dusk: bool
    """Whether lamps and windows are lit."""

    def pick(self, name: str) -> Colour:
        """One of the palette's colours, slightly varied."""
        colours = self.look.palette[name]
        return tone(colours[self.rng.integers(len(colours))], 1 + 0.07 * float(self.rng.uniform(-1, 1)))

    def thin(self, metres: float, s: float) -> float:
        """A width in metres, at least 1.1 pixels at distance s: without it, thin things would break into dots."""
        camera = self.canvas.camera
        return max(metres, 1.1 * max(s - camera.s, 0) / camera.focal)


def rectangle(left: Number, bottom: Number, right: Number, top: Number) -> Outline:
    """Corners of an upright rectangle."""
    return np.array([[left, bottom], [right, bottom], [right, top], [left, top]])


@functools.cache
def _circle(corners: int) -> Outline:
    angle = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    return np.stack([np.cos(angle), np.sin(angle)], axis=-1)


def disc(x: Number, y: Number, rx: Number, ry: Number, corners: int = 14) -> Outline:
    """An ellipse."""
    return _circle(corners) * (rx, ry) + (x, y)


def bar(x0: Number, y0: Number, x1: Number, y1: Number, width: Number) -> Outline:
    """A straight stroke."""
    half = 0.5 * width / max(math.hypot(x1 - x0, y1 - y0), 1e-6)
    dx, dy = (y0 - y1) * half, (x1 - x0) * half
    return np.array([[x0 + dx, y0 + dy], [x1 + dx, y1 + dy], [x1 - dx, y1 - dy], [x0 - dx, y0 - dy]])


def box(
    left: Number, right: Number, bottom: Number, top: Number, near: Number, far: Number
) -> Float[np.ndarray, "8 3"]:
    """Corners of a box."""
    return np.array([[x, y, s] for s in (near, far) for y in (bottom, top) for x in (left, right)])


def blob_shadow(brush: Brush, x: float, s: float, half_width: float, length: float) -> None:
    """The soft dark patch under a thing."""
    ring = disc(x, s + length / 2, half_width, length / 2)
    brush.canvas.shadow(np.insert(ring, 1, 0.0, axis=1))


def tree(brush: Brush, x: float, s: float, _variant: int = 0) -> None:
    """A broad-leaved tree or a conifer, as the look prefers; all of it is vegetation, as in Cityscapes."""
    canvas, rng = brush.canvas, brush.rng
    bark = brush.pick("bark")
    h = float(rng.uniform(4.5, 7.5))
    trunk = 0.42 * h
    blob_shadow(brush, x, s - 0.5, 0.28 * h, 0.4 * h)
    canvas.face(x, s, bar(0, 0, 0, trunk, brush.thin(0.05 * h, s)), VEGETATION, bark)
    if rng.random() < brush.look.conifers:
        leaf = brush.pick("needles")
        for level in range(4):
            y, half = (0.18 + 0.2 * level) * h, (0.27 - 0.055 * level) * h
            layer = np.array([[-half, y], [half, y], [0.03 * h, y + 0.34 * h], [-0.03 * h, y + 0.34 * h]])
            canvas.face(x, s, layer, VEGETATION, tone(leaf, 0.8 + 0.09 * level), LEAVES)
        return
    leaf = brush.pick("leaves")
    for number in range(6):
        dx, dy = (float(value) for value in rng.uniform(-0.17, 0.17, 2) * h)
        radius = float(rng.uniform(0.16, 0.24)) * h
        crown = disc(dx, 0.68 * h + dy, radius, radius * 0.9, corners=16)
        crown += rng.uniform(-0.12, 0.12, crown.shape) * radius
        canvas.face(x, s, crown, VEGETATION, tone(leaf, 0.78 + 0.07 * number), LEAVES)


def bush(brush: Brush, x: float, s: float, _variant: int = 0) -> None:
    """A low round shrub."""
    leaf = brush.pick("leaves")
    for number in range(3):
        dx, radius = float(brush.rng.uniform(-0.6, 0.6)), float(brush.rng.uniform(0.4, 0.7))
        brush.canvas.face(
            x, s, disc(dx, radius * 0.8, radius * 1.2, radius), VEGETATION, tone(leaf, 0.75 + 0.12 * number), LEAVES
        )


def lamp_post(brush: Brush, x: float, s: float, _variant: int = 0) -> None:
    """A street lamp whose arm reaches over the street."""
    canvas, colour = brush.canvas, brush.pick("pole")
    h, reach = float(brush.rng.uniform(5, 6.5)), (-1.4 if x > 0 else 1.4)
    canvas.face(x, s, bar(0, 0, 0, h, brush.thin(0.18, s)), POLE, colour)
    canvas.face(x, s, bar(0, h, reach, h + 0.15, brush.thin(0.11, s)), POLE, tone(colour, 0.92))
    head: Colour = (255, 240, 180) if brush.dusk else tone(colour, 1.2)
    canvas.face(x, s, disc(reach, h + 0.08, 0.4, 0.13), POLE, head)


def bollard(brush: Brush, x: float, s: float, _variant: int = 0) -> None:
    """A short post on the kerb."""
    brush.canvas.face(x, s, bar(0, 0, 0, 0.95, brush.thin(0.18, s)), POLE, brush.pick("pole"))


def sign(brush: Brush, x: float, s: float, _variant: int = 0) -> None:
    """A traffic sign on its post: a disc, a triangle, a square or an octagon."""
    canvas, rng = brush.canvas, brush.rng
    colour, h = brush.pick("pole"), float(rng.uniform(2.5, 3.0))
    canvas.face(x, s, bar(0, 0, 0, h, brush.thin(0.1, s)), POLE, colour)
    plate, mark = brush.pick("sign"), brush.pick("sign_mark")
    shapes = (
        disc(0, 0, 0.45, 0.45, 16),
        disc(0, 0, 0.48, 0.48, 8),
        rectangle(-0.45, -0.45, 0.45, 0.45),
        np.array([[-0.52, -0.32], [0.52, -0.32], [0.0, 0.56]]),
        disc(0, 0, 0.52, 0.52, 4),
    )
    shape = shapes[rng.choice(len(shapes), p=brush.look.sign_shapes)]
    for level in range(1 + int(rng.random() < 0.3)):
        up = np.array([0, h - 0.95 * level])
        canvas.face(x, s, shape + up, TRAFFIC_SIGN, plate)
        canvas.face(x, s, 0.6 * shape + up, TRAFFIC_SIGN, mark)


def traffic_light(brush: Brush, x: float, s: float, variant: int) -> None:
    """A traffic light; `variant` 0, 1, 2 is red, amber, green. Some also hang over the street."""
    canvas = brush.canvas
    colour, case, h = brush.pick("pole"), brush.pick("light_case"), 3.1
    canvas.face(x, s, bar(0, 0, 0, h, brush.thin(0.14, s)), POLE, colour)
    places = [(0.0, h)]
    if brush.rng.random() < 0.5:
        reach = -2.6 if x > 0 else 2.6
        canvas.face(x, s, bar(0, h - 0.2, 0, 5.4, brush.thin(0.14, s)), POLE, colour)
        canvas.face(x, s, bar(0, 5.4, reach, 5.4, brush.thin(0.11, s)), POLE, colour)
        places.append((reach, 5.3))
    for dx, y in places:
        canvas.face(x, s, rectangle(dx - 0.32, y - 0.65, dx + 0.32, y + 0.65), TRAFFIC_LIGHT, case)
        for number, lamp in enumerate(((235.0, 40.0, 35.0), (250.0, 190.0, 40.0), (50.0, 220.0, 110.0))):
            lit = lamp if number == variant else tone(lamp, 0.3)
            canvas.face(x, s, disc(dx, y + 0.4 * (1 - number), 0.18, 0.18), TRAFFIC_LIGHT, lit)


def bin_or_box(brush: Brush, x: float, s: float, _variant: int = 0) -> None:
    """A rubbish bin or a switch box: `static` or unlabelled, void in every class set."""
    canvas, colour = brush.canvas, brush.pick("bin")
    label = int(brush.rng.choice([STATIC, STATIC, UNLABELED]))
    canvas.hull(box(x - 0.3, x + 0.3, 0, 1.05, s, s + 0.5), label, tone(colour, 0.75), SMOOTH)
    canvas.face(x, s, rectangle(-0.3, 0, 0.3, 1.05), label, colour)
    canvas.face(x, s, rectangle(-0.34, 0.98, 0.34, 1.12), label, tone(colour, 0.6))
