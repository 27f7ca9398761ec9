"""What images say of a tip: whether it can have taken them, and how blunt it is.

A tip T can have taken the image I only if I is T-open: opening(I, T) = I. With noise an image is
open for no tip but the needle, so the misfit of the opening is held against its floor, the misfit
that noise alone makes with the same tip (a parametric bootstrap). This replaces the threshold of
the classical algorithm.

Images are `[frames, iy, ix]` in nm, one tip for all frames.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float, Key
from scipy import ndimage

from micjax.physics.tips.dilation import dilate, erode, opening

Frames = Float[Array, "frames ny nx"]
Kernel = Float[Array, "ky kx"]
Scalar = Float[ArrayLike, ""]

ALLOWANCE = 1.1  # misfit / floor of an admissible tip; 1 without any error of the tip model
CREASED = 9.0  # sigma of an image that has creases
_LAPLACIAN = 0.4009  # of the Gaussian Laplacian of one pixel on noise of unit variance
REFUTED = 5.0  # sigma by which an image must stand out of its opening to refute a tip there
_CHANCE = 15.0  # over sqrt(pixels): differences of masks below that are none
RESOLUTION = 0.01  # misfits below this fraction of the noise variance are no evidence


def noise_sigma_nm(images: Frames) -> Scalar:
    """Noise level, of white noise or of noise that went through the loop of the scanner.

    The mask [1 -4 6 -4 1] x [1 -4 6 -4 1] and the median of its modulus: the mask of Immerkaer
    1996, Comput. Vis. Image Underst. 64, 300, squared, so that texture of the surface at the scale
    of two pixels still counts as noise, but less. A loop smooths noise along the line,
    n[i+1] = rho n[i] + white (an integral gain of 1 - rho), and a mask along the line misses most
    of that. The same mask at every other pixel sees more of it, and more of the surface; by how
    much more the surface alone shows, at every other pixel across the lines, where noise is white.
    """
    return _rms(images, 1, 1) / 70 * jnp.sqrt(70 / _response(noise_along_line(images)))


def noise_along_line(images: Frames) -> Scalar:
    """Correlation rho of the noise of neighbouring pixels of a line; 0 where what the masks of
    `noise_sigma_nm` differ by may be chance."""
    if min(images.shape[1:]) < 9:  # no room for every other pixel
        return jnp.zeros((), images.dtype)
    fine = _rms(images, 1, 1)
    scale = jnp.where(fine > 0, fine, 1.0)
    more = (_rms(images, 1, 2) / scale) ** 2 - (_rms(images, 2, 1) / scale) ** 2
    rho = jnp.linspace(0.0, 0.8, 81)  # beyond, the ratio hardly tells
    ratio = _response(rho**2) / _response(rho) - 1
    likely = jnp.interp(more, ratio, rho)
    return jnp.where(more > _CHANCE / jnp.sqrt(images.size), likely, 0.0)


def _response(rho: Float[ArrayLike, "..."]) -> Float[ArrayLike, "..."]:
    """Variance of [1 -4 6 -4 1] on noise of unit variance whose neighbours correlate by rho."""
    return 70 - 112 * rho + 56 * rho**2 - 16 * rho**3 + 2 * rho**4


def _rms(images: Frames, every_y: int, every_x: int) -> Scalar:
    """Of the images below [1 -4 6 -4 1] along both axes, of every so many pixels, from the median
    of its modulus."""
    masked = images
    for axis, every in ((1, every_y), (2, every_x)):
        n = masked.shape[axis] - 4 * every
        parts = [lax.slice_in_dim(masked, k * every, k * every + n, axis=axis) for k in range(5)]
        masked = sum(w * part for w, part in zip((1, -4, 6, -4, 1), parts, strict=True))
    return jnp.median(jnp.abs(masked)) / 0.6744897501960817


def creases(images: Frames, sigma_nm: Scalar) -> float:
    """How far the sharpest upward bends of the images stand out of the noise, in its sigma.

    Where a tip goes over from one contact to the next its image has a crease, however blunt the
    tip. A smooth image has none: it may be that of a smooth surface under any tip, and tells
    nothing of it. The Laplacian at the scale of a pixel, the value that a thousandth exceeds.
    """
    bent = ndimage.gaussian_laplace(np.asarray(images, float), 1.0, axes=(1, 2))
    return float(np.quantile(bent, 0.999) / (_LAPLACIAN * sigma_nm))


def corroborated(images: Frames, tip: Kernel, sigma_nm: Scalar, depth: float) -> float:
    """The share of windows of the tip's size that refute, by themselves, a tip so much flatter.

    One sharp feature of a smooth surface is enough to set how blunt a tip may be, and then it is
    no more than a bound: the true one may be any sharper tip. The tip that did take the images
    leaves its shape all over them, and the same heights times `depth` < 1 do not fit anywhere.
    A window refutes where the opening residual exceeds `REFUTED` sigma.
    """
    opened = jax.vmap(lambda i: opening(i, depth * (tip - jnp.max(tip))))(images)
    refuted = np.asarray(images - opened) > REFUTED * float(sigma_nm)
    (_, ny, nx), (ky, kx) = refuted.shape, tip.shape
    inside = refuted[:, ky // 2 : ny - ky // 2, kx // 2 : nx - kx // 2]
    my, mx = (max(n // k, 1) for n, k in zip(inside.shape[1:], tip.shape, strict=True))
    rows = np.array_split(inside[:, : my * ky], my, axis=1)
    windows = [w.any((1, 2)) for row in rows for w in np.array_split(row[:, :, : mx * kx], mx, 2)]
    return float(np.mean(windows))


@jax.jit
def misfit(
    images: Frames, tip: Kernel, sigma_nm: Scalar, key: Key[Array, ""]
) -> tuple[Scalar, Scalar, Scalar]:
    """How far the images are from being open for `tip`.

    **Returns:** `(misfit, floor, bluntness)`: the root mean fourth power of the opening residual
    over sigma^2, the same of images that *were* taken with this tip, with fresh noise, and the mean
    height that the tip takes off the images, less what it takes off noise alone, over sigma.
    """
    eroded = jax.vmap(lambda i: erode(i, tip))(images)
    opened = jax.vmap(lambda s: dilate(s, tip))(eroded)
    return (
        spread((images - opened) / sigma_nm, tip),
        spread(noise_residual(opened, tip, sigma_nm, key) / sigma_nm, tip),
        jnp.mean(images - eroded) / sigma_nm - _carved_from_noise(images[0], tip / sigma_nm, key),
    )


def _carved_from_noise(image: Array, tip: Kernel, key: Key[Array, ""]) -> Scalar:
    """What a tip (heights in sigma) takes off a plane with noise alone, in sigma."""
    noise = jax.random.normal(jax.random.fold_in(key, 1), image.shape, image.dtype)
    return jnp.mean(noise - erode(noise, tip))


def mean_power(residual: Frames, tip: Kernel, power: int) -> Scalar:
    """Without the pixels within half a tip of the border: there the tip may have touched what lies
    outside the scan, which no surface inside can explain."""
    (_, ny, nx), (hy, hx) = residual.shape, (n // 2 for n in tip.shape)
    return jnp.mean(residual[:, hy : ny - hy, hx : nx - hx] ** power)


def spread(residual: Frames, tip: Kernel) -> Scalar:
    """Root of the mean fourth power: a blunt tip misses few features, but those by many sigma,
    which the mean square of a large image would not show. `residual` in units of the noise."""
    return jnp.sqrt(mean_power(residual, tip, 4) + 1e-12) - 1e-6  # the root has no gradient at 0


def noise_residual(opened: Frames, tip: Kernel, sigma_nm: Scalar, key: Key[Array, ""]) -> Frames:
    """The opening residual of images which `tip` did take, with fresh noise."""
    again = opened + sigma_nm * jax.random.normal(key, opened.shape, opened.dtype)
    return again - jax.vmap(lambda i: opening(i, tip))(again)


def admissible(
    misfit: Float[ArrayLike, "..."], floor: Float[ArrayLike, "..."], allowance: float = ALLOWANCE
) -> Bool[ArrayLike, "..."]:
    """Whether a tip of this misfit can have taken the images."""
    return misfit < allowance * floor + RESOLUTION


@jax.jit
def misfits(
    images: Frames, tips: Float[Array, "n ky kx"], sigma_nm: Scalar, key: Key[Array, ""]
) -> tuple[Float[Array, " n"], Float[Array, " n"], Float[Array, " n"]]:
    """`misfit` of many tips, one after the other in one compiled call."""
    return lax.map(lambda tip: misfit(images, tip, sigma_nm, key), tips)
