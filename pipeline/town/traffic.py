"""What moves in the demo town: cars, buses, lorries, bicycles, motorcycles and people."""

import numpy as np

from pipeline.town.canvas import GLASS, Colour, tone
from pipeline.town.sprites import (
    BICYCLE,
    BUS,
    CAR,
    MOTORCYCLE,
    PERSON,
    RIDER,
    TRUCK,
    Brush,
    bar,
    blob_shadow,
    box,
    disc,
    rectangle,
)


def car(brush: Brush, x: float, s: float, variant: int) -> None:
    """A car along the street, seen from behind or, with `variant` 1, from the front."""
    towards = variant > 0
    canvas = brush.canvas
    paint, glass, dark = brush.pick("car"), brush.pick("glass"), brush.pick("tyre")
    tall = float(brush.rng.choice([1.4, 1.5, 1.75]))
    length, half = float(brush.rng.uniform(3.7, 4.7)), float(brush.rng.uniform(0.82, 0.92))
    waist = 0.62 * tall
    blob_shadow(brush, x, s - 0.3, half + 0.15, length + 0.5)
    near, far = s, s + length
    inner = x - half if x > canvas.camera.x else x + half
    canvas.hull(box(x - half + 0.08, x + half - 0.08, 0.08, 0.45, near + 0.15, far - 0.15), CAR, dark)
    canvas.hull(box(x - half, x + half, 0.3, waist, near, far), CAR, tone(paint, 0.8))
    for wheel in (near + 0.75, far - 0.85):
        ring = disc(wheel, 0.32, 0.32, 0.32)
        canvas.hull(np.stack([np.full(14, inner), ring[:, 1], ring[:, 0]], axis=-1), CAR, dark)
    low = box(x - 0.92 * half, x + 0.92 * half, waist, waist, near + 0.25, far - 0.9)
    high = box(x - 0.72 * half, x + 0.72 * half, tall, tall, near + 0.75, far - 1.9)
    canvas.hull(np.concatenate([low, high]), CAR, tone(paint, 0.9))
    side = 0.92 * half * (1 if inner > x else -1)
    roof = 0.74 * half * (1 if inner > x else -1)
    window = [
        [x + side, waist, near + 0.6],
        [x + side, waist, far - 1.1],
        [x + roof, tall - 0.1, far - 1.9],
        [x + roof, tall - 0.1, near + 1.0],
    ]
    canvas.hull(np.array(window), CAR, tone(glass, 0.85), GLASS)
    rear = [
        [x - 0.82 * half, waist + 0.04, near + 0.3],
        [x + 0.82 * half, waist + 0.04, near + 0.3],
        [x + 0.64 * half, tall - 0.1, near + 0.7],
        [x - 0.64 * half, tall - 0.1, near + 0.7],
    ]
    canvas.hull(np.array(rear), CAR, glass, GLASS)
    canvas.face(x, near, rectangle(-half, 0.32, half, waist), CAR, paint)
    canvas.face(x, near, rectangle(-half, 0.28, half, 0.42), CAR, tone(paint, 0.55))
    lamp: Colour = (250, 246, 225) if towards else (205, 30, 30)
    lamp = lamp if brush.dusk or towards else tone(lamp, 0.85)
    for sign in (-1, 1):
        canvas.face(x + sign * (half - 0.2), near, rectangle(-0.17, waist - 0.28, 0.17, waist - 0.1), CAR, lamp)
    canvas.face(x, near, rectangle(-0.26, 0.46, 0.26, 0.58), CAR, (235, 235, 225))


def car_across(brush: Brush, x: float, s: float, variant: int) -> None:
    """A car on the crossing street, seen from its side; it drives to the right (`variant` 1) or to the left (-1)."""
    canvas = brush.canvas
    paint, glass, dark = brush.pick("car"), brush.pick("glass"), brush.pick("tyre")
    blob_shadow(brush, x, s - 0.2, 2.2, 1.8)
    body = np.array([[-2.1, 0.3], [2.1, 0.3], [2.15, 0.7], [1.3, 0.9], [-2.0, 0.95], [-2.15, 0.6]])
    cabin = np.array([[-1.75, 0.9], [1.35, 0.88], [0.55, 1.45], [-1.2, 1.48]])
    panes = [
        np.array([[-1.5, 0.95], [-0.3, 0.93], [-0.3, 1.38], [-1.12, 1.38]]),
        np.array([[-0.18, 0.93], [1.05, 0.92], [0.45, 1.36], [-0.18, 1.38]]),
    ]
    flip = np.array([variant, 1])
    canvas.face(x, s, body * flip, CAR, paint)
    canvas.face(x, s, cabin * flip, CAR, tone(paint, 0.92))
    for pane in panes:
        canvas.face(x, s, pane * flip, CAR, glass, GLASS)
    for wheel in (-1.3, 1.3):
        canvas.face(x, s, disc(wheel, 0.33, 0.34, 0.34), CAR, dark)
        canvas.face(x, s, disc(wheel, 0.33, 0.18, 0.18), CAR, (170, 170, 175))


