"""Made-up ferroelectric films: a- and c-domains, their height and their piezoresponse."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

STRIPES = 8  # a-domains of an image, at most
TILT = jnp.tan(jnp.deg2rad(3.5))  # of the surface at the wall of an a-domain, atan(c / a - 1)
PIXEL_NM = (4.0, 12.0)


class Film(NamedTuple):
    """Of each pixel."""

    height_nm: Float[Array, "*b y x"]
    amplitude: Float[Array, "*b y x"]  # of piezoresponse, in units of that of a c-domain
    a_domain: Bool[Array, "*b y x"]
    c_wall: Bool[Array, "*b y x"]  # between c-domains of both signs, which no height shows
    pixel_nm: Float[Array, "*b"]
    numbers: Float[Array, "*b n 8"]  # between 0 and 1, from which strips follow
    roughness: Float[Array, "*b y k"]  # variance of the Fourier coefficients of what is no strip


def film(key: Array, edge: int) -> Film:
    """One image. Strips along two directions are a-domains: polarised in the plane, they hardly
    answer, and the surface is tilted across them; what is left are c-domains of both signs, whose
    walls do not answer and have no height (a random field's zeros)."""
    of_numbers, of_fields = jax.random.split(key)
    u = jax.random.uniform(of_numbers, (STRIPES + 1, 8))
    fields = jax.random.normal(of_fields, (6, edge, edge))
    low, high = PIXEL_NM
    pixel = low * (high / low) ** u[-1, 0]
    along, across = axes(u[-1, 1], edge)
    tilts, a_domains = jax.vmap(lambda n: stripe(n, along, across, edge))(u[:STRIPES])
    height, a = TILT * pixel * tilts.sum(axis=0), a_domains.max(axis=0)
    smooth = _smooth(fields, jnp.array([6.0, 3.0, 12.0, 0.7, 0.7, 0.7]))
    c = smooth[0] / jnp.std(smooth[0])
    waves = (0.5 + u[-1, 2]) * jnp.array([0.2, 0.6]) / jnp.std(smooth[1:3], axis=(-2, -1))
    lines = fields[5, :, :1]
    height = height + jnp.tensordot(waves, smooth[1:3], 1) + 0.05 * lines + 0.03 * fields[4]
    roughness = jnp.tensordot(waves**2, _damped(edge, jnp.array([3.0, 12.0])) ** 2, 1) + 0.03**2
    roughness = edge**2 * roughness.at[:, 0].add(edge * 0.05**2)  # lines have no wave along x
    size = jnp.abs(jnp.tanh(c / 0.15))
    amplitude = (1.0 - a) * size + a * 0.15 + 0.05 * smooth[3] / jnp.std(smooth[3])
    return Film(height, amplitude, a > 0.5, (size < 0.5) & (a < 0.1), pixel, u, roughness)


def stripe(
    u: Float[Array, "8"], along: Float[Array, "y x"], across: Float[Array, "y x"], edge: int
) -> tuple[Float[Array, "y x"], Float[Array, "y x"]]:
    """One strip: its height in units of `TILT` times a pixel, and 1 inside, 0 outside, both zero
    where it is not there.

    **Arguments:**

    - `u`: between 0 and 1, from which all of it follows.
    """
    there, upright, place, width, start, length, sign, _ = u
    d, t = (jnp.where(upright < 0.5, p, q) for p, q in ((across, along), (along, across)))
    d = d - edge * (2.0 * place - 0.5)
    half = 0.5 * (4.0 + 10.0 * width)
    end = edge * (0.3 + 1.5 * length)
    t = t - edge * (2.0 * start - 1.0)
    ends = jax.nn.sigmoid(t) * jax.nn.sigmoid(end - t)  # a needle's tips, some pixels long
    shown = (there < 0.7) * ends
    # tilted across the domain; on both sides it comes back within a few widths
    step = jnp.clip(d, -half, half) * jnp.exp(-jnp.maximum(jnp.abs(d) - half, 0.0) / (4 * half))
    return jnp.sign(sign - 0.5) * shown * step, shown * jax.nn.sigmoid(2.0 * (half - jnp.abs(d)))


def axes(turn: Float[Array, ""], edge: int) -> tuple[Float[Array, "y x"], Float[Array, "y x"]]:
    """Coordinates along and across the strips (pixels), turned by `turn` of a right angle."""
    y, x = jnp.meshgrid(jnp.arange(edge) * 1.0, jnp.arange(edge) * 1.0, indexing="ij")
    cos, sin = jnp.cos(0.5 * jnp.pi * turn), jnp.sin(0.5 * jnp.pi * turn)
    return cos * x + sin * y, cos * y - sin * x


def _smooth(fields: Float[Array, "n y x"], widths_px: Float[Array, "n"]) -> Float[Array, "n y x"]:
    """Gaussian filters, periodic."""
    damped = _damped(fields.shape[-1], widths_px)
    return jnp.fft.irfft2(jnp.fft.rfft2(fields) * damped, s=fields.shape[-2:])


def _damped(edge: int, widths_px: Float[Array, "n"]) -> Float[Array, "n y k"]:
    """What Gaussian filters leave of waves."""
    ky, kx = (2.0 * jnp.pi * f(edge) for f in (jnp.fft.fftfreq, jnp.fft.rfftfreq))
    return jnp.exp(-0.5 * (ky[:, None] ** 2 + kx**2) * widths_px[:, None, None] ** 2)
