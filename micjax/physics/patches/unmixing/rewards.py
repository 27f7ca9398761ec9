"""How good an unmixing looks without the truth: smooth, free of scale, higher is better.

They stand for what is often counted instead, the connected regions of thresholded maps: counts are
flat nearly everywhere and have no derivative.
"""

import itertools

import jax.numpy as jnp
import numpy as np
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
    data: Float[Array, "p *f"], model: Float[Array, "p *f"], held: Bool[Array, "*f"]
) -> Float[Array, ""]:
    """The share of the power at frequencies which took no part in the unmixing that it explains.

    The model of each patch is scaled as suits `held`, these frequencies, best: what sparsity takes
    off all abundances of a patch is no mistake in what it is made of.
    """
    data, model = (jnp.where(held, v, 0.0).reshape(len(v), -1) for v in (data, model))
    common, size = jnp.sum(data * model, axis=1), jnp.sum(model**2, axis=1)
    explained = jnp.where(size > 0.0, common**2 / jnp.where(size > 0.0, size, 1.0), 0.0)
    return jnp.sum(explained) / jnp.sum(data**2)


def agreement(a: Float[Array, "ny nx k"], b: Float[Array, "ny nx k"]) -> Float[Array, ""]:
    """1 - half the mean difference of the shares that two runs give, such as of two seeds.

    Phases are in any order: that order counts in which the difference is least. All k! of them are
    tried, so that the function can be compiled.

    **Raises:** `ValueError` for more than 6 phases.
    """
    count = a.shape[-1]
    if count > 6:
        raise ValueError(f"the order of 6 phases at most is sought, here of {count}")
    a, b = _shares(a), _shares(b)
    apart = jnp.mean(jnp.abs(a[..., :, None] - b[..., None, :]), axis=(0, 1))
    orders = np.array(list(itertools.permutations(range(count))))
    return 1.0 - 0.5 * jnp.min(jnp.sum(apart[np.arange(count), orders], axis=1))


def shift_agreement(
    a: Float[Array, "ny nx k"], shifted: Float[Array, "ny nx k"]
) -> Float[Array, ""]:
    """`agreement` with the map of an image whose first half step of rows and columns is cut off:
    its patches lie midway between four of the patches of `a`."""
    share = _shares(a)
    rows = share[1:] + share[:-1]
    return agreement(rows[:, 1:] + rows[:, :-1], shifted[:-1, :-1])
