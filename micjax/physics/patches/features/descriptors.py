"""Numbers that describe the texture in patches of an image, whatever its brightness and contrast.

All of them are of z = (I - <I>) / sd(I) over a patch, so that I -> a I + b with a > 0 changes
nothing. Patches are `[p, h, w]`. All but the Euler characteristic, which is a count, have
gradients.
"""

from collections.abc import Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real

from micjax.core.ranges import not_negative, positive
from micjax.physics.patches.windows import Hann


def standardised(patches: Real[Array, "p h w"]) -> Float[Array, "p h w"]:
    """Of mean 0 and variance 1; 0 everywhere where a patch is constant but for rounding."""
    if not jnp.issubdtype(patches.dtype, jnp.floating):  # counts of a camera
        patches = patches.astype(float)
    inner = (1, 2)
    rounding = 8.0 * jnp.finfo(patches.dtype).eps * jnp.max(jnp.abs(patches), inner, keepdims=True)
    centred = patches - jnp.mean(patches, inner, keepdims=True)
    centred = centred - jnp.mean(centred, inner, keepdims=True)
    # first by the largest one, as a square may not be a number of this precision
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(centred), inner, keepdims=True))
    varied = largest > rounding
    unit = jnp.where(varied, centred, 0.0) / jnp.where(varied, largest, 1.0)
    variance = jnp.mean(unit**2, inner, keepdims=True)
    return unit / jnp.sqrt(jnp.where(varied, variance, 1.0))


def radial_power(
    patches: Real[Array, "p h w"], sampling_A: float, edges_perA: Sequence[float]
) -> Float[Array, "p b"]:
    """Share of the power of a patch in each ring edges[i] <= |k| < edges[i + 1], in cycles per Å.

    Power is |sum_r w(r) (z(r) - z_w) exp(-2 pi i k r)|^2 with a Hann window w and its mean z_w; the
    whole is that of all k but 0.

    **Raises:** `ValueError` for edges that do not increase from 0 or more, or a ring that holds no
    frequency of the patch.
    """
    positive(sampling_A=sampling_A)
    edges = np.asarray(edges_perA, float)
    if edges.ndim != 1 or len(edges) < 2 or not (edges[0] >= 0.0 and np.all(np.diff(edges) > 0.0)):
        raise ValueError(f"edges_perA increase from 0 or more, here {edges.tolist()}")
    shape = patches.shape[1:]
    radius = np.hypot(*np.meshgrid(*(np.fft.fftfreq(n, sampling_A) for n in shape), indexing="ij"))
    ring = np.digitize(radius, edges) - 1
    ring[0, 0] = -1
    members = ring == np.arange(len(edges) - 1)[:, None, None]
    if not (full := members.any((1, 2))).all():
        empty = int(np.argmin(full))
        raise ValueError(
            f"no frequency of a patch of {shape[0]} x {shape[1]} pixels lies from "
            f"{edges[empty]:g} to {edges[empty + 1]:g} per Å"
        )
    z = standardised(patches)
    down, across = (Hann()((jnp.arange(n) + 0.5) * 2.0 / n - 1.0).astype(z.dtype) for n in shape)
    window = down[:, None] * across
    held = window * (z - jnp.sum(window * z, (1, 2), keepdims=True) / jnp.sum(window))
    spectrum = jnp.fft.fft2(held)
    power = (spectrum.real**2 + spectrum.imag**2).at[:, 0, 0].set(0.0)
    whole = jnp.sum(power, (1, 2))
    share = jnp.einsum("phw,bhw->pb", power, members.astype(z.dtype))
    return share / jnp.where(whole > 0.0, whole, 1.0)[:, None]


class StructureTensor(NamedTuple):
    """Of each patch."""

    coherence: Float[Array, "p"]  # (l1 - l2) / (l1 + l2): 1 for stripes, 0 for no direction
    angle_rad: Float[Array, "p"]  # along which the image changes most, x towards y, within pi / 2


