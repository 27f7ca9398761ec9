"""Electron optics: wavelength, aberrations, aperture, probe, contrast transfer.

Lengths are in Å, angles in mrad. Arrays are `[iy, ix]` with the corner as origin, as the FFT has
them: ky runs along axis 0, kx along axis 1, azimuth phi = atan2(ky, kx). A wave is exp(2 pi i k r),
the lens multiplies its spectrum by exp(-i chi) (Kirkland 2010, ch. 3; the signs of abTEM).

Aberrations are a dict {name: Å}. Every function takes them in Cartesian form, which is smooth
through zero: "C10", "C12a", "C12b", "C21a", ... up to "C56b". `cartesian` and `polar` convert.
"""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Complex, Float

from micjax.core.names import unknown_name

Scalar = Float[ArrayLike, ""]
Coefficients = Mapping[str, Scalar]
Angles = tuple[Float[Array, "ny 1"], Float[Array, "1 nx"]]  # (y, x) in mrad
Image = Float[Array, "ny nx"]

# CODATA 2022, SI
H, C, E, M = 6.62607015e-34, 299792458.0, 1.602176634e-19, 9.1093837139e-31

# C_nm: order n, m-fold. Rotationally symmetric ones have one number, the others two.
_TERMS = [(n, m) for n in range(1, 6) for m in range((n + 1) % 2, n + 2, 2)]
POLAR = [f"{c}{n}{m}" for n, m in _TERMS for c in (["C", "phi"] if m else ["C"])]
CARTESIAN = [f"C{n}{m}{ab}" for n, m in _TERMS for ab in (["a", "b"] if m else [""])]


def wavelength_A(energy_keV: Scalar) -> Scalar:
    """Relativistic wavelength of an electron, lambda = h c / sqrt(E (2 m c^2 + E)), in Å."""
    rest_keV = M * C**2 / E * 1e-3
    hc_keV_A = H * C / E * 1e7
    return hc_keV_A / (energy_keV * (2 * rest_keV + energy_keV)) ** 0.5


def interaction_rad_per_VA(energy_keV: Scalar) -> Scalar:
    """Phase per projected potential, sigma = 2 pi gamma m e lambda / h^2, in rad / (V Å)
    (Kirkland 2010, ch. 5)."""
    gamma = 1 + energy_keV * 1e3 * E / (M * C**2)
    # in this order no factor leaves the range of float32
    return (2 * jnp.pi * M / H * E / H * 1e-20) * gamma * wavelength_A(energy_keV)


@functools.partial(jax.jit, static_argnums=0)
def angles_mrad(
    shape: tuple[int, int], sampling_A: Float[ArrayLike, "2"] | Scalar, wavelength_A: Scalar
) -> Angles:
    """Scattering angles lambda k of the Fourier pixels of an image, as a column and a row.

    **Arguments:**

    - `sampling_A`: pixel size, one number or an array (y, x).
    """
    ny, nx = shape
    dy, dx = jnp.broadcast_to(jnp.asarray(sampling_A, dtype=float), (2,))
    y, x = jnp.fft.fftfreq(ny) / dy, jnp.fft.fftfreq(nx) / dx
    return 1e3 * wavelength_A * y[:, None], 1e3 * wavelength_A * x[None, :]


