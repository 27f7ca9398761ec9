"""How strongly neighbouring pixels of a map are tied: differences along its axes, and weights.

Arrays are `[*, *map]` with any axes before those of the map; of each axis of the map there is one
array of links, which is shorter by one along it.
"""

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Links = tuple[Float[Array, "..."], ...]


def differences(values: Float[Array, "..."], dims: int) -> Links:
    """Of neighbours, along each of the last `dims` axes."""
    return tuple(jnp.diff(values, axis=a) for a in range(-dims, 0))


def pulled(links: Sequence[Float[Array, "..."]]) -> Float[Array, "..."]:
    """What the links add up to at each pixel: the transpose of `differences`."""
    total = None
    for axis, link in zip(range(-len(links), 0), links, strict=True):
        sides = [(0, 0)] * link.ndim
        ahead, behind = list(sides), list(sides)
        ahead[axis], behind[axis] = (1, 0), (0, 1)
        part = jnp.pad(link, ahead) - jnp.pad(link, behind)
        total = part if total is None else total + part
    return total


def tied(weights: Links, values: Float[Array, "..."]) -> Float[Array, "..."]:
    """Half the slope of the sum of weighted squares of differences."""
    apart = differences(values, len(weights))
    return pulled([w * d for w, d in zip(weights, apart, strict=True)])


def strength(weights: Links) -> Float[Array, "..."]:
    """The sum of the weights of the links of each pixel."""
    total = None
    for axis, link in zip(range(-len(weights), 0), weights, strict=True):
        sides = [(0, 0)] * link.ndim
        ahead, behind = list(sides), list(sides)
        ahead[axis], behind[axis] = (1, 0), (0, 1)
        part = jnp.pad(link, ahead) + jnp.pad(link, behind)
        total = part if total is None else total + part
    return total


def shaken(key: Array, weights: Links, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Normal numbers with the covariance that `tied` is the matrix of; `shape` before the map."""
    keys = jax.random.split(key, len(weights))

    def of(key, weight):
        normal = jax.random.normal(key, shape + weight.shape[-len(weights) :], weight.dtype)
        return normal * jnp.sqrt(weight)

    return pulled([of(k, w) for k, w in zip(keys, weights, strict=True)])


def strain(
    weights: Links, values: Float[Array, "..."], around: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Half the weighted squares of the differences of each pixel to what is around it, were it
    alone to have `values`."""
    total = None
    for axis, weight in zip(range(-len(weights), 0), weights, strict=True):
        n = values.shape[axis]
        for step in (-1, 1):
            there = jnp.clip(jnp.arange(n) + step, 0, n - 1)
            link = jnp.clip(jnp.arange(n) + min(step, 0), 0, n - 2)
            apart = values - jnp.take(around, there, axis=axis)
            inner = (there != jnp.arange(n)).reshape(-1, *[1] * (-axis - 1))
            part = jnp.where(inner, 0.5 * jnp.take(weight, link, axis=axis) * apart**2, 0.0)
            total = part if total is None else total + part
    return total


def neighbours(values: Float[Array, "..."], dims: int) -> Iterator[Float[Array, "..."]]:
    """The values of the neighbour in each direction; at an edge those of the pixel itself."""
    for axis in range(-dims, 0):
        for step in (-1, 1):
            n = values.shape[axis]
            yield jnp.take(values, jnp.clip(jnp.arange(n) + step, 0, n - 1), axis=axis)
