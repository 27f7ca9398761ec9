"""Topographies of films of grains under a tip, drawn inside `jit`, to learn from.

Grains that meet at boundaries (a weighted Voronoi diagram), each a dome, a flat or a slanted top of
its own height; what a parabolic tip makes of them (dilation), a slope, noise, and lines of the scan
that jump. All lengths are in pixels.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from micjax.problems.particles.simulated.micrographs import (
    Micrograph,
    apart,
    between,
    granular,
    log_between,
)

GRAINS = 64  # of an image, at most
DIAMETER_PX = (9.0, 50.0)  # the middle one of an image
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


def film(key: Array, size: int) -> Micrograph:
    """Grains whose heights are about one."""
    of_chance, of_normal = jax.random.split(key)
    uniform = jax.random.uniform(of_chance, (20 + GRAINS * 8,))
    u, own = uniform[:20], uniform[20:].reshape(GRAINS, 8)
    fields = jax.random.normal(of_normal, (3, size, size))
    middle = log_between(u[0], *DIAMETER_PX)
    count = jnp.clip((1.4 * size) ** 2 / (0.8 * middle**2), 4.0, GRAINS)
    # the largest frame that so many grains fill
    frame = jnp.minimum(1.4 * size, jnp.sqrt(count * 0.8) * middle)
    middle = middle * 1.4 * size / frame
    number = jnp.arange(GRAINS)
    there = number < count
    place = 1.4 * size * own[:, :2] - 0.2 * size
    both = there[:, None] & there[None]
    place = apart(place, jnp.where(both, middle * between(u[1], 0.0, 0.9), 0.0))
    weight = jnp.exp(between(u[2], 0.0, 0.35) * (own[:, 2] - 0.5))
    turn, flat = jnp.pi * own[:, 3], jnp.exp(between(u[3], 0.0, 0.6) * (own[:, 4] - 0.5))
    y, x = jnp.meshgrid(*2 * [jnp.arange(float(size))], indexing="ij")

    def add(carry, one_grain):
        first, second, labels = carry
        (gy, gx), weight, turn, flat, number, there = one_grain
        along = jnp.cos(turn) * (y - gy) + jnp.sin(turn) * (x - gx)
        across = jnp.cos(turn) * (x - gx) - jnp.sin(turn) * (y - gy)
        distance = weight * jnp.sqrt((along * flat) ** 2 + (across / flat) ** 2)
        distance = jnp.where(there, distance, jnp.inf)
        nearer = distance < first
        second = jnp.where(nearer, first, jnp.minimum(second, distance))
        return (
            jnp.where(nearer, distance, first),
            second,
            jnp.where(nearer, number + 1, labels),
        ), None

    far = jnp.full((size, size), 1e6)
    carry = (far, far, jnp.zeros((size, size), int))
    grains = (place, weight, turn, flat, number, there)
    (first, second, labels), _ = jax.lax.scan(add, carry, grains)
    beside = second - first
    wall = jnp.tanh(beside / jnp.maximum(between(u[4], 0.1, 0.5) * middle, 2.0))
    dome = jnp.sqrt(jnp.maximum(1.0 - (first / (0.8 * middle)) ** 2, 0.0))
    height = jnp.exp(between(u[5], 0.0, 0.8) * (own[:, 5] - 0.5))
    top = between(u[6], 0.0, 0.6) * (own[:, 6:8] - 0.5) / middle
    here = labels - 1
    slanted = (y - place[here, 0]) * top[here, 0] + (x - place[here, 1]) * top[here, 1]
    share = jnp.where(u[7] < 0.5, 0.0, u[8])
    surface = height[here] * ((1.0 - share) * wall + share * dome) + wall * slanted
    surface = dilated(surface, log_between(u[9], 0.001, 0.05))
    slope = (jnp.arange(size) / size - 0.5) * 6.0 * u[10] ** 2
    surface = surface + slope * (u[11] - 0.5) + slope[:, None] * (u[12] - 0.5)
    surface = surface + 0.5 * u[13] ** 2 * granular(fields[0], 20.0)
    noise = log_between(u[15], 0.005, 0.15) * fields[1]
    lines = log_between(u[16], 0.003, 0.15) * fields[2, :, :1]
    return Micrograph(surface + noise + lines, labels)
