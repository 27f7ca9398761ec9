"""Spectral line shapes: the driven oscillator of a cantilever or a contact resonance.

A complex response is two real channels, in phase and in quadrature, as from a lock-in amplifier.
"""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact

from micjax.core.problem import parameter

Number = Float[Array, ""] | float


def oscillator(
    frequency_kHz: Float[Array, "..."],
    f0_kHz: Number,
    Q: Number,
    amplitude: Number = 1.0,
    phase_rad: Number = 0.0,
) -> Inexact[Array, "..."]:
    """Steady response of a driven simple harmonic oscillator, a complex number.

        h(f) = amplitude exp(i phase) f0^2 / (f0^2 - f^2 + i f0 f / Q)

    (Landau & Lifshitz, Mechanics, sec. 26; in band excitation Jesse & Kalinin 2011,
    J. Phys. D 44, 464006). At resonance |h| = Q amplitude, a quarter turn behind the drive.

    **Arguments:**

    - `frequency_kHz`: of the drive.
    - `f0_kHz`: undamped resonance; the largest |h| is at f0 sqrt(1 - 1 / (2 Q^2)).
    - `amplitude`: of the answer to a slow drive, in the units of the data.
    - `phase_rad`: of the answer to a slow drive, such as cables and electronics add.
    """
    drive = amplitude * jnp.exp(1j * jnp.asarray(phase_rad)) * f0_kHz**2
    return drive / (f0_kHz**2 - frequency_kHz**2 + 1j * f0_kHz * frequency_kHz / Q)


class Oscillator(eqx.Module):
    """The response of an `oscillator` in two channels, real and imaginary part."""

    f0_kHz: Float[Array, ""] = parameter()
    Q: Float[Array, ""] = parameter()
    amplitude: Float[Array, ""] = parameter(default=1.0)
    phase_rad: Float[Array, ""] = parameter(default=0.0)

    def __call__(self, frequency_kHz: Float[Array, " n"]) -> Float[Array, "n 2"]:
        # of real numbers: complex ones cost several times as much on a CPU
        stiff = self.f0_kHz**2 - frequency_kHz**2
        damped = self.f0_kHz * frequency_kHz / self.Q
        size = self.amplitude * self.f0_kHz**2 / (stiff**2 + damped**2)
        cos, sin = jnp.cos(self.phase_rad), jnp.sin(self.phase_rad)
        real, imaginary = cos * stiff + sin * damped, sin * stiff - cos * damped
        return jnp.stack([size * real, size * imaginary], axis=-1)
