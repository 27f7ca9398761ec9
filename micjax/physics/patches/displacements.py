"""Polar displacements in perovskites, from the phases of their reflections.

Seen along an axis, a perovskite has a strong column A at the corner and a weak one B near the middle
of each cell. Where B is off the middle by u, the reflection g = (h, k) of an image has the amplitude

    F_g = f_g exp(-2 pi i g R) [1 + rho (-1)^(h + k) exp(-2 pi i g u)]

with the place R of A, which changes with the origin and with drift, and the ratio rho of B to A. The
sums of phases

    T_1 = arg F_11 - arg F_10 - arg F_01,    T_2 = arg F_1-1 - arg F_10 + arg F_01

do not depend on R (triplet invariants; Hauptman & Karle 1953, Solution of the Phase Problem), and
with e = 2 pi g u they are

    T = p(e_1 +- e_2) - m(e_1) -+ m(e_2),    p(e) = arg(1 + rho e^-ie),  m(e) = arg(1 - rho e^-ie),

near u = 0 so -2 rho / (1 - rho^2) (e_1 +- e_2). A power spectrum has no such phases: u and -u are
the same to it. Vectors are (y, x).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float, Real

from micjax.core.ranges import positive
from micjax.physics.patches import grains
from micjax.physics.patches.local_spectra import LocalSpectra, over_strips, power_of
from micjax.physics.patches.windows import Hann, Window

ORDERS = ((1, 0), (0, 1), (1, 1), (1, -1), (2, 0), (0, 2))
LARGEST = 0.25  # of the period of a reflection: a displacement along it
ROUNDS = 30  # of the correction that solves for u


def reciprocal_lattice(
    image: Real[np.ndarray, "h w"], sampling_A: float, cell_A: float
) -> Float[np.ndarray, "2 2"]:
    """Rows (y, x) of (1, 0) and (0, 1) in cycles per Å: maxima of the power of the whole image.

    The strongest one within a fifth of 1 / `cell_A`, and the strongest of those at 70 to 110 deg to
    it. An image whose drift is not corrected has the mean of it; triplets of phases are the same.

    **Raises:** `ValueError` where there are no two, or the image holds less than four cells.
    """
    positive(sampling_A=sampling_A, cell_A=cell_A)
    size = min(image.shape)
    if size * sampling_A < 4.0 * cell_A:
        raise ValueError(
            f"an edge of {size * sampling_A:.3g} Å holds less than four cells of {cell_A:g} Å"
        )
    local = LocalSpectra(Hann(), size, max(size // 2, 1), sampling_A, 1.3 / cell_A)
    power = over_strips(local, np.asarray(image, float), None, power_of, rows=1).mean((0, 1))
    waves = grains.reflections(power, local, 0.7 / cell_A) / sampling_A
    radius = np.linalg.norm(waves, axis=1)
    ring = np.abs(radius * cell_A - 1.0) < 0.2
    waves, radius = waves[ring], radius[ring]
    for j in range(1, len(waves)):
        cosine = waves[0] @ waves[j] / (radius[0] * radius[j])
        if abs(cosine) < np.cos(np.deg2rad(70.0)):
            return waves[[0, j]]
    raise ValueError(
        f"no two reflections near 1 / {cell_A:g} per Å, 70 to 110 deg apart: is this a perovskite "
        "along an axis at atomic resolution, and the pixel size right?"
    )


class Reflections(NamedTuple):
    """Local amplitudes of the reflections `ORDERS`, at places `[ny, nx]`."""

    real: Float[Array, "6 ny nx"]
    imaginary: Float[Array, "6 ny nx"]

    @property
    def amplitude(self) -> Complex[Array, "6 ny nx"]:
        return self.real + 1j * self.imaginary


def reflections(
    image: Real[Array, "h w"],
    reciprocal_perA: Real[np.ndarray, "2 2"],
    sampling_A: float,
    centres_px: tuple[Float[Array, "ny"], Float[Array, "nx"]],
    size_px: float,
    window: Window = Hann(),  # noqa: B008
) -> Reflections:
    """F_g = sum_r w(r - c) (I(r) - I_c) exp(-2 pi i g r) / sum_r w(r - c) around each place c.

    I_c is the mean of the image in the window. A Hann window of two or more whole cells sees none
    of the other reflections, where the cells lie along the axes of the image.

    **Arguments:**

    - `reciprocal_perA`: the rows (y, x) are the reflections (1, 0) and (0, 1), in cycles per Å.
    - `centres_px`: rows and columns; 0 is the middle of the first pixel.
    - `size_px`: edge of the window, which need not be whole. What of it is beyond the image is left
        out, so that places half a window from its border are the first good ones.

    **Raises:** `ValueError` for reflections along one line, or beyond half a cycle a pixel.
    """
    positive(sampling_A=sampling_A, size_px=size_px)
    cycles = np.asarray(ORDERS, float) @ np.asarray(reciprocal_perA, float) * sampling_A
    area = abs(np.linalg.det(cycles[:2]))
    if not area > 1e-6 * np.linalg.norm(cycles[0]) * np.linalg.norm(cycles[1]):
        raise ValueError(f"reflections along one line: {np.asarray(reciprocal_perA).tolist()}")
    if not (highest := np.abs(cycles).max()) < 0.5:
        raise ValueError(
            f"pixels of {sampling_A:g} Å do not resolve reflections of up to "
            f"{highest / sampling_A:.3g} per Å along an axis"
        )
    if not jnp.issubdtype(image.dtype, jnp.floating):  # counts of a camera
        image = image.astype(float)
    level = jnp.mean(image)
    with_mean = np.concatenate([np.zeros((1, 2)), cycles])
    (yc, ys), (xc, xs) = (
        _waves(n, with_mean[:, axis], centres, size_px, window, image.dtype)
        for axis, (n, centres) in enumerate(zip(image.shape, centres_px, strict=True))
    )

    def products(field):
        """Real and imaginary part of sum_r w(r - c) field(r) exp(-2 pi i g r)."""
        cosine, sine = (jnp.einsum("gyh,hw->gyw", v, field) for v in (yc, ys))
        cc, cs = (jnp.einsum("gyw,gxw->gyx", cosine, v) for v in (xc, xs))
        sc, ss = (jnp.einsum("gyw,gxw->gyx", sine, v) for v in (xc, xs))
        return cc - ss, -(cs + sc)

    real, imaginary = products(image - level)
    total, leak = products(jnp.ones(image.shape, image.dtype))
    whole = total[0]
    mean = real[0] / whole
    return Reflections(
        (real[1:] - mean * total[1:]) / whole, (imaginary[1:] - mean * leak[1:]) / whole
    )


def _waves(n: int, cycles, centres, size_px: float, window: Window, dtype):
    """w(r - c) cos and sin of 2 pi k r: (g, centres, n)."""
    along = np.arange(n)
    place = (along - jnp.asarray(centres)[:, None]) * (2.0 / size_px)
    inside = jnp.abs(place) < 1.0
    weight = jax.vmap(window)(jnp.where(inside, place, 0.0))
    weight = jnp.where(inside, weight, 0.0).astype(dtype)
    phase = 2.0 * np.pi * np.outer(cycles, along)
    return tuple(weight * jnp.asarray(f(phase)[:, None], dtype) for f in (np.cos, np.sin))


def column_ratio(
    local: Reflections, reciprocal_perA: Real[np.ndarray, "2 2"]
) -> Float[Array, ""]:
    """rho, the weak column over the strong one, from the mean power of the reflections.

    Columns are Gaussians of one width s, f_g = exp(-2 pi^2 s^2 g^2), which the ratio of {11} to
    {20} gives; then {10} over {11} is f_10 / f_11 (1 - rho) / (1 + rho). Displacements of a tenth
    of a cell make it too small by some hundredths.
    """
    squared = np.sum((np.asarray(ORDERS, float) @ np.asarray(reciprocal_perA, float)) ** 2, axis=1)
    # three families of two: mean logarithm of the amplitude, and mean g^2
    power = jnp.mean(local.real**2 + local.imaginary**2, axis=(1, 2))
    first, second, third = jnp.mean(0.5 * jnp.log(power).reshape(3, 2), axis=1)
    a, b, c = squared.reshape(3, 2).mean(1)
    slope = (second - third) / (c - b)
    odd = jnp.exp(jnp.minimum(first - second - slope * (b - a), 0.0))
    return (1.0 - odd) / (1.0 + odd)


def triplets(local: Reflections) -> Float[Array, "2 ny nx"]:
    """T_1 and T_2, in radians: phases of F_11 F_10* F_01* and F_1-1 F_10* F_01."""
    # of length 1, as a product of three may be no number of this precision
    largest = jnp.max(jnp.abs(local.real) + jnp.abs(local.imaginary))
    amplitude = local.amplitude / jnp.where(largest > 0.0, largest, 1.0)
    ten, one, plus, minus = amplitude[:4]
    return jnp.angle(jnp.stack([plus * jnp.conj(ten * one), minus * jnp.conj(ten) * one]))


def displacements(
    local: Reflections,
    reciprocal_perA: Real[np.ndarray, "2 2"],
    ratio: Float[Array, ""] | float,
) -> Float[Array, "ny nx 2"]:
    """u (y, x) in Å: how far the weak column is from the middle of four strong ones.

    A mean over the window, weighted by it. Each round corrects e by the part of T that is not
    explained, over the slope at u = 0; the error after `ROUNDS` is below 1e-6 of u up to a tenth of
    a cell. What noise leaves unexplained ends at `LARGEST` of a period.

    **Arguments:**

    - `ratio`: rho, as `column_ratio` gives it; above 0 and below 1.
    """
    measured = triplets(local)
    ratio = jnp.asarray(ratio, measured.dtype)
    slope = -2.0 * ratio / (1.0 - ratio**2)

    def correct(_, e):
        predicted = jnp.stack([_sum_of_phases(e[0], e[1], ratio), _sum_of_phases(e[0], -e[1], ratio)])
        off = jnp.angle(jnp.exp(1j * (measured - predicted))) / slope
        change = 0.5 * jnp.stack([off[0] + off[1], off[0] - off[1]])
        return jnp.clip(e + change, -2.0 * np.pi * LARGEST, 2.0 * np.pi * LARGEST)

    e = jax.lax.fori_loop(0, ROUNDS, correct, jnp.zeros_like(measured))
    inverse = np.linalg.inv(np.asarray(reciprocal_perA, float)) / (2.0 * np.pi)
    return jnp.moveaxis(jnp.einsum("yg,gnm->ynm", jnp.asarray(inverse, e.dtype), e), 0, -1)


def _sum_of_phases(first, second, ratio):
    """T of e_1 and +- e_2, where m(-e) = -m(e)."""

    def phase(e, sign: float):
        return -jnp.arctan2(sign * ratio * jnp.sin(e), 1.0 + sign * ratio * jnp.cos(e))

    return phase(first + second, 1.0) - phase(first, -1.0) - phase(second, -1.0)
