"""Data as instruments give them and models do not: for `stress` of problem modules."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from micjax.core.problem import InverseProblem

Data = Float[Array, "..."]
Stress = Callable[[Array, InverseProblem, Any], dict[str, Data]]

SHARE = 0.05  # of the largest value


def of_curves(axis: int = -1) -> Stress:
    """Of data with normal noise along an axis."""

    def of(key: Array, truth: InverseProblem, x) -> dict[str, Data]:
        return {
            "noise that is correlated": correlated_noise(key, truth, x, axis),
            "a drift": drift(key, truth, x, axis),
        }

    return of


def stress(key: Array, truth: InverseProblem, x) -> dict[str, Data]:
    """Of counts."""
    return {
        "twice the variance": twice_the_variance(key, truth, x),
        "an unknown background": unknown_background(key, truth, x),
    }


@eqx.filter_jit
def correlated_noise(key, truth: InverseProblem, x, axis: int = -1) -> Data:
    """Noise as large as it should be, each datum sharing half of it with the next along an axis."""
    mean, sd = _moments(truth, x)
    shape = tuple(n + (i == axis % mean.ndim) for i, n in enumerate(mean.shape))
    white = jax.random.normal(key, shape, mean.dtype)
    count = mean.shape[axis]
    first, second = (jax.lax.slice_in_dim(white, i, i + count, axis=axis) for i in (0, 1))
    return mean + sd * (first + second) / jnp.sqrt(2.0)


@eqx.filter_jit
def drift(key, truth: InverseProblem, x, axis: int = -1) -> Data:
    """White noise, and a straight line from minus to plus one standard deviation along an axis."""
    mean, sd = _moments(truth, x)
    ramp = jnp.linspace(-1.0, 1.0, mean.shape[axis], dtype=mean.dtype)
    ramp = ramp.reshape(tuple(-1 if i == axis % mean.ndim else 1 for i in range(mean.ndim)))
    return mean + sd * (jax.random.normal(key, mean.shape, mean.dtype) + ramp)


@eqx.filter_jit
def twice_the_variance(key, truth: InverseProblem, x) -> Data:
    """Counts of a detector that answers each particle with two."""
    mean, _ = _moments(truth, x)
    return 2.0 * jax.random.poisson(key, mean / 2.0).astype(mean.dtype)


@eqx.filter_jit
def unknown_background(key, truth: InverseProblem, x) -> Data:
    """Counts, with a floor of `SHARE` of the largest rate beneath them."""
    mean, _ = _moments(truth, x)
    return jax.random.poisson(key, mean + SHARE * jnp.max(mean)).astype(mean.dtype)


def _moments(truth: InverseProblem, x) -> tuple[Data, Data]:
    law = truth.noise(truth.forward(x))
    shape = law.batch_shape
    return jnp.broadcast_to(law.mean, shape), jnp.broadcast_to(jnp.sqrt(law.variance), shape)
