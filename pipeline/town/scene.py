"""Shows a frame of a clip: a camera drives along the plan's street, everything is painted, the look develops it."""

from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8

from pipeline.town import sprites, traffic
from pipeline.town.canvas import (
    ASPHALT,
    FACADE,
    FARTHEST,
    GLASS,
    GRASS,
    LEAVES,
    NEAREST,
    PAVING,
    SKY,
    SMOOTH,
    Camera,
    Canvas,
    tone,
)
from pipeline.town.look import develop
from pipeline.town.plan import Plan, Segment
from pipeline.town.sprites import Brush

CLOSEST = 2.6
"""Things nearer than this are not shown, metres: they would fill the image."""

LONGEST = 10.0
"""Length of a bus, metres: its far end may be seen where its near end is not."""

SPRITES: dict[str, Callable[[Brush, float, float, int], None]] = {
    "person": traffic.person,
    "bicycle": traffic.bicycle,
    "motorcycle": traffic.motorcycle,
    "cyclist": traffic.cyclist,
    "motorcyclist": traffic.motorcyclist,
    "car": traffic.car,
    "car_across": traffic.car_across,
    "bus": traffic.bus,
    "truck": traffic.truck,
    "tree": sprites.tree,
    "bush": sprites.bush,
    "lamp_post": sprites.lamp_post,
    "bollard": sprites.bollard,
    "sign": sprites.sign,
    "traffic_light": sprites.traffic_light,
    "bin": sprites.bin_or_box,
}


def camera_of(it: Plan, frame: int, size: tuple[int, int]) -> Camera:
    """The camera of a frame; `size` is (height, width) in pixels."""
    height, width = size
    focal = 0.5 * width / float(np.tan(np.radians(it.view) / 2))
    return Camera(
        height, width, focal, it.column * width, it.horizon * height, it.eye, it.lane, frame * it.speed, it.curve
    )


def paint(
    it: Plan, frame: int, size: tuple[int, int], rng: np.random.Generator
) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"]]:
    """One frame.

    Args:
        it: the clip.
        frame: number of the frame in the clip, from 0.
        size: height and width, pixels.
        rng: randomness of this frame alone.

    Returns:
        The image (RGB) and its Cityscapes labelIds.
    """
    canvas = Canvas(camera_of(it, frame, size))
    clip_rng = np.random.default_rng(it.seed)
    brush = Brush(canvas, clip_rng, it.look, it.weather.dusk)
    _ground(it, brush)
    for segment in it.segments:
        _side(it, segment, brush._replace(rng=np.random.default_rng(segment.seed)))
    for thing in it.things:
        now = thing._replace(x=thing.x + thing.dx * frame, s=thing.s + thing.ds * frame)
        canvas.order = now.s - canvas.camera.s
        if canvas.order > CLOSEST and _in_view(canvas.camera, now.x, canvas.order + LONGEST):
            sprite = brush._replace(rng=np.random.default_rng(thing.seed))
            SPRITES[thing.kind](sprite, now.x, now.s, now.variant)
    if it.hood:
        _hood(brush)
    raster = canvas.raster()
    return develop(raster, it.look, it.weather, clip_rng, rng), raster.label


def _in_view(camera: Camera, x: float, depth: float, reach: float = 2.5) -> bool:
    """Whether something within `reach` metres of x can be seen."""
    shift = x - camera.x + 0.5 * camera.curve * depth * depth
    return abs(shift) - reach < depth * max(camera.column, camera.width - camera.column) / camera.focal


