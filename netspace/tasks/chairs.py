"""Parametric chairs: shapes made of boxes, with signed distances in closed form, as many as wanted.

Axes: N points, K boxes. A chair stands along z, looks along y and fits into a sphere of `RADIUS` about the origin. Its
distance is the smallest of its boxes': exact outside, and inside at most the distance to the surface (where boxes overlap
the inner one is nearer than the surface). Boxes that touch overlap, so that a chair is one body.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from netspace.errors import UsageError

RADIUS = 0.95  # of the sphere about the origin that every shape is scaled to, within the cube [-1, 1]^3
NUMBERS = 2**32  # of chairs in a collection
STREAM = 1  # of a number's random values: chairs; samples of points have others


@dataclass(frozen=True)
class Chair:
    """A union of boxes that are parallel to the axes, and the parameters that it was made from."""

    name: str  # 'chair/0003'
    labels: dict[str, float]  # in units of the chair before it is scaled, but arms, slats and pedestal: 1 yes, 0 no
    centres: np.ndarray  # (K, 3) float64
    halves: np.ndarray  # (K, 3) float64, half of the boxes' sides

    def distances(self, points: np.ndarray) -> np.ndarray:
        """Return signed distances (N,) of points (N, 3), negative inside, in units of the cube [-1, 1]^3."""
        nearest = np.full(len(points), np.inf)
        for centre, half in zip(self.centres, self.halves, strict=True):  # about a dozen, each for all points
            excess = np.abs(points - centre) - half
            outside = np.sqrt(np.square(np.maximum(excess, 0)).sum(1))
            np.minimum(nearest, outside + np.minimum(excess.max(1), 0), out=nearest)
        return nearest

    def surface(self, count: int, random: np.random.RandomState) -> np.ndarray:
        """Return points (count, 3) on the surface, uniform by area."""
        x, y, z = self.halves.T
        areas = np.stack([y * z, y * z, x * z, x * z, x * y, x * y], 1).ravel()  # (K * 6,)
        edges = np.cumsum(areas) / areas.sum()
        found = [np.empty((0, 3))]
        while sum(map(len, found)) < count:
            side = np.minimum(np.searchsorted(edges, random.random_sample(2 * count)), len(edges) - 1)
            box, axis, sign = side // 6, side % 6 // 2, side % 2 * 2 - 1
            unit = 2 * random.random_sample((len(side), 3)) - 1
            unit[np.arange(len(side)), axis] = sign
            points = self.centres[box] + unit * self.halves[box]
            found.append(points[self.distances(points) > -1e-9])  # those inside another box are not on the surface
        return np.concatenate(found)[:count]


def chair(number: int, seed: int = 0) -> Chair:
    """Return chair `number` of the collection `seed`: the same on every machine. Raises `UsageError` for no chair's number.

    >>> chair(3).name, sorted(chair(3).labels)[:3]
    ('chair/0003', ['arms', 'back_height', 'leg'])
    """
    if not 0 <= number < NUMBERS:
        raise UsageError(f"chair number {number} was asked for, but chairs are numbered from 0 to {NUMBERS - 1}")
    random = np.random.RandomState([seed, number, STREAM])

    def between(low: float, high: float) -> float:
        return float(low + (high - low) * random.random_sample())

    labels = {
        "seat_height": between(0.30, 0.55),
        "seat_width": between(0.40, 0.60),
        "seat_depth": between(0.38, 0.56),
        "seat": between(0.05, 0.10),  # thickness
        "back_height": between(0.30, 0.65),
        "leg": between(0.04, 0.075),  # side of a leg, thickness of back and arms
    }
    arms, slats, pedestal = (bool(random.random_sample() < share) for share in (0.5, 0.4, 0.25))
    arm_height = between(0.15, 0.25)
    boxes = _boxes(**labels, arms=arm_height if arms else None, slats=slats, pedestal=pedestal)
    low, high = (np.array(each, dtype=np.float64) for each in zip(*boxes, strict=True))
    middle = (low.min(0) + high.max(0)) / 2
    corners = np.maximum(np.abs(low - middle), np.abs(high - middle))
    scale = RADIUS / np.sqrt(np.square(corners).sum(1)).max()
    return Chair(
        name=f"chair/{number:04d}",
        labels={**labels, "arms": float(arms), "slats": float(slats), "pedestal": float(pedestal)},
        centres=((low + high) / 2 - middle) * scale,
        halves=(high - low) / 2 * scale,
    )


Box = tuple[tuple[float, float, float], tuple[float, float, float]]  # lowest and highest corner


def _boxes(
    seat_height: float,
    seat_width: float,
    seat_depth: float,
    seat: float,
    back_height: float,
    leg: float,
    arms: float | None,
    slats: bool,
    pedestal: bool,
) -> list[Box]:
    """Return the boxes of a chair; `seat_height` is that of the seat's top, `arms` that of the arms above it."""
    w, d, top, bottom = seat_width / 2, seat_depth / 2, seat_height, seat_height - seat
    boxes: list[Box] = [((-w, -d, bottom), (w, d, top))]
    middle = top - seat / 2  # what stands on or under the seat reaches into it
    if pedestal:
        boxes += [((-leg, -leg, 0.0), (leg, leg, middle))]
        boxes += [((-w, -leg / 2, 0.0), (w, leg / 2, leg)), ((-leg / 2, -d, 0.0), (leg / 2, d, leg))]
    else:
        boxes += [
            ((x, y, 0.0), (x + leg, y + leg, middle)) for x in (-w, w - leg) for y in (-d, d - leg)
        ]  # the corners
    back = (-d, -d + leg)  # y of the back
    if slats:
        boxes += [((x, back[0], middle), (x + leg, back[1], top + back_height)) for x in (-w, w - leg)]
        rail = back_height / 6
        boxes += [((-w, back[0], top + z * rail), (w, back[1], top + (z + 1) * rail)) for z in (1.5, 3.25, 5.0)]
    else:
        boxes += [((-w, back[0], middle), (w, back[1], top + back_height))]
    if arms is not None:
        boxes += [((x, -d, top + arms - leg), (x + leg, d, top + arms)) for x in (-w, w - leg)]
        boxes += [((x, d - leg, middle), (x + leg, d, top + arms)) for x in (-w, w - leg)]
    return boxes
