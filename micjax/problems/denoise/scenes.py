"""Images at atomic resolution of which no two are alike, drawn inside `jit`, to learn from.

A few grains of lattices with one to eight columns a cell, each of a brightness of its own, some
columns weaker, stronger or missing; bent a little, some with an edge to the vacuum, thicker here
than there, on a background. All lengths are in pixels.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

COLUMNS = 8  # of a cell, at most
GRAINS = 3  # of an image, at most
EDGE_PX = (7.0, 28.0)  # of a cell
CORNERS = jnp.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])


class Lattice(NamedTuple):
    """A lattice of columns that are Gaussians."""

    vectors_px: Float[Array, "*b 2 2"]  # rows
    inverse_perpx: Float[Array, "*b 2 2"]
    place: Float[Array, "*b c 2"]  # of columns in the cell, fractional
    height: Float[Array, "*b c"]  # so that the mean over a cell is one
    width_px: Float[Array, "*b"]  # standard deviation
    defects: Float[Array, "*b"]  # share of columns of another height
    brightness: Float[Array, "*b"]
    number: Float[Array, "*b"]  # which of its kind


def lattice(key: Array) -> Lattice:
    """Square, hexagonal, right-angled or oblique."""
    # all at once: each call of the generator takes a second to compile
    chance = jax.random.uniform(key, (10 + 3 * COLUMNS,))
    low, high = jnp.log(jnp.array(EDGE_PX))
    a = jnp.exp(low + (high - low) * chance[0])
    kind = (4.0 * chance[1]).astype(int)
    b = jnp.where(kind < 2, a, a * jnp.exp(0.8 * chance[2] - 0.4))
    oblique = jnp.pi * (1.0 + chance[3]) / 3.0
    angle = jnp.stack([jnp.pi / 2, 2 * jnp.pi / 3, jnp.pi / 2, oblique])[kind]
    turn = 2 * jnp.pi * chance[4]
    directions = jnp.stack([turn, turn + angle])
    vectors = jnp.stack([a, b])[:, None] * jnp.stack([jnp.cos(directions), jnp.sin(directions)], 1)
    area = a * b * jnp.sin(angle)
    adjoint = jnp.array([[1.0, -1.0], [-1.0, 1.0]]) * vectors[::-1, ::-1].T
    place, bright = chance[10 : 10 + 2 * COLUMNS].reshape(COLUMNS, 2), chance[10 + 2 * COLUMNS :]
    there = jnp.arange(COLUMNS) < 1.0 + COLUMNS * chance[5]
    weight = (0.15 + 0.85 * bright) * there
    width = jnp.clip(jnp.minimum(a, b) * (0.06 + 0.14 * chance[6]), 0.9, 3.5)
    return Lattice(
        vectors,
        adjoint / area,
        place,
        weight / (weight.sum() * 2 * jnp.pi * width**2 / area),
        width,
        0.3 * chance[7] ** 4,
        0.4 + 1.2 * chance[8],
        100.0 * chance[9],
    )


def _by_chance(cell: Float[Array, "*b 2"], number: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """From 0 to 1, another for each cell."""
    wave = jnp.sin(cell @ jnp.array([12.9898, 78.233]) + number) * 43758.5453
    return wave - jnp.floor(wave)


def intensity(place_px: Float[Array, "y x 2"], here: Lattice) -> Float[Array, "y x"]:
    """Of lattices, one for each pixel: the columns of the four cells around it."""
    fractional = jnp.einsum("yxi,yxij->yxj", place_px, here.inverse_perpx)
    beside = fractional[..., None, :] - here.place
    first = jnp.floor(beside)
    number = here.number[..., None] + 7.3 * jnp.arange(COLUMNS)

    def with_corner(total, corner):
        cell = first + corner
        away = jnp.einsum("yxci,yxij->yxcj", beside - cell, here.vectors_px)
        chance, defects = _by_chance(cell, number), here.defects[..., None]
        strength = jnp.where(chance < defects, 1.5 * chance / jnp.maximum(defects, 1e-6), 1.0)
        column = jnp.exp(-0.5 * (away**2).sum(-1) / here.width_px[..., None] ** 2)
        return total + (here.height * strength * column).sum(-1), None

    return jax.lax.scan(with_corner, jnp.zeros(place_px.shape[:2]), CORNERS)[0]


def scene(key: Array, size: int) -> Float[Array, "size size"]:
    """An image with a mean of one."""
    of_image, of_lattices = jax.random.split(key)
    chance = jax.random.uniform(of_image, (11 + 2 * GRAINS,))
    normal = jax.random.normal(jax.random.fold_in(of_image, 1), (8, 2))
    pixel = jnp.stack(jnp.meshgrid(*2 * [jnp.arange(float(size))], indexing="ij"), -1)
    waves, bends = normal[:3] * 2 * jnp.pi / 60.0, normal[3:6] * chance[0]
    bent = pixel + jnp.sin(pixel @ waves.T + 2 * jnp.pi * chance[1:4]) @ bends
    seeds = size * chance[11:].reshape(GRAINS, 2)
    away = ((pixel[..., None, :] - seeds) ** 2).sum(-1)
    there = jnp.arange(GRAINS) < 1.0 + GRAINS * chance[4]
    grain = jnp.argmin(jnp.where(there, away, jnp.inf), axis=-1)
    lattices = jax.vmap(lattice)(jax.random.split(of_lattices, GRAINS))
    here = jax.tree.map(lambda a: a[grain], lattices)
    image = intensity(bent, here) * jnp.where(chance[5] < 0.5, 1.0, here.brightness)
    edge = jax.nn.sigmoid(2.0 * (pixel - size * chance[6:8]) @ normal[6])
    image = image * jnp.where(chance[8] < 0.25, edge, 1.0)
    image = image * (1.0 + 0.5 * chance[9] * jnp.sin(0.05 * pixel @ normal[7]))
    image = image + 0.03 + 2.0 * chance[10] ** 2
    return image / image.mean()
