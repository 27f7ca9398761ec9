"""Made-up surfaces and tips, from which the network of `micjax.problems.tip` learns.

Heights are in units of the surface's standard deviation, lengths in pixels: a dilation knows of no
other scale.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

OBJECTS = 24  # particles, rods, grains of an image
SIZE = 17  # pixels of a tip along each side
NOISES = (1e-3, 5e-2)  # rms, of the surface's deviation
DEPTHS = (0.3, 20.0)  # of a tip at the middle of its window's edge
DOUBLES = 0.4  # share of tips with a second apex
KNOWN = 0.3  # share of tips that the network is told as they are


class Shape(NamedTuple):
    """Apexes of depth * (r / half a window)^power, r with an axis ratio."""

    depth: Float[Array, ""]
    power: Float[Array, ""]  # 1: cones, 2: paraboloids, 4: worn flat
    ratio: Float[Array, ""]
    angle: Float[Array, ""]
    centre: Float[Array, "2"]  # of the first apex (px)
    offset: Float[Array, "2"]  # of the second one from there
    drop: Float[Array, ""]  # of the second one, infinite: there is none


def heights(shape: Shape, size: int = SIZE) -> Float[Array, "k k"]:
    """The tip that a dilation takes, its highest pixel at 0."""
    half = size // 2
    place = jnp.arange(-half, half + 1.0)
    y, x = place[:, None] - shape.centre[0], place[None, :] - shape.centre[1]
    cos, sin = jnp.cos(shape.angle), jnp.sin(shape.angle)

    def apex(y, x):
        squared = shape.ratio * (cos * x + sin * y) ** 2 + (cos * y - sin * x) ** 2 / shape.ratio
        return shape.depth * (squared / half**2) ** (shape.power / 2)

    depth = jnp.minimum(apex(y, x), apex(y - shape.offset[0], x - shape.offset[1]) + shape.drop)
    return depth.min() - depth


def tips(key: Array) -> tuple[Float[Array, "k k"], Float[Array, "k k"]]:
    """A tip, and what it is told to be."""
    true, guess = shapes(key)
    return heights(true), heights(guess)


def shapes(key: Array) -> tuple[Shape, Shape]:
    """A tip, and what a blind estimate may take it for: of another bluntness, its apex elsewhere
    within a pixel, a second one missed or made up."""
    u = jax.random.uniform(key, (20,))
    # of both uniform numbers that stand side by side, a normal one (Box and Muller 1958)
    n = jnp.sqrt(-2.0 * jnp.log(u[10::2] + 1e-9)) * jnp.cos(2.0 * jnp.pi * u[11::2])
    low, high = jnp.log(jnp.array(DEPTHS))
    turn, length = 2.0 * jnp.pi * u[4], 2.0 + 5.0 * u[5]
    second = u[7] < DOUBLES
    true = Shape(
        jnp.exp(low + (high - low) * u[0]),
        jnp.where(u[1] < 0.5, 2.0, 1.0 + 3.0 * u[1]),
        jnp.exp(0.5 * (u[2] - 0.5)),
        jnp.pi * u[3],
        jnp.zeros(2),
        length * jnp.array([jnp.sin(turn), jnp.cos(turn)]),
        jnp.where(second, 0.5 * u[6], jnp.inf),
    )
    drop = jnp.where(n[0] > 1.5, jnp.where(second, jnp.inf, 1.0), true.drop)
    guess = true._replace(
        depth=true.depth * jnp.exp(0.3 * n[1]),
        power=jnp.maximum(1.0, true.power * jnp.exp(0.15 * n[2])),
        centre=jnp.clip(0.4 * n[3:5], -1.0, 1.0),
        drop=jnp.maximum(drop + 0.05 * u[8], 0.0),
    )
    return true, jax.tree.map(lambda a, b: jnp.where(u[9] < KNOWN, a, b), true, guess)


def surface(key: Array, size: int) -> Float[Array, "y x"]:
    """Particles, rods, terraces, grains, pits on self-affine ground, of unit deviation."""
    of_noise, of_numbers = jax.random.split(key)
    noise = jax.random.normal(of_noise, (size, size))
    u = jax.random.uniform(of_numbers, (OBJECTS + 1, 8))
    one_each, u = u[0], u[1:]
    # features of a few pixels, as of a coarse scan, to smooth ones as of a fine scan
    zoom = 5.0 ** (u[1, 7] ** 2)
    k = jnp.hypot(jnp.fft.fftfreq(size)[:, None], jnp.fft.fftfreq(size)[None, :])
    fall = jnp.maximum(k, 1.0 / (16.0 + 48.0 * one_each[0])) ** (-1.2 - 1.8 * one_each[1])
    fall = fall * jnp.exp(-((3.0 * k * (zoom - 1.0)) ** 2))
    ground = jnp.fft.ifft2(jnp.fft.fft2(noise) * fall).real
    ground = scaled(ground)

    y, x = jnp.arange(size)[:, None], jnp.arange(size)[None, :]
    dy, dx = (a[None] - size * u[:, i, None, None] for i, a in enumerate((y, x)))
    cos, sin = (f(jnp.pi * u[:, 2, None, None]) for f in (jnp.cos, jnp.sin))
    longer = jnp.where(one_each[2] < 0.3, 1.0 + 7.0 * u[:, 3], 1.0 + 0.5 * u[:, 3])[:, None, None]
    away = dy**2 + dx**2
    squared = (cos * dx + sin * dy) ** 2 / longer**2 + (cos * dy - sin * dx) ** 2
    radius = zoom * (1.5 + (2.0 + 8.0 * one_each[3]) * u[:, 4])[:, None, None]
    tall = (0.3 + 0.7 * u[:, 5])[:, None, None]
    inside = jnp.maximum(1.0 - squared / radius**2, 0.0)
    flat_topped = (u[:, 6] < 0.5)[:, None, None]
    there = (u[:, 7] < 0.2 + 0.8 * one_each[4]).at[0].set(True)[:, None, None]
    objects = (there * tall * jnp.where(flat_topped, 0.8 * (inside > 0), jnp.sqrt(inside))).max(0)
    domes = (0.5 * tall - away / (zoom * size / 3.0) ** 2).max(0)
    terraces = jnp.floor((1.0 + 3.0 * one_each[5]) * ground) / 3.0

    kind = jnp.floor(5.0 * one_each[6])
    share = jnp.where(kind == 0, 0.0, 0.02 + 0.2 * one_each[7])  # of the ground
    main = jnp.select(
        [kind == 0, kind == 1, kind == 2, kind == 3],
        [ground, scaled(domes), scaled(terraces), -scaled(objects)],
        scaled(objects),
    )
    z = main + share * ground
    return scaled(z - z.mean())


def scaled(z: Float[Array, "y x"]) -> Float[Array, "y x"]:
    """Of unit deviation; one large flat top has none."""
    return z / (z.std() + 1e-6)