def bus(brush: Brush, x: float, s: float, variant: int) -> None:
    """A bus along the street; `variant` as for a car."""
    _large(brush, x, s, variant > 0, BUS, brush.pick("bus"), length=10.0, top=3.1)


def truck(brush: Brush, x: float, s: float, variant: int) -> None:
    """A lorry along the street; `variant` as for a car."""
    _large(brush, x, s, variant > 0, TRUCK, brush.pick("truck"), length=7.5, top=float(brush.rng.uniform(2.9, 3.5)))


def _large(
    brush: Brush, x: float, s: float, towards: bool, label: int, paint: Colour, length: float, top: float
) -> None:
    canvas = brush.canvas
    glass, dark = brush.pick("glass"), brush.pick("tyre")
    near, far, half = s, s + length, 1.22
    inner = x - half if x > canvas.camera.x else x + half
    blob_shadow(brush, x, s - 0.3, half + 0.2, length + 0.5)
    canvas.hull(box(x - half + 0.1, x + half - 0.1, 0.1, 0.6, near + 0.2, far - 0.2), label, dark)
    canvas.hull(box(x - half, x + half, 0.5, top, near, far), label, tone(paint, 0.8))
    canvas.face(x, near, rectangle(-half, 0.5, half, top), label, paint)
    if label == BUS:
        for start in np.arange(near + 0.5, far - 1.5, 1.6):
            pane = [[inner, 1.5, start], [inner, 1.5, start + 1.4], [inner, 2.6, start + 1.4], [inner, 2.6, start]]
            canvas.hull(np.array(pane), label, tone(glass, 0.9), GLASS)
        canvas.face(x, near, rectangle(-1.05, 1.35, 1.05, 2.6), label, glass, GLASS)
        canvas.face(x, near, rectangle(-0.7, 2.7, 0.7, 2.98), label, (250, 190, 40))
    elif towards:
        canvas.face(x, near, rectangle(-half, 0.5, half, 2.4), label, brush.pick("car"))
        canvas.face(x, near, rectangle(-1.05, 1.45, 1.05, 2.2), label, glass, GLASS)
    else:
        canvas.face(x, near, rectangle(-0.03, 0.7, 0.03, top - 0.1), label, tone(paint, 0.6))
        canvas.face(x, near, rectangle(-half, 0.5, half, 0.75), label, tone(paint, 0.45))
    for wheel in (near + 1.4, far - 1.6):
        ring = disc(wheel, 0.48, 0.48, 0.48)
        canvas.hull(np.stack([np.full(14, inner), ring[:, 1], ring[:, 0]], axis=-1), label, dark)
    lamp: Colour = (250, 246, 225) if towards else (205, 30, 30)
    for sign in (-1, 1):
        canvas.face(x + sign * (half - 0.22), near, rectangle(-0.17, 0.8, 0.17, 1.02), label, lamp)


