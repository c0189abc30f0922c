"""What a look is (all that differs between the domains of the demo town), and how it turns a raster into an image."""

from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from pipeline.town.canvas import ASPHALT, FACADE, GLASS, GRASS, LEAVES, PAVING, SKY, Colour, Raster

Range = tuple[float, float]


class Weather(NamedTuple):
    """Light and air of one clip."""

    zenith: Colour
    """Colour of the sky above."""
    haze: Colour
    """Colour of the sky at the horizon and of the fog."""
    light: Colour
    """Colour of the light, 255 = neutral."""
    sight: float
    """Distance at which fog has taken 63 % of the contrast, metres."""
    shadow: float
    """How much light a shadow takes away, 0..1."""
    sun: bool = False
    """Whether the sun casts the shadows of the houses."""
    wet: float = 0.0
    """How much the road mirrors the scene, 0..1."""
    rain: bool = False
    """Whether drops fall past the camera."""
    dusk: bool = False
    """Whether lamps and windows are lit."""


class Look(NamedTuple):
    """Everything in which the two domains differ."""

    name: str
    palette: dict[str, tuple[Colour, ...]]
    weathers: tuple[Weather, ...]
    eye: Range
    """Height of the camera, metres."""
    view: Range
    """Horizontal field of view, degrees."""
    horizon: Range
    """Row of the horizon, share of the image height."""
    road: Range
    """Half width of the road, metres."""
    sidewalk: Range
    """Width of a sidewalk, metres."""
    curve: float
    """Largest curvature, 1/metre."""
    storeys: tuple[int, int]
    """Fewest and most floors of a house."""
    sides: dict[str, float]
    """Probabilities of what lines the street: house, park, wall, fence."""
    rates: dict[str, float]
    """Things per 100 m of street."""
    parked: float
    """Share of the kerb taken by parked cars."""
    conifers: float
    """Share of the trees that are conifers."""
    sign_shapes: tuple[float, float, float, float, float]
    """Probabilities of disc, octagon, square, triangle, diamond."""
    texture: dict[int, float]
    """Strength of the texture of each material, share of the colour."""
    bricks: float
    """Share of the clips whose houses show bricks."""
    hood: float
    """Share of the clips in which the bonnet of the own car is visible."""
    photograph: bool
    """Whether a lens and a sensor lie between the scene and the image."""


_GRAIN = {ASPHALT: 9.0, PAVING: 6.0, GRASS: 5.0, FACADE: 3.0, LEAVES: 6.0}
"""Grains of texture per metre."""