def structure_tensor(patches: Real[Array, "p h w"]) -> StructureTensor:
    """From J = <w grad z (grad z)^T> (Bigun & Granlund 1987), whose eigenvalues are l1 >= l2.

    Derivatives are those of Scharr (2000, Optimale Operatoren in der Digitalen Bildverarbeitung),
    whose direction is nearly right however a wave lies to the pixels; w is a Hann window, else the
    border of a patch would have a direction. Without any gradient both are 0.

    **Raises:** `ValueError` for patches below 3 x 3 pixels.
    """
    if min(patches.shape[1:]) < 3:
        raise ValueError(f"a patch has 3 x 3 pixels or more, here {patches.shape[1:]}")
    z = standardised(patches)
    y, x = z[:, 2:] - z[:, :-2], z[:, :, 2:] - z[:, :, :-2]
    dy = (3.0 * y[:, :, :-2] + 10.0 * y[:, :, 1:-1] + 3.0 * y[:, :, 2:]) / 32.0
    dx = (3.0 * x[:, :-2] + 10.0 * x[:, 1:-1] + 3.0 * x[:, 2:]) / 32.0
    down, across = (Hann()((jnp.arange(n) + 0.5) * 2.0 / n - 1.0) for n in dy.shape[1:])
    window = (down[:, None] * across).astype(z.dtype)
    xx, yy, xy = (jnp.sum(window * v, (1, 2)) for v in (dx * dx, dy * dy, dx * dy))
    squared = (xx - yy) ** 2 + (2.0 * xy) ** 2
    directed = squared > 0.0
    apart = jnp.where(directed, jnp.sqrt(jnp.where(directed, squared, 1.0)), 0.0)
    total = xx + yy
    angle = 0.5 * jnp.arctan2(jnp.where(directed, 2.0 * xy, 0.0), jnp.where(directed, xx - yy, 1.0))
    return StructureTensor(apart / jnp.where(total > 0.0, total, 1.0), angle)


class Minkowski(NamedTuple):
    """Of the part of each patch that is above each level."""

    area: Float[Array, "p l"]  # share of the patch
    perimeter_perA: Float[Array, "p l"]  # length over the area of the patch
    euler_perA2: Float[Array, "p l"]  # regions less holes, over the area of the patch


def minkowski(
    patches: Real[Array, "p h w"], sampling_A: float, levels: Sequence[float]
) -> Minkowski:
    """Minkowski functionals of {z > level}, with z linear in triangles between the pixels.

    Four triangles meet in the middle of each square of four pixels, where z is their mean. In a
    triangle of area T with values a <= b <= c at its corners the part above t is

        T [1 - (t - a)^2 / ((b - a) (c - a))]  from a to b,    T (c - t)^2 / ((c - b) (c - a))
        from b to c,

    and the line is as long as minus its derivative to t, times |grad z| (coarea formula). The Euler
    characteristic is the number of corners less edges plus triangles that lie above, which is that
    of the whole part. Where it touches the border of the patch, the border is no part of its
    perimeter. After Mantz et al. (2008, J. Stat. Mech. P12015), who use squares.

    Levels are in standard deviations from the mean of the patch: above a quantile the area would be
    the same for all.

    **Raises:** `ValueError` for patches below 2 x 2 pixels.
    """
    positive(sampling_A=sampling_A)
    if min(patches.shape[1:]) < 2:
        raise ValueError(f"a patch has 2 x 2 pixels or more, here {patches.shape[1:]}")
    z = standardised(patches)
    measures = jax.vmap(lambda level: _above(z, level), out_axes=1)
    area, perimeter, euler = measures(jnp.asarray(levels, z.dtype))
    squares = (z.shape[1] - 1) * (z.shape[2] - 1)
    return Minkowski(
        area / squares, perimeter / (squares * sampling_A), euler / (squares * sampling_A**2)
    )


def _above(z: Float[Array, "p h w"], level) -> tuple[Array, Array, Array]:
    """Area, perimeter and Euler characteristic, in pixels."""
    corners = z[:, :-1, :-1], z[:, :-1, 1:], z[:, 1:, 1:], z[:, 1:, :-1]
    middle = 0.25 * sum(corners)
    over = middle > level
    area = length = jnp.zeros(len(z), z.dtype)
    euler = _count(z > level) + _count(over)
    euler -= _count((z[:, 1:] > level) & (z[:, :-1] > level))
    euler -= _count((z[:, :, 1:] > level) & (z[:, :, :-1] > level))
    for p, q in zip(corners, corners[1:] + corners[:1], strict=True):
        euler += _count(over & (p > level) & (q > level)) - _count(over & (p > level))
        part, density = _triangle(p, q, middle, level)
        # along the side p q, and from it to the middle half a pixel away
        squared = (q - p) ** 2 + (2.0 * middle - p - q) ** 2
        steep = jnp.sqrt(jnp.where(squared > 0.0, squared, 1.0))
        area += 0.25 * jnp.sum(part, (1, 2))
        length += 0.25 * jnp.sum(jnp.where(squared > 0.0, steep * density, 0.0), (1, 2))
    return area, length, euler.astype(z.dtype)


