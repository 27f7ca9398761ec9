"""The forward model of `micjax.problems.phase_map`: patches as sums of turned templates."""

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float, Int

from micjax.core.problem import parameter
from micjax.physics.noise import Rice
from micjax.physics.patches.polar import Polar
from micjax.problems.phase_map.naming import KnownCrystals


class SampledPatches(NamedTuple):
    """Which patches were looked at, and the image that they are from."""

    index: Int[Array, "n"]  # among the patches of the model
    corner_px: Int[Array, "n 2"]  # first row and first column
    image: Float[Array, "h w"]
    measured: Float[Array, "h w"] | None  # 0 in holes


class Truth(NamedTuple):
    """Of each pixel of an image that was made up."""

    phase: Int[Array, "h w"]  # as many as there are phases where there is no crystal
    angle_rad: Float[Array, "h w"]


class RicianWithModelError(eqx.Module):
    """Rician noise whose variance grows by (model_error prediction)^2.

    A grain is strained, its neighbours reach into the window, reflections of two grains add up with
    their phases: none of it is in a sum of templates, and all of it is in proportion to them.
    """

    sigma: Float[Array, "..."] = parameter()
    model_error: Float[Array, ""] = parameter()

    def __call__(self, prediction: Float[Array, "..."]) -> dist.Distribution:
        return Rice(prediction, jnp.hypot(self.sigma, self.model_error * prediction))


class PatchMixture(eqx.Module):
    """Amplitudes of the spectra of patches, in polar coordinates; a usual one has length 1.

        y_p(r, t) = sum_i weight_pi template_k(p,i)(r, t - angle_pi),    i = 1, 2

    A turn by any angle is a phase of the Fourier series along t, of which half a turn is a period.
    Which template an atom is of is no unknown of a gradient: a search decides it.
    """

    template: Float[Array, "k r t"] = parameter()
    weight: Float[Array, "n 2"] = parameter()
    angle_rad: Float[Array, "n 2"] = parameter()
    phase: Int[Array, "n 2"]
    polar: Polar
    cell_A: float = eqx.field(static=True)  # about the edge of a unit cell
    phases: int = eqx.field(static=True)  # 0: as many as the patches show, at most k
    truth: Truth | None = None
    known: KnownCrystals | None = None

    def __call__(self, x: SampledPatches) -> Float[Array, "p r t"]:
        angles, of = self.template.shape[-1], x.index
        series = jnp.fft.rfft(self.template)
        order = 2.0 * jnp.arange(series.shape[-1])
        turn = jnp.exp(-1j * order * self.angle_rad[of][..., None])  # (p, 2, m)
        # summed over both atoms: at a patch (r, m)
        mixed = jnp.einsum("pi,pirm,pim->prm", self.weight[of], series[self.phase[of]], turn)
        # what turns between the steps of the angle leave below zero
        return jnp.maximum(jnp.fft.irfft(mixed, n=angles), 0.0)
