"""How good an unmixing looks without the truth: smooth, free of scale, higher is better.

They stand for what is often counted instead, the connected regions of thresholded maps: counts are
flat nearly everywhere and have no derivative.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def _shares(abundance: Float[Array, "ny nx k"]) -> Float[Array, "ny nx k"]:
    total = jnp.sum(abundance, axis=-1, keepdims=True)
    return abundance / jnp.where(total > 0.0, total, 1.0)


def purity(abundance: Float[Array, "ny nx k"]) -> Float[Array, ""]:
    """Mean sum of squared shares: 1 where each patch is one phase, 1 / k where all are mixed."""
    return jnp.mean(jnp.sum(_shares(abundance) ** 2, axis=-1))


def compactness(abundance: Float[Array, "ny nx k"]) -> Float[Array, ""]:
    """1 - the mean change of the shares between neighbours (total variation: Rudin et al. 1992)."""
    share = _shares(abundance)
    down, across = jnp.abs(jnp.diff(share, axis=0)), jnp.abs(jnp.diff(share, axis=1))
    # a change from one phase to another counts as one, although two shares change
    return 1.0 - 0.25 * (jnp.mean(jnp.sum(down, -1)) + jnp.mean(jnp.sum(across, -1)))


def balance(abundance: Float[Array, "ny nx k"]) -> Float[Array, ""]:
    """Entropy of the phases in the whole image over its largest value: 0 if all is one phase."""
    share = jnp.mean(_shares(abundance), axis=(0, 1))
    logarithm = jnp.log(jnp.where(share > 0.0, share, 1.0))
    return -jnp.sum(share * logarithm) / jnp.log(abundance.shape[-1])


def separation(abundance: Float[Array, "ny nx k"]) -> Float[Array, ""]:
    """1 - the largest cosine between the maps of two phases: 0 where two of them overlap fully."""
    maps = _shares(abundance).reshape(-1, abundance.shape[-1])
    size = jnp.linalg.norm(maps, axis=0)
    cosine = (maps.T @ maps) / jnp.maximum(size[:, None] * size, jnp.finfo(maps.dtype).tiny)
    return 1.0 - jnp.max(cosine - 2.0 * jnp.eye(len(size), dtype=maps.dtype))


def held_out(
    data: Float[Array, "p f"],
    abundance: Float[Array, "p k"],
    template: Float[Array, "k f"],
    held: Bool[Array, "f"],
) -> Float[Array, ""]:
    """The share of the power at frequencies which took no part in the unmixing that it explains."""
    left = jnp.where(held, data - abundance @ template, 0.0)
    return 1.0 - jnp.sum(left**2) / jnp.sum(jnp.where(held, data, 0.0) ** 2)


def agreement(a: Float[Array, "ny nx k"], b: Float[Array, "ny nx k"]) -> Float[Array, ""]:
    """1 - half the mean difference of the shares that two runs give: other seeds, or a shifted
    image; the phases are in the same order."""
    return 1.0 - 0.5 * jnp.mean(jnp.sum(jnp.abs(_shares(a) - _shares(b)), axis=-1))
