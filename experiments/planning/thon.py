"""At which defocus to take the next image of an amorphous film, to learn the aberrations of a lens.

Its power spectrum has rings where the contrast transfer vanishes (Thon 1966),

    P(k) = strength [(1 - E cos 2 chi) / 2] + background,

averaged over sectors of rings. Each average is of a few speckles, so it scatters as a Gamma law.
E are the envelopes of focal spread, of the angles of illumination and of the width of a ring.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float

from micjax import InverseProblem, parameter
from micjax.active.acquire.search import Box
from micjax.physics.electrons.optics import angular_envelope, chi, focal_envelope, wavelength_A

ENERGY_keV, FOCAL_SPREAD_A, ANGULAR_SPREAD_mrad = 200.0, 60.0, 0.2
RINGS, SECTORS, LOWEST, HIGHEST = 56, 4, 0.06, 0.4  # 1/Å
SPECKLES = 16.0  # in each average


class Rings(eqx.Module):
    """Power of each sector of each ring at nominal defoci, over that of the film without a lens."""

    offset_A: Float[Array, ""] = parameter()  # true minus nominal defocus
    C12a_A: Float[Array, ""] = parameter()
    C12b_A: Float[Array, ""] = parameter()
    C30_A: Float[Array, ""] = parameter()
    strength: Float[Array, ""] = parameter(default=1.0)
    background: Float[Array, ""] = parameter(default=0.1)

    def __call__(self, defocus_A: Float[Array, "n"]) -> Float[Array, "n rings sectors"]:
        wave = wavelength_A(ENERGY_keV)
        step = (HIGHEST - LOWEST) / RINGS
        k = LOWEST + step * (jnp.arange(RINGS) + 0.5)
        azimuth = jnp.pi * jnp.arange(SECTORS) / SECTORS
        direction = jnp.stack([jnp.sin(azimuth), jnp.cos(azimuth)])

        def power(defocus_A):
            lens = {"C10": -(defocus_A + self.offset_A), "C30": self.C30_A}
            lens |= {"C12a": self.C12a_A, "C12b": self.C12b_A}

            def phase(k):
                return chi(tuple(1e3 * wave * k[:, None] * direction[:, None]), lens, wave)

            at, across = jax.jvp(phase, (k,), (jnp.ones_like(k),))
            angles = tuple(1e3 * wave * k[:, None] * direction[:, None])
            # the transfer is squared, so are its envelopes; a ring averages cos 2 chi
            envelope = focal_envelope(angles, FOCAL_SPREAD_A, wave) ** 2
            envelope *= angular_envelope(angles, ANGULAR_SPREAD_mrad, lens, wave) ** 2
            blur = jnp.sinc(across * step / jnp.pi)
            return self.strength * envelope * (1 - blur * jnp.cos(2 * at)) / 2 + self.background

        return jax.vmap(power)(defocus_A)


class Speckle(eqx.Module):
    """The mean of `SPECKLES` exponential powers: Gamma(SPECKLES, SPECKLES / prediction)."""

    count: Float[Array, ""] = parameter(default=SPECKLES)

    def __call__(self, prediction: Float[Array, "..."]) -> dist.Distribution:
        return dist.Gamma(self.count, self.count / prediction)


def problem() -> InverseProblem:
    return InverseProblem(
        Rings(0.0, 0.0, 0.0, 1.2e7),
        Speckle(),
        {
            "forward.offset_A": dist.Normal(0.0, 500.0),
            "forward.C12a_A": dist.Normal(0.0, 200.0),
            "forward.C12b_A": dist.Normal(0.0, 200.0),
            "forward.C30_A": dist.Normal(1.2e7, 0.1e7),
            "forward.strength": dist.LogNormal(0.0, 0.3),
            "forward.background": dist.LogNormal(np.log(0.1), 0.5),
        },
    )


TITLE = "Nominal defocus (Å) for the aberrations of a lens"
TARGETS = {
    "forward.offset_A": 2.5,
    "forward.C12a_A": 1.25,
    "forward.C12b_A": 1.25,
    "forward.C30_A": 7e4,
}
SPACE = Box([-10000.0], [10000.0])
UNIFORM = 16
PLAN = {"draws": 32, "samples": 64, "starts": 2, "steps": 5}
LONGEST = 64
PARTICLES = 512
LABEL = "underfocus 1000, 2000, 3000, 4000 Å in turn"


def allowed(values) -> bool:
    return True


def classical(step: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.array([1000.0 * (1 + step % 4)])
