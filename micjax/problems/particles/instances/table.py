"""Sizes and shapes of instances, all at once, and how sure they are."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

DIRECTIONS = 64  # from which an outline is looked at


class Shapes(NamedTuple):
    """Of `n` instances, in pixels; lengths in the edge of a square of the area of a pixel."""

    place_px: Float[np.ndarray, "n 2"]  # centre of mass
    area_px2: Float[np.ndarray, "n"]
    diameter_px: Float[np.ndarray, "n"]  # of a circle of the same area
    longest_px: Float[np.ndarray, "n"]  # Feret diameters
    shortest_px: Float[np.ndarray, "n"]
    aspect: Float[np.ndarray, "n"]  # of the ellipse with the same second moments
    solidity: Float[np.ndarray, "n"]  # area over that of the convex hull
    perimeter_px: Float[np.ndarray, "n"]  # within the image
    shared_px: Float[np.ndarray, "n"]  # of it, next to another instance
    cut: np.ndarray  # whether the edge of the image cuts it


def shapes(labels: Int[np.ndarray, "y x"], pixel: tuple[float, float] = (1.0, 1.0)) -> Shapes:
    """Of labels from 1 on, of which none is missing.

    A hull is what half-planes from `DIRECTIONS` leave; diameters are widths between two of them.
    Where the edge of the image cuts an instance, its outline goes along that edge.

    **Arguments:**

    - `pixel`: (dy, dx), edges of a pixel in any unit: only their ratio counts.
    """
    n = int(labels.max())
    edges = np.asarray(pixel) / np.sqrt(np.prod(pixel))
    y, x = np.nonzero(labels)
    member = labels[y, x] - 1
    area = np.bincount(member, minlength=n).astype(float)

    def mean(values):
        return np.bincount(member, values, minlength=n) / area

    cy, cx = mean(y), mean(x)
    dy, dx = edges[0] * (y - cy[member]), edges[1] * (x - cx[member])
    yy, xx = (mean(d**2) + e**2 / 12 for d, e in zip((dy, dx), edges, strict=True))
    xy = mean(dy * dx)
    middle, apart = 0.5 * (yy + xx), np.sqrt(0.25 * (yy - xx) ** 2 + xy**2)
    aspect = np.sqrt((middle + apart) / np.maximum(middle - apart, 1e-9))
    beside = neighbours(labels)
    own = labels[..., None]
    edge = (beside != own) & (own > 0)
    outermost = np.ones(labels.shape, bool)
    outermost[1:-1, 1:-1] = False
    rim = edge.any(-1) | (outermost & (labels > 0))
    number = labels[rim] - 1
    lengths = edges[[1, 1, 0, 0]]  # of the sides towards `neighbours`
    sides = edge[rim] @ lengths
    shared = (edge & (beside > 0))[rim] @ lengths
    middles = np.stack([cy, cx], 1)
    longest, shortest, hull = _hulls(number, edges * np.argwhere(rim), edges * middles, edges, n)
    at_edge = np.zeros(n, bool)
    for line in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        at_edge[line[line > 0] - 1] = True
    return Shapes(
        middles,
        area,
        np.sqrt(4.0 * area / np.pi),
        longest,
        shortest,
        aspect,
        np.minimum(area / hull, 1.0),
        np.pi / 4.0 * np.bincount(number, sides, minlength=n),  # of sides in all directions
        np.pi / 4.0 * np.bincount(number, shared, minlength=n),
        at_edge,
    )


def neighbours(labels) -> Int[np.ndarray, "y x 4"]:
    """Below, above, to the right, to the left; at the edge of the image the pixel itself."""
    wide = np.pad(labels, 1, mode="edge")
    return np.stack([wide[2:, 1:-1], wide[:-2, 1:-1], wide[1:-1, 2:], wide[1:-1, :-2]], -1)


def _hulls(number, place, centre, edges, n: int):
    angle = np.pi * 2.0 * np.arange(DIRECTIONS) / DIRECTIONS
    towards = np.stack([np.sin(angle), np.cos(angle)])
    order = np.argsort(number, kind="stable")
    number, place = number[order], place[order]
    reach = (place - centre[number]) @ towards
    starts = np.searchsorted(number, np.arange(n))
    reach = np.maximum.reduceat(reach, starts, axis=0) if n else np.zeros((0, DIRECTIONS))
    reach = reach + 0.5 * edges @ np.abs(towards)  # a pixel is a rectangle
    width = reach[:, : DIRECTIONS // 2] + reach[:, DIRECTIONS // 2 :]
    step = 2.0 * np.pi / DIRECTIONS
    # the polygon of the half-planes: its sides lie between neighbouring corners
    before, after = np.roll(reach, 1, 1), np.roll(reach, -1, 1)
    side = (before + after - 2.0 * reach * np.cos(step)) / np.sin(step)
    hull = 0.5 * (reach * np.maximum(side, 0.0)).sum(1)
    return width.max(1), width.min(1), hull
