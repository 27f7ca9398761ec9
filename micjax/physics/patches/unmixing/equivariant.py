"""Patches as sums of a few templates, each turned by an angle of its own.

    x_p(r, t) ~ sum_i a_pi h_k(p,i) (r, t - phi_pi),    a >= 0, h >= 0, |h| = 1

A grain of a phase at any orientation is one template h at one angle, so that its phase and its
orientation are told apart. Two atoms (phase, angle) for each patch are needed on the border of two
grains of one phase, which would be a phase of its own otherwise. The correlation with all angles is
a product of Fourier series along the angle (orthogonal matching pursuit: Pati et al. 1993;
templates are improved as by Aharon et al. 2006, by gradients instead of singular vectors).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

ATOMS = 2  # for each patch


class Code(NamedTuple):
    """The atoms of each patch, the one that explains most first."""

    phase: Int[Array, "p 2"]
    turn: Int[Array, "p 2"]  # in steps of the angle
    weight: Float[Array, "p 2"]


@jax.jit
def correlations(
    patches: Float[Array, "p r t"], templates: Float[Array, "k r t"]
) -> Float[Array, "p k t"]:
    """sum x(r, t) h(r, t - phi) for each template at each angle phi."""
    spectra = jnp.einsum("prm,krm->pkm", jnp.fft.rfft(patches), jnp.conj(jnp.fft.rfft(templates)))
    return jnp.fft.irfft(spectra, n=patches.shape[-1])


def turned(rings: Float[Array, "p r t"], by: Int[Array, "p"]) -> Float[Array, "p r t"]:
    """Each shifted along the angle by so many steps."""
    angles = rings.shape[-1]
    of = (jnp.arange(angles) - by[:, None]) % angles
    return jnp.take_along_axis(rings, jnp.broadcast_to(of[:, None], rings.shape), axis=-1)


@jax.jit
def encode(
    patches: Float[Array, "p r t"], templates: Float[Array, "k r t"]
) -> tuple[Code, Float[Array, "p r t"]]:
    """The two atoms of each patch, and what they leave of it; see `atoms`."""
    code = atoms(correlations(patches, templates), correlations(templates, templates))
    left = patches
    for i in range(ATOMS):
        left -= code.weight[:, i, None, None] * turned(templates[code.phase[:, i]], code.turn[:, i])
    return code, left


@jax.jit
def located(
    patches: Float[Array, "p r t"], templates: Float[Array, "k r t"]
) -> tuple[Code, Float[Array, "p 2"]]:
    """The two atoms of each patch, and their angles in steps, between which they may lie."""
    overlaps, between = correlations(patches, templates), correlations(templates, templates)
    code = atoms(overlaps, between)
    return code, code.turn + offsets(overlaps, between, code)


def atoms(overlaps: Float[Array, "p k t"], between: Float[Array, "k k t"]) -> Code:
    """The two atoms of each patch, from its correlations and those `between` the templates.

    The second one is sought in what the first one leaves; both weights are then those of least
    squares, which a 2 x 2 matrix has in closed form. One that would be negative is not used. What
    is left of a patch is not needed: its correlations are those of the patch without those of the
    first atom (Rubinstein, Zibulevsky & Elad 2008, "batch OMP").
    """
    each = jnp.arange(len(overlaps))
    k1, t1 = _largest(overlaps)
    alone = overlaps[each, k1, t1]
    of_first = turned(between[k1], t1)
    k2, t2 = _largest(overlaps - alone[:, None, None] * of_first)
    second, common = overlaps[each, k2, t2], of_first[each, k2, t2]
    rest = 1.0 - common**2
    apart = rest > 1e-3
    rest = jnp.where(apart, rest, 1.0)
    a1, a2 = (alone - common * second) / rest, (second - common * alone) / rest
    both = apart & (a1 > 0.0) & (a2 > 0.0)
    a1, a2 = jnp.where(both, a1, jnp.maximum(alone, 0.0)), jnp.where(both, a2, 0.0)
    swap = a2 > a1

    def ordered(a, b):
        return jnp.stack([jnp.where(swap, b, a), jnp.where(swap, a, b)], axis=1)

    return Code(ordered(k1, k2), ordered(t1, t2), ordered(a1, a2))


def _largest(overlaps: Float[Array, "p k t"]) -> tuple[Int[Array, "p"], Int[Array, "p"]]:
    """Template and angle of the atom that explains most of each patch."""
    place = jnp.argmax(overlaps.reshape(len(overlaps), -1), axis=1)
    return place // overlaps.shape[-1], place % overlaps.shape[-1]


@jax.jit
def improved(
    patches, templates, code: Code, left
) -> tuple[Float[Array, "k r t"], Float[Array, ""]]:
    """Templates after a step down the squared residual, and the residual over the data.

    A patch that is explained badly (a defect, the edge of a hole) counts less: its weight is that
    of a Cauchy law whose scale is the median.
    """
    share = jnp.sum(left**2, axis=(1, 2)) / jnp.sum(patches**2, axis=(1, 2))
    trust = 1.0 / (1.0 + share / (0.05 + jnp.median(share)))
    gradient, weight = jnp.zeros_like(templates), jnp.zeros(len(templates), templates.dtype)
    for i in range(ATOMS):
        of = jax.nn.one_hot(code.phase[:, i], len(templates), dtype=templates.dtype)
        of = of * code.weight[:, i : i + 1]
        back = turned(left, -code.turn[:, i])
        gradient += jnp.einsum("pk,prt->krt", of * trust[:, None], back)
        weight += jnp.sum(of**2 * trust[:, None], axis=0)
    stepped = templates + gradient / jnp.where(weight > 0.0, weight, 1.0)[:, None, None]
    size = jnp.sqrt(jnp.sum(patches**2))
    return _unit(jnp.maximum(stepped, 0.0)), jnp.sqrt(jnp.sum(left**2)) / size


@jax.jit
def _unit(rings: Float[Array, "n r t"]) -> Float[Array, "n r t"]:
    size = jnp.sqrt(jnp.sum(rings**2, axis=(1, 2), keepdims=True))
    return rings / jnp.where(size > 0.0, size, 1.0)


def farthest_first(
    patches: Float[Array, "p r t"], count: int, rng: np.random.Generator, room: int = 0
) -> Float[Array, "k r t"]:
    """Patches as a start: one at random, then always one of those that are explained worst.

    Of the worst twentieth the one that is most like the others in it, so that no outlier is taken.
    Templates of nothing follow, where there is `room` for more than `count`.
    """
    every = np.asarray(patches)
    chosen = np.zeros((max(count, room), *every.shape[1:]), every.dtype)
    chosen[0] = every[int(rng.integers(len(every)))]
    for i in range(1, count):
        alike = np.asarray(_pairs(patches, chosen)).max(axis=-1)
        worst = every[np.argsort(alike)[: max(5, len(every) // 20)]]
        common = np.asarray(_pairs(worst, worst[:40])).mean(axis=1)
        chosen[i] = worst[int(np.argmax(common))]
    return jnp.asarray(chosen)


@jax.jit
def _pairs(patches, templates) -> Float[Array, "p k"]:
    return correlations(patches, templates).max(axis=-1)


class Dictionary(NamedTuple):
    templates: Float[Array, "k r t"]
    residual: float  # |x - model| / |x| of the patches it was learnt from
    of_starts: tuple[float, ...]  # after the first steps of each start


def learn(
    patches: Float[Array, "p r t"],
    count: int,
    rng: np.random.Generator,
    *,
    sample: int = 1000,
    starts: int = 6,
    trial_steps: int = 6,
    steps: int = 25,
    room: int = 0,
) -> Dictionary:
    """`count` templates from at most `sample` of the patches, which are scaled to length 1.

    Several starts go `trial_steps` steps, the best of them goes on to `steps`. Patches without any
    amplitude (vacuum) say nothing and are left out. One program serves all counts up to `room`.

    **Raises:** `ValueError` for patches that are not finite, and for more templates than patches.
    """
    length = np.asarray(jnp.sqrt(jnp.sum(jnp.asarray(patches) ** 2, axis=(1, 2))))
    if bad := int(np.sum(~np.isfinite(length))):
        raise ValueError(f"{bad} of {len(length)} patches are not finite")
    filled = np.flatnonzero(length > 0.0)
    if not 1 <= count <= len(filled):
        raise ValueError(
            f"{count} phases of {len(filled)} patches with reflections: from 1 to so many"
        )
    chosen = rng.choice(filled, min(sample, len(filled)), replace=False)
    patches = _unit(jnp.asarray(patches)[np.sort(chosen)])

    def go_on(templates, steps):
        residual = np.inf
        for _ in range(steps):
            templates, residual = improved(patches, templates, *encode(patches, templates))
        return float(residual), templates

    begun = [go_on(farthest_first(patches, count, rng, room), trial_steps) for _ in range(starts)]
    residual, templates = min(begun, key=lambda pair: pair[0])
    if steps > trial_steps:
        residual, templates = go_on(templates, steps - trial_steps)
    return Dictionary(templates[:count], residual, tuple(r for r, _ in begun))


def offsets(
    overlaps: Float[Array, "p k t"], between: Float[Array, "k k t"], code: Code
) -> Float[Array, "p 2"]:
    """How far each atom is from the step of the angle that it has, -1/2 to 1/2.

    The maximum of a parabola through its correlation, of the first atom with the patch, of the
    second with what the first leaves. Where one grain fills a patch the second atom is what a
    template turned by whole steps lacks, and taking it off would move the first one.
    """
    first = code.weight[:, 0, None, None] * turned(between[code.phase[:, 0]], code.turn[:, 0])
    each, apart = jnp.arange(len(overlaps)), []
    for i, seen in enumerate((overlaps, overlaps - first)):
        before, at, after = (
            seen[each, code.phase[:, i], (code.turn[:, i] + step) % seen.shape[-1]]
            for step in (-1, 0, 1)
        )
        curved = before - 2.0 * at + after
        vertex = 0.5 * (before - after) / jnp.where(curved < 0.0, curved, -jnp.inf)
        apart.append(jnp.clip(vertex, -0.5, 0.5))
    return jnp.stack(apart, axis=1)


def abundances(code: Code, count: int) -> Float[Array, "p k"]:
    """The weights of each phase, whatever its angle."""
    of = jax.nn.one_hot(code.phase, count, dtype=code.weight.dtype)
    return jnp.einsum("pi,pik->pk", code.weight, of)
