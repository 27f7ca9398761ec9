"""What contrast instances have against the background, and how much of it the background alone
would have over areas of their size."""

from typing import NamedTuple

import numpy as np
import scipy.ndimage
from jaxtyping import Float, Int

BLOCK_PX = 32  # between points of the background
WIDTHS_PX = (3, 5, 9, 17, 33, 65)


class Contrasts(NamedTuple):
    value: Float[np.ndarray, "n"]
    error: Float[np.ndarray, "n"]  # standard deviation
    background: Float[np.ndarray, "gy gx"]
    sigma: float  # of a pixel of the background

    def signal(self, labels: Int[np.ndarray, "y x"]) -> Float[np.ndarray, "y x"]:
        return np.append(0.0, self.value)[labels]


def grid_of(shape) -> tuple[int, int]:
    return tuple(max(1, -(-n // BLOCK_PX)) for n in shape)


def contrasts(image: Float[np.ndarray, "y x"], labels: Int[np.ndarray, "y x"]) -> Contrasts:
    """Means over instances, less the background: means of what is free of them, block by block.

    A film of grains has no such pixels: there it is the mean of all.
    """
    free = labels == 0
    if free.mean() < 0.02:
        free = np.ones_like(free)
    level = image.mean()
    background = _background(image - level, free)
    off = image - level - _stretched(background, image.shape)
    area = np.bincount(labels.ravel())[1:].astype(float)
    value = np.bincount(labels.ravel(), off.ravel(), minlength=len(area) + 1)[1:]
    value = value / np.maximum(area, 1.0)
    widths, spread = _of_areas(off, free)
    error = np.interp(np.log(np.sqrt(area)), np.log(widths), spread)
    return Contrasts(value, error, background + level, float(spread[0]))


def _background(image, free) -> Float[np.ndarray, "gy gx"]:
    size = [n * BLOCK_PX for n in grid_of(image.shape)]
    wide = [(0, s - n) for s, n in zip(size, image.shape, strict=True)]

    def blocks(values):
        padded = np.pad(values, wide)
        return padded.reshape(size[0] // BLOCK_PX, BLOCK_PX, -1, BLOCK_PX).sum(axis=(1, 3))

    total, count = blocks(np.where(free, image, 0.0)), blocks(free.astype(float))
    for width in (0.5, 1.0, 2.0, 4.0, 1e3):  # a block without free pixels is as those around it
        if (count > 0.05 * BLOCK_PX**2).all():
            break
        few = count <= 0.05 * BLOCK_PX**2
        wider = [scipy.ndimage.gaussian_filter(a, width, mode="nearest") for a in (total, count)]
        total, count = (np.where(few, w, a) for w, a in zip(wider, (total, count), strict=True))
    return total / np.maximum(count, 1e-9)


def _stretched(grid, shape):
    """Linear between the middles of blocks, as `jax.image.resize` has it."""
    for axis, n in enumerate(shape):
        m = grid.shape[axis]
        place = np.clip((np.arange(n) + 0.5) / BLOCK_PX - 0.5, 0, m - 1)
        low = np.minimum(place.astype(int), max(m - 2, 0))
        high = np.minimum(low + 1, m - 1)
        share = (place - low).reshape(-1, *(1 for _ in range(1 - axis)))
        grid = np.take(grid, low, axis) * (1 - share) + np.take(grid, high, axis) * share
    return grid


def _of_areas(off, free):
    """Standard deviation of means of the background over squares of some widths."""
    widths, spread = [1], [_spread(off[free])]
    weight, value = free.astype(float), np.where(free, off, 0.0)
    for width in WIDTHS_PX:
        if 4 * width > min(off.shape):
            break
        share = scipy.ndimage.uniform_filter(weight, width)
        mean = scipy.ndimage.uniform_filter(value, width)
        whole = share > 0.8
        if whole.sum() < 50:
            break
        widths.append(width)
        spread.append(_spread(mean[whole] / share[whole]))
    return np.array(widths), np.maximum(spread, 1e-30 + 1e-6 * np.std(off[free]))


def _spread(values) -> float:
    """Standard deviation of most of them: instances that nobody marked are not background."""
    low, high = np.quantile(values, (0.159, 0.841))
    return 0.5 * (high - low)