def develop(
    raster: Raster, look: Look, weather: Weather, clip_rng: np.random.Generator, rng: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """Turns a raster into an image: sky, texture, shadow, rain, fog and, for a photograph, lens and sensor.

    Args:
        raster: what the camera sees.
        look: the domain.
        weather: light and air.
        clip_rng: randomness that all frames of a clip share (texture, white balance).
        rng: randomness of this frame (sensor noise).
    """
    height, width = raster.label.shape
    image = _textured(raster, look, clip_rng) * (np.array(weather.light, np.float32) / 255)
    sky = raster.material == SKY
    image *= (1 - weather.shadow * raster.shadow)[..., None]
    row = np.linspace(0, 2, height, dtype=np.float32).clip(0, 1)[:, None, None]
    heaven = np.array(weather.zenith, np.float32) * (1 - row) + np.array(weather.haze, np.float32) * row
    heaven = heaven + (255 - heaven) * (raster.colour / 255)  # the colour of a piece of sky says how cloudy it is
    if look.photograph:
        heaven = heaven * (1 + 0.06 * _noise(clip_rng, (height, width), (5, 7)).clip(-1.5, 1.5)[..., None])
    if weather.wet:
        mirror = cv2.GaussianBlur(image[::-1], (0, 0), 0.04 * height, None, 0.09 * height)
        image = np.where(
            (raster.material == ASPHALT)[..., None],
            image * (1 - weather.wet) + weather.wet * (0.5 * mirror + 50),
            image,
        )
    glass = np.float32(0.18) * (raster.material == GLASS)[..., None]
    image = image * (1 - glass) + glass * np.array(weather.haze, np.float32)
    air = np.exp(-raster.depth / np.float32(weather.sight))[..., None]
    image = image * air + np.array(weather.haze, np.float32) * (1 - air)
    image = np.where(sky[..., None], heaven, image)
    if look.photograph:
        image = _photograph(image, weather, clip_rng, rng)
    developed: np.ndarray = image.clip(0, 255).astype(np.uint8)
    return developed


def _noise(rng: np.random.Generator, shape: tuple[int, int], cells: tuple[int, int]) -> Float32[np.ndarray, "h w"]:
    """Smooth noise of `shape` from `cells` random values of unit variance."""
    noise: np.ndarray = cv2.resize(rng.standard_normal(cells, np.float32), shape[::-1], interpolation=cv2.INTER_CUBIC)
    return noise


def _textured(raster: Raster, look: Look, clip_rng: np.random.Generator) -> Float32[np.ndarray, "h w 3"]:
    noise = 0.7 * _noise(clip_rng, (128, 128), (128, 128)) + 0.8 * _noise(clip_rng, (128, 128), (16, 16))
    strength, grain = np.zeros(8, np.float32), np.ones(8, np.float32)
    for material, value in look.texture.items():
        strength[material], grain[material] = value, _GRAIN[material]
    scale = grain[raster.material]
    across, along = (value * scale % np.float32(len(noise)) for value in (raster.across, raster.along))
    factor = 1 + strength[raster.material] * cv2.remap(noise, across, along, cv2.INTER_LINEAR, None, cv2.BORDER_WRAP)
    if clip_rng.random() < look.bricks:
        course = np.floor(raster.along / 0.36)
        mortar = (raster.along / 0.36 - course < 0.25) | ((raster.across / 0.9 + 0.5 * (course % 2)) % 1 < 0.1)
        seen = (raster.material == FACADE) & mortar
        factor = np.where(seen, factor * (1 + np.float32(0.3) * np.exp(-raster.depth / 18)), factor)
    textured: np.ndarray = raster.colour * factor[..., None]
    return textured


def _photograph(
    image: Float32[np.ndarray, "h w 3"], weather: Weather, clip_rng: np.random.Generator, rng: np.random.Generator
) -> Float32[np.ndarray, "h w 3"]:
    """Lens (blur, vignette, rain streaks), sensor (white balance, tone curve, noise) and a JPEG file."""
    height, width = image.shape[:2]
    pixel = height / 96
    balance = clip_rng.uniform(0.9, 1.1, 3).astype(np.float32)
    exposure, gamma = float(clip_rng.uniform(0.9, 1.25)), float(clip_rng.uniform(0.8, 1.15))
    grey = float(clip_rng.uniform(0.0, 0.25))
    blur = float(clip_rng.uniform(0.3, 0.6)) * pixel**0.5
    if weather.rain:
        streaks = (rng.random((height, width), np.float32) < 0.01).astype(np.float32)
        kernel = np.ones((max(int(7 * pixel), 3), 1), np.float32) / 3
        image = image + 45 * cv2.filter2D(streaks, -1, kernel)[..., None]
    image = cv2.GaussianBlur(image, (0, 0), blur)
    rows, columns = np.ogrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    vignette = 1 - 0.16 * (rows**2 + columns**2).astype(np.float32)
    image = image * (vignette[..., None] * balance * exposure)
    image = image * (1 - grey) + grey * image.mean(axis=-1, keepdims=True)
    image = 255 * (image.clip(0, 255) / 255) ** gamma
    noise = rng.standard_normal(image.shape, np.float32)
    image = image + noise * (1.5 + 0.15 * np.sqrt(image)) * (1.5 if weather.dusk else 1)
    quality = [cv2.IMWRITE_JPEG_QUALITY, int(clip_rng.integers(65, 90))]
    _, file = cv2.imencode(".jpg", image[..., ::-1].clip(0, 255).astype(np.uint8), quality)
    return np.asarray(cv2.imdecode(file, cv2.IMREAD_COLOR), np.float32)[..., ::-1]
