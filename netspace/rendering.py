"""Pictures of surfaces without a GPU: triangles to pixels by a compiled loop, with soft light and a shadow on the floor.

Axes: V vertices, F faces, S sides of a picture in pixels. The view is a parallel
projection; view coordinates are right, up and towards the viewer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, UInt8

from netspace.streams import Stream, generator
from netspace.surfaces import Surface, axes_of

EXTENT = 1.1  # half the side of the view, in units of the cube [-1, 1]^3
SHADOW_POINTS = 30_000
SHADOW = 0.26  # how dark the darkest shadow is
DENSITY = 0.1  # of a shadow below an area of one unit
COLOUR = (0.40, 0.58, 0.78)  # red, green, blue of a shape, 0 to 1
LIGHTS = (((-0.45, 0.65, 0.62), 0.62), ((0.8, 0.15, 0.35), 0.16))  # direction in the view, strength
AMBIENT = (0.30, 0.14)  # of every side, and more the more it looks up
CREVICES = 2.2  # how much darker a pixel is that lies deeper than those around it, in units of the cube
GAMMA = 1.25  # middle tones become lighter
FACTOR = 2  # pixels of the drawing along a pixel of the picture


@dataclass(frozen=True)
class View:
    """From where shapes are looked at."""

    up: int = 1  # the axis that points up: 0 x, 1 y, 2 z
    front: int = 2  # the axis that points to the front of a shape
    azimuth: float = 35.0  # degrees around the former, from the front
    elevation: float = 22.0  # degrees from which the viewer looks down

    @property
    def rotation(self) -> Float64[np.ndarray, "3 3"]:
        """The matrix from coordinates of the cube to those of the view."""
        turn, tilt = np.radians([self.azimuth, self.elevation])
        around = np.array([[np.cos(turn), 0, -np.sin(turn)], [0, 1, 0], [np.sin(turn), 0, np.cos(turn)]])
        down = np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
        rotation: np.ndarray = down @ around @ axes_of(self.up, self.front)
        return rotation


def render(
    shape: Surface, size: int = 256, view: View | None = None, colour: tuple[float, float, float] = COLOUR
) -> UInt8[np.ndarray, "S S 4"]:
    """Return a picture of a surface: red, green, blue and opacity, the background transparent. An empty surface shows nothing."""
    view = view or View()
    if shape.empty:
        return np.zeros((size, size, 4), np.uint8)
    side = FACTOR * size
    points = shape.vertices @ view.rotation.T  # (V, 3)
    pixels = np.stack([points[:, 0] / EXTENT + 1, 1 - points[:, 1] / EXTENT, points[:, 2]], axis=1)
    pixels[:, :2] *= side / 2
    depth, light = _visible(pixels, shape.faces, shape.normals @ view.rotation.T, side)
    covered = np.isfinite(depth)
    light *= _crevices(depth, covered, side)
    tone = np.clip(light[..., None] * np.array(colour), 0, 1) * covered[..., None]
    small = np.concatenate([tone, covered[..., None]], axis=2).reshape(size, FACTOR, size, FACTOR, 4).mean((1, 3))
    small[..., :3] = (small[..., :3] / small[..., 3:].clip(1e-9)) ** (1 / GAMMA)  # colours were times opacity
    shadow = (1 - small[..., 3]) * _shadow(shape, view, size)
    small[..., :3] *= (small[..., 3] / (small[..., 3] + shadow).clip(1e-9))[..., None]
    small[..., 3] += shadow
    return np.rint(255 * small.clip(0, 1)).astype(np.uint8)


def _visible(
    pixels: Float64[np.ndarray, "V 3"], faces: np.ndarray, normals: Float64[np.ndarray, "V 3"], side: int
) -> tuple[Float64[np.ndarray, "S S"], Float64[np.ndarray, "S S"]]:
    """Return the depth (towards the viewer, -inf where there is nothing) and the light of what is seen in each pixel."""
    from netspace.native.triangles import draw

    depth, light = np.full((side, side), -np.inf), np.zeros((side, side))
    draw(pixels, faces, _light(normals), depth, light)
    return depth, light


def _light(normals: Float64[np.ndarray, "V 3"]) -> Float64[np.ndarray, " V"]:
    """Return how bright surfaces with these normals in the view are."""
    total = AMBIENT[0] + AMBIENT[1] * (1 + normals[:, 1]) / 2
    for direction, strength in LIGHTS:
        towards = np.array(direction) / np.linalg.norm(direction)
        total = total + strength * (normals @ towards).clip(0)
    return np.asarray(total)


def _crevices(depth: Float64[np.ndarray, "S S"], covered: np.ndarray, side: int) -> Float64[np.ndarray, "S S"]:
    """Return by how much light is dimmed where a surface lies deeper than what is seen around it."""
    from scipy.ndimage import gaussian_filter

    known, weight = np.where(covered, depth, 0.0).astype(np.float32), covered.astype(np.float32)
    total = np.ones_like(known)
    for radius in (side / 90, side / 28):
        around = gaussian_filter(known, radius) / gaussian_filter(weight, radius).clip(1e-6)
        total /= 1 + CREVICES * np.where(covered, around - known, 0).clip(0)
    return total


def _shadow(shape: Surface, view: View, side: int) -> Float64[np.ndarray, "S S"]:
    """Return the opacity of a soft shadow on the floor: how much of the shape lies above each point."""
    from scipy.ndimage import gaussian_filter

    points = shape.sample(SHADOW_POINTS, generator(0, Stream.SURFACE_POINTS))
    height = points[:, view.up] - shape.vertices[:, view.up].min()
    floor = points.copy()
    floor[:, view.up] -= height
    right, up, _ = (floor @ view.rotation.T / EXTENT).T
    column, row = (np.floor((each + 1) * side / 2).astype(np.int64) for each in (right, -up))
    shown = (column >= 0) & (column < side) & (row >= 0) & (row < side)
    counts = np.bincount((row * side + column)[shown], np.exp(-2.5 * height[shown]), side * side).reshape(side, side)
    blurred = sum(gaussian_filter(counts, side / width) for width in (90, 30))
    thick = np.asarray(blurred) * side**2 / SHADOW_POINTS * shape.areas.sum()  # area above each point of the floor
    return SHADOW * (1 - np.exp(-DENSITY * thick))