def cartesian(polar: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """C_nma = C_nm cos(m phi_nm), C_nmb = C_nm sin(m phi_nm), from {"C12": Å, "phi12": rad, ...}.

    A missing angle is 0. C10 is minus the defocus (a positive defocus is an underfocus).

    **Raises:** `ValueError` for a name that is no polar coefficient.
    """
    _known(polar, POLAR)
    out = {}
    for n, m in _TERMS:
        c, phi = polar.get(f"C{n}{m}"), polar.get(f"phi{n}{m}", 0.0)
        if c is not None and m == 0:
            out[f"C{n}{m}"] = c
        elif c is not None:
            out |= {f"C{n}{m}a": c * jnp.cos(m * phi), f"C{n}{m}b": c * jnp.sin(m * phi)}
    return out


def polar(coefficients: Coefficients) -> dict[str, Scalar]:
    """The inverse of `cartesian`: magnitudes in Å (not negative, but for m = 0) and angles in rad,
    each in (-pi/m, pi/m].

    **Raises:** `ValueError` for a name that is no Cartesian coefficient.
    """
    _known(coefficients, CARTESIAN)
    out = {}
    for n, m in _TERMS:
        if m == 0 and f"C{n}{m}" in coefficients:
            out[f"C{n}{m}"] = coefficients[f"C{n}{m}"]
        elif {f"C{n}{m}a", f"C{n}{m}b"} & set(coefficients):
            a, b = (coefficients.get(f"C{n}{m}{ab}", 0.0) for ab in "ab")
            out |= {f"C{n}{m}": jnp.hypot(a, b), f"phi{n}{m}": jnp.arctan2(b, a) / m}
    return out


def chi(angles: Angles, coefficients: Coefficients, wavelength_A: Scalar) -> Image:
    """Aberration phase in rad (Krivanek et al. 1999).

        chi = 2 pi / lambda sum_nm alpha^(n+1) / (n+1) (C_nma cos m phi + C_nmb sin m phi)

    A polynomial in (alpha_y, alpha_x): alpha^m exp(i m phi) = (alpha_x + i alpha_y)^m, and
    n + 1 - m is even.

    **Arguments:**

    - `angles`: of `angles_mrad`.
    - `coefficients`: {name: Å}, Cartesian; what is missing is 0.

    **Raises:** `ValueError` for a name that is no Cartesian coefficient.
    """
    _known(coefficients, CARTESIAN)
    y, x = (1e-3 * a for a in angles)
    squared, path = y**2 + x**2, jnp.zeros(())
    real, imaginary = jnp.ones_like(squared), jnp.zeros_like(squared)
    for m in range(7):
        for part, ab in ((real, "a" if m else ""), (imaginary, "b")):
            radial = [
                coefficients[f"C{n}{m}{ab}"] * squared ** ((n + 1 - m) // 2) / (n + 1)
                for n, of in _TERMS
                if of == m and f"C{n}{m}{ab}" in coefficients
            ]
            path += part * sum(radial)
        real, imaginary = real * x - imaginary * y, real * y + imaginary * x
    return jnp.broadcast_to(2 * jnp.pi / wavelength_A * path, squared.shape)


@jax.jit
def aperture(angles: Angles, semiangle_mrad: Scalar) -> Image:
    """Round aperture of a probe, its edge a linear ramp one Fourier pixel wide.

    clip((semiangle - alpha) / d + 1/2, 0, 1), d = sqrt((cos phi d_x)^2 + (sin phi d_y)^2), the
    pixel seen in the direction phi; the origin is open.

    A pixel stands for all directions within it, so that the probe changes less the larger the box
    is. The beams behind a crystal are discrete: they take `sharp_aperture`.
    """
    y, x = angles
    squared = y**2 + x**2
    centre = squared == 0
    safe = jnp.where(centre, 1.0, squared)
    across = ((x * (x[0, 1] - x[0, 0])) ** 2 + (y * (y[1, 0] - y[0, 0])) ** 2) / safe
    pixel = jnp.sqrt(jnp.where(centre, 1.0, across))  # a root has no slope at 0
    return jnp.where(
        centre, 1.0, jnp.clip((semiangle_mrad - jnp.sqrt(safe)) / pixel + 0.5, 0.0, 1.0)
    )


def sharp_aperture(angles: Angles, semiangle_mrad: Scalar) -> Image:
    """Round objective aperture with a hard edge, whatever the size of the box: 1 where alpha <=
    semiangle, and for a beam on the edge, else 0."""
    y, x = angles
    # the square of a beam on the edge, rounded
    return jnp.where(y**2 + x**2 <= (1.0 + 1e-5) * jnp.square(semiangle_mrad), 1.0, 0.0)


def probe(
    angles: Angles, semiangle_mrad: Scalar, coefficients: Coefficients, wavelength_A: Scalar
) -> Complex[Array, "ny nx"]:
    """Wave of a focused probe at the corner: the inverse FFT of aperture exp(-i chi), normalised so
    that sum |FFT(probe)|^2 = 1."""
    amplitude = aperture(angles, semiangle_mrad)
    phase = chi(angles, coefficients, wavelength_A)
    return _focused(amplitude, phase)


@jax.jit
def _focused(amplitude, phase):
    return jnp.fft.ifft2(amplitude * jnp.exp(-1j * phase) / jnp.linalg.norm(amplitude))


def probe_intensity(
    angles: Angles, semiangle_mrad: Scalar, coefficients: Coefficients, wavelength_A: Scalar
) -> Image:
    """Point-spread function of incoherent (HAADF) STEM: |probe|^2, which adds up to 1."""
    wave = probe(angles, semiangle_mrad, coefficients, wavelength_A)
    return wave.size * (wave.real**2 + wave.imag**2)


def focal_envelope(angles: Angles, focal_spread_A: Scalar, wavelength_A: Scalar) -> Image:
    """exp(-(pi / (2 lambda) spread alpha^2)^2), with `focal_spread_A` the 1/e half-width of the
    Gaussian of foci (Wade & Frank 1977)."""
    y, x = (1e-3 * a for a in angles)
    return jnp.exp(-((jnp.pi / (2 * wavelength_A) * focal_spread_A * (y**2 + x**2)) ** 2))


def focal_nodes_A(
    focal_spread_A: Scalar, count: int
) -> tuple[Float[Array, "count"], Float[Array, "count"]]:
    """Changes of C10 and weights that add up to 1, for a mean of intensities over the foci: the
    Gaussian of `focal_envelope` by Gauss-Hermite quadrature, where an envelope does not do (STEM,
    strong objects). So many are enough up to the angle at which pi / lambda spread alpha^2 is the
    square root of `count`."""
    nodes, weights = np.polynomial.hermite.hermgauss(count)
    return focal_spread_A * jnp.asarray(nodes), jnp.asarray(weights / np.sqrt(np.pi))


def angular_envelope(
    angles: Angles, angular_spread_mrad: Scalar, coefficients: Coefficients, wavelength_A: Scalar
) -> Image:
    """exp(-(spread / 2)^2 |grad chi|^2), the gradient with respect to the angle; the spread is the
    1/e half-width of the Gaussian of directions of illumination (Frank 1973)."""

    def phase(y, x):
        return chi((y, x), coefficients, wavelength_A)

    # pixel by pixel, so one product with ones gives every derivative
    y, x = angles
    _, along_y = jax.jvp(lambda y: phase(y, x), (y,), (jnp.ones_like(y),))
    _, along_x = jax.jvp(lambda x: phase(y, x), (x,), (jnp.ones_like(x),))
    return jnp.exp(-((angular_spread_mrad / 2) ** 2) * (along_y**2 + along_x**2))


def contrast_transfer(
    angles: Angles,
    coefficients: Coefficients,
    wavelength_A: Scalar,
    focal_spread_A: Scalar = 0.0,
    angular_spread_mrad: Scalar = 0.0,
) -> Image:
    """sin chi times both envelopes: how much of the phase of a weak object reaches the image, up to
    sign and a factor of 2 (Kirkland 2010, ch. 3)."""
    return (
        jnp.sin(chi(angles, coefficients, wavelength_A))
        * focal_envelope(angles, focal_spread_A, wavelength_A)
        * angular_envelope(angles, angular_spread_mrad, coefficients, wavelength_A)
    )


def _known(names: Mapping, allowed: list[str]) -> None:
    for name in names:
        if name not in allowed:
            raise ValueError(unknown_name("aberration coefficient", name, allowed))