def person(brush: Brush, x: float, s: float, variant: int) -> None:
    """Somebody on foot; where they are says where in a step they are, `variant` who steps first."""
    canvas, rng = brush.canvas, brush.rng
    h = float(rng.choice([1.25, 1.65, 1.75, 1.85], p=[0.15, 0.3, 0.3, 0.25]))
    coat, trousers, skin, hair = brush.pick("coat"), brush.pick("trousers"), brush.pick("skin"), brush.pick("hair")
    wide, skirt = float(rng.uniform(0.22, 0.28)) * h / 1.7, bool(rng.random() < 0.25)
    swing = 0.2 * h * float(np.sin(7 * (x + s) + variant))
    blob_shadow(brush, x, s - 0.2, 0.3, 0.4)
    for sign in (-1, 1):
        foot = sign * (0.08 + swing * 0.5)
        canvas.face(
            x,
            s,
            bar(sign * 0.09, 0.5 * h, foot, 0.02, brush.thin(0.17, s)),
            PERSON,
            tone(trousers, 1 - 0.1 * (sign > 0)),
        )
    if skirt:
        canvas.face(
            x,
            s,
            np.array([[-0.3, 0.28 * h], [0.3, 0.28 * h], [wide * 0.8, 0.6 * h], [-wide * 0.8, 0.6 * h]]),
            PERSON,
            coat,
        )
    for sign in (-1, 1):
        hand = sign * (wide + 0.06) - swing * 0.4
        canvas.face(
            x, s, bar(sign * wide * 0.85, 0.8 * h, hand, 0.45 * h, brush.thin(0.12, s)), PERSON, tone(coat, 0.85)
        )
    torso = np.array(
        [
            [-0.8 * wide, 0.46 * h],
            [0.8 * wide, 0.46 * h],
            [wide, 0.8 * h],
            [0.5 * wide, 0.85 * h],
            [-0.5 * wide, 0.85 * h],
            [-wide, 0.8 * h],
        ]
    )
    canvas.face(x, s, torso, PERSON, coat)
    if rng.random() < 0.3:
        canvas.face(x, s, rectangle(-0.7 * wide, 0.55 * h, 0.7 * wide, 0.8 * h), PERSON, brush.pick("bag"))
    canvas.face(x, s, disc(0, 0.93 * h, 0.068 * h, 0.075 * h), PERSON, skin)
    canvas.face(x, s, disc(0, 0.96 * h, 0.07 * h, 0.05 * h), PERSON, hair)


def bicycle(brush: Brush, x: float, s: float, variant: int) -> None:
    """A bicycle seen from its side (`variant` -1 or 1: where it heads) or from behind (0)."""
    canvas = brush.canvas
    paint, dark = brush.pick("bicycle"), brush.pick("tyre")
    gap = brush.pick("spokes")
    blob_shadow(brush, x, s - 0.2, 0.75 if variant else 0.25, 0.5)
    if variant == 0:
        canvas.face(x, s, rectangle(-0.07, 0, 0.07, 0.72), BICYCLE, dark)
        canvas.face(x, s, rectangle(-0.11, 0.42, 0.11, 0.85), BICYCLE, paint)
        canvas.face(x, s, bar(-0.34, 1.04, 0.34, 1.04, brush.thin(0.07, s)), BICYCLE, dark)
        canvas.face(x, s, rectangle(-0.06, 0.58, 0.06, 0.68), BICYCLE, (215, 30, 30))
        return
    for wheel in (-0.54, 0.54):
        canvas.face(x, s, disc(wheel, 0.36, 0.37, 0.37), BICYCLE, dark)
        canvas.face(x, s, disc(wheel, 0.36, 0.27, 0.27), BICYCLE, gap)
    width = brush.thin(0.09, s)
    d = variant
    frame = (
        (-0.54, 0.36, -0.15, 0.85),
        (-0.54, 0.36, 0.02, 0.34),
        (0.02, 0.34, -0.15, 0.88),
        (-0.13, 0.8, 0.4, 0.82),
        (0.02, 0.34, 0.4, 0.82),
    )
    for x0, y0, x1, y1 in (*frame, (0.54, 0.36, 0.38, 1.0), (0.38, 1.0, 0.52, 1.02), (-0.28, 0.92, -0.02, 0.92)):
        canvas.face(x, s, bar(d * x0, y0, d * x1, y1, width), BICYCLE, paint)


