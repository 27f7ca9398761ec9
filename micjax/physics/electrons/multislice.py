"""Multislice: an electron wave through a stack of thin slices (Cowley & Moodie 1957).

Each slice multiplies the wave by t = exp(i sigma V), V its projected potential, and then lets it
travel by its thickness, exp(-i pi lambda dz k^2) in the spectrum (Kirkland 2010, ch. 6). With a
band limit both are cut at 2/3 of the highest frequency, so that no product wraps around.

Lengths are in Å, angles in mrad, arrays `[iy, ix]` with the corner as origin. Waves may have any
leading axes: probes, modes, directions.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Complex, Float

from micjax.physics.electrons.cis import cis
from micjax.physics.electrons.optics import interaction_rad_per_VA, wavelength_A

Waves = Complex[Array, "... ny nx"]
Spectrum = Complex[Array, "ny nx"]
Sampling = tuple[float | Float[Array, ""], float | Float[Array, ""]]  # (y, x), Å a pixel
Tilt = tuple[float, float] | Float[ArrayLike, "2"]  # (y, x)
MEMORY = ("store", "segment", "reversible")

CUTOFF = 2.0 / 3.0  # of the highest frequency of the coarser axis
TAPER = 0.02  # of the same, inside the cutoff
MOST_TILT_MRAD = 60.0  # for which the propagator of a tilted beam holds


@functools.partial(jax.jit, static_argnums=0)
def frequencies_inv_A(
    shape: tuple[int, int], sampling_A: Sampling
) -> tuple[Float[Array, "ny 1"], Float[Array, "1 nx"]]:
    """ky as a column and kx as a row, 1/Å, of the pixels of a Fourier transform."""
    (ny, nx), (dy, dx) = shape, sampling_A
    return (jnp.fft.fftfreq(ny) / dy)[:, None], (jnp.fft.fftfreq(nx) / dx)[None, :]


@functools.partial(jax.jit, static_argnums=(0, 2, 3))
def band_limit(
    shape: tuple[int, int], sampling_A: Sampling, cutoff: float = CUTOFF, taper: float = TAPER
) -> Float[Array, "ny nx"]:
    """1 below `cutoff` of the highest frequency, 0 above, half a cosine of width `taper` before."""
    ky, kx = frequencies_inv_A(shape, sampling_A)
    squared = ky**2 + kx**2
    k = jnp.sqrt(jnp.where(squared == 0.0, 1e-30, squared))  # a root has no slope at 0
    highest = 0.5 / jnp.maximum(*map(jnp.asarray, sampling_A))
    into = jnp.clip((k / highest - cutoff + taper) / taper, 0.0, 1.0)
    return 0.5 * (1.0 + jnp.cos(jnp.pi * into)) * (k <= cutoff * highest)


def highest_angle_mrad(sampling_A: tuple[float, float], energy_keV: float) -> float:
    """Up to where a band-limited multislice scatters: 2/3 of the highest frequency, in mrad."""
    return float(1e3 * wavelength_A(energy_keV) * CUTOFF * 0.5 / max(sampling_A))


def propagator(
    shape: tuple[int, int],
    sampling_A: Sampling,
    thickness_A: Float[ArrayLike, ""],
    energy_keV: Float[ArrayLike, ""],
    tilt_mrad: Tilt = (0.0, 0.0),
) -> Spectrum:
    """exp(-i pi lambda dz k^2) exp(-2 pi i dz k . tan(tilt)), without a band limit.

    **Arguments:**

    - `tilt_mrad`: of the beam against the normal of the slices, (y, x); small (Chen et al. 1997).

    **Raises:** `ValueError` for a tilt that is not small.
    """
    turns = _turns_per_A(shape, sampling_A, energy_keV, tilt_mrad)
    return cis(-2.0 * jnp.pi * _fraction(thickness_A * turns))


def _turns_per_A(shape, sampling_A, energy_keV, tilt_mrad) -> Float[Array, "ny nx"]:
    """By how many turns a wave of each frequency falls behind, for each Å."""
    known = [float(a) for a in tilt_mrad if not isinstance(a, jax.core.Tracer)]
    if not all(abs(a) <= MOST_TILT_MRAD for a in known):
        raise ValueError(f"a tilt of {known} mrad: up to {MOST_TILT_MRAD:g}, for small angles")
    ky, kx = frequencies_inv_A(shape, sampling_A)
    tan_y, tan_x = (jnp.tan(1e-3 * jnp.asarray(a)) for a in tilt_mrad)
    return 0.5 * wavelength_A(energy_keV) * (ky**2 + kx**2) + ky * tan_y + kx * tan_x


def transmission(
    potential_VA: Float[Array, "slices my mx"],
    energy_keV: Float[ArrayLike, ""],
    limit: Float[Array, "ny nx"] | None = None,
) -> Complex[Array, "slices ny nx"]:
    """exp(i sigma V) of each slice, cut by `limit` in the spectrum where one is given.

    The potential may have more pixels than `limit`, over the same box: exp(i sigma V) has finer
    details than V, which fall back onto lower frequencies (alias) where no pixel holds them. With
    twice as many along each axis little of that is left.

    **Raises:** `ValueError` for a potential of fewer pixels.
    """
    sigma = jnp.asarray(interaction_rad_per_VA(energy_keV), potential_VA.dtype)
    if limit is None:
        return cis(sigma * potential_VA)
    limit = limit.astype(potential_VA.dtype)
    return jax.lax.map(lambda v: _cut(cis(sigma * v), limit), potential_VA)


def _cut(t: Complex[Array, "my mx"], limit: Float[Array, "ny nx"]) -> Complex[Array, "ny nx"]:
    return jnp.fft.ifft2(lowest(jnp.fft.fft2(t), limit.shape) * limit)


def lowest(spectra: Complex[Array, "... my mx"], shape: tuple[int, int]):
    """The lowest frequencies, as the spectra of images of so many pixels over the same box.

    **Raises:** `ValueError` for fewer frequencies than that.
    """
    given = spectra.shape[-2:]
    if given == shape:
        return spectra
    if min(np.subtract(given, shape)) < 0:
        raise ValueError(f"{given} pixels are fewer than {shape}")
    rows, columns = (np.fft.fftfreq(n, 1.0 / n).astype(int) for n in shape)
    return spectra[..., rows[:, None], columns] * (math.prod(shape) / math.prod(given))


def propagate(
    waves: Waves,
    transmissions: Complex[Array, "slices ny nx"],
    thickness_A: float | Float[ArrayLike, "..."],
    sampling_A: Sampling,
    energy_keV: Float[ArrayLike, ""],
    *,
    tilt_mrad: Tilt = (0.0, 0.0),
    limit: Float[Array, "ny nx"] | None = None,
) -> Waves:
    """The waves behind the last slice, from the transmission functions of all.

    For many waves through one specimen: what depends on the specimen alone is computed once. On a
    CPU the waves go one after the other, each of which then stays in the cache.
    """
    shape, leading = waves.shape[-2:], waves.shape[:-2]
    waves = waves.astype(jnp.result_type(waves, transmissions)).reshape(-1, *shape)
    turns = _turns_per_A(shape, sampling_A, energy_keV, tilt_mrad)
    dz = _common(thickness_A, len(transmissions))

    def travel(d):
        return _travel(d, turns, limit).astype(waves.dtype)

    if dz.ndim == 0:
        once = travel(dz)
        slices, to_next = (transmissions,), lambda t: (t, once)
    else:
        slices, to_next = (transmissions, dz), lambda t, d: (t, travel(d))

    def step(wave, this_slice):
        t, p = to_next(*this_slice)
        return jnp.fft.ifft2(jnp.fft.fft2(t * wave) * p), None

    def through(wave):
        return jax.lax.scan(step, wave, slices)[0]

    one_by_one = jax.default_backend() == "cpu" and len(waves) > 1
    after = jax.lax.map(through, waves) if one_by_one else through(waves)
    return after.reshape(*leading, *shape)


def multislice(
    waves: Waves,
    potential_VA: Float[Array, "slices my mx"],
    thickness_A: float | Float[ArrayLike, "..."],
    sampling_A: Sampling,
    energy_keV: Float[ArrayLike, ""],
    *,
    tilt_mrad: Tilt = (0.0, 0.0),
    limited: bool = True,
    memory: str = "store",
) -> Waves:
    """The waves behind the last slice; the beam travels along +z, through slice 0 first.

    **Arguments:**

    - `potential_VA`: projected over each slice, V Å; of as many pixels as the waves, or of more
        over the same box (see `transmission`).
    - `thickness_A`: of the slices, one number or one for each.
    - `sampling_A`: Å a pixel, (y, x).
    - `limited`: cut at 2/3 of the highest frequency.
    - `memory`: what is held, beside the potential. "store": the transmission function of each
        slice, and for a derivative one wave a slice. "segment": for a derivative one wave in each
        of sqrt(slices) segments, which are computed twice. "reversible": nothing; for a derivative
        the wave is computed backwards (needs `limited=False`: a cut wave cannot be restored).

    **Raises:** `ValueError` for another memory, or one that cannot be had; a potential of other
    pixels that is not limited, or of fewer pixels.
    """
    if memory not in MEMORY:
        raise ValueError(f"memory {memory!r}; there are {', '.join(MEMORY)}")
    if memory == "reversible" and limited:
        raise ValueError("memory 'reversible' needs limited=False: a cut wave cannot be restored")
    shape, count = waves.shape[-2:], len(potential_VA)
    if not limited and potential_VA.shape[-2:] != shape:
        raise ValueError(
            f"waves of {shape} pixels, a potential of {potential_VA.shape[-2:]}: they may differ "
            "with limited=True only"
        )
    waves = waves.astype(jnp.result_type(waves, potential_VA, jnp.complex64))
    real = waves.real.dtype
    limit = band_limit(shape, sampling_A).astype(real) if limited else None
    potential_VA = potential_VA.astype(real)
    if memory == "store" and np.prod(waves.shape[:-2]) > 1:
        t = transmission(potential_VA, energy_keV, limit)
        return propagate(
            waves, t, thickness_A, sampling_A, energy_keV, tilt_mrad=tilt_mrad, limit=limit
        )
    dz = jnp.broadcast_to(jnp.asarray(thickness_A, real), (count,))
    sigma = jnp.asarray(interaction_rad_per_VA(energy_keV), real)
    turns = _turns_per_A(shape, sampling_A, energy_keV, tilt_mrad).astype(real)
    if memory == "reversible":
        return _reversible(waves, potential_VA, sigma, dz, turns)
    alike = _common(thickness_A, count)
    once = _travel(alike.astype(real), turns, limit) if alike.ndim == 0 else None

    @jax.checkpoint
    def step(waves, this_slice):
        v, d = this_slice
        t = cis(sigma * v)  # here, so that no phases of all slices are held
        t = t if limit is None else _cut(t, limit)
        travel = _travel(d, turns, limit) if once is None else once
        return jnp.fft.ifft2(jnp.fft.fft2(t * waves) * travel)

    if memory == "store":
        return jax.lax.scan(lambda w, s: (step(w, s), None), waves, (potential_VA, dz))[0]
    return _in_segments(step, waves, (potential_VA, dz))


def _travel(dz, turns, limit) -> Spectrum:
    """What the way through a slice does to a spectrum."""
    travel = cis(-2.0 * jnp.pi * _fraction(dz * turns))
    return travel if limit is None else travel * limit


def _common(thickness_A, count: int) -> Float[Array, ""] | Float[Array, "slices"]:
    """One number where all slices are known to be equal: one propagator serves them all."""
    if not isinstance(thickness_A, jax.core.Tracer):
        known = np.asarray(thickness_A, float)
        if known.ndim == 0 or np.all(known == known.flat[0]):
            return jnp.asarray(known.flat[0])
    dz = jnp.asarray(thickness_A)
    return dz if dz.ndim == 0 else jnp.broadcast_to(dz, (count,))


def _in_segments(step, waves: Waves, slices: Any) -> Waves:
    """A scan of scans, of which only the outer one keeps waves."""
    count = jax.tree.leaves(slices)[0].shape[0]
    inner = max(1, round(np.sqrt(count)))
    in_segments = count - count % inner

    @jax.checkpoint
    def segment(waves, some):
        return jax.lax.scan(lambda w, s: (step(w, s), None), waves, some)[0], None

    first = jax.tree.map(lambda a: a[:in_segments].reshape(-1, inner, *a.shape[1:]), slices)
    rest = jax.tree.map(lambda a: a[in_segments:], slices)
    waves = jax.lax.scan(segment, waves, first)[0]
    return segment(waves, rest)[0] if count % inner else waves


@jax.custom_vjp
def _reversible(waves: Waves, potential, sigma, dz, turns) -> Waves:
    def step(waves, this_slice):
        v, d = this_slice
        return jnp.fft.ifft2(jnp.fft.fft2(cis(sigma * v) * waves) * _travel(d, turns, None)), None

    return jax.lax.scan(step, waves, (potential, dz))[0]


def _reversible_forward(waves, potential, sigma, dz, turns):
    after = _reversible(waves, potential, sigma, dz, turns)
    return after, (after, potential, sigma, dz, turns)


def _reversible_backward(kept, cotangent):
    """The wave and its adjoint go backwards together: every slice is unitary.

    JAX hands in the conjugate of the adjoint wave of the physicists.
    """
    after, potential, sigma, dz, turns = kept

    def back(carry, this_slice):
        wave, adjoint, d_sigma, d_turns = carry
        v, d = this_slice
        wave, adjoint = jnp.fft.fft2(wave), jnp.fft.fft2(adjoint)
        # d loss / d(angle) of a factor exp(i angle) is -Im(conj(adjoint) factor wave)
        leading = tuple(range(wave.ndim - 2))
        of_travel = jnp.sum(jnp.imag(wave * jnp.conj(adjoint)), leading) / v.size
        d_dz = 2.0 * jnp.pi * jnp.sum(of_travel * turns)
        d_turns = d_turns + 2.0 * jnp.pi * d * of_travel
        travel = cis(2.0 * jnp.pi * _fraction(d * turns))
        wave, adjoint = jnp.fft.ifft2(wave * travel), jnp.fft.ifft2(adjoint * travel)
        d_phase = -jnp.sum(jnp.imag(wave * jnp.conj(adjoint)), leading)
        t = cis(-sigma * v)
        carry = (wave * t, adjoint * t, d_sigma + jnp.sum(d_phase * v), d_turns)
        return carry, (sigma * d_phase, d_dz)

    start = (after, jnp.conj(cotangent), jnp.zeros_like(sigma), jnp.zeros_like(turns))
    (_, adjoint, d_sigma, d_turns), (d_potential, d_dz) = jax.lax.scan(
        back, start, (potential, dz), reverse=True
    )
    return jnp.conj(adjoint), d_potential, d_sigma, d_dz, d_turns


_reversible.defvjp(_reversible_forward, _reversible_backward)


def _fraction(turns):
    """Less whole turns: the cosine of a large number is a poor one in single precision."""
    return turns - jax.lax.stop_gradient(jnp.round(turns))
