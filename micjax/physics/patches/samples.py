"""Patches to learn from: spread over an image, and each within one grain as far as can be seen.

On the border of two grains there is neither of their spectra. Where a patch and those half a
window beside it show the same lattice at the same angle, there is one grain.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from micjax.physics.patches.local_spectra import LocalSpectra, Spectra, noise_variance
from micjax.physics.patches.polar import Polar
from micjax.physics.patches.waves import cut

AT_ONCE = 250  # patches in one compiled program
BELOW = 0.15  # the best patches: how much less alike those of one grain may be
WHOLE = 0.9  # part of a window that was measured, from which on a patch shows a grain alone


def spread(shape: tuple[int, int], local: LocalSpectra, count: int) -> Int[np.ndarray, "n 2"]:
    """First row and column of about `count` patches, evenly spread over an image of this shape."""
    room = np.array(shape) - local.size
    step = max(1.0, float(np.sqrt(np.prod(room + local.size / 2) / count)))
    along = [np.unique(np.linspace(0, r, 1 + int(r / step)).round().astype(int)) for r in room]
    return np.stack(np.meshgrid(*along, indexing="ij"), -1).reshape(-1, 2)


def polar_of(spectra: Spectra, polar: Polar) -> Float[Array, "ny nx r t"]:
    """Amplitudes above the noise, which the highest frequencies show."""
    return polar(spectra, noise_variance(spectra))


class Sample(NamedTuple):
    """Some patches."""

    rings: Float[np.ndarray, "n r t"]  # amplitudes, their noise included
    noise: Float[np.ndarray, "n"]  # its mean power
    filled: Float[np.ndarray, "n"]  # the part of the window in which something was measured


@eqx.filter_jit
def _sample(patches, measured, polar: Polar) -> Sample:
    def spectrum(patch, known):
        spectra = polar.local(patch, known)
        noise = noise_variance(spectra) * spectra.noise
        return Sample(polar(spectra)[0, 0], noise[0, 0], spectra.filled[0, 0])

    return jax.vmap(spectrum)(patches, measured)


def sampled(
    image: Float[np.ndarray, "h w"],
    measured: Float[np.ndarray, "h w"] | None,
    polar: Polar,
    corners: Int[np.ndarray, "n 2"],
) -> Sample:
    """The patches whose first row and column these are."""
    size = min(AT_ONCE, len(corners))
    # the last ones again, so that all are of one shape
    starts = [*range(0, len(corners) - size, size), len(corners) - size]
    every: Sample | None = None
    for start in starts:
        of = slice(start, start + size)
        patches, known = (
            None if v is None else jnp.asarray(cut(v, corners[of], polar.local.size), float)
            for v in (image, measured)
        )
        parts = _sample(patches, known, polar)
        if every is None:
            every = Sample(*(np.empty((len(corners), *v.shape[1:]), v.dtype) for v in parts))
        for array, part in zip(every, parts, strict=True):
            array[of] = part
    return every


def alike(
    image: Float[np.ndarray, "h w"],
    measured: Float[np.ndarray, "h w"] | None,
    polar: Polar,
    corners: Int[np.ndarray, "n 2"],
) -> tuple[Sample, Float[np.ndarray, "n"]]:
    """Patches, and how much each is like those half a window beside it.

    The least of the cosines with them, 0 where something was not measured or has no amplitude. At
    the rim of the image those within it count.
    """
    half = polar.local.size // 2
    last = np.array(image.shape) - polar.local.size
    beside = half * np.array([[0, 0], [-1, 0], [1, 0], [0, -1], [0, 1]])
    places = np.clip(corners[:, None] + beside, 0, last)
    every = sampled(image, measured, polar, places.reshape(-1, 2))
    rings = np.asarray(polar.above(jnp.asarray(every.rings), jnp.asarray(every.noise)))
    rings = rings.reshape(len(corners), len(beside), *rings.shape[1:])
    size = np.sqrt((rings**2).sum((2, 3)))
    cosine = np.einsum("nrt,nbrt->nb", rings[:, 0], rings[:, 1:])
    cosine /= np.maximum(size[:, :1] * size[:, 1:], np.finfo(rings.dtype).tiny)
    whole = (every.filled.reshape(size.shape) > WHOLE).all(1)
    centre = Sample(*(v[:: len(beside)] for v in every))
    return centre, np.where(whole, cosine.min(1), 0.0)


def of_every_grain(
    rings: Float[np.ndarray, "n r t"], likeness: Float[np.ndarray, "n"], max_count: int
) -> Int[np.ndarray, "m"]:
    """Which patches to learn from: those of one grain each, and as many of each grain.

    `likeness` of patches of one grain is high, how high is a matter of noise; so they are those
    within `BELOW` of its ninth decile. Those which are as much alike are of one grain, of which the
    best come first; else a large grain would crowd out the others.
    """
    least = np.quantile(likeness, 0.9) - BELOW
    order = [i for i in np.argsort(-likeness) if likeness[i] > max(least, 0.0)]
    flat = rings.reshape(len(rings), -1)
    unit = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), np.finfo(flat.dtype).tiny)
    grains: list[list[int]] = []
    for i in order:
        cosine = [float(unit[i] @ unit[grain[0]]) for grain in grains]
        if cosine and max(cosine) > least:
            grains[int(np.argmax(cosine))].append(int(i))
        else:
            grains.append([int(i)])
    rounds = [grain[n] for n in range(len(order)) for grain in grains if n < len(grain)]
    return np.array(rounds[:max_count], int)
