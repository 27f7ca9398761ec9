"""Several networks that began differently, as one answer (Lakshminarayanan 2017).

They learn one after another, by `micjax.nets.train.courses(..., start=network)`: three at once
(`jax.vmap`) took 2.4 times the CPU time (`benchmarks/training.py`).
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float


class Moments(NamedTuple):
    """Of what several networks say together."""

    mean: Float[Array, "*n"]
    sd: Float[Array, "*n"]  # of the data
    between: Float[Array, "*n"]  # standard deviation of the networks, what they do not know


def moments(means: Float[ArrayLike, "m *n"], sds: Float[ArrayLike, "m *n"]) -> Moments:
    """Of an equal mixture of normal distributions, one from each network: the variance is the mean
    of their variances plus the variance of their means."""
    means, sds = jnp.asarray(means), jnp.asarray(sds)
    between = means.std(axis=0)
    return Moments(means.mean(axis=0), jnp.sqrt((sds**2).mean(axis=0) + between**2), between)
