"""Topographies of films of grains under a tip, drawn inside `jit`, to learn from.

Grains that meet at boundaries (a weighted Voronoi diagram), each a dome, a flat or a slanted top of
its own height; what a parabolic tip makes of them (dilation), a slope, noise, and lines of the scan
that jump. All lengths are in pixels.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from micjax.problems.particles.simulated.micrographs import (
    Micrograph,
    between,
    granular,
    log_between,
)
from micjax.problems.particles.simulated.recorded import ENLARGED, enlarged, halved

DIAMETER_PX = (8.0, 60.0)  # the middle one of an image
NEIGHBOURS = 2  # cells of a lattice on each side, in which the nearest seeds may lie
REACH_PX = 5  # of the tip


def dilated(height: Float[Array, "y x"], curvature_perpx: Float[Array, ""]) -> Float[Array, "y x"]:
    """By the parabola -curvature r^2 within `REACH_PX`: along the rows and then the columns."""
    for axis in (0, 1):
        padded = jnp.pad(height, [(REACH_PX, REACH_PX) if a == axis else (0, 0) for a in (0, 1)])
        length = height.shape[axis]
        parts = [
            jax.lax.dynamic_slice_in_dim(padded, REACH_PX + s, length, axis)
            - curvature_perpx * s**2
            for s in range(-REACH_PX, REACH_PX + 1)
        ]
        height = jnp.max(jnp.stack(parts), axis=0)
    return height


def grains(size: int) -> int:
    """How many an image may have: one in each cell of a lattice."""
    return (size // int(DIAMETER_PX[0]) + 2 * NEIGHBOURS + 2) ** 2


def film(key: Array, size: int) -> Micrograph:
    """Grains whose heights are about one."""
    of_chance, of_normal = jax.random.split(key)
    uniform = jax.random.uniform(of_chance, (20 + grains(size) * 8,))
    u, own = uniform[:20], uniform[20:].reshape(-1, 8)
    fields = jax.random.normal(of_normal, (3, size, size))
    middle = log_between(u[0], *DIAMETER_PX)
    y, x = jnp.meshgrid(*2 * [jnp.arange(float(size))], indexing="ij")
    first, second, labels = _nearest(u, own, middle, y, x)
    here = labels - 1
    beside = second - first
    wall = jnp.tanh(beside / jnp.maximum(between(u[4], 0.1, 0.5) * middle, 2.0))
    dome = jnp.sqrt(jnp.maximum(1.0 - (first / (0.8 * middle)) ** 2, 0.0))
    height = jnp.exp(between(u[5], 0.0, 1.2) * (own[:, 5] - 0.5))
    top = between(u[6], 0.0, 0.6) * (own[:, 6:8] - 0.5) / middle
    place = _seeds(u, own, middle)[here]
    slanted = (y - place[..., 0]) * top[here, 0] + (x - place[..., 1]) * top[here, 1]
    share = jnp.where(u[7] < 0.5, 0.0, u[8])
    surface = height[here] * ((1.0 - share) * wall + share * dome) + wall * slanted
    surface = dilated(surface, log_between(u[9], 0.001, 0.05))
    slope = (jnp.arange(size) / size - 0.5) * 6.0 * u[10] ** 2
    surface = surface + slope * (u[11] - 0.5) + slope[:, None] * (u[12] - 0.5)
    surface = surface + 0.5 * u[13] ** 2 * granular(fields[0], 20.0)
    noise = log_between(u[15], 0.005, 0.15) * fields[1]
    lines = log_between(u[16], 0.003, 0.15) * fields[2, :, :1]
    image = surface + noise + lines
    return Micrograph(jnp.where(u[19] < ENLARGED, enlarged(halved(image)), image), labels)


def _seeds(u, own, middle) -> Float[Array, "n 2"]:
    """From nearly a lattice to nearly by chance."""
    cells = math.isqrt(len(own))
    cell = jnp.stack(jnp.divmod(jnp.arange(len(own)), cells), axis=-1)
    wander = between(u[1], 0.8, 2.0) * (own[:, :2] - 0.5)
    return middle * (cell + 0.5 + wander - NEIGHBOURS - u[17:19])


def _nearest(u, own, middle, y, x):
    """Distances to the nearest grain and to the next one, and the number of the nearest."""
    place, cells = _seeds(u, own, middle), math.isqrt(len(own))
    weight = jnp.exp(between(u[2], 0.0, 0.45) * (own[:, 2] - 0.5))
    turn, flat = jnp.pi * own[:, 3], jnp.exp(between(u[3], 0.0, 0.6) * (own[:, 4] - 0.5))
    each = jnp.stack([place[:, 0], place[:, 1], weight, jnp.cos(turn), jnp.sin(turn), flat], -1)
    row, column = ((a / middle + NEIGHBOURS + s).astype(int) for a, s in ((y, u[17]), (x, u[18])))

    def look(carry, step):
        first, second, labels = carry
        index = (row + step[0]) * cells + column + step[1]
        gy, gx, weight, cos, sin, flat = jnp.moveaxis(each[index], -1, 0)
        along, across = cos * (y - gy) + sin * (x - gx), cos * (x - gx) - sin * (y - gy)
        distance = weight * jnp.sqrt((along * flat) ** 2 + (across / flat) ** 2)
        nearer = distance < first
        return (
            jnp.where(nearer, distance, first),
            jnp.where(nearer, first, jnp.minimum(second, distance)),
            jnp.where(nearer, index + 1, labels),
        ), None

    far = jnp.full(y.shape, 1e6)
    carry = (far, far, jnp.zeros(y.shape, int))
    steps = jnp.arange(-NEIGHBOURS, NEIGHBOURS + 1)
    pairs = jnp.stack(jnp.meshgrid(steps, steps, indexing="ij"), -1).reshape(-1, 2)
    return jax.lax.scan(look, carry, pairs)[0]
