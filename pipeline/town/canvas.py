"""A pinhole camera and a painter's canvas: surfaces in metres become one index map that yields label and image.

World coordinates in metres: x across the street (0 = its middle, right is positive), y up, s along the street.
Nothing is drawn twice: colours and label ids come from the same index map, so their geometry agrees by construction.
"""

from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, Float32, Int32, UInt8

Number = float | int
"""Shape checks take annotations literally: to them an int is no float."""

Colour = tuple[Number, Number, Number]
"""Red, green, blue in 0..255."""

SKY, ASPHALT, PAVING, GRASS, FACADE, LEAVES, SMOOTH, GLASS = range(8)
"""Materials: what a look may do with the surface (texture, shine)."""

SUPERSAMPLING = 3
"""Index samples per pixel and axis. The label is the middle sample, the image is the mean of all of them."""

NEAREST = 0.8
"""Near clipping distance, metres."""

FARTHEST = 160.0
"""Distance given to the backdrop and the sky, metres."""


def tone(colour: Colour, factor: Number) -> Colour:
    """A lighter or darker colour."""
    return colour[0] * factor, colour[1] * factor, colour[2] * factor


_LIMIT = 32000
"""Largest coordinate, samples: OpenCV fills polygons in 16.16 fixed point."""


class Camera(NamedTuple):
    """A pinhole camera that looks along the street; it neither rolls nor yaws, a curve bends the world instead."""

    height: int
    """Image height, pixels."""
    width: int
    """Image width, pixels."""
    focal: float
    """Focal length, pixels."""
    column: float
    """Column of the vanishing point, pixels."""
    horizon: float
    """Row of the horizon, pixels."""
    eye: float
    """Height above the ground, metres."""
    x: float
    """Position across the street, metres."""
    s: float
    """Position along the street, metres."""
    curve: float
    """Curvature of the street, 1/metre, positive to the right."""

    def nearest_ground(self) -> float:
        """Distance of the ground that the bottom row shows, metres."""
        return max(self.focal * self.eye / (self.height - self.horizon), NEAREST)

    def project(self, points: Float[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n 2"]:
        """World (x, y, s) to image (column, row) in pixels; what is nearer than `NEAREST` is pushed out to it."""
        z = np.maximum(points[..., 2] - self.s, NEAREST)
        x = points[..., 0] - self.x + 0.5 * self.curve * z * z
        scale = self.focal / z
        return np.stack([self.column + scale * x, self.horizon + scale * (self.eye - points[..., 1])], axis=-1)


class Primitive(NamedTuple):
    """Polygons of one surface: one label, one colour, one material."""

    order: float
    """Painting order: the largest is painted first (a distance, metres)."""
    polygons: list[Int32[np.ndarray, "_ 2"]]
    """Corners in samples: (column, row) times `SUPERSAMPLING`."""
    label: int
    """Cityscapes labelId."""
    colour: Colour
    material: int
    depth: float
    """Distance if it faces the camera, 0 if it is ground (the row tells), metres."""
    side: float
    """Lateral distance of a plane along the street, metres; 0 if it is none."""


class Raster(NamedTuple):
    """What the camera sees, before a look develops it."""

    label: UInt8[np.ndarray, "h w"]
    colour: Float32[np.ndarray, "h w 3"]
    material: UInt8[np.ndarray, "h w"]
    depth: Float32[np.ndarray, "h w"]
    """Metres."""
    across: Float32[np.ndarray, "h w"]
    """First coordinate on the surface, metres."""
    along: Float32[np.ndarray, "h w"]
    """Second coordinate on the surface, metres."""
    shadow: Float32[np.ndarray, "h w"]
    """1 where a shadow lies on the ground, else 0."""


class Canvas:
    """Collects primitives; `raster` paints them from far to near."""

    def __init__(self, camera: Camera) -> None:
        self.camera = camera
        self.order = FARTHEST
        self._primitives: list[Primitive] = []
        self._shadows: list[Int32[np.ndarray, "_ 2"]] = []

    def _samples(self, pixels: Float[np.ndarray, "*n 2"]) -> Int32[np.ndarray, "*n 2"]:
        return np.rint(np.clip(pixels * SUPERSAMPLING - 0.5, -_LIMIT, _LIMIT)).astype(np.int32)

    def _add(
        self,
        polygons: list[Int32[np.ndarray, "_ 2"]],
        label: int,
        colour: Colour,
        material: int,
        depth: float,
        side: float,
    ) -> None:
        self._primitives.append(Primitive(self.order, polygons, label, colour, material, depth, side))

    def face(
        self,
        x: Number,
        s: Number,
        outline: Float[np.ndarray, "n 2"],
        label: int,
        colour: Colour,
        material: int = SMOOTH,
    ) -> None:
        """A flat shape that faces the camera at (x, s); `outline` holds (right, up) in metres from there."""
        depth = s - self.camera.s
        if depth < NEAREST:
            return
        scale = SUPERSAMPLING * self.camera.focal / depth
        shift = x - self.camera.x + 0.5 * self.camera.curve * depth * depth
        column = SUPERSAMPLING * self.camera.column - 0.5 + scale * shift
        row = SUPERSAMPLING * self.camera.horizon - 0.5 + scale * self.camera.eye
        samples = np.rint(outline * (scale, -scale) + (column, row))
        if depth < 3:
            samples = np.clip(samples, -_LIMIT, _LIMIT)
        self._add([samples.astype(np.int32)], label, colour, material, depth, 0.0)

    def hull(self, points: Float[np.ndarray, "n 3"], label: int, colour: Colour, material: int = SMOOTH) -> None:
        """The silhouette of a convex solid."""
        depth = float(points[:, 2].min()) - self.camera.s
        outline = cv2.convexHull(self._samples(self.camera.project(points)))[:, 0]
        self._add([outline.astype(np.int32)], label, colour, material, max(depth, NEAREST), 0.0)

    def plane(self, quads: Float[np.ndarray, "n k 3"], label: int, colour: Colour, material: int = FACADE) -> None:
        """Polygons on a plane along the street (all at one x)."""
        side = float(quads[0, 0, 0]) - self.camera.x
        depth = max(float(quads[..., 2].mean()) - self.camera.s, NEAREST)
        self._add(list(self._samples(self.camera.project(quads))), label, colour, material, depth, side)

    def ground(self, quads: Float[np.ndarray, "n k 3"], label: int, colour: Colour, material: int) -> None:
        """Polygons on the ground."""
        self._add(list(self._samples(self.camera.project(quads))), label, colour, material, 0.0, 0.0)

    def strip(self, left: Number, right: Number, s0: Number, s1: Number) -> Float[np.ndarray, "1 k 3"]:
        """The ground between two lines along the street, cut where the image begins, following the curve."""
        near = max(s0 - self.camera.s, 0.95 * self.camera.nearest_ground())
        s = self.camera.s + np.geomspace(near, max(s1 - self.camera.s, near), 12)
        x = np.concatenate([np.full(12, left), np.full(12, right)])
        return np.stack([x, np.zeros(24), np.concatenate([s, s[::-1]])], axis=-1)[None]

    def shadow(self, points: Float[np.ndarray, "n 3"]) -> None:
        """A shadow on the ground; it darkens the ground but is no surface of its own."""
        self._shadows.append(self._samples(self.camera.project(points)))

    def raster(self) -> Raster:
        """Paints everything."""
        camera = self.camera
        primitives = sorted(self._primitives, key=lambda primitive: -primitive.order)  # stable: ties stay in order
        shape = (camera.height * SUPERSAMPLING, camera.width * SUPERSAMPLING)
        index = np.zeros(shape, np.uint16)
        for number, primitive in enumerate(primitives):
            # Several contours in one fillPoly call cancel out where they overlap, on shared edges too.
            for polygon in primitive.polygons:
                cv2.fillConvexPoly(index, polygon, number) if len(polygon) == 4 else cv2.fillPoly(
                    index, [polygon], number
                )
        colours = np.array([primitive.colour for primitive in primitives]).clip(0, 255).astype(np.uint8)
        middle = index[SUPERSAMPLING // 2 :: SUPERSAMPLING, SUPERSAMPLING // 2 :: SUPERSAMPLING]
        size = (camera.width, camera.height)
        colour = cv2.resize(np.take(colours, index, axis=0), size, interpolation=cv2.INTER_AREA)
        shadow = np.zeros(shape, np.uint8)
        for polygon in self._shadows:
            cv2.fillPoly(shadow, [polygon], 1)
        depth, across, along, is_ground = self._surface(primitives, middle)
        shade = cv2.resize(255 * shadow, size, interpolation=cv2.INTER_AREA).astype(np.float32) / 255
        return Raster(
            label=np.array([primitive.label for primitive in primitives], np.uint8)[middle],
            colour=colour.astype(np.float32),
            material=np.array([primitive.material for primitive in primitives], np.uint8)[middle],
            depth=depth,
            across=across,
            along=along,
            shadow=shade * is_ground,
        )

    def _surface(
        self, primitives: list[Primitive], index: np.ndarray
    ) -> tuple[
        Float32[np.ndarray, "h w"], Float32[np.ndarray, "h w"], Float32[np.ndarray, "h w"], Float32[np.ndarray, "h w"]
    ]:
        """Distance, the two coordinates on the surface, and 1 where it is ground."""
        camera = self.camera
        depth = np.array([primitive.depth for primitive in primitives], np.float32)[index]
        side = np.array([primitive.side for primitive in primitives], np.float32)[index]
        rows = np.arange(camera.height, dtype=np.float32)[:, None] + np.float32(0.5 - camera.horizon)
        columns = np.arange(camera.width, dtype=np.float32)[None] + np.float32(0.5 - camera.column)
        is_ground = depth == 0
        ground = np.float32(camera.focal * camera.eye) / np.maximum(rows, np.float32(0.5))
        depth = np.where(is_ground, ground, depth)
        on_side = side != 0
        wall = np.abs(side) * np.float32(camera.focal) / np.maximum(np.abs(columns), np.float32(0.5))
        depth = np.where(on_side, wall, depth).clip(NEAREST, FARTHEST)
        bend = np.float32(0.5 * camera.curve) * depth * depth
        x = columns * depth / np.float32(camera.focal) - bend + np.float32(camera.x)
        y = np.float32(camera.eye) - rows * depth / np.float32(camera.focal)
        s = depth + np.float32(camera.s)
        return depth, np.where(on_side, s, x), np.where(is_ground, s, y), is_ground.astype(np.float32)
