"""A network's numbers as a probability density (mixture density network, Bishop 1994)."""

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float


def mixture_numbers(components: int, size: int) -> int:
    """How many numbers `normal_mixture` takes."""
    return components * (1 + size + size * (size + 1) // 2)


def normal_mixture(
    numbers: Float[Array, "*b n"], components: int, size: int
) -> dist.MixtureSameFamily:
    """Several normal laws with means, full covariances and shares, one mixture a batch element.

    All numbers at zero: equal shares of standard normal laws about means that lie apart by a tenth.

    **Arguments:**

    - `size`: of the vector that the law is of.

    **Raises:** `ValueError` for another number of numbers than `mixture_numbers`.
    """
    wanted = mixture_numbers(components, size)
    if numbers.shape[-1] != wanted:
        raise ValueError(
            f"{numbers.shape[-1]} numbers: {components} normal laws of {size} need {wanted}"
        )
    parts = numbers.reshape(*numbers.shape[:-1], components, -1)
    # equal components have equal gradients, and would stay equal for ever
    apart = 0.1 * jnp.arange(components)[:, None] * jnp.cos(jnp.arange(size) + 1.0)
    scales = jnp.exp(jnp.clip(parts[..., 1 + size : 1 + 2 * size], -7.0, 3.0))
    rows, columns = jnp.tril_indices(size, -1)
    below = jnp.zeros((*parts.shape[:-1], size, size)).at[..., rows, columns]
    root = below.set(parts[..., 1 + 2 * size :]) + jax.vmap(jnp.diag)(
        scales.reshape(-1, size)
    ).reshape(*scales.shape, size)
    laws = dist.MultivariateNormal(parts[..., 1 : 1 + size] + apart, scale_tril=root)
    return dist.MixtureSameFamily(dist.Categorical(logits=parts[..., 0]), laws)
