"""The hackathon's double tips and its lattice: team 16's distribution, as spmsimu makes it."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm
from jaxtyping import Array, Float

from micjax.physics.tips.dilation import dilate

EDGE_PX, TIP_PX, NOISE = 128, 100, 0.005
NAMES = ("wx1", "wy1", "wx2", "wy2", "amp2", "offset")
WIDEST, FURTHEST = 19, 29  # px; widths of 0 are no tip


def tip(numbers: Float[Array, "6"]) -> Float[Array, "k k"]:
    """exp(-(x^2 / 2 wx1^2 + y^2 / 2 wy1^2)) and amp2 times another, moved along the diagonal."""
    wx1, wy1, wx2, wy2, amp2, offset = numbers
    place = jnp.arange(TIP_PX) - TIP_PX // 2
    y, x = place[:, None], place[None, :]
    first = jnp.exp(-(x**2) / (2 * wx1**2) - y**2 / (2 * wy1**2))
    y, x = y - offset, x - offset
    return first + amp2 * jnp.exp(-(x**2) / (2 * wx2**2) - y**2 / (2 * wy2**2))


def normalised(heights):
    """From 0 to 1, as the errors of tips are measured."""
    low, high = (f(heights, axis=(-2, -1), keepdims=True) for f in (jnp.min, jnp.max))
    return (heights - low) / (high - low)


def drawn(key: Array, n: int) -> Float[Array, "n 6"]:
    u = jax.random.uniform(key, (n, 6))
    widths = 1.0 + jnp.floor(WIDEST * u[:, :4])
    return jnp.concatenate([widths, u[:, 4:5], jnp.floor((FURTHEST + 1) * u[:, 5:])], axis=1)


def to_normal(numbers: Float[Array, "n 6"], u: Float[Array, "n 6"]) -> Float[Array, "n 6"]:
    """Standard normal under the prior; whole numbers are spread over their pixel by `u`."""
    share = jnp.concatenate(
        [
            (numbers[:, :4] - 1.0 + u[:, :4]) / WIDEST,
            numbers[:, 4:5],
            (numbers[:, 5:] + u[:, 5:]) / (FURTHEST + 1),
        ],
        axis=1,
    )
    return norm.ppf(jnp.clip(share, 1e-4, 1.0 - 1e-4))


def from_normal(z: Float[Array, "*b 6"]) -> Float[Array, "*b 6"]:
    share = norm.cdf(z)
    widths = 1.0 + jnp.minimum(jnp.floor(WIDEST * share[..., :4]), WIDEST - 1.0)
    offset = jnp.minimum(jnp.floor((FURTHEST + 1) * share[..., 5:]), float(FURTHEST))
    return jnp.concatenate([widths, share[..., 4:5], offset], axis=-1)


def lattice() -> np.ndarray:
    """cos x cos y, ten periods, from 0 to 1."""
    wave = np.cos(2 * np.pi * 10 * np.arange(EDGE_PX) / EDGE_PX)
    return np.outer(wave, wave) / 2 + 0.5


def every_other(surface: Float[Array, "y x"], heights: Float[Array, "k k"]) -> Array:
    """Every second pixel of every second line of a scan, max(S + T) - 1, exactly: each quarter of
    the surface is touched by a quarter of the tip's pixels."""
    quarters = []
    for i in (0, 1):
        for j in (0, 1):
            part = jnp.pad(heights[i::2, j::2], ((0, 1), (0, 1)), constant_values=-jnp.inf)
            quarters.append(dilate(surface[i::2, j::2], part))
    return jnp.max(jnp.stack(quarters), axis=0) - 1.0


def full_scan(surface: Float[Array, "y x"], heights: Float[Array, "k k"]) -> Array:
    """Every pixel: max(S + T) - 1."""
    return dilate(surface, jnp.pad(heights, ((0, 1), (0, 1)), constant_values=-jnp.inf)) - 1.0
