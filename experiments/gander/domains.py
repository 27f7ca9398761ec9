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


def film(key: Array, edge: int) -> Film:
    """One image. Strips along two directions are a-domains: polarised in the plane, they hardly
    answer, and the surface is tilted across them; what is left are c-domains of both signs, whose
    walls do not answer and have no height (a random field's zeros)."""
    of_numbers, of_fields = jax.random.split(key)
    u = jax.random.uniform(of_numbers, (STRIPES + 1, 8))
    fields = jax.random.normal(of_fields, (6, edge, edge))
    y, x = jnp.meshgrid(jnp.arange(edge) * 1.0, jnp.arange(edge) * 1.0, indexing="ij")
    low, high = PIXEL_NM
    pixel = low * (high / low) ** u[-1, 0]
    turn = 0.5 * jnp.pi * u[-1, 1]
    along, across = jnp.cos(turn) * x + jnp.sin(turn) * y, jnp.cos(turn) * y - jnp.sin(turn) * x
    height, a = jnp.zeros((edge, edge)), jnp.zeros((edge, edge))
    for i in range(STRIPES):
        there, upright, place, width, start, length, sign, _ = u[i]
        d, t = (jnp.where(upright < 0.5, p, q) for p, q in ((across, along), (along, across)))
        d = d - edge * (2.0 * place - 0.5)
        half = 0.5 * (4.0 + 10.0 * width)
        end = edge * (0.3 + 1.5 * length)
        t = t - edge * (2.0 * start - 1.0)
        ends = jax.nn.sigmoid(t) * jax.nn.sigmoid(end - t)  # a needle's tips, some pixels long
        shown = (there < 0.7) * ends
        # tilted across the domain; on both sides it comes back within a few widths
        step = jnp.clip(d, -half, half) * jnp.exp(-jnp.maximum(jnp.abs(d) - half, 0.0) / (4 * half))
        height = height + jnp.sign(sign - 0.5) * shown * TILT * pixel * step
        a = jnp.maximum(a, shown * jax.nn.sigmoid(2.0 * (half - jnp.abs(d))))
    smooth = _smooth(fields, jnp.array([6.0, 3.0, 12.0, 0.7, 0.7, 0.7]))
    c = smooth[0] / jnp.std(smooth[0])
    rough = 0.2 * smooth[1] / jnp.std(smooth[1]) + 0.6 * smooth[2] / jnp.std(smooth[2])
    lines = fields[5, :, :1]
    height = height + rough * (0.5 + u[-1, 2]) + 0.05 * lines + 0.03 * fields[4]
    size = jnp.abs(jnp.tanh(c / 0.15))
    amplitude = (1.0 - a) * size + a * 0.15 + 0.05 * smooth[3] / jnp.std(smooth[3])
    return Film(height, amplitude, a > 0.5, (size < 0.5) & (a < 0.1), pixel)


def _smooth(fields: Float[Array, "n y x"], widths_px: Float[Array, "n"]) -> Float[Array, "n y x"]:
    """Gaussian filters, periodic."""
    ky, kx = (2.0 * jnp.pi * f(fields.shape[-1]) for f in (jnp.fft.fftfreq, jnp.fft.rfftfreq))
    k_squared = ky[:, None] ** 2 + kx**2
    damped = jnp.exp(-0.5 * k_squared * widths_px[:, None, None] ** 2)
    return jnp.fft.irfft2(jnp.fft.rfft2(fields) * damped, s=fields.shape[-2:])
