"""Polar displacements in perovskites, from the reflections of patches of an image.

Seen along an axis, a perovskite has a strong column A at the corner and a weak one B near the
middle of each cell. Where B is off the middle by u, the reflection g = (h, k) of a patch is

    F_g = s exp(-2 pi i g R) [A_g + (-1)^(h + k) B_g exp(-2 pi i g u)]
    A_g = exp(-2 pi^2 b^2 g^2),    B_g = rho A_g

with Gaussian columns of width b, the ratio rho of B to A, and in each patch the place R of A, which
changes with the origin and with drift, and the scale s. Least squares over the reflections are what
noise of the same variance in all pixels asks for. A power spectrum has no phases: u and -u are the
same to it. The mean over many cells takes the place of the four A columns around each B (Jia et al.
2007, Nature Materials 6, 64). Vectors are (y, x).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Real

from micjax.core.ranges import positive
from micjax.physics.patches import grains
from micjax.physics.patches.local_spectra import LocalSpectra, over_strips, power_of
from micjax.physics.patches.windows import Hann, Window

# families of equal g^2 in a square lattice: the first three tell the ratio and the width of columns
ORDERS = (
    *((1, 0), (0, 1), (1, 1), (1, -1), (2, 0), (0, 2)),
    *((2, 1), (2, -1), (1, 2), (1, -2), (2, 2), (2, -2)),
)
LARGEST = 0.25  # of the edge of a cell: a displacement along it
ROUNDS = 12  # of Gauss-Newton
DAMPING = 1e-3  # of the diagonal of its matrix


def reciprocal_lattice(
    image: Real[np.ndarray, "h w"], sampling_A: float, cell_A: float
) -> Float[np.ndarray, "2 2"]:
    """Rows (y, x) of (1, 0) and (0, 1) in cycles per Å: maxima of the power of the whole image.

    The strongest one within a fifth of 1 / `cell_A`, and the strongest of those at 70 to 110 deg to
    it. Where drift is not corrected it is that of the whole image on average.

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
    """Local amplitudes F of the reflections `ORDERS`, at places `[ny, nx]`."""

    real: Float[Array, "g ny nx"]
    imaginary: Float[Array, "g ny nx"]


