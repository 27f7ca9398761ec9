"""Measured data in buffers of fixed capacity with a mask: one more point compiles nothing."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

SMALLEST = 64  # capacity of the first buffers: most loops never need others

Point = Float[ArrayLike, "d"] | Sequence[float | int]


class Observed(NamedTuple):
    """Where was measured: the x of a process. Rows that hold no point yet are masked."""

    points: Float[Array, "capacity d"]
    present: Float[Array, "capacity"]  # 1 for a measured point, 0 for a free row
    noise_ratio: Float[Array, "capacity"]  # standard deviation of the noise / noise.sigma

    @staticmethod
    def at(points: Float[Array, "n d"], noise_ratio: ArrayLike = 1.0) -> "Observed":
        """Points of which none is masked."""
        ones = jnp.ones(len(points))
        return Observed(points, ones, noise_ratio * ones)

    @property
    def measured(self) -> int:
        """How many points there are."""
        return int(np.sum(np.asarray(self.present)))

    @property
    def free_row(self) -> Int[Array, ""]:
        """The first one, inside jit."""
        return jnp.sum(self.present).astype(int)

    def with_point(self, point: Float[Array, "d"], noise_ratio: ArrayLike) -> "Observed":
        """One more point, inside jit."""
        n = self.free_row
        return Observed(
            self.points.at[n].set(point),
            self.present.at[n].set(1.0),
            self.noise_ratio.at[n].set(noise_ratio),
        )


def capacity_for(count: int) -> int:
    """The capacity of the buffers for `count` points: a power of two, at least 64."""
    return max(SMALLEST, 1 << max(count - 1, 0).bit_length())


def buffered(
    points: ArrayLike, y: ArrayLike, noise_ratio: ArrayLike = 1.0, capacity: int | None = None
) -> tuple[Observed, Float[Array, "capacity"]]:
    """Points `[n, d]` and values `[n]` in buffers, as the (x, y) of a process.

    **Raises:** `ValueError` for shapes that do not fit, values that are not finite, a noise ratio
    below 0, or more points than a given capacity.
    """
    # on the host: to cut and fill a growing array on the device compiles for every length
    points, y = _reals("points", points), _reals("y", y)
    if points.ndim != 2 or y.shape != points.shape[:1]:
        raise ValueError(f"points {points.shape} and y {y.shape} are not of shapes [n, d] and [n]")
    for name, values in {"points": points, "y": y}.items():
        if not np.isfinite(values).all():
            rows = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(axis=1))
            raise ValueError(f"{name} holds NaN or infinity in rows {rows[:8].tolist()}")
    _check_ratio(noise_ratio)
    count = len(y)
    capacity = capacity_for(count) if capacity is None else capacity
    if count > capacity:
        raise ValueError(f"{count} points do not fit into a capacity of {capacity}")
    # free rows repeat a point: the mean need not have a value at 0
    filled = np.zeros((capacity, points.shape[1])) + (points[0] if count else 0.0)
    filled[:count] = points
    present, values, ratio = np.zeros(capacity), np.zeros(capacity), np.ones(capacity)
    present[:count], values[:count], ratio[:count] = 1.0, y, noise_ratio
    with jax.enable_x64(True):
        to = jnp.asarray
        return Observed(to(filled), to(present), to(ratio)), to(values)


def _reals(name: str, values: ArrayLike) -> np.ndarray:
    if np.iscomplexobj(values):  # NumPy would drop the imaginary parts
        raise ValueError(f"{name} holds complex numbers; a process is of real ones")
    return np.asarray(values, np.float64)


def _check_ratio(noise_ratio: ArrayLike) -> None:
    ratio = np.asarray(noise_ratio, np.float64)
    if not (np.isfinite(ratio).all() and (ratio >= 0.0).all()):
        raise ValueError(f"noise_ratio is {ratio.tolist()}; it has to be finite and not below 0")


def grown(
    observed: Observed, y: Float[Array, "n"], count: int = 0
) -> tuple[Observed, Float[Array, "m"]]:
    """The same data in buffers of twice the capacity, or as much as `count` points need."""
    kept = np.asarray(observed.present) > 0
    points, ratio = np.asarray(observed.points)[kept], np.asarray(observed.noise_ratio)[kept]
    capacity = max(2 * len(kept), capacity_for(count))
    return buffered(points, np.asarray(y)[kept], ratio, capacity=capacity)


def datum(point: Point, y: ArrayLike, noise_ratio: ArrayLike = 1.0) -> tuple:
    """One datum as arrays, so that no value of it compiles anything.

    **Raises:** `ValueError` for one that is not finite.
    """
    point, y, noise_ratio = (np.asarray(v, np.float64) for v in (point, y, noise_ratio))
    if not (np.isfinite(y).all() and np.isfinite(point).all()):
        raise ValueError(f"the datum {y} at {point.tolist()} is not finite")
    _check_ratio(noise_ratio)
    return point, y, noise_ratio