def _count(mask) -> Array:
    return jnp.sum(mask, (1, 2), dtype=jnp.int32)


def _triangle(p, q, r, level):
    """Share of a triangle above a level, and minus its derivative to the level."""
    low, high = jnp.minimum(jnp.minimum(p, q), r), jnp.maximum(jnp.maximum(p, q), r)
    between = jnp.maximum(jnp.minimum(p, q), jnp.minimum(jnp.maximum(p, q), r))
    lower = (low < level) & (level <= between)
    upper = (between < level) & (level < high)
    below = jnp.where(lower, (between - low) * (high - low), 1.0)
    above = jnp.where(upper, (high - between) * (high - low), 1.0)
    up, down = jnp.where(lower, level - low, 0.0), jnp.where(upper, high - level, 0.0)
    whole = jnp.where(lower | (low >= level), 1.0, 0.0)
    return whole - up**2 / below + down**2 / above, 2.0 * up / below + 2.0 * down / above


def moments(patches: Real[Array, "p h w"]) -> Float[Array, "p 2"]:
    """Skewness <z^3> and excess kurtosis <z^4> - 3 of the pixels; 0 and -3 of a constant patch."""
    z = standardised(patches)
    return jnp.stack([jnp.mean(z**3, (1, 2)), jnp.mean(z**4, (1, 2)) - 3.0], axis=1)


class Descriptors(eqx.Module):
    """patches `[p, h, w]` -> `[p, d]`, called `names`; a quarter turn of a patch changes none.

    **Arguments:**

    - `sampling_A`: edge of a pixel.
    - `edges_perA`: of the rings of `radial_power`.
    - `levels`: of `minkowski`, in standard deviations.
    - `smoothing_px`: standard deviation of a Gaussian before all but the power; else noise has many
        small regions.
    """

    sampling_A: float = eqx.field(static=True)
    edges_perA: tuple[float, ...] = eqx.field(static=True)
    levels: tuple[float, ...] = eqx.field(static=True, default=(-1.0, 0.0, 1.0))
    smoothing_px: float = eqx.field(static=True, default=1.0)

    def __check_init__(self):
        positive(sampling_A=self.sampling_A)
        not_negative(smoothing_px=self.smoothing_px)

    @property
    def names(self) -> tuple[str, ...]:
        rings = zip(self.edges_perA, self.edges_perA[1:], strict=False)
        return (
            *(f"power {low:.3g} to {high:.3g} per Å" for low, high in rings),
            "coherence",
            *(f"{n} at {v:g} sd" for n in ("area", "perimeter", "Euler") for v in self.levels),
            "skewness",
            "kurtosis",
        )

    def __call__(self, patches: Real[Array, "p h w"]) -> Float[Array, "p d"]:
        power = radial_power(patches, self.sampling_A, self.edges_perA)
        smooth = smoothed(standardised(patches), self.smoothing_px)
        coherence = structure_tensor(smooth).coherence
        shapes = minkowski(smooth, self.sampling_A, self.levels)
        return jnp.concatenate([power, coherence[:, None], *shapes, moments(smooth)], axis=1)


def smoothed(patches: Float[Array, "p h w"], sigma_px: float) -> Float[Array, "p h w"]:
    """A Gaussian mean of each pixel's neighbours within the patch."""
    not_negative(sigma_px=sigma_px)
    if sigma_px == 0.0:
        return patches
    down, across = (jnp.asarray(_means(n, sigma_px), patches.dtype) for n in patches.shape[1:])
    return jnp.einsum("yh,phw,xw->pyx", down, patches, across)


def _means(n: int, sigma_px: float) -> np.ndarray:
    away = np.arange(n)[:, None] - np.arange(n)
    weight = np.exp(-0.5 * (away / sigma_px) ** 2)
    return weight / weight.sum(1, keepdims=True)