def _ground(it: Plan, brush: Brush) -> None:
    """Sky, skyline, terrain, sidewalks, road, crossing, markings and the shadow of the houses."""
    canvas, rng, camera = brush.canvas, brush.rng, brush.canvas.camera
    far = camera.s + FARTHEST - 1
    canvas.order = 4 * FARTHEST
    wide = 4 * FARTHEST
    canvas.face(0, far, sprites.rectangle(-wide, -wide, wide, wide), sprites.SKY_ID, (0, 0, 0), SKY)
    if not it.look.photograph:
        for _ in range(int(rng.integers(2, 6))):
            x, y = float(rng.uniform(-110, 110)), float(rng.uniform(25, 75))
            for _ in range(4):
                dx, dy, radius = (float(value) for value in rng.uniform((-14, -2, 5), (14, 2, 10)))
                canvas.face(
                    x, far, sprites.disc(dx, y + dy, 1.7 * radius, 0.5 * radius), sprites.SKY_ID, (200, 200, 200), SKY
                )
    terrain, walk, road = brush.pick("terrain"), brush.pick("sidewalk"), brush.pick("road")
    for x in np.arange(-200, 200, 14.0).tolist():
        leaf, h = brush.pick("leaves"), float(rng.uniform(4, 12))
        if rng.random() < 0.5:
            canvas.face(x, far, sprites.disc(0, 0.3 * h, 12, h), sprites.VEGETATION, leaf, LEAVES)
        else:
            canvas.face(x, far, sprites.rectangle(-7, -1, 7, 1.6 * h), sprites.BUILDING, brush.pick("house"), SMOOTH)
    canvas.ground(_floor(camera), sprites.TERRAIN, terrain, GRASS)
    edge = it.half + it.walk
    canvas.ground(canvas.strip(-edge, edge, camera.s, far), sprites.SIDEWALK, walk, PAVING)
    if it.crossing is not None:
        near, end = (max(s, camera.s + NEAREST) for s in it.crossing)
        rim = np.array([[[-60, 0, near - 1], [60, 0, near - 1], [60, 0, end + 1], [-60, 0, end + 1]]], float)
        canvas.ground(rim, sprites.SIDEWALK, walk, PAVING)
    canvas.ground(
        canvas.strip(-it.half - 0.14, it.half + 0.14, camera.s, far), sprites.SIDEWALK, tone(walk, 0.72), PAVING
    )
    canvas.ground(canvas.strip(-it.half, it.half, camera.s, far), sprites.ROAD, road, ASPHALT)
    if it.crossing is not None:
        across = np.array([[[-60, 0, near], [60, 0, near], [60, 0, end], [-60, 0, end]]], float)
        canvas.ground(across, sprites.ROAD, road, ASPHALT)
    _markings(it, brush)
    if it.weather.sun:
        side = 1 if it.shade > 0 else -1
        reach = side * it.half * (1 - 2 * abs(it.shade))
        canvas.shadow(canvas.strip(min(side * 40, reach), max(side * 40, reach), camera.s, far)[0])


def _floor(camera: Camera) -> np.ndarray:
    """Everything below the horizon."""
    wide = 6 * FARTHEST
    near, far = camera.s + 0.5 * camera.nearest_ground() + 0.5, camera.s + 8 * FARTHEST
    return np.array([[[-wide, 0, near], [wide, 0, near], [20 * wide, 0, far], [-20 * wide, 0, far]]])


def _markings(it: Plan, brush: Brush) -> None:
    """Paint on the road: middle dashes, edge lines, zebra crossing, stop line."""
    canvas, camera, colour = brush.canvas, brush.canvas.camera, brush.pick("marking")
    begin = camera.s + max(camera.nearest_ground() * 0.95, NEAREST)
    gap = it.crossing if it.crossing is not None else (1e9, 1e9)

    def patch(left: float, right: float, s0: float, s1: float, shade: float = 1.0) -> None:
        if s1 > begin:
            canvas.ground(canvas.strip(left, right, s0, s1), sprites.ROAD, tone(colour, shade), ASPHALT)

    for s in np.arange(0, 80, 6.0).tolist():
        if s + 3 < gap[0] - 4 or s > gap[1]:
            patch(-0.09, 0.09, s, s + 3)
    if it.half > 3.6:
        for side in (-1, 1):
            for s0, s1 in ((0.0, min(gap[0], 100.0)), (gap[1], 100.0)):
                if s1 > max(s0, begin):
                    patch(side * (it.half - 0.3) - 0.07, side * (it.half - 0.3) + 0.07, s0, s1, 0.92)
    if it.crossing is not None:
        for x in np.arange(-it.half + 0.3, it.half - 0.5, 1.05).tolist():
            patch(x, x + 0.55, gap[0] - 3.4, gap[0] - 1.0)
        patch(0.1, it.half - 0.2, gap[0] - 4.6, gap[0] - 4.2)


