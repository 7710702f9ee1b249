"""Triangles to pixels: which face of a surface is seen in each pixel of a picture.

Axes: V vertices, F faces, S sides of a picture in pixels.
"""

from __future__ import annotations

import math

from netspace.native import compiled


@compiled
def draw(pixels, faces, brightness, depth, light):  # type: ignore[no-untyped-def]
    """Draw faces (F, 3) of vertices (V, 3), column, row and depth of each, into depths and lights (S, S).

    A pixel shows the nearest face that covers its middle, the larger depth; its light is that of the corners (V,), mixed. Faces
    whose corners run clockwise are seen from behind, and faces without an area are not seen: both are left out.
    """
    side = len(depth)
    for face in range(len(faces)):
        i, j, k = faces[face, 0], faces[face, 1], faces[face, 2]
        ax, ay, bx, by, cx, cy = pixels[i, 0], pixels[i, 1], pixels[j, 0], pixels[j, 1], pixels[k, 0], pixels[k, 1]
        doubled = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)  # rows of pixels go down
        if not doubled < 0:
            continue
        left = int(min(max(math.ceil(min(ax, bx, cx) - 0.5), 0), side))  # pixels have their middles at halves
        right = int(max(min(math.floor(max(ax, bx, cx) - 0.5), side - 1), -1))
        top = int(min(max(math.ceil(min(ay, by, cy) - 0.5), 0), side))
        bottom = int(max(min(math.floor(max(ay, by, cy) - 0.5), side - 1), -1))
        for row in range(top, bottom + 1):
            y = row + 0.5 - ay
            for column in range(left, right + 1):
                x = column + 0.5 - ax
                second = (x * (cy - ay) - y * (cx - ax)) / doubled
                third = ((bx - ax) * y - (by - ay) * x) / doubled
                first = 1 - second - third
                if first < 0 or second < 0 or third < 0:
                    continue
                deep = first * pixels[i, 2] + second * pixels[j, 2] + third * pixels[k, 2]
                if deep > depth[row, column]:
                    depth[row, column] = deep
                    light[row, column] = first * brightness[i] + second * brightness[j] + third * brightness[k]
