"""Windows of a patch, along one axis: place (-1 to 1, from edge to edge) -> weight."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from micjax.core.problem import parameter


class Hann(eqx.Module):
    """cos^2(pi t / 2)."""

    def __call__(self, place: Float[Array, "n"]) -> Float[Array, "n"]:
        return jnp.cos(0.5 * jnp.pi * place) ** 2


class GaussianWindow(eqx.Module):
    """exp(-t^2 / (2 width^2)), `width` in halves of the patch: a gradient can change it."""

    width: Float[Array, ""] = parameter(default=0.4)

    def __call__(self, place: Float[Array, "n"]) -> Float[Array, "n"]:
        return jnp.exp(-0.5 * (place / self.width) ** 2)


class Kaiser(eqx.Module):
    """I0(beta sqrt(1 - t^2)) / I0(beta) (Kaiser & Schafer 1980, eq. 1)."""

    beta: Float[Array, ""] = parameter(default=8.0)

    def __call__(self, place: Float[Array, "n"]) -> Float[Array, "n"]:
        root = jnp.sqrt(jnp.maximum(1.0 - place**2, 0.0))
        # through exp(-x) I0(x), as I0 itself overflows
        scaled = jax.scipy.special.i0e(self.beta * root) / jax.scipy.special.i0e(self.beta)
        return scaled * jnp.exp(self.beta * (root - 1.0))


Window = Hann | GaussianWindow | Kaiser