def _side(it: Plan, segment: Segment, brush: Brush) -> None:
    """What lines the street from `segment.s0` to `segment.s1`."""
    canvas, rng = brush.canvas, brush.rng
    edge = segment.side * (it.half + it.walk + it.verge)
    first = canvas.camera.s + NEAREST
    if segment.s1 < first + 0.5:
        return
    canvas.order = segment.s1 - canvas.camera.s
    length = segment.s1 - segment.s0
    if segment.kind == "house":
        _house(segment, edge, int(rng.integers(it.look.storeys[0], it.look.storeys[1] + 1)), brush)
        return
    # Behind a wall or a fence, or in a park: houses set back, trees and bushes.
    if rng.random() < 0.5:
        _house(segment, edge + segment.side * float(rng.uniform(7, 14)), int(rng.integers(1, 4)), brush)
    for s in sorted(rng.uniform(segment.s0, segment.s1, int(length / 3)).tolist(), reverse=True):
        back = segment.side * float(rng.uniform(1.2, 7))
        plant, inner = (
            (sprites.tree if rng.random() < 0.6 else sprites.bush),
            brush._replace(rng=np.random.default_rng(int(rng.integers(2**31)))),
        )
        if s > canvas.camera.s + 3 and _in_view(canvas.camera, edge + back, s - canvas.camera.s):
            canvas.order = s - canvas.camera.s if segment.kind == "park" else segment.s1 - canvas.camera.s + 0.1
            plant(inner, edge + back, s)
    canvas.order = segment.s1 - canvas.camera.s
    if segment.kind == "wall":
        _wall(segment, edge, brush)
    elif segment.kind == "fence":
        _fence(segment, edge, brush)


def _upright(x: float, s0: np.ndarray, s1: np.ndarray, low: np.ndarray | float, high: np.ndarray | float) -> np.ndarray:
    """Upright rectangles on the plane at x, (n, 4, 3); all arguments broadcast to n."""
    s0, s1, low, high = np.broadcast_arrays(s0, s1, low, high)
    corners = [(s0, low), (s1, low), (s1, high), (s0, high)]
    return np.stack([np.stack([np.full(s0.shape, x), y, s], axis=-1) for s, y in corners], axis=1).astype(float)


def _house(segment: Segment, edge: float, storeys: int, brush: Brush) -> None:
    """A house with its windows; the gable end shows where the next house is lower or missing."""
    canvas, rng, side = brush.canvas, brush.rng, segment.side
    first = canvas.camera.s + NEAREST
    colour, glass, top = brush.pick("house"), brush.pick("window"), 3.0 * storeys + 0.8
    trim, door, lit = tone(colour, 1.12), brush.pick("door"), rng.random(64) < 0.35
    high = float(rng.uniform(1.3, 1.8))
    begin = np.array([max(segment.s0, first)])
    end = np.array([segment.s1])
    near = segment.s0 > first
    ridge, roof = float(rng.uniform(1.5, 3.0)) * float(rng.random() < 0.6), brush.pick("roof")
    if ridge:
        points = [
            [edge, top, begin[0]],
            [edge, top, end[0]],
            [edge + 3 * side, top + ridge, end[0]],
            [edge + 3 * side, top + ridge, begin[0]],
        ]
        canvas.hull(np.array(points), sprites.BUILDING, roof, SMOOTH)
    canvas.plane(_upright(edge, begin, end, 0.0, top), sprites.BUILDING, tone(colour, 0.9))
    canvas.plane(_upright(edge, begin, end, top - 0.25, top), sprites.BUILDING, trim, SMOOTH)
    if rng.random() < 0.5:
        canvas.plane(_upright(edge, begin, end, 0.0, 0.7), sprites.BUILDING, tone(colour, 0.65), SMOOTH)
    number = max(int((segment.s1 - segment.s0) / float(rng.uniform(2.0, 2.9))), 1)
    pitch = (segment.s1 - segment.s0) / number
    starts, floors = np.meshgrid(segment.s0 + pitch * (np.arange(number) + 0.25), 3.0 * np.arange(storeys) + 1.0)
    shown = (starts.ravel() > first) & (starts.ravel() < first + 50)
    starts, floors = starts.ravel()[shown], floors.ravel()[shown]
    if len(starts):
        canvas.plane(
            _upright(edge, starts - 0.12, starts + 0.5 * pitch + 0.12, floors - 0.12, floors + high + 0.12),
            sprites.BUILDING,
            trim,
            SMOOTH,
        )
        panes = _upright(edge, starts, starts + 0.5 * pitch, floors, floors + high)
        bright = lit[np.arange(len(panes)) % 64] & brush.dusk
        for chosen, light in ((bright, True), (~bright, False)):
            if chosen.any():
                canvas.plane(
                    panes[chosen], sprites.BUILDING, (250, 214, 130) if light else glass, SMOOTH if light else GLASS
                )
        canvas.plane(_upright(edge, starts[:1], starts[:1] + 1.0, 0.0, 2.2), sprites.BUILDING, door, SMOOTH)
    if near:
        wall = [[0, 0], [8 * side, 0], [8 * side, top], [3 * side, top + ridge], [0, top]]
        canvas.face(edge, segment.s0, np.array(wall, float), sprites.BUILDING, colour, FACADE)
        for x in (1.6, 4.6):
            for floor in range(storeys):
                left, right = sorted((side * x, side * (x + 1.1)))
                canvas.face(
                    edge,
                    segment.s0,
                    sprites.rectangle(left, 3 * floor + 1.0, right, 3 * floor + 2.4),
                    sprites.BUILDING,
                    glass,
                    GLASS,
                )