def motorcycle(brush: Brush, x: float, s: float, variant: int) -> None:
    """A motorcycle or scooter seen from its side (`variant` -1 or 1: where it heads) or from behind (0)."""
    canvas = brush.canvas
    paint, dark = brush.pick("motorcycle"), brush.pick("tyre")
    blob_shadow(brush, x, s - 0.2, 1.0 if variant else 0.4, 0.6)
    if variant == 0:
        canvas.face(x, s, rectangle(-0.13, 0, 0.13, 0.65), MOTORCYCLE, dark)
        canvas.face(
            x,
            s,
            np.array([[-0.28, 0.4], [0.28, 0.4], [0.34, 0.85], [0.2, 1.0], [-0.2, 1.0], [-0.34, 0.85]]),
            MOTORCYCLE,
            paint,
        )
        canvas.face(x, s, bar(-0.45, 1.12, 0.45, 1.12, brush.thin(0.09, s)), MOTORCYCLE, dark)
        canvas.face(x, s, rectangle(-0.14, 0.68, 0.14, 0.82), MOTORCYCLE, (225, 40, 35))
        canvas.face(x, s, rectangle(-0.12, 0.46, 0.12, 0.6), MOTORCYCLE, (235, 235, 225))
        return
    for wheel in (-0.68, 0.68):
        canvas.face(x, s, disc(wheel, 0.32, 0.33, 0.33), MOTORCYCLE, dark)
        canvas.face(x, s, disc(wheel, 0.32, 0.15, 0.15), MOTORCYCLE, (150, 150, 155))
    d = np.array([variant, 1])
    body = np.array(
        [[-0.95, 0.75], [-0.55, 0.4], [0.3, 0.3], [0.55, 0.7], [0.5, 0.98], [0.2, 1.0], [0.0, 0.8], [-0.6, 0.82]]
    )
    canvas.face(x, s, body * d, MOTORCYCLE, paint)
    canvas.face(x, s, np.array([[-0.75, 0.8], [0.0, 0.78], [0.0, 0.88], [-0.7, 0.92]]) * d, MOTORCYCLE, dark)
    canvas.face(x, s, bar(variant * 0.68, 0.35, variant * 0.42, 1.12, brush.thin(0.1, s)), MOTORCYCLE, (120, 120, 125))
    canvas.face(x, s, disc(variant * 0.58, 0.88, 0.12, 0.12), MOTORCYCLE, (245, 240, 215))


def cyclist(brush: Brush, x: float, s: float, variant: int) -> None:
    """A bicycle with its rider."""
    bicycle(brush, x, s, variant)
    _rider(brush, x, s, variant, seat=0.93)


def motorcyclist(brush: Brush, x: float, s: float, variant: int) -> None:
    """A motorcycle with its rider."""
    motorcycle(brush, x, s, variant)
    _rider(brush, x, s, variant, seat=0.87)


def _rider(brush: Brush, x: float, s: float, direction: int, seat: float) -> None:
    canvas, rng = brush.canvas, brush.rng
    coat, trousers, skin = brush.pick("coat"), brush.pick("trousers"), brush.pick("skin")
    helmet = brush.pick("helmet") if rng.random() < 0.75 else brush.pick("hair")
    if direction == 0:
        for sign in (-1, 1):
            canvas.face(x, s, bar(sign * 0.1, seat + 0.1, sign * 0.2, 0.3, brush.thin(0.17, s)), RIDER, trousers)
            canvas.face(
                x,
                s,
                bar(sign * 0.22, seat + 0.5, sign * 0.34, seat + 0.15, brush.thin(0.13, s)),
                RIDER,
                tone(coat, 0.85),
            )
        canvas.face(
            x,
            s,
            np.array(
                [
                    [-0.19, seat],
                    [0.19, seat],
                    [0.27, seat + 0.5],
                    [0.13, seat + 0.62],
                    [-0.13, seat + 0.62],
                    [-0.27, seat + 0.5],
                ]
            ),
            RIDER,
            coat,
        )
        canvas.face(x, s, disc(0, seat + 0.77, 0.14, 0.16), RIDER, helmet)
        return
    d = direction
    canvas.face(x, s, bar(-0.12 * d, seat + 0.05, 0.26 * d, seat - 0.15, brush.thin(0.2, s)), RIDER, trousers)
    canvas.face(x, s, bar(0.26 * d, seat - 0.12, 0.06 * d, 0.3, brush.thin(0.15, s)), RIDER, tone(trousers, 0.9))
    canvas.face(x, s, bar(-0.14 * d, seat, 0.12 * d, seat + 0.58, brush.thin(0.34, s)), RIDER, coat)
    canvas.face(x, s, bar(0.12 * d, seat + 0.5, 0.42 * d, seat + 0.16, brush.thin(0.13, s)), RIDER, tone(coat, 0.85))
    canvas.face(x, s, disc(0.2 * d, seat + 0.74, 0.13, 0.16), RIDER, skin)
    canvas.face(x, s, disc(0.18 * d, seat + 0.79, 0.15, 0.13), RIDER, helmet)
