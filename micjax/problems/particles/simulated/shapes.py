"""Outlines that no two particles share: radii as a function of the angle, drawn inside `jit`.

    radius(theta) = (sum_i (max(cos(theta - phi_i), 0) / h_i)^p)^(-1/p)

Four sides in right angles give superellipses and rods (p from 2 on), three to eight sides facetted
shapes and, nearly sharp with a large p, triangles. All lengths are in pixels.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

ANGLES = 96  # of a table of radii
SIDES = 8  # at most
CHANCES = 5 + 2 * SIDES  # random numbers that a shape takes


class Outlines(NamedTuple):
    """Of shapes that are seen from a point inside them."""

    radius_px: Float[Array, "*b angles"]
    slope: Float[Array, "*b angles"]  # cosine between the radius and the normal
    inner_px: Float[Array, "*b"]  # the least radius


def outlines(
    chance: Float[Array, "*b c"], facetted: Float[Array, "*b"], mean_px: Float[Array, "*b"]
) -> Outlines:
    """Shapes of the area of a circle of radius `mean_px`.

    **Arguments:**

    - `chance`: `CHANCES` uniform numbers of each.
    - `facetted`: how probable a shape is that is no superellipse.
    """
    theta = _angles()
    polygon = (chance[..., 0] < facetted)[..., None]
    number = jnp.where(polygon, 3.0 + jnp.floor(6.0 * chance[..., 1:2]), 4.0)
    aspect = jnp.exp(1.4 * chance[..., 2:3] ** 3)
    side = jnp.arange(SIDES)
    unequal = 1.0 + jnp.where(polygon, 0.3, 0.0) * (chance[..., 5 : 5 + SIDES] - 0.5)
    distance = unequal * jnp.where(side % 2 == 0, jnp.where(polygon, 1.0, aspect), 1.0)
    uneven = jnp.where(polygon, 0.5, 0.0) * (chance[..., 5 + SIDES :] - 0.5)
    phi = 2.0 * jnp.pi * ((side + uneven) / number + chance[..., 3:4])
    power = jnp.where(polygon, 5.0 + 20.0 * chance[..., 4:5], 2.0 + 4.0 * chance[..., 4:5] ** 2)
    facing = jnp.maximum(jnp.cos(theta - phi[..., None]), 1e-4) / distance[..., None]
    facing = jnp.where((side < number)[..., None], facing, 1e-4)
    largest = facing.max(axis=-2, keepdims=True)
    power = power[..., None]
    radius = ((facing / largest) ** power).sum(axis=-2) ** (-1.0 / power[..., 0])
    radius = radius / largest[..., 0, :]
    radius = radius * (mean_px / jnp.sqrt(jnp.mean(radius**2, axis=-1)))[..., None]
    change = jnp.roll(radius, -1, axis=-1) - jnp.roll(radius, 1, axis=-1)
    turned = (jnp.roll(theta, -1) - jnp.roll(theta, 1)) % (2.0 * jnp.pi)
    slope = 1.0 / jnp.sqrt(1.0 + (change / turned / radius) ** 2)
    return Outlines(radius, slope, radius.min(axis=-1))


def _angles() -> Float[Array, "angles"]:
    """Along a square that stands on its corner: where a point lies on it takes no arc tangent."""
    along = 4.0 * (jnp.arange(ANGLES) + 0.5) / ANGLES - 1.0
    dy = jnp.where(along < 1.0, along, 2.0 - along)
    dx = jnp.where(along < 1.0, 1.0, -1.0) * (1.0 - jnp.abs(dy))
    return jnp.arctan2(dy, dx)


def seen_from(
    outline: Outlines, dy: Float[Array, "y x"], dx: Float[Array, "y x"]
) -> tuple[Float[Array, "y x"], Float[Array, "y x"]]:
    """Of one outline: distance to the centre over the radius, and pixels inside the edge."""
    distance = jnp.sqrt(dy**2 + dx**2)
    along = dy / (jnp.abs(dy) + jnp.abs(dx) + 1e-3)
    along = jnp.where(dx >= 0, along, 2.0 - along)
    index = ((along + 1.0) * (ANGLES / 4.0)).astype(int) % ANGLES
    radius = outline.radius_px[index]
    return distance / radius, (radius - distance) * outline.slope[index]
