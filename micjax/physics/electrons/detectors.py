"""What a detector makes of diffraction patterns.

A pattern is |FFT(wave)|^2, the corner as origin, `[iy, ix]`. Waves are normalised so that it adds
up to 1: a value is a fraction of the beam. Angles are in mrad, those of `optics.angles_mrad`.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Complex, Float

from micjax.physics.electrons.multislice import frequencies_inv_A
from micjax.physics.electrons.optics import Angles

Patterns = Float[Array, "... ny nx"]
Mask = Bool[Array, "ny nx"]

SAME = 1e-5  # relative: a pixel on an edge lies beyond it, whichever way its angle is rounded


def diffraction(waves: Complex[Array, "... ny nx"]) -> Patterns:
    """|FFT(wave)|^2."""
    spectrum = jnp.fft.fft2(waves)
    return spectrum.real**2 + spectrum.imag**2


def annulus(angles: Angles, inner_mrad: float, outer_mrad: float) -> Mask:
    """The pixels with inner <= angle < outer.

    **Raises:** `ValueError` where there is none.
    """
    if not 0.0 <= inner_mrad < outer_mrad:
        raise ValueError(f"a detector from {inner_mrad} to {outer_mrad} mrad is empty")
    return _within(angles, (1.0 - SAME) * inner_mrad, (1.0 - SAME) * outer_mrad)


@jax.jit
def _within(angles, least, below):
    angle = jnp.hypot(*angles)
    return (angle >= least) & (angle < below)


def segments(
    angles: Angles,
    inner_mrad: float,
    outer_mrad: float,
    rings: int = 1,
    sectors: int = 4,
    rotation_rad: float = 0.0,
) -> Bool[Array, "rings sectors ny nx"]:
    """Rings of equal width, each in equal sectors; the first sector begins at `rotation_rad` from x
    towards y."""
    edges = np.linspace(inner_mrad, outer_mrad, rings + 1)
    azimuth = jnp.mod(jnp.arctan2(*jnp.broadcast_arrays(*angles)) - rotation_rad, 2.0 * jnp.pi)
    sector = jnp.mod(jnp.floor(azimuth / (2.0 * jnp.pi / sectors) + SAME), sectors)
    return jnp.stack(
        [
            jnp.stack([annulus(angles, a, b) & (sector == i) for i in range(sectors)])
            for a, b in zip(edges[:-1], edges[1:], strict=True)
        ]
    )


def beam_stop(
    angles: Angles, radius_mrad: float, arm_mrad: float = 0.0, direction_rad: float = 0.0
) -> Mask:
    """The pixels that a beam stop leaves free: a disc over the direct beam, on an arm so wide that
    reaches the edge in this direction, from x towards y."""
    y, x = angles
    c, s = np.cos(direction_rad), np.sin(direction_rad)
    angle = jnp.hypot(y, x)
    arm = jnp.abs(c * y - s * x) < 0.5 * (1.0 - SAME) * arm_mrad
    return (angle >= (1.0 - SAME) * radius_mrad) & ~(arm & (c * x + s * y > SAME * angle))


def collected(patterns: Patterns, masks: Bool[Array, "*masks ny nx"]) -> Float[Array, "..."]:
    """The fraction of the beam that falls on each mask, `[*patterns, *masks]`."""
    weights = masks.astype(patterns.dtype)
    return jnp.tensordot(patterns, weights, axes=((-2, -1), (-2, -1)))


def rings(patterns: Patterns, angles: Angles, step_mrad: float) -> Float[Array, "... rings"]:
    """The fraction of the beam in rings of one width around the direct beam, as far as a circle
    fits: an annular detector whose angles are chosen later, since it is a sum of them.

    **Arguments:**

    - `angles`: known numbers, under `jit` as well: they decide how many there are.

    **Raises:** `ValueError` for a ring wider than the patterns.
    """
    reach = highest_annulus_mrad(angles)
    if not 0.0 < step_mrad <= (1.0 + SAME) * reach:
        raise ValueError(f"the patterns reach {reach:.4g} mrad: no ring of {step_mrad} mrad fits")
    angle = np.hypot(*map(np.asarray, angles))
    count = int(np.floor((1.0 + SAME) * reach / step_mrad))
    edges = (1.0 - SAME) * step_mrad * np.arange(1, count + 1)
    ring = np.digitize(angle, edges)
    sums = jnp.zeros((*patterns.shape[:-2], count + 1), patterns.dtype).at[..., ring].add(patterns)
    return sums[..., :count]


def highest_annulus_mrad(angles: Angles) -> float:
    """The largest circle that a pattern holds."""
    return float(min(np.abs(np.asarray(a)).max() for a in angles))


def pixelated(patterns: Patterns, angles: Angles, outer_mrad: float) -> Float[Array, "... my mx"]:
    """The pattern up to an angle, with the direct beam in the middle: an odd number of pixels.

    **Arguments:**

    - `angles`: known numbers, under `jit` as well: they decide the shape.

    **Raises:** `ValueError` for an angle that the pattern does not reach.
    """
    reach = highest_annulus_mrad(angles)
    if not 0.0 < outer_mrad <= (1.0 + SAME) * reach:
        raise ValueError(f"the patterns reach {reach:.4g} mrad; {outer_mrad} mrad was asked for")
    for axis, along in zip((-2, -1), angles, strict=True):
        pixel = float(np.asarray(along).ravel()[1])
        half = int(np.floor((1.0 + SAME) * outer_mrad / pixel))
        half = min(half, (patterns.shape[axis] - 1) // 2)
        patterns = jnp.roll(patterns, half, axis)
        patterns = jax.lax.slice_in_dim(patterns, 0, 2 * half + 1, axis=axis)
    return patterns


def centre_of_mass_mrad(patterns: Patterns, angles: Angles) -> Float[Array, "... 2"]:
    """(y, x) of the mean angle."""
    y, x = (jnp.broadcast_to(a, patterns.shape[-2:]) for a in angles)
    total = jnp.sum(patterns, (-2, -1))
    return jnp.stack([jnp.sum(patterns * a, (-2, -1)) / total for a in (y, x)], axis=-1)


def differential(
    signals: Float[Array, "... sectors"], rotation_rad: float = 0.0
) -> Float[Array, "... 2"]:
    """(y, x) of differential phase contrast: the mean direction of the sectors, as they are lit.

    A disc of radius R that is shifted by d << R has d n sin(pi / n) / (pi R), n sectors (Lazić,
    Bosch & Lazar 2016 for four).

    **Arguments:**

    - `signals`: of the sectors of one ring (`segments` of the same rotation).
    """
    count = signals.shape[-1]
    middle = rotation_rad + 2.0 * np.pi / count * (np.arange(count) + 0.5)
    along = jnp.asarray(np.stack([np.sin(middle), np.cos(middle)], -1), signals.dtype)
    return signals @ along / jnp.sum(signals, -1, keepdims=True)


def integrated(
    shift: Float[Array, "ny nx 2"], sampling: tuple[float, float]
) -> Float[Array, "ny nx"]:
    """The image whose gradient along (y, x) is nearest to `shift`, its mean 0: iCOM, iDPC.

    Least squares in Fourier space, for a periodic scan (Lazić, Bosch & Lazar 2016, eq. 24).

    **Arguments:**

    - `sampling`: distance of the positions along (y, x); the image is in units of shift times this.
    """
    ny, nx = shift.shape[:2]
    ky = 2.0 * jnp.pi * jnp.fft.fftfreq(ny, sampling[0])[:, None]
    kx = 2.0 * jnp.pi * jnp.fft.fftfreq(nx, sampling[1])[None]
    k2 = ky**2 + kx**2
    along_y, along_x = jnp.fft.fft2(shift[..., 0]), jnp.fft.fft2(shift[..., 1])
    image = (ky * along_y + kx * along_x) / (1j * jnp.where(k2 == 0.0, 1.0, k2))
    return jnp.fft.ifft2(jnp.where(k2 == 0.0, 0.0, image)).real


def blurred(patterns: Patterns, mtf: Float[ArrayLike, "ny nx"]) -> Patterns:
    """The pattern as a camera with this modulation transfer function sees it; `mtf` on the
    frequencies of `fft2`, 1 at the corner."""
    return jnp.fft.ifft2(jnp.fft.fft2(patterns) * mtf).real


def gaussian_mtf(shape: tuple[int, int], at_nyquist: float) -> Float[Array, "ny nx"]:
    """m^((f / f_N)^2): a Gaussian that is m at the highest frequency f_N of a row of pixels."""
    fy, fx = jnp.fft.fftfreq(shape[0])[:, None], jnp.fft.fftfreq(shape[1])
    return at_nyquist ** (4.0 * (fy**2 + fx**2))


def weak_phase_image(
    phase_rad: Float[Array, "... ny nx"], contrast_transfer: Float[Array, "ny nx"]
) -> Float[Array, "... ny nx"]:
    """1 + 2 F^-1[T F[phase]], the image of exp(i phase), a small phase, T of
    `optics.contrast_transfer` for aberrations that are the same in k and -k (Kirkland 2010,
    ch. 3)."""
    return 1.0 + 2.0 * blurred(phase_rad, contrast_transfer)


def source_blurred(
    image: Float[Array, "... ny nx"],
    scan_step_A: tuple[float, float],
    fwhm_A: float | Float[Array, ""],
) -> Float[Array, "... ny nx"]:
    """A scanned image of a source of a size: its mean over a Gaussian of places, whose full width
    at half of its height is `fwhm_A`.

    In Fourier space, for a periodic scan. Each detector may be blurred so, also each pixel of one.

    **Arguments:**

    - `scan_step_A`: distance of the places along (y, x).
    """
    ky, kx = frequencies_inv_A(image.shape[-2:], scan_step_A)
    variance = fwhm_A**2 / (8.0 * np.log(2.0))
    return blurred(image, jnp.exp(-2.0 * jnp.pi**2 * variance * (ky**2 + kx**2)))