def reflections(
    image: Real[Array, "h w"],
    reciprocal_perA: Real[np.ndarray, "2 2"],
    sampling_A: float,
    centres_px: tuple[Float[ArrayLike, "ny"], Float[ArrayLike, "nx"]],
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


class Columns(NamedTuple):
    """Of the whole image."""

    ratio: Float[Array, ""]  # rho, weak over strong
    width_A: Float[Array, ""]  # b, standard deviation


def columns(local: Reflections, reciprocal_perA: Real[np.ndarray, "2 2"]) -> Columns:
    """From the mean power of the reflections as if u = 0: the image need hold no vacuum.

    {11} over {20} is exp(2 pi^2 b^2 (g_20^2 - g_11^2)), and {10} over {11} tells
    (1 - rho) / (1 + rho). Displacements of a tenth of a cell make rho too small by a tenth or two
    of itself, which changes u by less than 1 %.
    """
    squared = _squared_perA2(reciprocal_perA)[:6].reshape(3, 2).mean(1)
    power = jnp.mean(local.real[:6] ** 2 + local.imaginary[:6] ** 2, axis=(1, 2))
    ten, eleven, twenty = jnp.mean(0.5 * jnp.log(power).reshape(3, 2), axis=1)
    fall = jnp.maximum((eleven - twenty) / (squared[2] - squared[1]), 0.0)
    odd = jnp.exp(ten - eleven - fall * (squared[1] - squared[0]))
    return Columns(
        jnp.clip((1.0 - odd) / (1.0 + odd), 0.01, 0.99), jnp.sqrt(fall / (2.0 * np.pi**2))
    )


def _squared_perA2(reciprocal_perA) -> np.ndarray:
    return np.sum((np.asarray(ORDERS, float) @ np.asarray(reciprocal_perA, float)) ** 2, axis=1)


class Displacements(NamedTuple):
    """Of B from the middle of four A, a mean over the window of each place."""

    shift_A: Float[Array, "ny nx 2"]  # u (y, x)
    sd_A: Float[Array, "ny nx 2"]  # from what the reflections leave unexplained


def displacements(
    local: Reflections, reciprocal_perA: Real[np.ndarray, "2 2"], column: Columns
) -> Displacements:
    """u at each place, by least squares over R, u and s.

    It begins at u = 0, with R from the phases of (1, 0) and (0, 1): near enough where rho is 0.6 or
    less, while columns that are nearly alike (0.8) may end at another minimum. What noise leaves
    undecided ends at `LARGEST` of a cell. Brightness and contrast change nothing.
    """
    real, imaginary = (jnp.moveaxis(v, 0, -1) for v in local)
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(real) + jnp.abs(imaginary)))
    unit = jnp.where(largest > 0.0, largest, 1.0)
    squared = jnp.asarray(_squared_perA2(reciprocal_perA), real.dtype)
    envelope = jnp.exp(-2.0 * np.pi**2 * column.width_A**2 * squared).astype(real.dtype)
    solve = jax.vmap(jax.vmap(_solved, (0, 0, None, None)), (0, 0, None, None))
    e, variance = solve(real / unit, imaginary / unit, envelope, column.ratio.astype(real.dtype))
    inverse = jnp.asarray(np.linalg.inv(np.asarray(reciprocal_perA, float)) / (2.0 * np.pi))
    inverse = inverse.astype(real.dtype)
    sd = jnp.sqrt(jnp.einsum("yg,nmgf,yf->nmy", inverse, variance, inverse))
    return Displacements(jnp.einsum("yg,nmg->nmy", inverse, e), sd)


def _solved(real, imaginary, envelope, ratio):
    """e = 2 pi g u of (1, 0) and (0, 1), and its covariance."""
    orders = jnp.asarray(ORDERS, real.dtype)
    weak = ratio * (-1.0) ** orders.sum(1)
    data = jnp.concatenate([real, imaginary])

    def model(x):
        place, off = orders @ x[:2], orders @ (x[:2] + x[2:4])
        cosine = jnp.cos(place) + weak * jnp.cos(off)
        sine = jnp.sin(place) + weak * jnp.sin(off)
        return x[4] * jnp.concatenate([envelope * cosine, -envelope * sine])

    def equations(x):
        slope = jax.jacfwd(model)(x)
        return slope.T @ slope, slope.T @ (data - model(x))

    def step(_, x):
        matrix, right = equations(x)
        diagonal = jnp.diag(matrix)
        floor = jnp.finfo(data.dtype).eps * jnp.max(diagonal) + jnp.finfo(data.dtype).tiny
        x = x + jnp.linalg.solve(matrix + jnp.diag(DAMPING * diagonal + floor), right)
        bound = 2.0 * np.pi * LARGEST
        return x.at[2:4].set(jnp.clip(x[2:4], -bound, bound))

    phase = -jnp.arctan2(imaginary[:2], real[:2])
    flat = jnp.concatenate([phase, jnp.zeros(2, data.dtype), jnp.ones(1, data.dtype)])
    first = model(flat)
    scale = jnp.sum(first * data) / jnp.sum(first**2)
    x = jax.lax.fori_loop(0, ROUNDS, step, flat.at[4].set(scale))
    matrix, _ = equations(x)
    floor = jnp.finfo(data.dtype).eps * jnp.max(jnp.diag(matrix)) + jnp.finfo(data.dtype).tiny
    variance = jnp.sum((data - model(x)) ** 2) / (len(data) - len(x))
    return x[2:4], variance * jnp.linalg.inv(matrix + floor * jnp.eye(len(x)))[2:4, 2:4]
