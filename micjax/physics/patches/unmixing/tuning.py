"""Abundances as a smooth function of how one looks: width of the window, band, sparsity.

Which patches show one phase alone, and how each is turned, is held. Templates are their means, made
anew for each window and band, and abundances are those of least squares, whose derivatives are
implicit. So a gradient finds the window, where a search would try one after the other.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Real

from micjax.physics.patches.polar import Polar
from micjax.physics.patches.unmixing import rewards
from micjax.physics.patches.unmixing.equivariant import Code, correlations, turned
from micjax.physics.patches.unmixing.nnls import nonnegative

SOFT = 0.05  # of the highest radius: over which the ends of the band fall


class Look(NamedTuple):
    """How patches are looked at."""

    width: Float[Array, ""]  # of the Gaussian window, in halves of a patch
    k_min_perA: Float[Array, ""]
    k_max_perA: Float[Array, ""]
    l1: Float[Array, ""]  # where 1 is the abundance of a patch of one phase


class PurePatches(NamedTuple):
    """What the templates are means of."""

    weight: Float[Array, "p k"]  # of each patch in each template
    turn: Int[Array, "p"]  # in steps of the angle


class Seen(NamedTuple):
    abundance: Float[Array, "ny nx k"]
    explained: Float[Array, ""]  # share of the power of the patches, on average


def pure_patches(code: Code, count: int, share: float = 0.2) -> PurePatches:
    """Of each phase the share of its patches in which its first atom exceeds the second most."""
    phase, weight = np.asarray(code.phase[:, 0]), np.asarray(code.weight)
    alone = weight[:, 0] - weight[:, 1]
    chosen = np.zeros((len(phase), count))
    for k in range(count):
        of = np.flatnonzero(phase == k)
        best = of[np.argsort(-alone[of])[: max(1, round(share * len(of)))]]
        chosen[best, k] = 1.0 / max(len(best), 1)
    return PurePatches(jnp.asarray(chosen, code.weight.dtype), code.turn[:, 0])


def as_seen(look: Look, image: Real[Array, "h w"], polar: Polar, pure: PurePatches) -> Seen:
    """Abundances of all patches of an image.

    `polar` has a `GaussianWindow`, and radii as far as a band may go.
    """
    return unmixed_rings(look, rings_of(look.width, image, polar), polar, pure)


def rings_of(
    width: Float[Array, ""], image: Real[Array, "h w"], polar: Polar
) -> Float[Array, "ny nx r t"]:
    """Amplitudes of the patches under a window of this width, for all bands and sparsities."""
    polar = eqx.tree_at(lambda p: p.local.window.width, polar, width)
    return polar(polar.local(image))


def unmixed_rings(
    look: Look, rings: Float[Array, "ny nx r t"], polar: Polar, pure: PurePatches
) -> Seen:
    """`as_seen` of `rings_of` its width."""
    grid = rings.shape[:2]
    rings = _unit(_within_band(look, rings, polar))
    templates = _unit(_templates(rings, pure))
    # of whatever angle suits best
    gram, products = (jnp.max(correlations(v, templates), axis=-1) for v in (templates, rings))
    a = nonnegative(gram, products - look.l1)
    explained = jnp.mean(jnp.sum(a * (2.0 * products - a @ gram), axis=1))
    return Seen(a.reshape(*grid, -1), explained)


def held_out_rings(
    look: Look,
    rings: Float[Array, "ny nx r t"],
    polar: Polar,
    pure: PurePatches,
    held: Bool[Array, "r"],
) -> Float[Array, ""]:
    """`rewards.held_out` of radii that neither abundances nor angles of the templates have seen.

    `pure` is to be learnt without them as well. A reflection is as wide as the spectrum of the
    window, so that neighbouring radii tell of each other: hold out bands of them
    (`alternate_bands`).
    """
    held = held[:, None]
    rings = _within_band(look, rings, polar)
    rings = rings / _size(jnp.where(held, 0.0, rings))
    templates = _templates(rings, pure)
    templates = templates / _size(jnp.where(held, 0.0, templates))
    seen = jnp.where(held, 0.0, templates)
    gram = jnp.max(correlations(seen, seen), axis=-1)
    at_angles = correlations(jnp.where(held, 0.0, rings), seen)
    a = nonnegative(gram, jnp.max(at_angles, axis=-1) - look.l1)
    turn = jnp.argmax(at_angles, axis=-1)
    model = jnp.zeros_like(rings)
    for k, template in enumerate(templates):
        placed = turned(jnp.broadcast_to(template, rings.shape), turn[:, k])
        model += a[:, k, None, None] * placed
    return rewards.held_out(rings, model, jnp.broadcast_to(held, rings.shape[1:]))


def alternate_bands(radii: int, each: int = 4) -> Bool[np.ndarray, "r"]:
    """Every other band of `each` radii."""
    return (np.arange(radii) // each) % 2 == 1


def _within_band(look: Look, rings, polar: Polar) -> Float[Array, "p r t"]:
    rings = rings * _band(look, polar, rings.dtype)[:, None]
    return rings.reshape(-1, *rings.shape[2:])


def _templates(rings, pure: PurePatches) -> Float[Array, "k r t"]:
    return jnp.einsum("pk,prt->krt", pure.weight, turned(rings, -pure.turn))


def _band(look: Look, polar: Polar, dtype) -> Float[Array, "r"]:
    radius = jnp.asarray(polar.grid.radius_perA, dtype)
    soft = SOFT * radius[-1]
    above = jax.nn.sigmoid((radius - look.k_min_perA) / soft)
    return above * jax.nn.sigmoid((look.k_max_perA - radius) / soft)


def _unit(rings: Float[Array, "n r t"]) -> Float[Array, "n r t"]:
    return rings / _size(rings)


def _size(rings: Float[Array, "n r t"]) -> Float[Array, "n 1 1"]:
    """The length of each, and 1 of those without any."""
    power = jnp.sum(rings**2, axis=(1, 2), keepdims=True)
    return jnp.sqrt(jnp.where(power > 0.0, power, 1.0))