def _wall(segment: Segment, edge: float, brush: Brush) -> None:
    """A garden wall with joints and a coping."""
    canvas, colour, top = brush.canvas, brush.pick("wall"), float(brush.rng.uniform(1.9, 3.2))
    begin, end = np.array([max(segment.s0, canvas.camera.s + NEAREST)]), np.array([segment.s1])
    canvas.plane(_upright(edge, begin, end, 0.0, top), sprites.WALL, colour)
    joints = np.arange(segment.s0 + 2, segment.s1, 2.5)
    joints = joints[joints > begin[0]]
    if len(joints):
        canvas.plane(_upright(edge, joints, joints + 0.12, 0.0, top), sprites.WALL, tone(colour, 0.8), SMOOTH)
    canvas.plane(_upright(edge, begin, end, top - 0.2, top), sprites.WALL, tone(colour, 0.85), SMOOTH)
    if segment.s0 > begin[0] - 1e-9:
        left, right = sorted((0.0, 0.4 * segment.side))
        canvas.face(edge, segment.s0, sprites.rectangle(left, 0, right, top), sprites.WALL, tone(colour, 1.1), FACADE)


def _fence(segment: Segment, edge: float, brush: Brush) -> None:
    """A fence of slats; like annotators, we label the gaps between them as fence too."""
    canvas, colour, top = brush.canvas, brush.pick("fence"), float(brush.rng.uniform(1.5, 2.3))
    begin, end = np.array([max(segment.s0, canvas.camera.s + NEAREST)]), np.array([segment.s1])
    canvas.plane(_upright(edge, begin, end, 0.0, top - 0.1), sprites.FENCE, tone(colour, 0.62), SMOOTH)
    slats = np.arange(segment.s0, segment.s1, 0.45)
    slats = slats[(slats > begin[0]) & (slats < begin[0] + 40)]
    if len(slats):
        canvas.plane(_upright(edge, slats, slats + 0.26, 0.0, top), sprites.FENCE, colour, SMOOTH)
    for y in (0.3, top - 0.35):
        canvas.plane(_upright(edge, begin, end, y, y + 0.12), sprites.FENCE, tone(colour, 0.9), SMOOTH)


def _hood(brush: Brush) -> None:
    """The bonnet of the own car, which Cityscapes labels as ego vehicle."""
    canvas, camera = brush.canvas, brush.canvas.camera
    canvas.order = 0.0
    colour = brush.pick("bonnet")
    bottom = camera.eye - (camera.height - camera.horizon) / camera.focal
    wide, high = 0.5 * camera.width / camera.focal, 0.09 * camera.height / camera.focal
    middle = (0.5 * camera.width - camera.column) / camera.focal
    for scale, shade in ((1.0, 1.0), (0.82, 1.25), (0.7, 1.0)):
        outline = sprites.disc(middle, bottom, 1.05 * wide * scale, high * scale, 24)
        canvas.face(camera.x, camera.s + 1, outline, sprites.EGO_VEHICLE, tone(colour, shade), GLASS)
