"""Line shapes: Gaussian, Lorentzian, Voigt and their relatives.

The parametrisation is the same everywhere: `height` in units of the data, `centre` and `fwhm` (full
width at half maximum) in units of the axis, which may be an energy, a frequency, a wavenumber. The
height is that above the background at the centre, the largest value of a symmetric line.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import lax
from jaxtyping import Array, ArrayLike, Float

from micjax.core.problem import parameter
from micjax.physics.spectra.scales import Priors, scales

Axis = Float[Array, "..."]
Number = Float[Array, "..."] | float

LN2 = float(np.log(2.0))
# Python numbers: NumPy's would make float64 of float32
ROOT_LN2 = LN2**0.5
GAUSSIAN_AREA = (np.pi / LN2) ** 0.5 / 2.0  # of height and fwhm 1

# --- the Voigt function by the trapezoidal rule -------------------------------------------------
STEP = 0.67  # of the rule: 14 nodes, what is left out on either side is exp(-22)
NODES = range(-7, 7)
AT_NODES = [math.exp(-((k * STEP) ** 2)) for k in NODES]
BETWEEN_NODES = [math.exp(-(((k + 0.5) * STEP) ** 2)) for k in NODES]


def gaussian(x: Axis, height: Number, centre: Number, fwhm: Number) -> Axis:
    """height exp(-4 ln 2 (x - centre)^2 / fwhm^2); its area is 1.0645 height fwhm."""
    return height * jnp.exp(-4.0 * LN2 * ((x - centre) / fwhm) ** 2)


def lorentzian(x: Axis, height: Number, centre: Number, fwhm: Number) -> Axis:
    """height / (1 + 4 (x - centre)^2 / fwhm^2); its area is pi/2 height fwhm."""
    return height / (1.0 + 4.0 * ((x - centre) / fwhm) ** 2)


def pseudo_voigt(
    x: Axis, height: Number, centre: Number, fwhm: Number, lorentzian_share: Number
) -> Axis:
    """(1 - share) gaussian + share lorentzian, both of the same width and height (Wertheim, Butler,
    West & Buchanan 1974, Rev. Sci. Instrum. 45, 1369)."""
    u2 = ((x - centre) / fwhm) ** 2
    wings = lorentzian_share / (1.0 + 4.0 * u2)
    return height * ((1.0 - lorentzian_share) * jnp.exp(-4.0 * LN2 * u2) + wings)


@jax.custom_jvp
def voigt_function(x: Axis, y: Number) -> Axis:
    """K(x, y) = Re w(x + i y) = y/pi times the integral of exp(-t^2) / ((x - t)^2 + y^2), y >= 0.

    The trapezoidal rule with the residue of its pole (Chiarella & Reichel 1968, Math. Comp. 22,
    137; Al Azah & Chandler-Wilde 2021, SIAM J. Numer. Anal. 59, 2346, eqs. 1.7 to 1.9), on those of
    two sets of nodes which lie further from x. All terms of the sum are positive: unlike the
    rational approximation of Weideman (1994), whose real part is a small difference in the wings of
    a narrow Lorentzian, it keeps its relative precision in float32, as its slopes do: 2e-6 (1e-7 in
    float64) as far as x^2 can be written. Two exponentials, no other transcendental function.
    """
    return _voigt_and_slopes(x, y)[0]


@voigt_function.defjvp
def _(primals, tangents):
    value, by_x, by_y = _voigt_and_slopes(*primals)
    dx, dy = tangents
    return value, by_x * dx + by_y * dy


def _cos_sin(u: Axis) -> tuple[Axis, Axis]:
    """cos(pi u) and sin(pi u) of -1/2 <= u <= 1/2 by their series, to 1e-9."""
    t2 = jnp.square(np.pi * u)
    cos = sin = jnp.zeros_like(u)
    for k in range(7, -1, -1):
        cos = (-1.0) ** k / math.factorial(2 * k) + t2 * cos
        sin = (-1.0) ** k / math.factorial(2 * k + 1) + t2 * sin
    return cos, np.pi * u * sin


def _voigt_and_slopes(x: Axis, y: Number) -> tuple[Axis, Axis, Axis]:
    """K, dK/dx and dK/dy."""
    sign, x = jnp.where(x < 0.0, -1.0, 1.0).astype(x.dtype), jnp.abs(x)
    # how far x is from the nearest node, in steps; between two nodes the other set is further
    cell = x / STEP
    off = cell - jnp.round(cell)
    between = jnp.abs(off) < 0.25
    shift = jnp.where(between, 0.5 * STEP, 0.0).astype(x.dtype)
    first = even = odd = jnp.zeros_like(x + y)
    # a quotient of its own for each sum: one that they shared the compiler would write to memory
    for k, at, mid in zip(NODES, AT_NODES, BETWEEN_NODES, strict=True):
        away = x - (k * STEP + shift)
        weight = jnp.where(between, mid, at).astype(x.dtype)
        size = away**2 + y**2
        first = first + weight / size
        even = even + weight * (away**2 - y**2) / size**2
        odd = odd + weight * away / size**2
    scale = STEP / np.pi
    # the residue r = 2 exp(-z^2) G, z = x + i y, G = g / (1 + g), g = exp(2 pi i z / STEP) up to
    # its sign; beyond y = pi / STEP there is none, and at that point it is 1e-10
    inside = y < np.pi / STEP
    near = jnp.minimum(y, np.pi / STEP)
    fade = jnp.exp(-2.0 * np.pi / STEP * near)
    cos, sin = _cos_sin(2.0 * off - jnp.where(between, 0.0, jnp.sign(off)))
    bottom = 1.0 + fade * (fade + 2.0 * cos)
    G_re, G_im = fade * (cos + fade) / bottom, fade * sin / bottom
    turns = x * near / np.pi
    cos, sin = _cos_sin(turns - jnp.round(turns))  # of x y; of twice that:
    cos, sin = (cos - sin) * (cos + sin), 2.0 * sin * cos
    size = jnp.where(inside, 2.0 * jnp.exp((near - x) * (near + x)), 0.0)
    r_re, r_im = size * (G_re * cos + G_im * sin), size * (G_im * cos - G_re * sin)
    # r' = r (-2 z + 2 pi i / STEP (1 - G))
    turn = 2.0 * np.pi / STEP
    q_re, q_im = turn * G_im - 2.0 * x, turn * (1.0 - G_re) - 2.0 * near
    by_x = r_re * q_re - r_im * q_im - 2.0 * scale * y * odd
    by_y = scale * even - r_re * q_im - r_im * q_re
    return scale * y * first + r_re, sign * by_x, by_y


def voigt(
    x: Axis, height: Number, centre: Number, fwhm_gaussian: Number, fwhm_lorentzian: Number
) -> Axis:
    """A Lorentzian folded with a Gaussian: height K(u, a) / K(0, a),

    u = 2 sqrt(ln 2) (x - centre) / fwhm_gaussian, a = sqrt(ln 2) fwhm_lorentzian / fwhm_gaussian
    (Armstrong 1967, J. Quant. Spectrosc. Radiat. Transfer 7, 61).
    """
    scale = ROOT_LN2 / jnp.asarray(fwhm_gaussian)
    a = scale * fwhm_lorentzian
    u = 2.0 * scale * (x - centre)
    top = voigt_function(jnp.zeros_like(a), a)
    return height / top * voigt_function(u, a)


def voigt_fwhm(fwhm_gaussian: Number, fwhm_lorentzian: Number) -> Number:
    """The width of a `voigt` line, to 0.02 % (Olivero & Longbothum 1977, J. Quant. Spectrosc.
    Radiat. Transfer 17, 233)."""
    wide = 0.2166 * fwhm_lorentzian**2 + fwhm_gaussian**2
    return 0.5346 * fwhm_lorentzian + jnp.sqrt(wide)


def fano(x: Axis, height: Number, centre: Number, fwhm: Number, q: Number) -> Axis:
    """A resonance that interferes with a continuum: height (q + e)^2 / ((1 + q^2) (1 + e^2)),

    e = 2 (x - centre) / fwhm (Fano 1961, Phys. Rev. 124, 1866, eq. 21). The largest value is the
    height, at e = 1 / q; at e = -q there is nothing; far away stays the continuum
    height / (1 + q^2). Large |q| is a Lorentzian.
    """
    e = 2.0 * (x - centre) / fwhm
    return height * (q + e) ** 2 / ((1.0 + jnp.square(q)) * (1.0 + e**2))


def doniach_sunjic(
    x: Axis, height: Number, centre: Number, fwhm: Number, asymmetry: Number
) -> Axis:
    """A core line of a metal, its tail towards large x (binding energy or energy loss),

        height cos(pi a/2 - (1 - a) atan e) / (cos(pi a/2) (1 + e^2)^((1 - a)/2)),

    e = 2 (x - centre) / fwhm, a = asymmetry, 0 <= a < 1 (Doniach & Sunjic 1970, J. Phys. C 3, 285,
    eq. 20). `height` is that at the centre, which is not quite the top; a = 0 is a Lorentzian of
    this fwhm.
    """
    e = 2.0 * (x - centre) / fwhm
    quarter = 0.5 * np.pi * jnp.asarray(asymmetry)
    rest = 1.0 - asymmetry
    fall = jnp.exp(-0.5 * rest * jnp.log1p(e**2))
    return height * fall * jnp.cos(quarter - rest * jnp.arctan(e)) / jnp.cos(quarter)


def erf_step(x: Axis, height: Number, centre: Number, fwhm: Number) -> Axis:
    """A step from 0 to `height` seen with a Gaussian resolution of `fwhm`."""
    return 0.5 * height * (1.0 + lax.erf(2.0 * ROOT_LN2 * (x - centre) / fwhm))


def arctan_step(x: Axis, height: Number, centre: Number, fwhm: Number) -> Axis:
    """A step from 0 to `height` seen with a Lorentzian resolution of `fwhm`, as an absorption edge
    with a core hole of that width (Richtmyer, Barnes & Ramberg 1934, Phys. Rev. 46, 843)."""
    return height * (0.5 + jnp.arctan(2.0 * (x - centre) / fwhm) / np.pi)


# --- modules ------------------------------------------------------------------------------------


class _Line(eqx.Module):
    """What all lines have: `height` in units of y, `centre` and `fwhm` in units of x."""

    height: Float[Array, ""] = parameter()
    centre: Float[Array, ""] = parameter()
    fwhm: Float[Array, ""] = parameter()

    @classmethod
    def priors(cls, x: ArrayLike, y: ArrayLike) -> Priors:
        """Weak priors of the fields, of data `y` `[..., n]` on the axis `x` `[n]`."""
        s = scales(x, y)
        return {"height": s.height(), "centre": s.place(), "fwhm": s.width()}


class GaussianLine(_Line):
    """A `gaussian` line."""

    def __call__(self, x: Axis) -> Axis:
        return gaussian(x, self.height, self.centre, self.fwhm)

    def area(self) -> Float[Array, ""]:
        return GAUSSIAN_AREA * self.height * self.fwhm


class LorentzianLine(_Line):
    """A `lorentzian` line."""

    def __call__(self, x: Axis) -> Axis:
        return lorentzian(x, self.height, self.centre, self.fwhm)

    def area(self) -> Float[Array, ""]:
        return np.pi / 2.0 * self.height * self.fwhm


class PseudoVoigtLine(_Line):
    """A `pseudo_voigt` line; `lorentzian_share` from 0 (Gaussian) to 1 (Lorentzian)."""

    lorentzian_share: Float[Array, ""] = parameter(default=0.5)

    def __call__(self, x: Axis) -> Axis:
        return pseudo_voigt(x, self.height, self.centre, self.fwhm, self.lorentzian_share)

    def area(self) -> Float[Array, ""]:
        share = self.lorentzian_share
        per_box = (1.0 - share) * GAUSSIAN_AREA + share * np.pi / 2.0
        return per_box * self.height * self.fwhm

    @classmethod
    def priors(cls, x: ArrayLike, y: ArrayLike) -> Priors:
        """Weak priors of the fields; the share is uniform."""
        return super().priors(x, y) | {"lorentzian_share": dist.Uniform(0.0, 1.0)}


class VoigtLine(eqx.Module):
    """A `voigt` line: `height` in units of y; `centre`, `fwhm_gaussian` (of the instrument, as a
    rule) and `fwhm_lorentzian` (of the lifetime) in units of x."""

    height: Float[Array, ""] = parameter()
    centre: Float[Array, ""] = parameter()
    fwhm_gaussian: Float[Array, ""] = parameter()
    fwhm_lorentzian: Float[Array, ""] = parameter()

    def __call__(self, x: Axis) -> Axis:
        return voigt(x, self.height, self.centre, self.fwhm_gaussian, self.fwhm_lorentzian)

    def fwhm(self) -> Float[Array, ""]:
        return voigt_fwhm(self.fwhm_gaussian, self.fwhm_lorentzian)

    def area(self) -> Float[Array, ""]:
        a = ROOT_LN2 * self.fwhm_lorentzian / self.fwhm_gaussian
        top = voigt_function(jnp.zeros_like(a), a)
        return self.height * self.fwhm_gaussian * GAUSSIAN_AREA / top

    @classmethod
    def priors(cls, x: ArrayLike, y: ArrayLike) -> Priors:
        """Weak priors of the fields, of data `y` `[..., n]` on the axis `x` `[n]`."""
        s = scales(x, y)
        widths = {"fwhm_gaussian": s.width(), "fwhm_lorentzian": s.width()}
        return {"height": s.height(), "centre": s.place()} | widths


class FanoLine(_Line):
    """A `fano` resonance; `q` without unit, of either sign."""

    q: Float[Array, ""] = parameter(default=1.0)

    def __call__(self, x: Axis) -> Axis:
        return fano(x, self.height, self.centre, self.fwhm, self.q)

    @classmethod
    def priors(cls, x: ArrayLike, y: ArrayLike) -> Priors:
        """Weak priors of the fields; q is normal, of a standard deviation of 5."""
        return super().priors(x, y) | {"q": dist.Normal(0.0, 5.0)}


class DoniachSunjicLine(_Line):
    """A `doniach_sunjic` line; `asymmetry` from 0 to 1, 0.05 to 0.2 in metals."""

    asymmetry: Float[Array, ""] = parameter(default=0.1)

    def __call__(self, x: Axis) -> Axis:
        return doniach_sunjic(x, self.height, self.centre, self.fwhm, self.asymmetry)

    @classmethod
    def priors(cls, x: ArrayLike, y: ArrayLike) -> Priors:
        """Weak priors of the fields; of the asymmetry Beta(1, 4)."""
        return super().priors(x, y) | {"asymmetry": dist.Beta(1.0, 4.0)}


class EdgeStep(_Line):
    """An `erf_step`: an edge seen with a Gaussian resolution."""

    def __call__(self, x: Axis) -> Axis:
        return erf_step(x, self.height, self.centre, self.fwhm)
