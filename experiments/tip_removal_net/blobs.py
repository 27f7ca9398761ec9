"""The 64 x 64 set: blobs and discs below a paraboloid, single or double, with 1 % noise.

The random numbers are those of the sketch in which the set was defined, so that its key 999 gives
the same 64 images.
"""

import jax
import jax.numpy as jnp

from micjax.physics.tips.dilation import dilate

EDGE_PX, TIP_PX, BLOBS, NOISE = 64, 15, 24, 0.01


def surface(key):
    """24 hemispheres and discs of 2 to 6 px radius, 0.3 to 1 high, on ground of 0.05."""
    k = jax.random.split(key, 6)
    y, x = jnp.meshgrid(*2 * [jnp.arange(EDGE_PX)], indexing="ij")
    centre = EDGE_PX * jax.random.uniform(k[0], (BLOBS, 2))
    radius = jax.random.uniform(k[1], (BLOBS,), minval=2.0, maxval=6.0)[:, None, None]
    height = jax.random.uniform(k[2], (BLOBS,), minval=0.3, maxval=1.0)[:, None, None]
    squared = (y - centre[:, 0, None, None]) ** 2 + (x - centre[:, 1, None, None]) ** 2
    round_top = jax.random.bernoulli(k[3], 0.5, (BLOBS, 1, 1))
    ball = jnp.sqrt(jnp.maximum(1 - squared / radius**2, 0))
    blobs = height * jnp.where(round_top, ball, 0.8 * (squared < radius**2))
    ground = jax.image.resize(jax.random.normal(k[4], (6, 6)), (EDGE_PX, EDGE_PX), "cubic")
    return blobs.max(0) + 0.05 * ground


def paraboloid(radius, dy=0.0, dx=0.0, drop=0.0):
    place = jnp.arange(TIP_PX) - TIP_PX // 2
    return -((place[:, None] - dy) ** 2 + (place[None, :] - dx) ** 2) / (2 * radius) / 3 - drop


def tip(key):
    """R of 6 to 60 px^2; of 40 % a second apex, 2 to 6 px away and up to 0.3 lower."""
    k = jax.random.split(key, 4)
    radius = jax.random.uniform(k[0], minval=2.0, maxval=20.0)
    turn = jax.random.uniform(k[1], maxval=2 * jnp.pi)
    away = jax.random.uniform(k[2], minval=2.0, maxval=6.0)
    drop = jax.random.uniform(k[3], maxval=0.3)
    double = jax.random.bernoulli(k[1], 0.4)
    second = paraboloid(radius, away * jnp.sin(turn), away * jnp.cos(turn), drop)
    return jnp.maximum(paraboloid(radius), jnp.where(double, second, -10.0))


def scan(key):
    """A surface, its image without and with noise, and the tip."""
    of_surface, of_tip, of_noise = jax.random.split(key, 3)
    true, heights = surface(of_surface), tip(of_tip)
    noise = jax.random.normal(of_noise, (EDGE_PX, EDGE_PX))
    clean = dilate(true, heights, "replicate")
    return true, clean, clean + NOISE * noise, heights
